"""Seeded texture noise: added to a network's input so that it paints texture that it would leave out.

Guarantees: the noise of a pixel depends on the seed and on its place in the image, and on nothing else; its amplitude
depends on the pixels within `REACH`. So bands, strips, tiles, devices and machines agree to the last bit: everything
is integers, or single operations that IEEE 754 rounds the same everywhere. Plain areas and lone edges get no noise.
Levels are of 8 bits, 0..255. Knows no networks and no recipes.

Networks of this family repeat coarse noise and turn only what changes from pixel to pixel into texture: so the noise is
white, and only its amplitude follows coarser scales. Noise source: Philox 4x64-10 (Salmon et al., Parallel Random
Numbers: As Easy as 1, 2, 3, 2011), as NumPy's stable `random_raw`.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import comb

import numpy as np
from numpy.typing import NDArray

from hiresfix.engine.pixels import arrays, tiling
from hiresfix.engine.pixels.arrays import Float32Array, ImageArray
from hiresfix.engine.pixels.tiling import Span

REACH = 13
"""Pixels around a pixel that decide its amplitude: the filters of `texture`, one after another."""
MAX_TEXTURE = np.float32(4.0)
"""Levels to which `texture` tends at high contrast: lettering must not get more noise than fur."""
PLAIN_TEXTURE = 0.4
"""Levels of texture that count as none: skin, sky and walls stay below, and so do traces of a high-quality JPEG."""
_HALF = np.float32(0.5)
"""Irregularity at which texture counts three quarters of what it does where it is fully irregular."""
_MIN_SLOPE_ENERGY = np.float32(16)
"""Sum of squared slopes below which no direction is seen."""
_OPENING = 4
"""Pixels that texture must reach beyond each of its pixels: what is thinner is an edge."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TextureNoise:
    """The noise of one image. amplitude: its standard deviation relative to the texture."""

    seed: int
    amplitude: float

    def __call__(self, rgb: ImageArray, rows: Span, columns: Span) -> Float32Array:
        """Return the luminance to add to these rows and columns of `rgb` (H, W, 3), in levels: (rows, columns).

        Rows and columns may lie beyond the image, which is mirrored there together with its noise.
        """
        height, width = rgb.shape[:2]
        luma = luminance(tiling.cut_mirrored(rgb, _grown(rows), _grown(columns)))
        white = noise(self.seed, tiling.mirrored_indices(rows, height), tiling.mirrored_indices(columns, width))
        return np.float32(self.amplitude) * texture(luma) * white


def luminance(rgb: ImageArray) -> Float32Array:
    """Return the luminance in levels (H, W) of (H, W, 3) uint8 or uint16."""
    luma: Float32Array = arrays.luminance(*(rgb[..., channel].astype(np.float32) for channel in range(3)))
    return luma * np.float32(255 / np.iinfo(rgb.dtype).max)


def noise(seed: int, rows: NDArray[np.intp], columns: NDArray[np.intp]) -> Float32Array:
    """Return (rows, columns) of nearly normal noise for these positions: mean 0, deviation 1, never beyond 3.5.

    Each value is the sum of the four 16-bit parts of Philox's random number for this seed, row and column.
    """
    values = np.empty((len(rows), len(columns)), np.float32)
    count = int(columns.max()) + 1
    for number, row in enumerate(rows):
        raw = np.random.Philox(key=seed, counter=(0, int(row), 0, 0)).random_raw(count)
        sums = raw.astype("<u8").view("<u2").reshape(count, 4).sum(1, dtype=np.int32)
        values[number] = sums[columns] - _MEAN
    return values * _TO_DEVIATION


_MEAN = np.int32(2 * 65535)
_TO_DEVIATION = np.float32(((65536**2 - 1) / 3) ** -0.5)


def texture(luma: Float32Array) -> Float32Array:
    """Return the roughness of each pixel but the outermost `REACH`, in levels: 0..`MAX_TEXTURE`.

    Roughness is the mean difference to a smoothed copy at two scales, and both must see some. It counts only where it
    fills its surroundings (grey-level erosion, Serra 1982): the flank of an edge is rough, but thin. It counts less
    where the surroundings have only one direction: slats, stripes and falling water are not gravel. Even grain, which
    is everywhere but small after smoothing, counts little: less than a sixth of its deviation.
    """
    fine = _binomial_filter(luma, 3)
    coarse = _binomial_filter(fine, 5)
    fine_difference = np.abs(_crop(luma, 3) - _crop(fine, 2))
    coarse_difference = np.abs(_crop(fine, 2) - coarse)
    rough = np.sqrt(
        _minimum_filter(_binomial_filter(fine_difference, 7), _OPENING)
        * _minimum_filter(_binomial_filter(coarse_difference, 7), _OPENING)
    )
    irregular = _crop(_irregularity(luma), 3)  # to the size of `rough`, which lacks ten pixels at each side
    levels = rough * irregular / (irregular + _HALF) * (_HALF + np.float32(1))
    levels = np.maximum(levels - np.float32(PLAIN_TEXTURE), np.float32(0))
    return _binomial_filter(levels / (levels / MAX_TEXTURE + np.float32(1)), 7)


def _irregularity(luma: Float32Array) -> Float32Array:
    """Return 0 where all slopes nearby point along one line, 1 where they point anywhere; without 7 border pixels.

    It is 4 det / trace^2 of the structure tensor (Bigun and Granlund 1987), and of that the minimum within 2 pixels.
    """
    dx, dy = luma[1:-1, 2:] - luma[1:-1, :-2], luma[2:, 1:-1] - luma[:-2, 1:-1]
    xx, xy, yy = (_binomial_filter(product, 9) for product in (dx * dx, dx * dy, dy * dy))
    trace = xx + yy
    ratio = (xx * yy - xy * xy) * np.float32(4) / (trace * trace + _MIN_SLOPE_ENERGY)
    return _minimum_filter(np.maximum(ratio, np.float32(0)), 2)


def _minimum_filter(values: Float32Array, reach: int) -> Float32Array:
    """Return the minimum within `reach` along both axes, without the border that lacks neighbours."""
    for axis in (0, 1):
        first, *others = _shifted(values, 2 * reach + 1, axis)
        values = first.copy()
        for part in others:
            np.minimum(values, part, out=values)
    return values


def _binomial_filter(values: Float32Array, taps: int) -> Float32Array:
    """Smooth with a binomial kernel of this length along both axes, without the border that lacks neighbours."""
    for axis in (0, 1):
        parts = _shifted(values, taps, axis)
        values = np.zeros_like(parts[0])
        for number, part in enumerate(parts):
            values += np.float32(comb(taps - 1, number) / 2 ** (taps - 1)) * part
    return values


def _shifted(values: Float32Array, count: int, axis: int) -> list[Float32Array]:
    """Return `count` views of equal size, each shifted by one more along the axis."""
    size = values.shape[axis] - count + 1
    return [values[start : start + size] if axis == 0 else values[:, start : start + size] for start in range(count)]


def _crop(values: Float32Array, border: int) -> Float32Array:
    return values[border:-border, border:-border]


def _grown(span: Span) -> Span:
    return Span(start=span.start - REACH, end=span.end + REACH)
