"""Worker self-test: upscale a synthetic image and check the result before taking jobs.

Guarantees: a worker that passes has read its weights, computed on its device and encoded the result; the result has
twice the sides and, scaled down, matches the image within what an engine may invent. The test does not show that the
invented detail is good, or that a large image fits.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hiresfix.errors import EngineFailed, HiresfixError
from hiresfix.images import EncodedImage
from hiresfix.models import catalog
from hiresfix.recipe import OutputFormat, Recipe

IMAGE_SIDES = (32, 32)
"""Height and width."""
DISTINCT_SIDES = (96, 160)
"""The sides of its latent differ from each other and from 1 on every level, so networks compiled for it fit any."""
SCALE = 2
STEPS = 4
MAX_MEAN_DIFFERENCE = 24.0
"""In levels of 255, after scaling down: the offline engine differs by 0.2, plain grey by about 40."""

UpscaleFunction = Callable[[bytes, Recipe], EncodedImage]


def recipe(preset: Recipe) -> Recipe:
    """Return what a job without parameters runs by this preset, with as few steps as a test needs."""
    default = catalog.CLARITY.recipe({}, seed=1, preset=preset)
    return replace(default, scale=SCALE, steps=min(default.steps, STEPS), output_format=OutputFormat.PNG)


def run(upscale: UpscaleFunction, preset: Recipe, sides: tuple[int, int] = IMAGE_SIDES) -> None:
    """Run the self-test. Raises EngineFailed with the reason unless `upscale` returns the image upscaled."""
    image = synthetic_image(*sides)
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    try:
        result = upscale(file.getvalue(), recipe(preset))
    except HiresfixError as error:
        raise EngineFailed(f"The self test failed, so this worker takes no jobs. {error.message}") from error
    check(np.asarray(Image.open(io.BytesIO(result.data)).convert("RGB")), image)


def synthetic_image(height: int = IMAGE_SIDES[0], width: int = IMAGE_SIDES[1]) -> NDArray[np.uint8]:
    """Return smooth colours along both sides and one edge, (height, width, 3)."""
    y, x = np.meshgrid(np.linspace(0, 1, height), np.linspace(0, 1, width), indexing="ij")
    edge = np.where(x + y > 1, 48, 0)
    return np.stack([40 + 160 * x, 40 + 160 * y, 200 - 160 * x + edge], axis=-1).astype(np.uint8)


def check(result: NDArray[np.uint8], image: NDArray[np.uint8]) -> None:
    """Raise EngineFailed unless `result` is `image` at `SCALE` times its sides."""
    height, width = (side * SCALE for side in image.shape[:2])
    if result.shape != (height, width, 3):
        raise _failed(f"gave {result.shape[1]}x{result.shape[0]} pixels instead of {width}x{height}")
    small = result.reshape(height // SCALE, SCALE, width // SCALE, SCALE, 3).mean(axis=(1, 3))
    difference = float(np.abs(small - image).mean())
    if not difference <= MAX_MEAN_DIFFERENCE:
        raise _failed(f"gave a different image, {difference:.0f} levels away on average")


def _failed(reason: str) -> EngineFailed:
    return EngineFailed(
        f"The self test {reason}, so this worker takes no jobs. Check weights and driver: hiresfix models verify, "
        "hiresfix doctor. HIRESFIX_SELF_TEST=0 skips the test."
    )
