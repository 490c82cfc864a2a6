"""Runs of the engine, kept on disk: a table that was interrupted, or gained a column, runs no network twice.

Keyed by the input, by what was asked for and by every line of the code that makes the pixels, so that nothing stale
is ever shown.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

import hiresfix.engine
from hiresfix.engine import devices
from hiresfix.engine.superres import networks, tiled_inference
from hiresfix.engine.upscaler import Upscaler
from hiresfix.engine.weights import superres_files
from hiresfix.images import DecodedImage
from hiresfix.models.catalog import find_weights
from hiresfix.recipe import Recipe

from .pictures import Pixels

FOLDER = Path(tempfile.gettempdir()) / "hiresfix-benchmarks"
_CPU = torch.device("cpu")
_NETWORK_CODE = ("enlarging.py", "esrgan.py", "memory.py", "resampling.py", "tiling.py", "weights.py")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Made:
    """evaluations: of the enlarger on the whole input; seconds: of processor time."""

    rgb: Pixels
    evaluations: int
    seconds: float


class Runs:
    """Makes what is not there yet, on the CPU with one thread."""

    def __init__(self) -> None:
        torch.set_num_threads(1)
        FOLDER.mkdir(parents=True, exist_ok=True)
        self._upscaler = Upscaler("cpu")

    def upscale(self, rgb: Pixels, recipe: Recipe) -> Made:
        """By the engine's front page."""

        def make() -> Made:
            start = time.process_time()
            upscaled = self._upscaler.run(DecodedImage(rgb=rgb), recipe, lambda fraction: None)
            return Made(
                rgb=np.asarray(upscaled.picture.rgb, np.uint8),
                evaluations=sum(upscaled.metadata.get("evaluations", [1])),
                seconds=time.process_time() - start,
            )

        return _kept(_key(rgb, json.dumps(recipe.to_dict(), sort_keys=True), _code("*.py")), make)

    def network(self, rgb: Pixels, name: str) -> Made:
        """The network of this name alone, at four times the size."""

        def make() -> Made:
            start = time.process_time()
            result = tiled_inference.enlarge(
                _network(name), rgb, 256, factor=4, finish=lambda y, x: y, report=lambda fraction: None
            )
            return Made(rgb=result, evaluations=1, seconds=time.process_time() - start)

        with torch.inference_mode():
            return _kept(_key(rgb, name, _code(*_NETWORK_CODE)), make)


@cache
def _network(name: str) -> networks.Network:
    weight = find_weights(name)
    assert weight is not None
    return networks.place(superres_files.load(weight), _CPU, devices.choose_dtype(_CPU))


@cache
def _code(*patterns: str) -> str:
    """A digest of these sources of the engine."""
    folder = Path(next(iter(hiresfix.engine.__path__)))
    digest = hashlib.sha256()
    for pattern in patterns:
        for path in sorted(folder.rglob(pattern)):
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _key(rgb: Pixels, asked: str, code: str) -> str:
    return hashlib.sha256(
        b"\0".join((str(rgb.shape).encode(), rgb.tobytes(), asked.encode(), code.encode()))
    ).hexdigest()


def _kept(key: str, make: Callable[[], Made]) -> Made:
    path = FOLDER / f"{key[:40]}.npz"
    if path.exists():
        with np.load(path) as kept:
            return Made(rgb=kept["rgb"], evaluations=int(kept["evaluations"]), seconds=float(kept["seconds"]))
    made = make()
    part = path.with_suffix(f".{os.getpid()}.part.npz")
    np.savez(part, rgb=made.rgb, evaluations=made.evaluations, seconds=made.seconds)
    part.replace(path)
    return made


def progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns)
