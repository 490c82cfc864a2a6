"""Seeded noise: the same at a place however one comes to it, where the picture has texture and nowhere else."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from hiresfix.engine.pixels.tiling import Span
from hiresfix.engine.superres.texture_noise import MOST, REACH, Invention, Samples, luminance, noise, texture
from tests import ROOT
from tests.sample_images import photo

PHOTOGRAPH = np.asarray(Image.open(ROOT / "examples" / "colosseum.png").convert("RGB"))
BOLD = Invention(seed=5, amplitude=1.0)


def span(start: int, end: int) -> Span:
    return Span(start=start, end=end)


def everywhere(invention: Invention, rgb: Samples) -> Samples:
    return invention(rgb, span(0, rgb.shape[0]), span(0, rgb.shape[1]))


def test_noise_is_white_and_normal_enough() -> None:
    values = noise(3, np.arange(400), np.arange(300)).astype(np.float64)
    assert abs(values.mean()) < 0.01
    assert values.std() == pytest.approx(1, abs=0.01)
    assert np.abs(values).max() < 3.5
    assert (values**4).mean() == pytest.approx(2.7, abs=0.05)  # of a sum of four; a normal variable has 3
    for axis in (0, 1):
        beside = np.delete(values, 0, axis) * np.delete(values, -1, axis)
        assert abs(beside.mean()) < 0.01


def test_noise_stays_what_it_was_in_earlier_releases() -> None:
    """A seed and its picture belong together: these are the values of Philox 4x64-10, whatever NumPy is installed."""
    values = np.round(noise(7, np.arange(40, 48), np.arange(90, 99)) * 1e4).astype("<i4")
    assert hashlib.sha256(values.tobytes()).hexdigest()[:16] == "00e623669a2c70d6"


@settings(deadline=None, max_examples=25)
@given(
    rows=st.tuples(st.integers(-8, 40), st.integers(1, 20)),
    columns=st.tuples(st.integers(-8, 50), st.integers(1, 20)),
)
def test_any_window_holds_what_the_whole_picture_holds_there(rows: tuple[int, int], columns: tuple[int, int]) -> None:
    rgb = PHOTOGRAPH[100:150, 200:260]
    whole = BOLD(rgb, span(-8, 58), span(-8, 68))
    (top, height), (left, width) = rows, columns
    window = BOLD(rgb, span(top, min(58, top + height)), span(left, min(68, left + width)))
    np.testing.assert_array_equal(window, whole[8 + top : 8 + top + height, 8 + left : 8 + left + width])


def test_beyond_the_border_lies_the_mirror_image() -> None:
    rgb = PHOTOGRAPH[:30, :40]
    framed = BOLD(rgb, span(-8, 38), span(-8, 48))
    mirrored = np.pad(everywhere(BOLD, rgb), 8, mode="reflect")
    np.testing.assert_allclose(framed, mirrored, atol=1e-4)  # a sum read backwards may round in another way
    assert np.abs(framed).max() > 1


def test_a_crop_gets_what_the_whole_picture_gets_there_but_for_its_border() -> None:
    """Only where it begins has to be the same: the noise is counted from the upper left corner."""
    crop = everywhere(BOLD, PHOTOGRAPH[:60, :70])
    whole = everywhere(BOLD, PHOTOGRAPH)
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
def test_what_is_plain_stays_plain(rgb: Samples) -> None:
    assert not everywhere(BOLD, rgb).any()


def test_a_lone_edge_is_no_texture_and_a_line_hardly_one() -> None:
    """Noise on the flank of an edge makes a saw of it."""
    y, x = np.mgrid[:80, :80]
    for most, inside in ((0, x > 40), (0, x + y > 80), (0, np.hypot(x - 40, y - 40) < 25), (0.3, abs(x - y) < 2)):
        strength = texture(np.where(inside, 230, 20).astype(np.float32))
        assert strength[8:-8, 8:-8].max() <= most


@pytest.mark.parametrize("deviation", [1, 5, 15])
def test_grain_that_the_picture_has_already_is_hardly_texture(deviation: int) -> None:
    grain = np.random.default_rng(deviation).normal(128, deviation, (80, 80)).astype(np.float32)
    assert texture(grain).max() < deviation / 6


def test_rough_places_get_more_and_plain_ones_beside_them_none() -> None:
    """Left half a wall, right half gravel."""
    gravel = photo(80, 80, channels=1)[..., 0].astype(np.float32)
    luma = np.where(np.arange(80) < 40, np.float32(120), gravel)
    strength = texture(luma)
    assert not strength[:, : 40 - 2 * REACH].any()
    assert strength[:, 40 - REACH :].mean() > 0.3


@given(st.floats(1, 6))
def test_more_contrast_gives_more_but_never_beyond_the_most(more: float) -> None:
    luma = luminance(photo(50, 50))
    assert (texture(luma) <= texture(luma * np.float32(more)) + 1e-4).all()
    assert (texture(luma * np.float32(100 * more)) < MOST).all()


def test_eight_and_sixteen_bits_give_the_same() -> None:
    deep = PHOTOGRAPH.astype(np.uint16) * 257
    np.testing.assert_allclose(everywhere(BOLD, deep), everywhere(BOLD, PHOTOGRAPH), atol=1e-3)


def test_another_seed_gives_other_noise_of_the_same_strength() -> None:
    one, other = (everywhere(Invention(seed=seed, amplitude=1.0), PHOTOGRAPH) for seed in (1, 2**53 - 1))
    assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 0.02
    assert one.std() == pytest.approx(other.std(), rel=0.05)
