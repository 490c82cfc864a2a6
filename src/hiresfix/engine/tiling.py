"""Pure geometry of tiles: which part of a picture is kept from each computation, and what has to be seen for it.

A tile's *core* is kept; its *window* is the core grown by a halo, and is what is computed.
Guarantees: the cores of a grid cover every pixel exactly once; a window is cut off only where the picture ends.
Boxes are whole pixels, (row, column). Knows no pixels, no networks and no devices.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Box:
    """Rows top..bottom and columns left..right, the ends excluded."""

    top: int
    bottom: int
    left: int
    right: int

    @property
    def height(self) -> int:
        return self.bottom - self.top

    @property
    def width(self) -> int:
        return self.right - self.left

    @property
    def slices(self) -> tuple[slice, slice]:
        """Rows and columns, to index an array whose first two axes they are."""
        return slice(self.top, self.bottom), slice(self.left, self.right)

    def scaled(self, factor: int) -> Box:
        """The same place in the picture enlarged `factor` times."""
        return Box(
            top=self.top * factor, bottom=self.bottom * factor, left=self.left * factor, right=self.right * factor
        )

    def within(self, outer: Box) -> Box:
        """The same place counted from the corner of `outer`, which contains it."""
        return Box(
            top=self.top - outer.top,
            bottom=self.bottom - outer.top,
            left=self.left - outer.left,
            right=self.right - outer.left,
        )

    def grown(self, halo: int, limit: Box) -> Box:
        """With `halo` more pixels on each side, cut off where `limit`, the picture, ends."""
        return Box(
            top=max(limit.top, self.top - halo),
            bottom=min(limit.bottom, self.bottom + halo),
            left=max(limit.left, self.left - halo),
            right=min(limit.right, self.right + halo),
        )

    def quarters(self, align: int = 1) -> list[Box]:
        """Its four (or two, or one) parts of at most half the side, cut at multiples of `align`, in reading order."""
        rows = _spans(self.top, self.bottom, -(-self.height // (2 * align)) * align)
        columns = _spans(self.left, self.right, -(-self.width // (2 * align)) * align)
        return _boxes(rows, columns)


def whole(height: int, width: int) -> Box:
    return Box(top=0, bottom=height, left=0, right=width)


def grid(height: int, width: int, *, tile: int, halo: int = 0, align: int = 1) -> list[Box]:
    """The cores of a picture's tiles in reading order: about equal, at most `tile` pixels a side.

    All corners are multiples of `align`, which must divide `tile`. A side that fits into one window (`tile` and
    `halo` twice) is not divided. Raises ValueError for sizes below 1.
    """
    if min(height, width, tile, align) < 1 or halo < 0 or tile % align:
        raise ValueError(f"no grid of {tile}-pixel tiles, halo {halo}, align {align}, over {height} x {width}")
    rows, columns = (_spans(0, side, _step(side, tile, halo, align)) for side in (height, width))
    return _boxes(rows, columns)


def _step(side: int, tile: int, halo: int, align: int) -> int:
    if side <= tile + 2 * halo:
        return side
    count = -(-side // tile)
    # Equal parts, rounded up to `align`: never above `tile`, because `align` divides it. The last may be less.
    return -(-side // (count * align)) * align


def _spans(start: int, end: int, step: int) -> list[tuple[int, int]]:
    return [(low, min(low + step, end)) for low in range(start, end, step)]


def _boxes(rows: list[tuple[int, int]], columns: list[tuple[int, int]]) -> list[Box]:
    return [Box(top=top, bottom=bottom, left=left, right=right) for top, bottom in rows for left, right in columns]
