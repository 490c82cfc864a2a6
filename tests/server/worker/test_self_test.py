"""What passes for a small picture enlarged, and what does not."""

from __future__ import annotations

import io

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from hiresfix.errors import EngineFailed, WeightsError
from hiresfix.images import Encoded
from hiresfix.models.catalog import CLARITY
from hiresfix.recipe import Recipe
from hiresfix.server.worker import self_test

LARGER = np.repeat(np.repeat(self_test.drawn(), 2, axis=0), 2, axis=1)
WRONG = {
    "black": np.zeros_like(LARGER),
    "grey": np.full_like(LARGER, 128),
    "noise": np.random.default_rng(1).integers(0, 256, LARGER.shape, np.uint8),
    "upside down": LARGER[::-1],
    "blue for red": LARGER[..., ::-1],
    "too small": LARGER[:-1],
}


def made(pixels: NDArray[np.uint8]) -> Encoded:
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, "PNG")
    return Encoded(data=file.getvalue(), media_type="image/png", width=pixels.shape[1], height=pixels.shape[0])


def test_the_picture_at_twice_its_size_passes() -> None:
    asked: list[Recipe] = []

    def make(source: bytes, recipe: Recipe) -> Encoded:
        asked.append(recipe)
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(source))), self_test.drawn())
        return made(LARGER)

    self_test.run(make, CLARITY.preset)
    (recipe,) = asked
    assert (recipe.scale, recipe.engine) == (2, "ganprior")


def test_a_worker_that_compiles_proves_itself_on_a_picture_whose_sides_nothing_else_has() -> None:
    asked: list[tuple[int, ...]] = []

    def make(source: bytes, recipe: Recipe) -> Encoded:
        picture = np.asarray(Image.open(io.BytesIO(source)))
        asked.append(picture.shape)
        return made(np.repeat(np.repeat(picture, 2, axis=0), 2, axis=1))

    self_test.run(make, CLARITY.preset, self_test.GENERAL_SIDES)
    assert asked == [(*self_test.GENERAL_SIDES, 3)]
    halves, three = 2, 3  # of guidance, and the levels below the latent
    latent = [side * self_test.SCALE // 8 for side in self_test.GENERAL_SIDES]
    sizes = [halves, *(side // 2**level for side in latent for level in range(three + 1))]
    assert len(set(sizes)) == len(sizes)
    assert min(sizes) > 1
    assert all(side % 2**three == 0 for side in latent)


@pytest.mark.parametrize("what", WRONG)
def test_anything_else_does_not(what: str) -> None:
    with pytest.raises(EngineFailed, match=r"takes no jobs.*HIRESFIX_SELF_TEST=0"):
        self_test.run(lambda source, recipe: made(WRONG[what]), CLARITY.preset)


def test_what_keeps_the_engine_from_working_is_told() -> None:
    def make(source: bytes, recipe: Recipe) -> Encoded:
        raise WeightsError("The model x is not installed. Fetch it: hiresfix models pull x")

    with pytest.raises(EngineFailed, match=r"takes no jobs.*hiresfix models pull x"):
        self_test.run(make, CLARITY.presets["clarity"])
