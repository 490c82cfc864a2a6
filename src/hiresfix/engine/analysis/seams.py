"""Detect seams: compare steps across tile borders with those that the image has elsewhere.

Guarantees: a bounded number of pixels is examined, however large the image; a ratio above 1 is what the evidence
supports, not the likeliest value. So it is 1 for an image without seams, and also for a seam that looks like the image:
a faint one in rough texture, or any in an image with few borders and much detail. Knows no networks and no tiles.

The input is the result minus the interpolated source, which removes most of the image. Three signs are measured: how
much its mean steps along 64 pixels of a border (a level that differs); how abruptly it steps at each pixel (structures
that do not meet); how much its contrast differs between both sides (texture that does not match). The same is measured
on lines beside each border, and their variation says what chance does. The share of chance is subtracted from the
logarithm of border over lines. `benchmarks.seams` shows what is found and what is not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hiresfix.engine.pixels import resampling
from hiresfix.engine.pixels.arrays import Float64Array, ImageArray

_SEGMENT = 64
_OFFSETS = tuple(range(-56, -8, 8)) + tuple(range(16, 64, 8))
"""Distances of the lines that a border is compared with: multiples of 8, because the steps of an upscaled image repeat
with its scale, and these lines lie at the same place of that pattern as the border."""
_LEVEL_ROWS = 4
"""Rows whose mean is the level of one side; fine texture averages out."""
_CONTRAST_ROWS = 8
"""Rows whose mean is the contrast of one side; also the distance of lines from other borders and the image's sides."""
_MIN_LINES = 4
_MAX_BORDERS = 16
_MAX_LENGTH = 1024
"""Pixels of a border that are examined, in one piece; a different piece of each border."""
_VISIBLE = 0.25 / 255
_EDGE_SHARE = 0.05
"""Share of an edge's step that interpolation leaves, and that is not a seam."""
STANDARD_ERRORS = 2.5
"""How many standard errors are subtracted: there are three signs, and only few lines to estimate chance from."""
_CPU = torch.device("cpu")


def seam_ratios(
    result: ImageArray,
    source: ImageArray,
    *,
    rows: Sequence[int] = (),
    columns: Sequence[int] = (),
    stretches: Sequence[float] = (1.0,),
    standard_errors: float = STANDARD_ERRORS,
) -> list[float | None]:
    """Return, for each contrast stretch, by which factor steps across the borders exceed those beside them.

    Args:
        result: a whole multiple of the source's size.
        source: (H, W, 3).
        rows: the first row behind each horizontal border.
        columns: the first column behind each vertical border.
        stretches: factors; steps far below a quarter of a level of 255, divided by the stretch, count as equal.
        standard_errors: how many are subtracted.

    Returns:
        Ratios of at least 1; None if no border has room for lines beside it.
    """
    borders = _borders(result, source, rows, stretches)
    borders += _borders(result.swapaxes(0, 1), source.swapaxes(0, 1), columns, stretches)
    return [
        _supported_ratio([border[number] for border in borders], standard_errors) for number in range(len(stretches))
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class _BorderEvidence:
    """Evidence from one border.

    Attributes:
        excess: (3 signs) by how much the border exceeds its lines.
        variance: (3 signs) of the lines.
        lines: number of lines.
        segments: number of segments; the weight of this border.
    """

    excess: Float64Array
    variance: Float64Array
    lines: int
    segments: int


def _supported_ratio(borders: Sequence[_BorderEvidence], standard_errors: float) -> float | None:
    """Return the largest of the three ratios that the evidence of all borders supports."""
    if not borders:
        return None
    segments = np.array([border.segments for border in borders], np.float64)
    shares = segments / segments.sum()
    excess = shares @ np.stack([border.excess for border in borders])
    # Few lines estimate their variance badly, so all borders share one.
    variance = shares @ np.stack([border.variance for border in borders])
    error = np.sqrt(
        variance * sum(share**2 * (1 + 1 / each.lines) for share, each in zip(shares, borders, strict=True))
    )
    return math.exp(max(0.0, float((excess - standard_errors * error).max())))


def _borders(
    result: ImageArray, source: ImageArray, rows: Sequence[int], stretches: Sequence[float]
) -> list[tuple[_BorderEvidence, ...]]:
    """Return the evidence of each horizontal border that has lines beside it, for every stretch."""
    height, width = result.shape[:2]
    length = min(width, _MAX_LENGTH)
    chosen = evenly_spaced(rows, limit=_MAX_BORDERS)
    evidence = []
    for number, row in enumerate(chosen):
        lines = [row + offset for offset in _OFFSETS if _clear(row + offset, rows, height)]
        if not _CONTRAST_ROWS <= row <= height - _CONTRAST_ROWS or len(lines) < _MIN_LINES:
            continue
        left = (width - length) * number // max(1, len(chosen) - 1)
        top, end = min(row, *lines) - _CONTRAST_ROWS, max(row, *lines) + _CONTRAST_ROWS
        difference, upscaled = _difference(result, source, slice(top, end), slice(left, left + length))
        at = torch.tensor([row, *lines]) - top
        evidence.append(tuple(_evidence(difference, upscaled, at, _VISIBLE / stretch) for stretch in stretches))
    return evidence


def _clear(line: int, borders: Sequence[int], height: int) -> bool:
    return _CONTRAST_ROWS <= line <= height - _CONTRAST_ROWS and all(
        abs(line - border) >= _CONTRAST_ROWS for border in borders
    )


def evenly_spaced(values: Sequence[int], *, limit: int) -> list[int]:
    """Return at most `limit` of the values, evenly spread."""
    if len(values) <= limit:
        return list(values)
    return [values[int((number + 0.5) * len(values) / limit)] for number in range(limit)]


def _difference(result: ImageArray, source: ImageArray, rows: slice, columns: slice) -> tuple[Tensor, Tensor]:
    """Return this part of the result minus the interpolated source, and the latter: (3, rows, columns) in 0..1."""
    scale = result.shape[0] // source.shape[0]
    # Three extra pixels of the source for the interpolation.
    (top, height), (left, width) = (
        (max(0, part.start // scale - 3), min(side, -(-part.stop // scale) + 3))
        for part, side in zip((rows, columns), source.shape[:2], strict=True)
    )
    x = resampling.to_tensor(source[top:height, left:width], _CPU)
    upscaled = resampling.resize(x, (height - top) * scale, (width - left) * scale)[0]
    upscaled = upscaled[:, rows.start - top * scale :, columns.start - left * scale :]
    upscaled = upscaled[:, : rows.stop - rows.start, : columns.stop - columns.start]
    return resampling.to_tensor(result[rows, columns], _CPU)[0] - upscaled, upscaled


def _evidence(difference: Tensor, upscaled: Tensor, at: Tensor, visible: float) -> _BorderEvidence:
    """Measure a border.

    Args:
        difference: the result minus the interpolated source.
        upscaled: the interpolated source.
        at: the rows behind the border and behind each line beside it.
        visible: the smallest visible step.
    """
    # Where the source steps, so does the result.
    level = ((_level(difference, at) + visible) / (_EDGE_SHARE * _level(upscaled, at) + visible)).log()
    abrupt = ((_abruptness(difference, at) + visible) / (_abruptness(upscaled, at) + visible)).log()
    slopes = upscaled.diff(dim=1, append=upscaled[:, -1:])
    contrast = (_contrast(difference, at, visible) - _contrast(slopes, at, visible)).abs()
    signs = torch.stack((level, abrupt, contrast)).double()
    means = signs.mean(2).numpy()
    return _BorderEvidence(
        excess=means[:, 0] - means[:, 1:].mean(1),
        variance=means[:, 1:].var(1, ddof=1),
        lines=len(at) - 1,
        segments=signs.shape[2],
    )


def _level(x: Tensor, at: Tensor) -> Tensor:
    """Return (lines, segments): the step of each segment's mean, as the root mean square over the channels."""
    above, below = _sides(_segments(x), at, _LEVEL_ROWS)
    return (below - above).square().mean(0).sqrt()


def _abruptness(x: Tensor, at: Tensor) -> Tensor:
    """Return (lines, segments): the mean step at a pixel beyond those before and behind it; 0 in a plain gradient."""
    steps = x.diff(dim=1)
    sudden = (steps[:, at - 1] - (steps[:, at] + steps[:, at - 2]) / 2).abs().mean(0) * 2 / 3
    return _segments(sudden)


def _contrast(x: Tensor, at: Tensor, visible: float) -> Tensor:
    """Return (lines, segments): the logarithm of the mean absolute value behind a line over that before it."""
    above, below = _sides(_segments(x.abs().mean(0, keepdim=True)), at, _CONTRAST_ROWS)
    return ((below + visible) / (above + visible)).log()[0]


def _segments(x: Tensor) -> Tensor:
    """Return the means of whole segments: (..., width) -> (..., segments)."""
    length = min(_SEGMENT, x.shape[-1])
    cut = x[..., : x.shape[-1] // length * length]
    return cut.reshape(*x.shape[:-1], -1, length).mean(-1)


def _sides(x: Tensor, at: Tensor, reach: int) -> tuple[Tensor, Tensor]:
    """Return for (channels, rows, segments) the means of `reach` rows before each line, and behind it."""
    sums = torch.cat((torch.zeros_like(x[:, :1]), x.double().cumsum(1).to(x.dtype)), 1)
    return (sums[:, at] - sums[:, at - reach]) / reach, (sums[:, at + reach] - sums[:, at]) / reach
