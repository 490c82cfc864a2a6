"""What a worker has to get right before it takes jobs: a small picture of which everybody knows how it looks enlarged.

Guarantees: a worker that passes has read its weights, computed on its device and encoded what came out; the result has
twice the sides and, scaled down, is the picture again, within what an engine may invent. That it invents well, or that
a large picture fits, it does not tell.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hiresfix.errors import EngineFailed, HiresfixError
from hiresfix.images import Encoded
from hiresfix.models import catalog
from hiresfix.recipe import OutputFormat, Recipe

SIDES = (32, 32)
GENERAL_SIDES = (96, 160)
"""Of which a latent has no two equal sides and none of one pixel on any level: networks compiled for it fit any."""
SCALE = 2
STEPS = 4
FARTHEST = 24.0
"""Levels of 255 by which samples may differ on average, scaled down: the offline engine 0.2, plain grey about 40."""

Make = Callable[[bytes, Recipe], Encoded]


def recipe(preset: Recipe) -> Recipe:
    """What jobs without parameters run by this preset, in as few steps as show that it works."""
    usual = catalog.CLARITY.recipe({}, seed=1, preset=preset)
    return replace(usual, scale=SCALE, steps=min(usual.steps, STEPS), output_format=OutputFormat.PNG)


def run(make: Make, preset: Recipe, sides: tuple[int, int] = SIDES) -> None:
    """Raises EngineFailed, saying what went wrong, unless `make` enlarges the picture as it should."""
    picture = drawn(*sides)
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    try:
        made = make(file.getvalue(), recipe(preset))
    except HiresfixError as error:
        raise EngineFailed(f"The self test failed, so this worker takes no jobs. {error.message}") from error
    judge(np.asarray(Image.open(io.BytesIO(made.data)).convert("RGB")), picture)


def drawn(height: int = SIDES[0], width: int = SIDES[1]) -> NDArray[np.uint8]:
    """Smooth colours on all three axes and one edge, (height, width, 3)."""
    y, x = np.meshgrid(np.linspace(0, 1, height), np.linspace(0, 1, width), indexing="ij")
    edge = np.where(x + y > 1, 48, 0)
    return np.stack([40 + 160 * x, 40 + 160 * y, 200 - 160 * x + edge], axis=-1).astype(np.uint8)


def judge(result: NDArray[np.uint8], picture: NDArray[np.uint8]) -> None:
    """Raises EngineFailed for a result that is not the picture, enlarged."""
    height, width = (side * SCALE for side in picture.shape[:2])
    if result.shape != (height, width, 3):
        raise _failed(f"gave {result.shape[1]}x{result.shape[0]} pixels and not {width}x{height}")
    small = result.reshape(height // SCALE, SCALE, width // SCALE, SCALE, 3).mean(axis=(1, 3))
    apart = float(np.abs(small - picture).mean())
    if not apart <= FARTHEST:
        raise _failed(f"gave another picture, {apart:.0f} levels away on average")


def _failed(what: str) -> EngineFailed:
    return EngineFailed(
        f"The self test {what}, so this worker takes no jobs. Check weights and driver: hiresfix models verify, "
        "hiresfix doctor. HIRESFIX_SELF_TEST=0 skips the test."
    )
