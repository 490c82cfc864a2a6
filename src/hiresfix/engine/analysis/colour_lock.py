"""Tie a result to its source: lock its low-frequency colours, or everything the source can show."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from hiresfix.engine.pixels import resampling
from hiresfix.engine.pixels.resampling import Samples
from hiresfix.engine.progress import Report

RADIUS = 8.0
"""Input pixels; wide enough that the network keeps its own textures, far narrower than a tile."""
_CELLS = 4
"""Cells of the coarse grid in one radius."""
_STEEP = 4 / 255
"""Slope for each input pixel at which a pixel counts half in the mean colour of its surroundings."""
_BAND = 128
_PIXELS_AT_ONCE = 1 << 20
_CPU = torch.device("cpu")


def lock_colours(
    result: Samples,
    source: Samples,
    *,
    radius: float = RADIUS,
    strength: float = 1.0,
    device: torch.device = _CPU,
) -> None:
    """Changes `result` so that its low frequencies become the source's; what is finer stays as it is.

    result += strength * G(source - down(result)), G a Gaussian of standard deviation `radius` in input pixels, of
    at least 2, followed by a cubic B-spline on a grid of quarter radii. strength: 0..1. The Gaussian is normalised
    by a weight that is small on edges of either picture (Knutsson and Westin, Normalized Convolution, 1993): an edge
    that moved by a pixel is no colour error, and no halo appears beside it.
    """
    scale = resampling.scale_between(result, source)
    if not 0 <= strength <= 1 or radius < 2:
        raise ValueError(f"cannot lock with a strength of {strength} and a radius of {radius}; use 0..1 and 2 or more")
    if strength == 0:
        return
    cell = max(1, int(radius / _CELLS))
    correction = strength * _low_pass(*_cells(result, source, scale, cell, device), sigma=radius / cell)
    height, columns = result.shape[0], _positions(0, result.shape[1], scale * cell, device)
    for top in range(0, height, _BAND):
        band = result[top : top + _BAND]
        # Only the few rows of cells that this band looks at are widened to the picture's width.
        first, last = ((2 * row + 1 - scale * cell) // (2 * scale * cell) for row in (top, top + len(band) - 1))
        near = correction[:, :, max(0, first - 1) : last + 3]
        rows = _positions(top, len(band), scale * cell, device) - max(0, first - 1)
        y = resampling.to_tensor(band, device).add_(_spline(_spline(near, columns, 3), rows, 2))
        band[...] = resampling.to_samples(y, band.dtype)


def follow(
    result: Samples,
    source: Samples,
    weights: Sequence[float],
    *,
    device: torch.device = _CPU,
    report: Report = lambda fraction: None,
) -> None:
    """Changes `result` so that, scaled down, it becomes the source: `resampling.follow` with these weights.

    What is finer than the source can show stays. At most nine weights; bands of rows are computed on the device.
    """
    scale, (height, width) = resampling.scale_between(result, source), source.shape[:2]
    step = max(resampling.REACH, _PIXELS_AT_ONCE // (width * scale**2))
    before = result[:0]
    for top in range(0, height if weights else 0, step):
        end = min(height, top + step)
        low, high = max(0, top - resampling.REACH), min(height, end + resampling.REACH)
        seen = np.concatenate((before, result[top * scale : high * scale]))
        before = result[max(0, end - resampling.REACH) * scale : end * scale].copy()  # the next band sees it unchanged
        x = resampling.to_tensor(source[low:high], device)
        y = resampling.follow(resampling.to_tensor(seen, device), x, weights)
        kept = y[:, :, (top - low) * scale : (end - low) * scale]
        result[top * scale : end * scale] = resampling.to_samples(kept, result.dtype)
        report(end / height)


def _cells(result: Samples, source: Samples, scale: int, cell: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """For each cell of `cell` input pixels: the sum of weighted misses (1, 3, h, w) and of weights (1, 1, h, w)."""
    height, width = (-(-side // cell) for side in source.shape[:2])
    misses, weights = (torch.zeros(1, channels, height, width, device=device) for channels in (3, 1))
    step = max(cell, _BAND // cell * cell)
    for top in range(0, source.shape[0], step):
        # One more row at both ends, for the slopes.
        low, high = max(0, top - 1), min(source.shape[0], top + step + 1)
        x = resampling.to_tensor(source[low:high], device)
        y = functional.avg_pool2d(resampling.to_tensor(result[low * scale : high * scale], device), scale)
        weight = 1 / (1 + (_slope(x) + _slope(y)) / _STEEP**2)
        kept = slice(top - low, min(top - low + step, high - low))
        place = slice(top // cell, top // cell + -(-(min(top + step, source.shape[0]) - top) // cell))
        misses[:, :, place] = _sums(((x - y) * weight)[:, :, kept], cell)
        weights[:, :, place] = _sums(weight[:, :, kept], cell)
    return misses, weights


def _slope(x: Tensor) -> Tensor:
    """Sum over both axes of the squared central difference of the luminance, for each pixel of distance."""
    luma = functional.pad(resampling.luminance(x), (1, 1, 1, 1), mode="replicate")
    down = (luma[:, :, 2:, 1:-1] - luma[:, :, :-2, 1:-1]) / 2
    across = (luma[:, :, 1:-1, 2:] - luma[:, :, 1:-1, :-2]) / 2
    return down.square() + across.square()


def _sums(x: Tensor, cell: int) -> Tensor:
    """Sum of each cell, of which the last may be cut off."""
    x = functional.pad(x, (0, -x.shape[3] % cell, 0, -x.shape[2] % cell))
    return functional.avg_pool2d(x, cell) * cell**2


def _low_pass(misses: Tensor, weights: Tensor, *, sigma: float) -> Tensor:
    return _blurred(misses, sigma) / _blurred(weights, sigma)


def _blurred(x: Tensor, sigma: float) -> Tensor:
    reach = math.ceil(3 * sigma)
    taps = torch.exp(-torch.arange(-reach, reach + 1, dtype=x.dtype, device=x.device).square() / (2 * sigma**2))
    channels = x.shape[1]
    x = functional.conv2d(x, taps.view(1, 1, 1, -1).expand(channels, -1, -1, -1), padding=(0, reach), groups=channels)
    return functional.conv2d(
        x, taps.view(1, 1, -1, 1).expand(channels, -1, -1, -1), padding=(reach, 0), groups=channels
    )


def _positions(first: int, count: int, cell: int, device: torch.device) -> Tensor:
    """Where the centres of `count` pixels from `first` on lie, counted in cells from the centre of the first cell."""
    return (torch.arange(first, first + count, device=device) + 0.5) / cell - 0.5


def _spline(x: Tensor, positions: Tensor, axis: int) -> Tensor:
    """The cubic B-spline with coefficients `x`: nowhere beyond their range, straight where they are."""
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
