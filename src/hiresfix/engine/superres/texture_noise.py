"""Seeded noise that becomes detail: what is added to a network's input so that it paints texture it would leave out.

Guarantees: a pixel's noise depends on the seed and on where the pixel lies in the picture, and on nothing else; how
much of it there is depends on the pixels within `REACH`. So bands, strips, tiles and devices agree to the last bit:
everything is integers, or single operations that IEEE 754 rounds the same everywhere. Where the picture is plain, or
has one lone edge, there is none. Levels are of 8 bits, 0..255. Knows no networks and no recipes.

Networks of this family repeat coarse noise and only turn what changes from pixel to pixel into texture: so the noise is
white, and what it takes from coarser scales is where it lies. Noise source: Philox 4x64-10 (Salmon et al., Parallel
Random Numbers: As Easy as 1, 2, 3, 2011), as NumPy's stable `random_raw`.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import comb
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hiresfix.engine.pixels import tiling
from hiresfix.engine.pixels.tiling import Span

Samples = NDArray[Any]
Floats = NDArray[np.float32]

REACH = 13
"""Pixels around one that decide how much is added to it: the filters of `texture`, one after another."""
MOST = np.float32(4.0)
"""Levels to which `texture` tends where contrasts are high: lettering must not get more than fur does."""
PLAIN = 0.4
"""Levels of texture that count as none: skin, sky and walls stay below, and what a JPEG of high quality leaves."""
_HALF = np.float32(0.5)
"""The irregularity at which texture counts three quarters of what it does where it is irregular all through."""
_FAINT = np.float32(16)
"""Slopes whose squares add up to less know no direction."""
_LUMA = tuple(np.float32(weight) for weight in (0.299, 0.587, 0.114))
_OPENING = 4
"""Pixels that a texture must reach beyond each of its own: what is thinner is an edge."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Invention:
    """How much noise a picture gets. amplitude: its deviation relative to the texture."""

    seed: int
    amplitude: float

    def __call__(self, rgb: Samples, rows: Span, columns: Span) -> Floats:
        """What to add to these rows and columns of `rgb` (H, W, 3): (rows, columns) levels, of the luminance.

        Rows and columns may lie beyond the picture, which is mirrored there, and the noise with it.
        """
        spans = tuple(zip((rows, columns), rgb.shape, strict=False))
        around = rgb[np.ix_(*(tiling.mirrored(_grown(span), side) for span, side in spans))]
        white = noise(self.seed, *(tiling.mirrored(span, side) for span, side in spans))
        return np.float32(self.amplitude) * texture(luminance(around)) * white


def luminance(rgb: Samples) -> Floats:
    """(H, W, 3) uint8 or uint16 -> (H, W) levels."""
    red, green, blue = (rgb[..., channel].astype(np.float32) * weight for channel, weight in enumerate(_LUMA))
    levels: Floats = (red + green + blue) * np.float32(255 / np.iinfo(rgb.dtype).max)
    return levels


def noise(seed: int, rows: NDArray[np.intp], columns: NDArray[np.intp]) -> Floats:
    """(rows, columns) of nearly normal values with mean 0 and deviation 1, never beyond 3.5, for these positions.

    Each is the sum of the four 16-bit parts of the random number that Philox has for this seed, row and column.
    """
    values = np.empty((len(rows), len(columns)), np.float32)
    last = int(columns.max()) + 1
    for place, row in enumerate(rows):
        raw = np.random.Philox(key=seed, counter=(0, int(row), 0, 0)).random_raw(last)
        sums = raw.astype("<u8").view("<u2").reshape(last, 4).sum(1, dtype=np.int32)
        values[place] = sums[columns] - _MEAN
    return values * _TO_DEVIATION


_MEAN = np.int32(2 * 65535)
_TO_DEVIATION = np.float32(((65536**2 - 1) / 3) ** -0.5)


def texture(luma: Floats) -> Floats:
    """How rough the surface is at each pixel but the outermost `REACH`, in levels: 0..`MOST`.

    The mean difference to a smoothed copy, at two scales, of which both must see something, and of which only what
    fills its surroundings counts (grey-level erosion, Serra 1982): the flank of an edge is rough, but thin. Less where
    the surroundings know one direction only: slats, stripes and falling water are no gravel. Even grain, which leaves
    no place out and yet is small after smoothing, counts little: less than a sixth of its deviation.
    """
    fine = _smoothed(luma, 3)
    coarse = _smoothed(fine, 5)
    one, other = np.abs(_cut(luma, 3) - _cut(fine, 2)), np.abs(_cut(fine, 2) - coarse)
    rough = np.sqrt(_least(_smoothed(one, 7), _OPENING) * _least(_smoothed(other, 7), _OPENING))
    irregular = _cut(_irregularity(luma), 3)  # to the ten pixels less at each side that `rough` has
    levels = rough * irregular / (irregular + _HALF) * (_HALF + np.float32(1))
    levels = np.maximum(levels - np.float32(PLAIN), np.float32(0))
    return _smoothed(levels / (levels / MOST + np.float32(1)), 7)


def _irregularity(luma: Floats) -> Floats:
    """0 where all slopes nearby point along one line, 1 where they point anywhere; without 7 pixels at the border.

    4 det / trace^2 of the structure tensor (Bigun and Granlund 1987), and of that the least within 2 pixels.
    """
    across, down = luma[1:-1, 2:] - luma[1:-1, :-2], luma[2:, 1:-1] - luma[:-2, 1:-1]
    xx, xy, yy = (_smoothed(product, 9) for product in (across * across, across * down, down * down))
    both = xx + yy
    ratio = (xx * yy - xy * xy) * np.float32(4) / (both * both + _FAINT)
    return _least(np.maximum(ratio, np.float32(0)), 2)


def _least(values: Floats, reach: int) -> Floats:
    """The least within `reach` along both axes, without the border that this cannot reach."""
    for axis in (0, 1):
        first, *others = _shifted(values, 2 * reach + 1, axis)
        values = first.copy()
        for part in others:
            np.minimum(values, part, out=values)
    return values


def _smoothed(values: Floats, taps: int) -> Floats:
    """By a binomial kernel of so many taps along both axes, without the border that it cannot reach."""
    for axis in (0, 1):
        parts = _shifted(values, taps, axis)
        values = np.zeros_like(parts[0])
        for number, part in enumerate(parts):
            values += np.float32(comb(taps - 1, number) / 2 ** (taps - 1)) * part
    return values


def _shifted(values: Floats, count: int, axis: int) -> list[Floats]:
    kept = values.shape[axis] - count + 1
    return [values[start : start + kept] if axis == 0 else values[:, start : start + kept] for start in range(count)]


def _cut(values: Floats, border: int) -> Floats:
    return values[border:-border, border:-border]


def _grown(span: Span) -> Span:
    return Span(start=span.start - REACH, end=span.end + REACH)
