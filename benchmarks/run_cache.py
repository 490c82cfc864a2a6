"""Cache of engine runs on disk: an interrupted table, or one with a new column, runs no network twice.

The key covers the input, the recipe and every line of the code that makes the pixels, so stale results are never used.
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
from benchmarks.source_images import Pixels
from hiresfix.engine import devices
from hiresfix.engine.superres import networks, tiled_inference
from hiresfix.engine.upscaler import Upscaler
from hiresfix.engine.weights import superres_files
from hiresfix.images import DecodedImage
from hiresfix.models.catalog import find_weights
from hiresfix.recipe import Recipe

FOLDER = Path(tempfile.gettempdir()) / "hiresfix-benchmarks"
_CPU = torch.device("cpu")
_NETWORK_CODE = (
    "devices.py",
    "networks.py",
    "resampling.py",
    "superres_files.py",
    "tiled_inference.py",
    "tiling.py",
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CachedRun:
    """Result of a run. `evaluations` counts network passes over the whole input; `seconds` is CPU time."""

    rgb: Pixels
    evaluations: int
    seconds: float


class RunCache:
    """Run the engine on the CPU with one thread, unless the result is cached."""

    def __init__(self) -> None:
        torch.set_num_threads(1)
        FOLDER.mkdir(parents=True, exist_ok=True)
        self._upscaler = Upscaler("cpu")

    def upscale(self, rgb: Pixels, recipe: Recipe) -> CachedRun:
        """Run `Upscaler.run`."""

        def make() -> CachedRun:
            start = time.process_time()
            upscaled = self._upscaler.run(DecodedImage(rgb=rgb), recipe, lambda fraction: None)
            return CachedRun(
                rgb=np.asarray(upscaled.image.rgb, np.uint8),
                evaluations=sum(upscaled.metadata.get("evaluations", [1])),
                seconds=time.process_time() - start,
            )

        return _cached(_key(rgb, json.dumps(recipe.to_dict(), sort_keys=True), _code("*.py")), make)

    def network(self, rgb: Pixels, name: str) -> CachedRun:
        """Run one network alone, at four times the size."""

        def make() -> CachedRun:
            start = time.process_time()
            result = tiled_inference.upscale(
                _network(name), rgb, 256, factor=4, postprocess=lambda y, x: y, report=lambda fraction: None
            )
            return CachedRun(rgb=result, evaluations=1, seconds=time.process_time() - start)

        with torch.inference_mode():
            return _cached(_key(rgb, name, _code(*_NETWORK_CODE)), make)


@cache
def _network(name: str) -> networks.Network:
    weight = find_weights(name)
    assert weight is not None
    return networks.place(superres_files.load(weight), _CPU, devices.choose_dtype(_CPU))


@cache
def _code(*patterns: str) -> str:
    """Return a digest of these source files of the engine."""
    folder = Path(next(iter(hiresfix.engine.__path__)))
    digest = hashlib.sha256()
    for pattern in patterns:
        for path in sorted(folder.rglob(pattern)):
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _key(rgb: Pixels, request: str, code: str) -> str:
    return hashlib.sha256(
        b"\0".join((str(rgb.shape).encode(), rgb.tobytes(), request.encode(), code.encode()))
    ).hexdigest()


def _cached(key: str, make: Callable[[], CachedRun]) -> CachedRun:
    path = FOLDER / f"{key[:40]}.npz"
    if path.exists():
        with np.load(path) as stored:
            return CachedRun(
                rgb=stored["rgb"], evaluations=int(stored["evaluations"]), seconds=float(stored["seconds"])
            )
    run = make()
    part = path.with_suffix(f".{os.getpid()}.part.npz")
    np.savez(part, rgb=run.rgb, evaluations=run.evaluations, seconds=run.seconds)
    part.replace(path)
    return run


def progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns)
