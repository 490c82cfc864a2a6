"""Cut the sides of an image into parts: which pixels each computation keeps, and which it has to see for them.

A part's *core* is kept; its *window* is the core and a halo around it, and is what is computed.
Guarantees: the cores cover the side once, in order; a window is cut off only where the image ends. All lengths are
whole pixels. Knows no networks and no devices.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hiresfix.engine.pixels.arrays import ImageArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Pixels `start` to `end` of one axis, `end` excluded."""

    start: int
    end: int

    @property
    def length(self) -> int:
        return self.end - self.start

    @property
    def slice(self) -> slice:
        return slice(self.start, self.end)

    def scaled(self, factor: int) -> Span:
        """Return the same place in the image upscaled `factor` times."""
        return Span(start=self.start * factor, end=self.end * factor)

    def within(self, outer: Span) -> Span:
        """Return the same place counted from the start of `outer`, which contains it."""
        return Span(start=self.start - outer.start, end=self.end - outer.start)

    def overlap(self, other: Span) -> Span:
        """Return the pixels that lie in both; an empty span if there are none."""
        start = max(self.start, other.start)
        return Span(start=start, end=max(start, min(self.end, other.end)))

    def grown(self, halo: int, side: int) -> Span:
        """Add `halo` pixels at both ends, cut off where the side of the image ends."""
        return Span(start=max(0, self.start - halo), end=min(side, self.end + halo))


@dataclass(frozen=True, slots=True, kw_only=True)
class TilePart:
    """`core` is kept; `window` contains it and is what is computed."""

    core: Span
    window: Span


def split_side(side: int, *, max_length: int, halo: int = 0, align: int = 1) -> list[TilePart]:
    """Cut a side into cores of about equal length.

    A side that fits into one window (`max_length` and the halo twice) is not cut.

    Args:
        side: length of the side.
        max_length: longest core.
        halo: pixels that a window has on each side of its core, rounded up to a multiple of `align`.
        align: cores and windows begin at multiples of it; it must divide `max_length`.

    Raises:
        ValueError: lengths below 1, or `align` does not divide `max_length`.
    """
    if min(side, max_length, align) < 1 or halo < 0 or max_length % align:
        raise ValueError(f"cannot cut {side} pixels into {max_length} with a halo of {halo}, aligned to {align}")
    halo += -halo % align
    step = side
    if side > max_length + 2 * halo:
        count = -(-side // max_length)
        # Equal lengths, rounded up to `align`: never above `max_length`, which `align` divides. The last may be less.
        step = -(-side // (count * align)) * align
    cores = [Span(start=start, end=min(start + step, side)) for start in range(0, side, step)]
    return [TilePart(core=core, window=core.grown(halo, side)) for core in cores]


def mirrored_indices(span: Span, side: int) -> NDArray[np.intp]:
    """Return where in a side the pixels of `span` lie.

    Beyond both ends the side is mirrored without repeating its border pixel: 2, 1, 0, 1, 2, ...
    """
    index = np.arange(span.start, span.end) % max(1, 2 * side - 2)
    return np.minimum(index, 2 * side - 2 - index) if side > 1 else np.zeros_like(index)


def cut_mirrored(pixels: ImageArray, rows: Span, columns: Span) -> ImageArray:
    """Return a copy of these rows and columns of (H, W, ...); beyond the borders the image is mirrored."""
    height, width = pixels.shape[:2]
    cut: ImageArray = pixels[np.ix_(mirrored_indices(rows, height), mirrored_indices(columns, width))]
    return cut
