"""Pure geometry of parts: which pixels along one axis each computation keeps, and which it has to see for them.

A part's *core* is kept; its *window* is the core and a halo round it, and is what is computed.
Guarantees: the cores cover the axis once, in order; a window is cut off only where the picture ends. All in whole
pixels. Knows no pixels, no networks and no devices.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


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
        """The same place in the picture enlarged `factor` times."""
        return Span(start=self.start * factor, end=self.end * factor)

    def within(self, outer: Span) -> Span:
        """The same place counted from the start of `outer`, which contains it."""
        return Span(start=self.start - outer.start, end=self.end - outer.start)

    def overlap(self, other: Span) -> Span:
        """What lies in both; empty, at its start, where nothing does."""
        start = max(self.start, other.start)
        return Span(start=start, end=max(start, min(self.end, other.end)))

    def grown(self, halo: int, side: int) -> Span:
        """With `halo` more pixels at both ends, cut off where the side of the picture ends."""
        return Span(start=max(0, self.start - halo), end=min(side, self.end + halo))


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """`core` is kept, `window` contains it and is what is computed."""

    core: Span
    window: Span


def parts(side: int, *, most: int, halo: int = 0, align: int = 1) -> list[Part]:
    """A side cut into cores of about equal length, at most `most`.

    Cores and windows begin at multiples of `align`, which must divide `most`; the halo is rounded up to one. A side
    that fits into one window (`most` and the halo twice) is not cut. Raises ValueError for lengths below 1.
    """
    if min(side, most, align) < 1 or halo < 0 or most % align:
        raise ValueError(f"cannot cut {side} pixels into {most} with a halo of {halo}, aligned to {align}")
    halo += -halo % align
    step = side
    if side > most + 2 * halo:
        count = -(-side // most)
        # Equal lengths, rounded up to `align`: never above `most`, because `align` divides it. The last may be less.
        step = -(-side // (count * align)) * align
    cores = [Span(start=start, end=min(start + step, side)) for start in range(0, side, step)]
    return [Part(core=core, window=core.grown(halo, side)) for core in cores]


def mirrored(span: Span, side: int) -> NDArray[np.intp]:
    """Where in a side of so many pixels those of `span` lie, which may reach beyond it and are mirrored there."""
    index = np.arange(span.start, span.end) % max(1, 2 * side - 2)
    return np.minimum(index, 2 * side - 2 - index) if side > 1 else np.zeros_like(index)
