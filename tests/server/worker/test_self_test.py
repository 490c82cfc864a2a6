"""Worker self-test: which results pass, and which fail."""

from __future__ import annotations

import io

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from hiresfix.errors import EngineFailed, WeightsError
from hiresfix.images import EncodedImage
from hiresfix.models.catalog import CLARITY
from hiresfix.recipe import Recipe
from hiresfix.server.worker import self_test

LARGER = np.repeat(np.repeat(self_test.synthetic_image(), 2, axis=0), 2, axis=1)
WRONG = {
    "black": np.zeros_like(LARGER),
    "grey": np.full_like(LARGER, 128),
    "noise": np.random.default_rng(1).integers(0, 256, LARGER.shape, np.uint8),
    "upside down": LARGER[::-1],
    "blue for red": LARGER[..., ::-1],
    "too small": LARGER[:-1],
}


def encode(pixels: NDArray[np.uint8]) -> EncodedImage:
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, "PNG")
    return EncodedImage(data=file.getvalue(), media_type="image/png", width=pixels.shape[1], height=pixels.shape[0])


def test_correct_upscale_passes() -> None:
    requests: list[Recipe] = []

    def upscale(source: bytes, recipe: Recipe) -> EncodedImage:
        requests.append(recipe)
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(source))), self_test.synthetic_image())
        return encode(LARGER)

    self_test.run(upscale, CLARITY.preset)
    (recipe,) = requests
    assert (recipe.scale, recipe.engine) == (2, "ganprior")


def test_compiling_worker_uses_distinct_sides() -> None:
    requests: list[tuple[int, ...]] = []

    def upscale(source: bytes, recipe: Recipe) -> EncodedImage:
        image = np.asarray(Image.open(io.BytesIO(source)))
        requests.append(image.shape)
        return encode(np.repeat(np.repeat(image, 2, axis=0), 2, axis=1))

    self_test.run(upscale, CLARITY.preset, self_test.DISTINCT_SIDES)
    assert requests == [(*self_test.DISTINCT_SIDES, 3)]
    halves, three = 2, 3  # of guidance, and the levels below the latent
    latent = [side * self_test.SCALE // 8 for side in self_test.DISTINCT_SIDES]
    sizes = [halves, *(side // 2**level for side in latent for level in range(three + 1))]
    assert len(set(sizes)) == len(sizes)
    assert min(sizes) > 1
    assert all(side % 2**three == 0 for side in latent)


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_result_fails(kind: str) -> None:
    with pytest.raises(EngineFailed, match=r"takes no jobs.*HIRESFIX_SELF_TEST=0"):
        self_test.run(lambda source, recipe: encode(WRONG[kind]), CLARITY.preset)


def test_engine_error_is_reported() -> None:
    def upscale(source: bytes, recipe: Recipe) -> EncodedImage:
        raise WeightsError("The model x is not installed. Fetch it: hiresfix models pull x")

    with pytest.raises(EngineFailed, match=r"takes no jobs.*hiresfix models pull x"):
        self_test.run(upscale, CLARITY.presets["clarity"])
