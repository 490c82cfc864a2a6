"""Planted seams are ratios, and images without seams have none."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from hiresfix.engine.analysis import seams
from hiresfix.engine.pixels import resampling
from tests.engine.analysis.test_metrics import photograph, shrunk

PITCH = 64
MAX_SEAMLESS = 1.1
"""The largest ratio of a seamless result."""


def grid(rgb: NDArray[Any]) -> dict[str, Any]:
    return {"rows": range(PITCH, rgb.shape[0], PITCH), "columns": range(PITCH, rgb.shape[1], PITCH)}


def ratio(result: NDArray[Any], source: NDArray[Any], **borders: Any) -> float:
    (value,) = seams.seam_ratios(result, source, **(borders or grid(result)))
    assert value is not None
    return value


def tiles(rgb: NDArray[Any]) -> NDArray[np.bool_]:
    """Return a mask (H, W, 1) of every second tile, like a checkerboard."""
    down, across = (np.arange(side) // PITCH for side in rgb.shape[:2])
    return np.asarray(np.add.outer(down, across)[..., None] % 2 == 1)


def planted(rgb: NDArray[Any], levels: int) -> NDArray[Any]:
    brighter = rgb.astype(int) + levels * tiles(rgb)
    return np.asarray(brighter.clip(0, np.iinfo(rgb.dtype).max), rgb.dtype)


def pair(number: int, side: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return the middle of a photo, as a result without seams, and its source."""
    rgb = photograph(number)
    top, left = ((length - side) // 2 for length in rgb.shape[:2])
    middle = np.ascontiguousarray(rgb[top : top + side, left : left + side])
    return middle, shrunk(middle, 2)


def upscaled(source: NDArray[Any], scale: int) -> NDArray[Any]:
    x = resampling.to_tensor(source, torch.device("cpu"))
    return resampling.to_samples(resampling.resize(x, source.shape[0] * scale, source.shape[1] * scale), source.dtype)


@pytest.mark.parametrize("side", [160, 320])
def test_photos_have_no_seams(side: int) -> None:
    ratios = [ratio(*pair(number, side)) for number in range(12)]
    assert np.mean(np.array(ratios) > MAX_SEAMLESS) < 0.1
    assert np.median(ratios) == 1


@pytest.mark.parametrize(("levels", "least"), [(1, 0.5), (2, 0.8), (4, 0.9)])
def test_small_steps_are_found_in_most_photos(levels: int, least: float) -> None:
    pairs = [pair(number, 320) for number in range(10)]
    ratios = np.array([ratio(planted(rgb, levels), source) for rgb, source in pairs])
    assert np.mean(ratios > MAX_SEAMLESS) >= least


def softer(rgb: NDArray[Any]) -> NDArray[Any]:
    """Blur every second tile a little."""
    mean = (np.roll(rgb, 1, 0).astype(int) + 2 * rgb + np.roll(rgb, -1, 0) + 2) // 4
    mean = (np.roll(mean, 1, 1) + 2 * mean + np.roll(mean, -1, 1) + 2) // 4
    return np.where(tiles(rgb), mean, rgb).astype(rgb.dtype)


def shifted(rgb: NDArray[Any]) -> NDArray[Any]:
    """Shift every second tile by a pixel of the result, half a pixel of the input."""
    return np.where(tiles(rgb), np.roll(rgb, (1, 1), (0, 1)), rgb)


@pytest.mark.parametrize("fault", [softer, shifted], ids=["softer", "shifted"])
def test_differing_tiles_are_found_in_most_photos(fault: Any) -> None:
    pairs = [pair(number, 320) for number in range(10)]
    ratios = np.array([ratio(fault(rgb), source) for rgb, source in pairs])
    assert np.mean(ratios > MAX_SEAMLESS) >= 0.6


def fine_gradient() -> NDArray[np.uint16]:
    x, y = np.meshgrid(np.linspace(8000, 56000, 200), np.linspace(10000, 50000, 150))
    return np.dstack([x, y, (x + y) / 2]).astype(np.uint16)


def test_seam_on_a_gradient_grows_with_stretch() -> None:
    source = fine_gradient()
    rgb = upscaled(source, 2)
    assert ratio(rgb, source) == pytest.approx(1, abs=0.02)
    plain, stretched = seams.seam_ratios(planted(rgb, 257), source, stretches=(1, 4), **grid(rgb))
    assert plain is not None
    assert stretched is not None
    assert stretched > 1.5 * plain > 3


@pytest.mark.parametrize("bands", ["columns", "rows"])
def test_level_steps_of_a_gradient_are_not_seams(bands: str) -> None:
    source = np.repeat(np.arange(100, 140, dtype=np.uint8), 4)[:, None, None].repeat(160, 1).repeat(3, 2)
    source = source if bands == "rows" else np.ascontiguousarray(source.swapaxes(0, 1))
    for result in (upscaled(source, 2), source.repeat(2, 0).repeat(2, 1)):
        assert ratio(result, source) <= MAX_SEAMLESS


@pytest.mark.parametrize("scale", [4, 8])
def test_upscaling_pattern_is_not_a_seam(scale: int) -> None:
    source = photograph(2)[:128, :128]
    repeated = source.repeat(scale, 0).repeat(scale, 1)
    borders = range(16 * scale, 128 * scale, 16 * scale)
    assert ratio(repeated, source, rows=borders, columns=borders) <= MAX_SEAMLESS


def test_image_edge_on_border_is_not_a_seam() -> None:
    rgb, _ = pair(4, 320)
    rgb[128:] = np.clip(rgb[128:].astype(int) + 40, 0, 255).astype(np.uint8)
    assert ratio(rgb, shrunk(rgb, 2)) <= MAX_SEAMLESS
    assert ratio(planted(rgb, 4), shrunk(rgb, 2)) > MAX_SEAMLESS


def test_flat_image_has_no_seams() -> None:
    flat = np.full((200, 200, 3), 77, np.uint8)
    assert ratio(flat, flat) == 1
    assert seams.seam_ratios(flat, flat, rows=[1, 199], stretches=(1, 4)) == [None, None]
    assert seams.seam_ratios(flat, flat) == [None]
    dot = np.full((1, 1, 3), 77, np.uint8)
    assert seams.seam_ratios(dot, dot, rows=[0], columns=[0]) == [None]


def test_close_borders_use_the_lines_between() -> None:
    rgb, source = pair(1, 320)
    close = {"rows": range(32, 320, 32)}
    assert ratio(rgb, source, **close) <= MAX_SEAMLESS
    stripes = np.where((np.arange(320) // 32 % 2)[:, None, None], rgb.astype(int) + 4, rgb).clip(0, 255)
    assert ratio(stripes.astype(np.uint8), source, **close) > MAX_SEAMLESS


def test_large_image_costs_a_bounded_share(monkeypatch: pytest.MonkeyPatch) -> None:
    rgb, source = pair(3, 320)
    seen: list[int] = []
    to_tensor = resampling.to_tensor

    def counting(samples: Any, device: torch.device) -> torch.Tensor:
        seen.append(samples.shape[0] * samples.shape[1])
        return to_tensor(samples, device)

    monkeypatch.setattr(resampling, "to_tensor", counting)
    wide, small = (np.tile(each, (3, 24, 1)) for each in (rgb, source))
    (wide_ratio,) = seams.seam_ratios(planted(wide, 8), small, **grid(wide))
    assert wide_ratio is not None
    assert wide_ratio > MAX_SEAMLESS
    assert sum(seen) < 32 * 1.6 * 128 * 1024
