"""A `Recipe` holds every parameter that decides the pixels of one upscale, complete and with the seed resolved.

A preset is a `Recipe`; a request is `replace(preset, **values)`. A recipe travels with the job and into the metadata of
the result, so that the same image can be made again. This module knows no file names, no jobs and no JSON field names
of the public API (`hiresfix.wire` does).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from enum import StrEnum
from typing import Any, Final, NamedTuple, Self

from hiresfix.errors import NotUnderstood

MAX_SEED = 2**53 - 1
SCALES = (1, 2, 4, 8)
AUTO = "auto"
"""Choose the super-resolution network by looking at the image."""
NEXT_PASS_CREATIVITY = 0.8
"""Factor on `creativity` from one pass to the next."""


class Range(NamedTuple):
    """Inclusive bounds of a number."""

    low: int
    high: int


RANGES: Final[Mapping[str, Range]] = {
    "creativity": Range(0, 1),
    "resemblance": Range(0, 3),
    "dynamic": Range(1, 50),
    "steps": Range(1, 100),
    "sharpen": Range(0, 10),
    "seed": Range(0, MAX_SEED),
    "tile": Range(32, 2048),
    "tile_height": Range(16, 1024),
    "tile_width": Range(16, 1024),
    "colour_lock": Range(0, 1),
    "least_drift_db": Range(0, 100),
}
"""Bounds of the numeric fields of a `Recipe`. `models.catalog` takes the bounds of its parameters from here."""


class OutputFormat(StrEnum):
    PNG = "png"
    JPG = "jpg"
    WEBP = "webp"


class Engine(StrEnum):
    """Engine that makes the pixels.

    `faithful` only runs a super-resolution network. `ganprior` is the offline engine: it adds texture with nothing
    downloaded. `diffusion` is the hi-res fix with a Stable Diffusion 1.x checkpoint and a tile ControlNet.
    """

    FAITHFUL = "faithful"
    OFFLINE = "ganprior"
    DIFFUSION = "diffusion"


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Everything that decides the pixels. `RANGES` holds the bounds of the numbers; `scale` is one of `SCALES`.

    Set by the caller:

    - scale: multiplier of both sides.
    - creativity: how much detail may be invented.
    - resemblance: how closely the result, scaled down, follows the input.
    - dynamic: guidance scale (strength of contrast and detail).
    - steps: number of denoising steps.
    - sharpen: sharpening after the last pass; 0 is off.
    - prompt, negative_prompt, seed, output_format.

    Set by the operator:

    - engine; enlarger: the super-resolution network, a weight name of `models.catalog` or `AUTO`.
    - tile: side of a tile of that network, in input pixels.
    - least_drift_db: minimum PSNR of the scaled-down result against the input; below it the result is rejected. 0 turns
      the check off, for presets whose prompts may change everything.

    Set by the operator, for diffusion only (names are names of installed models):

    - checkpoint, vae, controlnet.
    - loras: name and strength of the LoRAs that are always used; offered_loras: LoRAs that a prompt may name.
    - embeddings: textual inversions that are always in the negative prompt.
    - sampler: a name in `engine.diffusion.sampling`.
    - classic: compute what the original program computes, instead of our improvements.
    - tile_height, tile_width: in latent pixels.
    - colour_lock: how much of what `engine.diffusion.pipeline` ties to the input is tied; not used with `classic`.

    Raises:
        ValueError: a value is outside its range.
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
        for name, (low, high) in RANGES.items():
            value = getattr(self, name)
            if not (math.isfinite(value) and low <= value <= high):
                raise ValueError(f"{name} must lie in {low}..{high}, got {value!r}")

    def for_pass(self, number: int) -> Self:
        """Return the recipe of pass `number`, counted from 0: each pass has less creativity and its own seed."""
        return replace(
            self,
            creativity=self.creativity * NEXT_PASS_CREATIVITY**number,
            seed=(self.seed + number) % (MAX_SEED + 1),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; `from_dict` turns them back into the same recipe."""
        return {name: getattr(self, name) for name in self.__slots__}  # `asdict` would copy values that are plain

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Read what `to_dict` wrote; missing fields get their defaults.

        Raises:
            NotUnderstood: a key or the engine is unknown, so a newer release wrote the values.
        """
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
