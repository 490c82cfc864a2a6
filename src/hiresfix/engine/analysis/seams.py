"""Whether pieces computed apart meet unseen: steps across their borders, against what the picture itself has elsewhere.

Guarantees: a bounded number of pixels is looked at, however large the picture; a ratio above 1 is what the evidence
supports and not the likeliest value. So it is 1 for a picture without seams, and also for a seam that cannot be told
from the picture: a faint one in rough texture, or any in a picture with few borders and much going on. Knows no
networks and no tiles.

What is looked at is the result less the source enlarged by interpolation, which takes away most of what the picture
shows, in three ways: how much its mean steps along 64 pixels of a border (a level that differs); how abruptly it steps
at each pixel (structures that do not meet); how much its contrast differs on both sides (texture that does). The same
is measured on lines beside each border, and how those differ among each other says what chance does. Of the
logarithm of border over others, what chance makes is taken off. `benchmarks.seams` shows what is found and what is not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hiresfix.engine.pixels import resampling
from hiresfix.engine.pixels.resampling import Samples

Floats = NDArray[np.float64]

_SEGMENT = 64
_OFFSETS = tuple(range(-56, -8, 8)) + tuple(range(16, 64, 8))
"""Of the lines a border is compared with: multiples of 8, because the steps of an enlarged picture repeat with its
scale, and these lie at the border's place in that pattern."""
_NEAR = 4
"""Rows whose mean is one side's level; fine texture averages out."""
_WIDE = 8
"""Rows whose mean contrast is one side's; also how far lines stay from other borders and from the picture's sides."""
_LEAST_LINES = 4
_MOST_BORDERS = 16
_MOST_LENGTH = 1024
"""Pixels of one border that are looked at: one stretch, and with each border another."""
_VISIBLE = 0.25 / 255
_OF_EDGE = 0.05
"""What interpolation leaves of an edge's step, which is no seam."""
ERRORS = 2.5
"""Standard errors that are taken off; three signs are looked at, and few lines tell what chance does."""
_CPU = torch.device("cpu")


def ratios(
    result: Samples,
    source: Samples,
    *,
    rows: Sequence[int] = (),
    columns: Sequence[int] = (),
    stretches: Sequence[float] = (1.0,),
    errors: float = ERRORS,
) -> list[float | None]:
    """For each contrast stretch, by which factor steps across the borders exceed those beside them, at least 1.

    result: a whole multiple of the source's size. rows, columns: the index of the first row or column behind each
    border. Steps far below a quarter of a level of 255, divided by the stretch, count as equal. None where no border
    has room for lines beside it. errors: how many standard errors are taken off.
    """
    found = _borders(result, source, rows, stretches)
    found += _borders(result.swapaxes(0, 1), source.swapaxes(0, 1), columns, stretches)
    return [_supported([border[number] for border in found], errors) for number in range(len(stretches))]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Border:
    """Of one border: (3 signs) how far it lies above its lines, and their variance; and how much it counts."""

    excess: Floats
    variance: Floats
    lines: int
    segments: int


def _supported(borders: Sequence[_Border], errors: float) -> float | None:
    """The largest of the three ratios that the borders together give reason to believe."""
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
    return math.exp(max(0.0, float((excess - errors * error).max())))


def _borders(
    result: Samples, source: Samples, rows: Sequence[int], stretches: Sequence[float]
) -> list[tuple[_Border, ...]]:
    """Of each horizontal border that has lines beside it: its evidence, for every stretch."""
    height, width = result.shape[:2]
    length = min(width, _MOST_LENGTH)
    chosen = some(rows, most=_MOST_BORDERS)
    found = []
    for number, row in enumerate(chosen):
        lines = [row + offset for offset in _OFFSETS if _clear(row + offset, rows, height)]
        if not _WIDE <= row <= height - _WIDE or len(lines) < _LEAST_LINES:
            continue
        left = (width - length) * number // max(1, len(chosen) - 1)
        top, end = min(row, *lines) - _WIDE, max(row, *lines) + _WIDE
        rest, enlarged = _apart(result, source, slice(top, end), slice(left, left + length))
        at = torch.tensor([row, *lines]) - top
        found.append(tuple(_border(rest, enlarged, at, _VISIBLE / stretch) for stretch in stretches))
    return found


def _clear(line: int, borders: Sequence[int], height: int) -> bool:
    return _WIDE <= line <= height - _WIDE and all(abs(line - border) >= _WIDE for border in borders)


def some(values: Sequence[int], *, most: int) -> list[int]:
    """At most that many of the values, evenly spread."""
    if len(values) <= most:
        return list(values)
    return [values[int((number + 0.5) * len(values) / most)] for number in range(most)]


def _apart(result: Samples, source: Samples, rows: slice, columns: slice) -> tuple[Tensor, Tensor]:
    """This part of the result less the enlarged source, and the latter: (3, rows, columns) in 0..1."""
    scale = result.shape[0] // source.shape[0]
    # Three more pixels of the source than are needed, for the interpolation.
    (top, height), (left, width) = (
        (max(0, part.start // scale - 3), min(side, -(-part.stop // scale) + 3))
        for part, side in zip((rows, columns), source.shape[:2], strict=True)
    )
    x = resampling.to_tensor(source[top:height, left:width], _CPU)
    enlarged = resampling.resize(x, (height - top) * scale, (width - left) * scale)[0]
    enlarged = enlarged[:, rows.start - top * scale :, columns.start - left * scale :]
    enlarged = enlarged[:, : rows.stop - rows.start, : columns.stop - columns.start]
    return resampling.to_tensor(result[rows, columns], _CPU)[0] - enlarged, enlarged


def _border(rest: Tensor, enlarged: Tensor, at: Tensor, visible: float) -> _Border:
    """at: the rows behind the border and behind each line beside it."""
    # Where the picture steps itself, so does what was made of it.
    level = ((_level(rest, at) + visible) / (_OF_EDGE * _level(enlarged, at) + visible)).log()
    abrupt = ((_abruptness(rest, at) + visible) / (_abruptness(enlarged, at) + visible)).log()
    slopes = enlarged.diff(dim=1, append=enlarged[:, -1:])
    contrast = (_contrast(rest, at, visible) - _contrast(slopes, at, visible)).abs()
    signs = torch.stack((level, abrupt, contrast)).double()
    means = signs.mean(2).numpy()
    return _Border(
        excess=means[:, 0] - means[:, 1:].mean(1),
        variance=means[:, 1:].var(1, ddof=1),
        lines=len(at) - 1,
        segments=signs.shape[2],
    )


def _level(x: Tensor, at: Tensor) -> Tensor:
    """(lines, segments): by how much the mean of a segment steps, as the root of the channels' mean square."""
    above, below = _sides(_segments(x), at, _NEAR)
    return (below - above).square().mean(0).sqrt()


def _abruptness(x: Tensor, at: Tensor) -> Tensor:
    """(lines, segments): the mean step at a pixel beyond those before and behind it; a plain gradient has none."""
    steps = x.diff(dim=1)
    sudden = (steps[:, at - 1] - (steps[:, at] + steps[:, at - 2]) / 2).abs().mean(0) * 2 / 3
    return _segments(sudden)


def _contrast(x: Tensor, at: Tensor, visible: float) -> Tensor:
    """(lines, segments): the logarithm of the mean absolute value behind a line over that before it."""
    above, below = _sides(_segments(x.abs().mean(0, keepdim=True)), at, _WIDE)
    return ((below + visible) / (above + visible)).log()[0]


def _segments(x: Tensor) -> Tensor:
    """(..., width) -> (..., segments): their means; what is left over at the right is left out."""
    length = min(_SEGMENT, x.shape[-1])
    cut = x[..., : x.shape[-1] // length * length]
    return cut.reshape(*x.shape[:-1], -1, length).mean(-1)


def _sides(x: Tensor, at: Tensor, reach: int) -> tuple[Tensor, Tensor]:
    """Of (channels, rows, segments): the means of `reach` rows before each line, and behind it."""
    sums = torch.cat((torch.zeros_like(x[:, :1]), x.double().cumsum(1).to(x.dtype)), 1)
    return (sums[:, at] - sums[:, at - reach]) / reach, (sums[:, at + reach] - sums[:, at]) / reach
