"""Texture noise depends only on seed and place, and appears only where the image has texture."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from hiresfix.engine.pixels.arrays import ImageArray
from hiresfix.engine.pixels.tiling import Span
from hiresfix.engine.superres.texture_noise import MAX_TEXTURE, REACH, TextureNoise, luminance, noise, texture
from tests import ROOT
from tests.sample_images import photo

PHOTO = np.asarray(Image.open(ROOT / "examples" / "colosseum.png").convert("RGB"))
BOLD = TextureNoise(seed=5, amplitude=1.0)


def span(start: int, end: int) -> Span:
    return Span(start=start, end=end)


def noise_of(texture_noise: TextureNoise, rgb: ImageArray) -> ImageArray:
    return texture_noise(rgb, span(0, rgb.shape[0]), span(0, rgb.shape[1]))


def test_noise_is_white_and_nearly_normal() -> None:
    values = noise(3, np.arange(400), np.arange(300)).astype(np.float64)
    assert abs(values.mean()) < 0.01
    assert values.std() == pytest.approx(1, abs=0.01)
    assert np.abs(values).max() < 3.5
    assert (values**4).mean() == pytest.approx(2.7, abs=0.05)  # of a sum of four; a normal variable has 3
    for axis in (0, 1):
        neighbours = np.delete(values, 0, axis) * np.delete(values, -1, axis)
        assert abs(neighbours.mean()) < 0.01


def test_noise_is_equal_on_every_machine() -> None:
    """These are the values of Philox 4x64-10, whatever NumPy is installed: a seed always means the same image."""
    values = np.round(noise(7, np.arange(40, 48), np.arange(90, 99)) * 1e4).astype("<i4")
    assert hashlib.sha256(values.tobytes()).hexdigest()[:16] == "00e623669a2c70d6"


@settings(deadline=None, max_examples=25)
@given(
    rows=st.tuples(st.integers(-8, 40), st.integers(1, 20)),
    columns=st.tuples(st.integers(-8, 50), st.integers(1, 20)),
)
def test_any_window_matches_the_whole_image(rows: tuple[int, int], columns: tuple[int, int]) -> None:
    rgb = PHOTO[100:150, 200:260]
    whole = BOLD(rgb, span(-8, 58), span(-8, 68))
    (top, height), (left, width) = rows, columns
    window = BOLD(rgb, span(top, min(58, top + height)), span(left, min(68, left + width)))
    np.testing.assert_array_equal(window, whole[8 + top : 8 + top + height, 8 + left : 8 + left + width])


def test_noise_is_mirrored_beyond_the_border() -> None:
    rgb = PHOTO[:30, :40]
    framed = BOLD(rgb, span(-8, 38), span(-8, 48))
    mirrored = np.pad(noise_of(BOLD, rgb), 8, mode="reflect")
    np.testing.assert_allclose(framed, mirrored, atol=1e-4)  # a sum in reverse order may round differently
    assert np.abs(framed).max() > 1


def test_crop_matches_the_whole_except_its_border() -> None:
    """Only if both begin at the upper left corner, from which the noise is counted."""
    crop = noise_of(BOLD, PHOTO[:60, :70])
    whole = noise_of(BOLD, PHOTO)
    np.testing.assert_array_equal(crop[: 60 - REACH, : 70 - REACH], whole[: 60 - REACH, : 70 - REACH])


@pytest.mark.parametrize(
    "rgb",
    [
        np.full((40, 50, 3), (200, 30, 90), np.uint8),
        np.repeat(np.linspace(0, 65535, 60).astype(np.uint16)[None, :, None], 40, 0).repeat(3, 2),
        np.full((1, 1, 3), 77, np.uint8),
    ],
    ids=["flat", "gradient", "one pixel"],
)
def test_plain_images_get_no_noise(rgb: ImageArray) -> None:
    assert not noise_of(BOLD, rgb).any()


def test_lone_edges_are_not_texture() -> None:
    """Noise on the flank of an edge would make it jagged."""
    y, x = np.mgrid[:80, :80]
    for limit, inside in ((0, x > 40), (0, x + y > 80), (0, np.hypot(x - 40, y - 40) < 25), (0.3, abs(x - y) < 2)):
        strength = texture(np.where(inside, 230, 20).astype(np.float32))
        assert strength[8:-8, 8:-8].max() <= limit


@pytest.mark.parametrize("deviation", [1, 5, 15])
def test_existing_grain_is_hardly_texture(deviation: int) -> None:
    grain = np.random.default_rng(deviation).normal(128, deviation, (80, 80)).astype(np.float32)
    assert texture(grain).max() < deviation / 6


def test_rough_areas_get_noise_and_plain_ones_none() -> None:
    """The left half is a wall, the right half gravel."""
    gravel = photo(80, 80, channels=1)[..., 0].astype(np.float32)
    luma = np.where(np.arange(80) < 40, np.float32(120), gravel)
    strength = texture(luma)
    assert not strength[:, : 40 - 2 * REACH].any()
    assert strength[:, 40 - REACH :].mean() > 0.3


@given(st.floats(1, 6))
def test_texture_grows_with_contrast_to_a_limit(more: float) -> None:
    luma = luminance(photo(50, 50))
    assert (texture(luma) <= texture(luma * np.float32(more)) + 1e-4).all()
    assert (texture(luma * np.float32(100 * more)) < MAX_TEXTURE).all()


def test_eight_and_sixteen_bits_give_equal_noise() -> None:
    deep = PHOTO.astype(np.uint16) * 257
    np.testing.assert_allclose(noise_of(BOLD, deep), noise_of(BOLD, PHOTO), atol=1e-3)


def test_other_seed_gives_other_noise() -> None:
    one, other = (noise_of(TextureNoise(seed=seed, amplitude=1.0), PHOTO) for seed in (1, 2**53 - 1))
    assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 0.02
    assert one.std() == pytest.approx(other.std(), rel=0.05)
