"""A `Recipe` decides the pixels: every knob of one enlargement, complete and with the seed resolved.

A preset is a `Recipe`, a request is `replace(preset, **given)`. A recipe travels with the job and into the
result's metadata, so a picture can be made again from it. It knows no file names, no jobs and no JSON field
names of the public API (`hiresfix.wire` does).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from enum import StrEnum
from typing import Any, Self

from hiresfix.errors import NotUnderstood

MAX_SEED = 2**53 - 1
SCALES = (1, 2, 4, 8)
AUTO = "auto"
"""The enlarger that suits the picture, found by looking at it."""
CREATIVITY_OF_NEXT_PASS = 0.8


class OutputFormat(StrEnum):
    PNG = "png"
    JPG = "jpg"
    WEBP = "webp"


class Engine(StrEnum):
    """Which story the engine tells.

    `faithful` enlarges only; `ganprior` works against a GAN's prior, with nothing downloaded; `diffusion` is Clarity's
    hi-res fix, with a Stable Diffusion 1.x checkpoint and a tile ControlNet.
    """

    FAITHFUL = "faithful"
    GAN_PRIOR = "ganprior"
    DIFFUSION = "diffusion"


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """All that decides the pixels.

    scale: multiplier of both sides, one of 1, 2, 4, 8. creativity 0..1: how much detail may be invented.
    resemblance 0..3: how tightly the result, scaled down, follows the input. dynamic 1..50: guidance.
    steps 1..100. sharpen 0..10, 0 = off. seed 0..2^53-1.
    Operator's side: engine; enlarger, a weight name of `models.catalog` or `AUTO`; tile, its input pixels a side.
    Operator's side of diffusion: checkpoint, vae, controlnet, loras (name and strength of those always used),
    offered_loras (those a prompt may name), embeddings (always in the negative prompt): names of installed models;
    sampler, a name of `engine.sampling`; classic: what the original computes, in place of what is better;
    tile_height and tile_width in latent pixels; colour_lock 0..1: of what `engine.clarity.tie` says is tied to the
    input; nothing of it with classic.
    Operator's side of trust: least_drift_db, the PSNR of the result scaled down against the input below which it is not
    returned; 0 for none, as where prompts may change everything.
    Raises ValueError for a value outside its range.
    """

    engine: Engine = Engine.FAITHFUL
    enlarger: str = "realsr-df2k"
    scale: int = 2
    creativity: float = 0.35
    resemblance: float = 0.6
    dynamic: float = 6.0
    steps: int = 18
    sharpen: float = 0.0
    prompt: str = ""
    negative_prompt: str = ""
    seed: int = 0
    output_format: OutputFormat = OutputFormat.PNG
    tile: int = 256
    checkpoint: str = ""
    vae: str = ""
    controlnet: str = ""
    loras: tuple[tuple[str, float], ...] = ()
    offered_loras: tuple[str, ...] = ()
    embeddings: tuple[str, ...] = ()
    sampler: str = "dpmpp-3m-sde-karras"
    classic: bool = False
    tile_height: int = 144
    tile_width: int = 112
    colour_lock: float = 1.0
    least_drift_db: float = 0.0

    def __post_init__(self) -> None:
        if self.scale not in SCALES:
            raise ValueError(f"scale must be one of {SCALES}, got {self.scale!r}")
        for name, low, high in (
            ("creativity", 0, 1),
            ("resemblance", 0, 3),
            ("dynamic", 1, 50),
            ("steps", 1, 100),
            ("sharpen", 0, 10),
            ("seed", 0, MAX_SEED),
            ("tile", 32, 2048),
            ("tile_height", 16, 1024),
            ("tile_width", 16, 1024),
            ("colour_lock", 0, 1),
            ("least_drift_db", 0, 100),
        ):
            value = getattr(self, name)
            if not (math.isfinite(value) and low <= value <= high):
                raise ValueError(f"{name} must lie in {low}..{high}, got {value!r}")

    def of_pass(self, number: int) -> Self:
        """For a later pass over what the first enlarged, counted from 0: less creativity, a seed of its own."""
        return replace(
            self,
            creativity=self.creativity * CREATIVITY_OF_NEXT_PASS**number,
            seed=(self.seed + number) % (MAX_SEED + 1),
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; `from_dict` gives the same recipe back."""
        return {name: getattr(self, name) for name in self.__slots__}  # all of them are plain, unlike for `asdict`

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Raises NotUnderstood for unknown keys and engines: what a newer release wrote must not be half understood."""
        unknown = values.keys() - {field.name for field in fields(cls)}
        if unknown or values.get("engine", Engine.FAITHFUL) not in set(Engine):
            raise NotUnderstood("The job's recipe was written by a newer release. Upgrade hiresfix on this worker.")
        return cls(
            **{
                **values,
                "engine": Engine(values.get("engine", Engine.FAITHFUL)),
                "output_format": OutputFormat(values.get("output_format", OutputFormat.PNG)),
                "loras": tuple((name, strength) for name, strength in values.get("loras", ())),
                "offered_loras": tuple(values.get("offered_loras", ())),
                "embeddings": tuple(values.get("embeddings", ())),
            }
        )
