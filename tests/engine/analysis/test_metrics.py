"""Colour lock and fidelity metrics, against published figures, arithmetic and planted faults."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from hiresfix.engine.analysis import colour_lock, metrics, seams
from hiresfix.engine.analysis.colour_lock import back_project, lock_colours
from hiresfix.engine.analysis.metrics import measure, measure_shift
from hiresfix.engine.pixels import resampling
from tests import ROOT
from tests.sample_images import photo

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

PHOTOS = sorted((ROOT.parent / "shared" / "train-images").glob("*.jpg"))


def photograph(number: int) -> NDArray[np.uint8]:
    """Return a real photo if there are some beside the repository, else a synthetic one; sides are even."""
    if not PHOTOS:
        return photo(480, 400, seed=number).copy()
    path = PHOTOS[number * 37 % len(PHOTOS)]
    with Image.open(path) as image:
        rgb = np.array(image.convert("RGB"))
    return rgb[: rgb.shape[0] // 2 * 2, : rgb.shape[1] // 2 * 2]


def shrunk(rgb: NDArray[Any], scale: int) -> NDArray[Any]:
    x = resampling.to_tensor(rgb, torch.device("cpu"))
    small = resampling.resize(x, rgb.shape[0] // scale, rgb.shape[1] // scale)
    return resampling.to_samples(small, rgb.dtype)


def repeated(rgb: NDArray[Any], scale: int) -> NDArray[Any]:
    return rgb.repeat(scale, 0).repeat(scale, 1)


def locked(result: NDArray[Any], source: NDArray[Any], **options: Any) -> NDArray[Any]:
    copy = result.copy()
    lock_colours(copy, source, **options)
    return copy


def test_ciede2000_matches_published_pairs() -> None:
    table = np.array([line.split() for line in SHARMA.strip().splitlines()], np.float64)
    assert table.shape == (34, 7)
    np.testing.assert_allclose(metrics.ciede2000(table[:, :3], table[:, 3:6]), table[:, 6], atol=5e-5)
    np.testing.assert_allclose(metrics.ciede2000(table[:, 3:6], table[:, :3]), table[:, 6], atol=5e-5)


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
def test_srgb_corners_have_published_lab_values(rgb: tuple[float, ...], lab: tuple[float, ...]) -> None:
    np.testing.assert_allclose(metrics.lab(np.array(rgb, np.float64)), lab, atol=0.03)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_lock_removes_tint_and_keeps_detail(dtype: Any) -> None:
    full = {np.uint8: 255, np.uint16: 65535, np.float32: 1.0}[dtype]
    rgb = (photo(192, 160) / 255 * 0.6 + 0.2).astype(np.float32)
    source = (shrunk((rgb * 65535).astype(np.uint16), 2) / 65535 * full).astype(dtype)
    tinted = ((rgb + np.array([0.08, -0.05, 0.02], np.float32)) * full).astype(dtype)
    result = locked(tinted, source)
    assert result.dtype == dtype
    difference = result / full - rgb
    assert float(np.abs(difference.mean((0, 1))).max()) < 0.003
    assert float(difference.std()) < 0.004


def test_equal_low_frequencies_change_nothing() -> None:
    source = photo(90, 70)
    result = repeated(source, 2)
    np.testing.assert_array_equal(locked(result, source), result)
    tall = repeated(source, 4)
    checks = 6 * ((np.arange(280)[:, None] + np.arange(360)) % 2 * 2 - 1)[..., None]
    detailed = (tall.clip(10, 240) + checks).astype(np.uint8)
    np.testing.assert_array_equal(locked(detailed, shrunk(tall.clip(10, 240), 4)), detailed)


@pytest.mark.parametrize("radius", [4.0, 8.0, 12.0])
def test_flat_patches_come_within_one_level(radius: float) -> None:
    source = np.full((160, 160, 3), 128, np.uint8)
    y, x = np.mgrid[:320, :320]
    patches = 6 * np.sin(2 * np.pi * x / 320) * np.cos(2 * np.pi * y / 320)
    result = (repeated(source, 2) + patches[..., None]).round().astype(np.uint8)
    blocks = locked(result, source, radius=radius).reshape(5, 64, 5, 64, 3).mean((1, 3))
    assert float(np.abs(blocks - 128).max()) < 1
    assert float(np.abs(result.reshape(5, 64, 5, 64, 3).mean((1, 3)) - 128).max()) > 3


def test_half_strength_corrects_half() -> None:
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
def test_lock_adds_no_halo_beside_edges(fault: str) -> None:
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


def test_correction_is_clipped_at_white() -> None:
    source = np.full((64, 64, 3), 250, np.uint8)
    result = np.full((128, 128, 3), 240, np.uint8)
    result[::2] = 252
    after = locked(result, source)
    assert after.min() >= 240
    assert after.max() == 255


def test_lock_in_bands_leaves_no_seams(monkeypatch: pytest.MonkeyPatch) -> None:
    rgb = photo(150, 130)
    source = shrunk(photo(150, 130, seed=1), 2)
    monkeypatch.setattr(colour_lock, "_BAND_ROWS", 1000)
    whole = locked(rgb, source)
    monkeypatch.setattr(colour_lock, "_BAND_ROWS", 16)
    assert int(np.abs(locked(rgb, source).astype(int) - whole).max()) <= 1
    assert int(np.abs(whole.astype(int) - rgb).max()) > 3


def with_invented_detail(rgb: NDArray[np.uint8], *, seed: int = 0) -> NDArray[np.uint8]:
    """Add patches and grain of all sizes, like a network that ignores the image."""
    return np.asarray((0.7 * rgb + 0.3 * photo(rgb.shape[1], rgb.shape[0], seed=seed)).round(), np.uint8)


@pytest.mark.parametrize("scale", [2, 4])
def test_back_projection_keeps_finer_detail(scale: int) -> None:
    source = (photo(60, 44, seed=2) * 0.6 + 50).astype(np.uint8)
    result = with_invented_detail(repeated(source, scale))
    projected = result.copy()
    back_project(projected, source, [1.0, 1.0])
    before, after = measure(result, source), measure(projected, source)
    assert before.drift_db < 30
    assert after.drift_db > before.drift_db + 15
    assert after.ciede2000_p95 < 1

    def detail(rgb: NDArray[np.uint8]) -> NDArray[Any]:
        y = resampling.to_tensor(rgb, torch.device("cpu"))
        coarse = resampling.resize(resampling.resize(y, *source.shape[:2]), *y.shape[2:])
        return (y - coarse).numpy().ravel()

    assert np.corrcoef(detail(projected), detail(result))[0, 1] > 0.9
    assert detail(projected).std() > 0.9 * detail(result).std()
    untouched = result.copy()
    back_project(untouched, source, [])
    np.testing.assert_array_equal(untouched, result)


@pytest.mark.parametrize("scale", [1, 2])
def test_back_projection_in_bands_matches_whole_image(monkeypatch: pytest.MonkeyPatch, scale: int) -> None:
    source = photo(50, 100, seed=1)
    whole, banded = (with_invented_detail(repeated(source, scale)) for _ in range(2))
    back_project(whole, source, [1.0, 0.5])
    done: list[float] = []
    monkeypatch.setattr(colour_lock, "_MAX_BAND_PIXELS", 20 * 50 * scale**2)
    back_project(banded, source, [1.0, 0.5], report=done.append)
    assert done == [0.2, 0.4, 0.6, 0.8, 1.0]
    assert int(np.abs(banded.astype(int) - whole).max()) <= 1


def moved(rgb: NDArray[Any], right: float, down: float) -> NDArray[np.uint8]:
    """Shift by a phase, without resampling."""
    y, x = np.fft.fftfreq(rgb.shape[0])[:, None, None], np.fft.fftfreq(rgb.shape[1])[None, :, None]
    phase = np.exp(-2j * np.pi * (x * right + y * down))
    back = np.fft.ifft2(np.fft.fft2(rgb.astype(float), axes=(0, 1)) * phase, axes=(0, 1))
    return np.asarray(np.real(back).clip(0, 255).round(), np.uint8)


@pytest.mark.parametrize("number", range(3))
@pytest.mark.parametrize(("right", "down"), [(0, 0), (0.03, 0), (0.2, -0.1), (-0.5, 0.35)])
def test_shift_is_measured_within_a_fiftieth_pixel(number: int, right: float, down: float) -> None:
    rgb = photograph(number)
    shift = measure_shift(moved(rgb, 2 * right, 2 * down), shrunk(rgb, 2))
    np.testing.assert_allclose(shift, (right, down), atol=0.02)


def test_flat_image_has_not_moved() -> None:
    flat = np.full((40, 40, 3), 90, np.uint8)
    assert measure_shift(repeated(flat, 2), flat) == pytest.approx((0, 0), abs=1e-6)


@pytest.mark.parametrize("bits", [8, 16])
def test_brighter_gradient_has_not_moved(bits: int) -> None:
    x, y = np.meshgrid(np.linspace(8_000, 56_000, 80), np.linspace(10_000, 50_000, 80))
    fine = np.dstack([x, y, (x + y) / 2]).astype(np.uint16)
    source = fine if bits == 16 else (fine // 257).astype(np.uint8)
    large = resampling.resize(resampling.to_tensor(source, torch.device("cpu")), 160, 160)
    brighter = resampling.to_samples(large * 1.02 + 0.01, source.dtype)
    assert measure(brighter, source).shift_px < 0.02


@pytest.mark.parametrize("number", range(2))
def test_shift_is_measured_despite_brightness_change(number: int) -> None:
    rgb = photograph(number)
    paler = (moved(rgb, 0.4, -0.2) * 0.9 + 15).astype(np.uint8)
    np.testing.assert_allclose(measure_shift(paler, shrunk(rgb, 2)), (0.2, -0.1), atol=0.02)


def test_measure_combines_all_metrics() -> None:
    rgb = photograph(4)
    source = shrunk(rgb, 2)
    borders: dict[str, Any] = {"rows": range(75, rgb.shape[0], 75), "columns": range(75, rgb.shape[1], 75)}
    quality = measure(rgb, source, **borders)
    small = np.asarray(Image.fromarray(rgb).resize(source.shape[1::-1], Image.Resampling.BICUBIC), np.float64)
    assert quality.drift_db == pytest.approx(
        20 * np.log10(255 / np.sqrt(np.mean((small - source) ** 2))), abs=3
    )  # it rounds to 8 bits
    assert quality.ciede2000_mean < 1
    assert quality.ciede2000_mean < quality.ciede2000_p95 < 3
    assert quality.shift_px < 0.01
    assert [quality.seam_ratio, quality.seam_ratio_stretched] == seams.seam_ratios(
        rgb, source, stretches=(1.0, 4.0), **borders
    )
    assert measure(rgb, source).seam_ratio is None
    assert quality.alive
    values = quality.to_dict()
    assert values["drift_db"] == round(quality.drift_db, 3)
    assert values["alive"] is True


def test_drift_is_psnr_with_a_cap() -> None:
    source, brighter = (np.full((10, 12, 3), level, np.uint8) for level in (100, 105))
    assert measure(repeated(brighter, 4), source).drift_db == pytest.approx(20 * np.log10(255 / 5), abs=1e-3)
    assert measure(repeated(source, 4), source).drift_db == metrics.MAX_DRIFT_DB


def test_lock_removes_a_measured_colour_shift() -> None:
    source = np.full((64, 64, 3), (120, 130, 140), np.uint8)
    result = np.full((128, 128, 3), (130, 130, 140), np.uint8)
    colours = metrics.lab(np.stack([source[0, 0], result[0, 0]]) / 255)
    quality = measure(result, source)
    assert quality.ciede2000_mean == pytest.approx(float(metrics.ciede2000(colours[0], colours[1])), rel=1e-3)
    assert quality.ciede2000_p95 == pytest.approx(quality.ciede2000_mean, rel=1e-3)
    assert measure(locked(result, source), source).ciede2000_mean < 0.01


def test_large_image_is_measured_in_spread_bands(monkeypatch: pytest.MonkeyPatch) -> None:
    source = photo(128, 640)
    result = repeated(source, 2)
    result[::2] = np.minimum(result[::2], 250) + 5
    whole = measure(result, source)
    monkeypatch.setattr(metrics, "_MAX_PIXELS", 6 * metrics._ROWS * 128 * 4)
    monkeypatch.setattr(metrics, "_MAX_COLOURS", 5000)
    sampled = measure(result, source)
    assert sampled != whole
    assert sampled.drift_db == pytest.approx(whole.drift_db, abs=1)
    assert sampled.ciede2000_mean == pytest.approx(whole.ciede2000_mean, rel=0.15)


def test_black_plain_and_broken_results_are_dead() -> None:
    source = photo(20, 20)
    assert metrics.is_finite_and_alive(repeated(source, 2), source)
    for colour in (0, 128):
        assert not metrics.is_finite_and_alive(np.full((40, 40, 3), colour, np.uint8), source)
    broken = (repeated(source, 2) / 255).astype(np.float32)
    assert metrics.is_finite_and_alive(broken, source)
    broken[3, 3, 1] = np.nan
    assert not metrics.is_finite_and_alive(broken, source)
    flat = np.full((20, 20, 3), 7, np.uint8)
    assert metrics.is_finite_and_alive(repeated(flat, 2), flat)


@pytest.mark.parametrize("size", [(1, 1), (1, 90), (90, 1), (3, 5), (13, 12), (40, 40)])
@pytest.mark.parametrize("level", [0, 0.37, 1])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_extreme_images_have_finite_metrics(size: tuple[int, int], level: float, dtype: Any) -> None:
    source = np.full((*size, 3), level * np.iinfo(dtype).max, dtype)
    borders: dict[str, Any] = {"rows": [2, size[0]], "columns": [2, size[1]]}
    same = measure(repeated(source, 2), source, **borders)
    assert same.drift_db == metrics.MAX_DRIFT_DB
    assert (same.ciede2000_mean, same.ciede2000_p95) == pytest.approx((0, 0), abs=1e-4)
    assert same.shift_px == pytest.approx(0, abs=1e-6)
    assert same.seam_ratio in (None, 1.0)
    inverse = measure(np.iinfo(dtype).max - repeated(source, 2), source, **borders)
    assert all(np.isfinite(value) for value in inverse.to_dict().values() if value is not None)
    assert inverse.drift_db == pytest.approx(-20 * np.log10(abs(1 - 2 * level)), abs=0.2)
    for change in (lock_colours, lambda result, source: back_project(result, source, [1.0, 1.0])):
        result = np.iinfo(dtype).max - repeated(source, 2)
        change(result, source)
        assert measure(result, source).drift_db > 40


def test_result_of_wrong_size_is_refused() -> None:
    with pytest.raises(ValueError, match="41x40 is not a whole multiple of 20x20"):
        measure(np.zeros((40, 41, 3), np.uint8), np.zeros((20, 20, 3), np.uint8))
