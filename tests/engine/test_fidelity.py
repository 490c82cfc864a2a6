"""Locking colours and measuring fidelity, against published figures, arithmetic and planted faults."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from hiresfix.engine import fidelity, resampling
from hiresfix.engine.fidelity import lock_colours, measure, seam_ratio, shift
from tests.pictures import photo

SHARMA = """
50 2.6772 -79.7751 50 0 -82.7485 2.0425
50 3.1571 -77.2803 50 0 -82.7485 2.8615
50 2.8361 -74.0200 50 0 -82.7485 3.4412
50 -1.3802 -84.2814 50 0 -82.7485 1.0000
50 -1.1848 -84.8006 50 0 -82.7485 1.0000
50 -0.9009 -85.5211 50 0 -82.7485 1.0000
50 0 0 50 -1 2 2.3669
50 -1 2 50 0 0 2.3669
50 2.4900 -0.0010 50 -2.4900 0.0009 7.1792
50 2.4900 -0.0010 50 -2.4900 0.0010 7.1792
50 2.4900 -0.0010 50 -2.4900 0.0011 7.2195
50 2.4900 -0.0010 50 -2.4900 0.0012 7.2195
50 -0.0010 2.4900 50 0.0009 -2.4900 4.8045
50 -0.0010 2.4900 50 0.0010 -2.4900 4.8045
50 -0.0010 2.4900 50 0.0011 -2.4900 4.7461
50 2.5 0 50 0 -2.5 4.3065
50 2.5 0 73 25 -18 27.1492
50 2.5 0 61 -5 29 22.8977
50 2.5 0 56 -27 -3 31.9030
50 2.5 0 58 24 15 19.4535
50 2.5 0 50 3.1736 0.5854 1.0000
50 2.5 0 50 3.2972 0 1.0000
50 2.5 0 50 1.8634 0.5757 1.0000
50 2.5 0 50 3.2592 0.3350 1.0000
60.2574 -34.0099 36.2677 60.4626 -34.1751 39.4387 1.2644
63.0109 -31.0961 -5.8663 62.8187 -29.7946 -4.0864 1.2630
61.2901 3.7196 -5.3901 61.4292 2.2480 -4.9620 1.8731
35.0831 -44.1164 3.7933 35.0232 -40.0716 1.5901 1.8645
22.7233 20.0904 -46.6940 23.0331 14.9730 -42.5619 2.0373
36.4612 47.8580 18.3852 36.2715 50.5065 21.2231 1.4146
90.8027 -2.0831 1.4410 91.1528 -1.6435 0.0447 1.4441
90.9257 -0.5406 -0.9208 88.6381 -0.8985 -0.7239 1.5381
6.7747 -0.2908 -2.4247 5.8714 -0.0985 -2.2286 0.6377
2.0776 0.0795 -1.1350 0.9033 -0.0636 -0.5514 0.9082
"""
"""L, a, b twice and their difference: Sharma, Wu and Dalal (2005), table 1."""

PHOTOGRAPHS = sorted((Path(__file__).parents[3] / "shared" / "train-images").glob("*.jpg"))


def photograph(number: int) -> NDArray[np.uint8]:
    """A real photograph where there are some beside the repository, else one made up; sides are even."""
    if not PHOTOGRAPHS:
        return photo(480, 400, seed=number).copy()
    path = PHOTOGRAPHS[number * 37 % len(PHOTOGRAPHS)]
    with Image.open(path) as image:
        rgb = np.array(image.convert("RGB"))
    return rgb[: rgb.shape[0] // 2 * 2, : rgb.shape[1] // 2 * 2]


def shrunk(rgb: NDArray[Any], scale: int) -> NDArray[Any]:
    x = resampling.to_tensor(rgb, torch.device("cpu"))
    small = resampling.resize(x, rgb.shape[0] // scale, rgb.shape[1] // scale)
    return resampling.to_samples(small, rgb.dtype)


def enlarged(rgb: NDArray[Any], scale: int) -> NDArray[Any]:
    return rgb.repeat(scale, 0).repeat(scale, 1)


def locked(result: NDArray[Any], source: NDArray[Any], **given: float) -> NDArray[Any]:
    copy = result.copy()
    lock_colours(copy, source, **given)
    return copy


def test_colour_difference_is_that_of_the_34_published_pairs() -> None:
    table = np.array([line.split() for line in SHARMA.strip().splitlines()], np.float64)
    assert table.shape == (34, 7)
    np.testing.assert_allclose(fidelity.ciede2000(table[:, :3], table[:, 3:6]), table[:, 6], atol=5e-5)
    np.testing.assert_allclose(fidelity.ciede2000(table[:, 3:6], table[:, :3]), table[:, 6], atol=5e-5)


@pytest.mark.parametrize(
    ("rgb", "lab"),
    [
        ((1, 1, 1), (100, 0, 0)),
        ((0, 0, 0), (0, 0, 0)),
        ((1, 0, 0), (53.24, 80.09, 67.20)),
        ((0, 1, 0), (87.73, -86.18, 83.18)),
        ((0, 0, 1), (32.30, 79.19, -107.86)),
    ],
)
def test_the_corners_of_srgb_lie_where_the_books_say(rgb: tuple[float, ...], lab: tuple[float, ...]) -> None:
    np.testing.assert_allclose(fidelity.lab(np.array(rgb, np.float64)), lab, atol=0.03)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_a_tint_is_taken_out_and_the_detail_stays(dtype: Any) -> None:
    full = {np.uint8: 255, np.uint16: 65535, np.float32: 1.0}[dtype]
    rgb = (photo(192, 160) / 255 * 0.6 + 0.2).astype(np.float32)
    source = (shrunk((rgb * 65535).astype(np.uint16), 2) / 65535 * full).astype(dtype)
    tinted = ((rgb + np.array([0.08, -0.05, 0.02], np.float32)) * full).astype(dtype)
    result = locked(tinted, source)
    assert result.dtype == dtype
    miss = result / full - rgb
    assert float(np.abs(miss.mean((0, 1))).max()) < 0.003
    assert float(miss.std()) < 0.004


def test_where_the_low_frequencies_are_equal_nothing_changes() -> None:
    source = photo(90, 70)
    result = enlarged(source, 2)
    np.testing.assert_array_equal(locked(result, source), result)
    tall = enlarged(source, 4)
    checks = 6 * ((np.arange(280)[:, None] + np.arange(360)) % 2 * 2 - 1)[..., None]
    detailed = (tall.clip(10, 240) + checks).astype(np.uint8)
    np.testing.assert_array_equal(locked(detailed, shrunk(tall.clip(10, 240), 4)), detailed)


@pytest.mark.parametrize("radius", [4.0, 8.0, 12.0])
def test_flat_patches_of_64_pixels_come_within_one_level_of_the_source(radius: float) -> None:
    source = np.full((160, 160, 3), 128, np.uint8)
    y, x = np.mgrid[:320, :320]
    patches = 6 * np.sin(2 * np.pi * x / 320) * np.cos(2 * np.pi * y / 320)
    result = (enlarged(source, 2) + patches[..., None]).round().astype(np.uint8)
    blocks = locked(result, source, radius=radius).reshape(5, 64, 5, 64, 3).mean((1, 3))
    assert float(np.abs(blocks - 128).max()) < 1
    assert float(np.abs(result.reshape(5, 64, 5, 64, 3).mean((1, 3)) - 128).max()) > 3


def test_half_the_strength_takes_out_half() -> None:
    source = np.full((64, 64, 3), 100, np.uint8)
    result = np.full((128, 128, 3), 120, np.uint8)
    assert np.unique(locked(result, source, strength=0.5)).tolist() == [110]
    np.testing.assert_array_equal(locked(result, source, strength=0), result)
    with pytest.raises(ValueError, match=r"use 0\.\.1 and 2 or more"):
        lock_colours(result, source, strength=1.5)


def step(dark: int, bright: int, at: int, *, side: int = 192) -> NDArray[np.uint8]:
    rgb = np.full((side, side, 3), dark, np.uint8)
    rgb[:, at:] = bright
    return rgb


@pytest.mark.parametrize("fault", ["moved", "blurred", "tinted", "duller"])
def test_no_halo_appears_beside_a_strong_edge(fault: str) -> None:
    source = step(60, 200, 48, side=96)
    clean = step(60, 200, 96)
    if fault == "moved":
        result = step(60, 200, 98)
    elif fault == "blurred":
        ramp = np.interp(np.arange(192), [91, 100], [60, 200]).astype(np.uint8)
        result = np.broadcast_to(ramp[None, :, None], (192, 192, 3)).copy()
    elif fault == "tinted":
        result = (clean.astype(int) + np.array([-12, 10, 5])).astype(np.uint8)
    else:
        result = ((clean.astype(float) - 130) * 0.9 + 130).astype(np.uint8)
    row = locked(result, source)[96].astype(int)
    assert row.min() >= 60 - 0.05 * 140
    assert row.max() <= 200 + 0.05 * 140
    away = np.r_[0:40, 152:192]
    assert np.abs(row[away] - clean[96, away]).max() <= 1


def test_a_correction_beyond_white_stops_there() -> None:
    source = np.full((64, 64, 3), 250, np.uint8)
    result = np.full((128, 128, 3), 240, np.uint8)
    result[::2] = 252
    after = locked(result, source)
    assert after.min() >= 240
    assert after.max() == 255


def test_bands_leave_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    rgb = photo(150, 130)
    source = shrunk(photo(150, 130, seed=1), 2)
    monkeypatch.setattr(fidelity, "_BAND", 1000)
    whole = locked(rgb, source)
    monkeypatch.setattr(fidelity, "_BAND", 16)
    assert int(np.abs(locked(rgb, source).astype(int) - whole).max()) <= 1
    assert int(np.abs(whole.astype(int) - rgb).max()) > 3


def moved(rgb: NDArray[Any], right: float, down: float) -> NDArray[np.uint8]:
    """Shifted by a phase, so without any resampling."""
    y, x = np.fft.fftfreq(rgb.shape[0])[:, None, None], np.fft.fftfreq(rgb.shape[1])[None, :, None]
    phase = np.exp(-2j * np.pi * (x * right + y * down))
    back = np.fft.ifft2(np.fft.fft2(rgb.astype(float), axes=(0, 1)) * phase, axes=(0, 1))
    return np.asarray(np.real(back).clip(0, 255).round(), np.uint8)


@pytest.mark.parametrize("number", range(3))
@pytest.mark.parametrize(("right", "down"), [(0, 0), (0.03, 0), (0.2, -0.1), (-0.5, 0.35)])
def test_a_shift_is_found_to_a_fiftieth_of_an_input_pixel(number: int, right: float, down: float) -> None:
    rgb = photograph(number)
    found = shift(moved(rgb, 2 * right, 2 * down), shrunk(rgb, 2))
    np.testing.assert_allclose(found, (right, down), atol=0.02)


def test_a_flat_picture_has_not_moved() -> None:
    flat = np.full((40, 40, 3), 90, np.uint8)
    assert shift(enlarged(flat, 2), flat) == pytest.approx((0, 0), abs=1e-6)


def grid(rgb: NDArray[Any]) -> dict[str, Any]:
    return {"rows": range(75, rgb.shape[0], 75), "columns": range(75, rgb.shape[1], 75)}


def fine_gradient() -> NDArray[np.uint16]:
    """16 bits, because the steps between 8-bit levels are seams of one level themselves."""
    x, y = np.meshgrid(np.linspace(8000, 56000, 400), np.linspace(10000, 50000, 300))
    return np.dstack([x, y, (x + y) / 2]).astype(np.uint16)


def planted(rgb: NDArray[Any], levels: int) -> NDArray[Any]:
    """Every second tile of a checkerboard brighter by that many levels."""
    tiles = np.add.outer(np.arange(rgb.shape[0]) // 75, np.arange(rgb.shape[1]) // 75) % 2
    brighter = rgb.astype(int) + levels * tiles[..., None]
    return np.asarray(brighter.clip(0, np.iinfo(rgb.dtype).max), rgb.dtype)


def test_photographs_have_no_seams_until_one_is_planted() -> None:
    rgbs = [photograph(number) for number in range(10)]
    clean, faint, plain = (
        np.array([seam_ratio(planted(rgb, levels), **grid(rgb)) for rgb in rgbs]) for levels in (0, 1, 4)
    )
    assert 0.85 < np.median(clean) < 1.15
    assert float(np.mean(faint / clean)) > 1.15
    assert float(np.median(plain)) > 2
    assert np.all(plain > clean)


def test_a_seam_of_one_level_shows_on_a_gradient_and_more_so_after_a_contrast_stretch() -> None:
    rgb = fine_gradient()
    assert seam_ratio(rgb, **grid(rgb)) == pytest.approx(1, abs=0.1)
    assert seam_ratio(planted(rgb, 257), **grid(rgb)) > 2
    stretched = seam_ratio(planted(rgb, 257), **grid(rgb), stretch=4)
    assert stretched > 1.5 * seam_ratio(planted(rgb, 257), **grid(rgb))


@pytest.mark.parametrize("scale", [4, 8])
def test_the_pattern_that_enlarging_leaves_is_no_seam(scale: int) -> None:
    source = photograph(2)[:192, :192]
    repeated = source.repeat(scale, 0).repeat(scale, 1)
    borders = range(16 * scale, 192 * scale, 16 * scale)
    assert seam_ratio(repeated, rows=borders, columns=borders) == pytest.approx(1, abs=0.2)


def test_a_flat_picture_and_one_without_borders_have_no_seams() -> None:
    flat = np.full((200, 200, 3), 77, np.uint8)
    assert seam_ratio(flat, **grid(flat)) == pytest.approx(1)
    assert seam_ratio(flat, rows=[1, 199]) == 1  # too near to the edge to be judged
    quality = measure(flat, flat)
    assert quality.seam_ratio is None
    assert quality.seam_ratio_stretched is None


def test_an_edge_of_the_picture_on_a_border_is_no_seam() -> None:
    rgb = photograph(4)
    rgb[96:] = np.clip(rgb[96:].astype(int) + 40, 0, 255).astype(np.uint8)
    source = shrunk(rgb, 2)
    alone, beside = seam_ratio(rgb, rows=[96]), seam_ratio(rgb, source, rows=[96])
    assert alone > 3
    assert beside < alone / 2
    assert seam_ratio(planted(rgb, 4), source, **grid(rgb)) > 1.1


def test_the_figures_of_an_enlargement_are_those_of_its_parts() -> None:
    rgb = photograph(4)
    source = shrunk(rgb, 2)
    quality = measure(rgb, source, **grid(rgb))
    small = np.asarray(Image.fromarray(rgb).resize(source.shape[1::-1], Image.Resampling.BICUBIC), np.float64)
    assert quality.drift_db == pytest.approx(
        20 * np.log10(255 / np.sqrt(np.mean((small - source) ** 2))), abs=3
    )  # it rounds to 8 bits
    assert quality.ciede2000_mean < 1
    assert quality.ciede2000_mean < quality.ciede2000_p95 < 3
    assert quality.shift_px < 0.01
    assert quality.seam_ratio == pytest.approx(seam_ratio(rgb, source, **grid(rgb)))
    assert quality.alive
    shown = quality.to_dict()
    assert shown["drift_db"] == round(quality.drift_db, 3)
    assert shown["alive"] is True


def test_drift_of_a_shift_in_brightness_is_its_decibels_and_of_nothing_is_the_cap() -> None:
    source, brighter = (np.full((10, 12, 3), level, np.uint8) for level in (100, 105))
    assert measure(enlarged(brighter, 4), source).drift_db == pytest.approx(20 * np.log10(255 / 5), abs=1e-3)
    assert measure(enlarged(source, 4), source).drift_db == fidelity.MOST_DRIFT_DB


def test_a_colour_shift_shows_as_the_difference_it_is_and_locking_takes_it_out() -> None:
    source = np.full((64, 64, 3), (120, 130, 140), np.uint8)
    result = np.full((128, 128, 3), (130, 130, 140), np.uint8)
    colours = fidelity.lab(np.stack([source[0, 0], result[0, 0]]) / 255)
    quality = measure(result, source)
    assert quality.ciede2000_mean == pytest.approx(float(fidelity.ciede2000(colours[0], colours[1])), rel=1e-3)
    assert quality.ciede2000_p95 == pytest.approx(quality.ciede2000_mean, rel=1e-3)
    assert measure(locked(result, source), source).ciede2000_mean < 0.01


def test_a_large_picture_is_judged_by_evenly_spread_bands(monkeypatch: pytest.MonkeyPatch) -> None:
    source = photo(128, 640)
    result = enlarged(source, 2)
    result[::2] = np.minimum(result[::2], 250) + 5
    whole = measure(result, source)
    monkeypatch.setattr(fidelity, "_MOST_PIXELS", 6 * fidelity._ROWS * 128 * 4)
    monkeypatch.setattr(fidelity, "_MOST_COLOURS", 5000)
    sampled = measure(result, source)
    assert sampled != whole
    assert sampled.drift_db == pytest.approx(whole.drift_db, abs=1)
    assert sampled.ciede2000_mean == pytest.approx(whole.ciede2000_mean, rel=0.15)


def test_black_single_coloured_and_broken_results_are_not_alive() -> None:
    source = photo(20, 20)
    assert fidelity.is_finite_and_alive(enlarged(source, 2), source)
    for colour in (0, 128):
        assert not fidelity.is_finite_and_alive(np.full((40, 40, 3), colour, np.uint8), source)
    broken = (enlarged(source, 2) / 255).astype(np.float32)
    assert fidelity.is_finite_and_alive(broken, source)
    broken[3, 3, 1] = np.nan
    assert not fidelity.is_finite_and_alive(broken, source)
    flat = np.full((20, 20, 3), 7, np.uint8)
    assert fidelity.is_finite_and_alive(enlarged(flat, 2), flat)


def test_a_result_that_is_no_multiple_of_its_source_is_refused() -> None:
    with pytest.raises(ValueError, match="41x40 is no multiple of 20x20"):
        measure(np.zeros((40, 41, 3), np.uint8), np.zeros((20, 20, 3), np.uint8))
