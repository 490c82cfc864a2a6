"""Tie a result to its source: lock its low-frequency colours, or everything the source can show."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from hiresfix.engine.pixels import resampling
from hiresfix.engine.pixels.arrays import ImageArray
from hiresfix.engine.progress import ProgressCallback

RADIUS = 8.0
"""In input pixels; wide enough that the network keeps its own textures, far narrower than a tile."""
_CELLS_PER_RADIUS = 4
_EDGE_SLOPE = 4 / 255
"""Slope for each input pixel at which a pixel counts half in the mean colour of its surroundings."""
_BAND_ROWS = 128
_MAX_BAND_PIXELS = 1 << 20
_CPU = torch.device("cpu")


def lock_colours(
    result: ImageArray,
    source: ImageArray,
    *,
    radius: float = RADIUS,
    strength: float = 1.0,
    device: torch.device = _CPU,
) -> None:
    """Replace the low frequencies of `result` in place by those of the source; finer detail stays.

    result += strength * G(source - down(result)), G a Gaussian followed by a cubic B-spline on a grid of quarter radii.
    The Gaussian is normalised by a weight that is small on edges of either image (Knutsson and Westin, Normalized
    Convolution, 1993): an edge that moved by a pixel is not a colour error, and gets no halo.

    Args:
        result: a whole multiple of the source's size.
        source: (H, W, 3).
        radius: standard deviation of the Gaussian in input pixels, at least 2.
        strength: 0..1.
        device: where to compute.
    """
    scale = resampling.scale_between(result, source)
    if not 0 <= strength <= 1 or radius < 2:
        raise ValueError(f"cannot lock with a strength of {strength} and a radius of {radius}; use 0..1 and 2 or more")
    if strength == 0:
        return
    cell = max(1, int(radius / _CELLS_PER_RADIUS))
    differences, weights = _cells(result, source, scale, cell, device)
    sigma = radius / cell
    correction = strength * (_gaussian_blur(differences, sigma) / _gaussian_blur(weights, sigma))
    height, columns = result.shape[0], _cell_positions(0, result.shape[1], scale * cell, device)
    for top in range(0, height, _BAND_ROWS):
        band = result[top : top + _BAND_ROWS]
        # Only the few rows of cells that matter to this band are upsampled to the full width.
        first, last = ((2 * row + 1 - scale * cell) // (2 * scale * cell) for row in (top, top + len(band) - 1))
        near = correction[:, :, max(0, first - 1) : last + 3]
        rows = _cell_positions(top, len(band), scale * cell, device) - max(0, first - 1)
        y = resampling.to_tensor(band, device).add_(_spline(_spline(near, columns, 3), rows, 2))
        band[...] = resampling.to_samples(y, band.dtype)


def back_project(
    result: ImageArray,
    source: ImageArray,
    weights: Sequence[float],
    *,
    device: torch.device = _CPU,
    report: ProgressCallback = lambda fraction: None,
) -> None:
    """Pull `result`, scaled down, towards the source in place: `resampling.back_project` in bands of rows.

    What is finer than the source can show stays.

    Args:
        result: a whole multiple of the source's size.
        source: (H, W, 3).
        weights: of each round, at most nine.
        device: where to compute.
        report: called after each band.
    """
    scale, (height, width) = resampling.scale_between(result, source), source.shape[:2]
    step = max(resampling.REACH, _MAX_BAND_PIXELS // (width * scale**2))
    before = result[:0]
    for top in range(0, height if weights else 0, step):
        end = min(height, top + step)
        low, high = max(0, top - resampling.REACH), min(height, end + resampling.REACH)
        window = np.concatenate((before, result[top * scale : high * scale]))
        before = result[max(0, end - resampling.REACH) * scale : end * scale].copy()  # the next band sees it unchanged
        x = resampling.to_tensor(source[low:high], device)
        y = resampling.back_project(resampling.to_tensor(window, device), x, weights)
        core = y[:, :, (top - low) * scale : (end - low) * scale]
        result[top * scale : end * scale] = resampling.to_samples(core, result.dtype)
        report(end / height)


def _cells(
    result: ImageArray, source: ImageArray, scale: int, cell: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Sum the weighted differences (1, 3, h, w) and the weights (1, 1, h, w) in cells of `cell` input pixels."""
    height, width = (-(-side // cell) for side in source.shape[:2])
    differences, weights = (torch.zeros(1, channels, height, width, device=device) for channels in (3, 1))
    step = max(cell, _BAND_ROWS // cell * cell)
    for top in range(0, source.shape[0], step):
        # One more row at both ends, for the slopes.
        low, high = max(0, top - 1), min(source.shape[0], top + step + 1)
        x = resampling.to_tensor(source[low:high], device)
        y = functional.avg_pool2d(resampling.to_tensor(result[low * scale : high * scale], device), scale)
        weight = 1 / (1 + (_squared_slope(x) + _squared_slope(y)) / _EDGE_SLOPE**2)
        core = slice(top - low, min(top - low + step, high - low))
        rows = slice(top // cell, top // cell + -(-(min(top + step, source.shape[0]) - top) // cell))
        differences[:, :, rows] = _cell_sums(((x - y) * weight)[:, :, core], cell)
        weights[:, :, rows] = _cell_sums(weight[:, :, core], cell)
    return differences, weights


def _squared_slope(x: Tensor) -> Tensor:
    """Return the squared central difference of the luminance for each pixel of distance, summed over both axes."""
    luma = functional.pad(resampling.luminance(x), (1, 1, 1, 1), mode="replicate")
    down = (luma[:, :, 2:, 1:-1] - luma[:, :, :-2, 1:-1]) / 2
    across = (luma[:, :, 1:-1, 2:] - luma[:, :, 1:-1, :-2]) / 2
    return down.square() + across.square()


def _cell_sums(x: Tensor, cell: int) -> Tensor:
    """Sum each cell; the last one may be cut off."""
    x = functional.pad(x, (0, -x.shape[3] % cell, 0, -x.shape[2] % cell))
    return functional.avg_pool2d(x, cell) * cell**2


def _gaussian_blur(x: Tensor, sigma: float) -> Tensor:
    """Blur with zeros beyond the border and without normalising the kernel."""
    reach = math.ceil(3 * sigma)
    taps = torch.exp(-torch.arange(-reach, reach + 1, dtype=x.dtype, device=x.device).square() / (2 * sigma**2))
    channels = x.shape[1]
    x = functional.conv2d(x, taps.view(1, 1, 1, -1).expand(channels, -1, -1, -1), padding=(0, reach), groups=channels)
    return functional.conv2d(
        x, taps.view(1, 1, -1, 1).expand(channels, -1, -1, -1), padding=(reach, 0), groups=channels
    )


def _cell_positions(first: int, count: int, cell: int, device: torch.device) -> Tensor:
    """Return the centres of `count` pixels from `first` on, in cells from the centre of the first cell."""
    return (torch.arange(first, first + count, device=device) + 0.5) / cell - 0.5


def _spline(x: Tensor, positions: Tensor, axis: int) -> Tensor:
    """Evaluate the cubic B-spline with coefficients `x`: it stays within their range, and straight lines stay so."""
    start = positions.floor()
    t = positions - start
    weights = ((1 - t) ** 3, 4 - 6 * t**2 + 3 * t**3, 1 + 3 * t + 3 * t**2 - 3 * t**3, t**3)
    shape = [1, 1, 1, 1]
    shape[axis] = len(positions)
    total = x.new_zeros(())
    for offset, weight in zip((-1, 0, 1, 2), weights, strict=True):
        index = (start.long() + offset).clamp(0, x.shape[axis] - 1)
        total = total + x.index_select(axis, index) * (weight / 6).view(shape)
    return total
