"""Transparency in upscaling: the colours under transparent pixels, and the mask itself.

A super-resolution network sees only colour. The colour under fully transparent pixels (often black or white) would
leak into the edge of the subject as a halo, so `bleed` first extends the visible colours there. `upscale_alpha` then
upscales the mask separately. Guarantees: the colour of a pixel that is visible at all never changes; an upscaled mask
has no value outside the range of its neighbourhood in the source, so it does not ring.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hiresfix.images.image_types import PixelArray

_Floats = NDArray[np.float32]

_BAND = 512
"""Rows per step, an even number: keeps the float copies of a 64 MP image small."""


def bleed(rgb: PixelArray, alpha: PixelArray) -> PixelArray:
    """Fill fully transparent pixels with the colours of visible pixels; near ones weigh most.

    Push-pull on a pyramid of halved images, each pixel weighted by its alpha (Gortler et al., The Lumigraph, 1996,
    section 3.4).

    Args:
        rgb: (H, W, 3).
        alpha: (H, W).

    Returns:
        A changed copy, or `rgb` itself if nothing, or everything, is fully transparent.
    """
    hidden = alpha == 0
    if not hidden.any() or hidden.all():
        return rgb
    halves = [_halve(*_weighted(rgb[rows], alpha[rows])) for rows in _bands(rgb.shape[0])]
    coarse = _filled(np.concatenate([colour for colour, _ in halves]), np.concatenate([mass for _, mass in halves]))
    result = rgb.copy()
    for rows in _bands(rgb.shape[0]):
        first, last = rows.start // 2, -(-rows.stop // 2)
        # One more coarse row on each side, so that bands meet without a seam.
        margin = min(1, first)
        part = _double(coarse[first - margin : last + 1])[
            2 * margin : 2 * margin + rows.stop - rows.start, : rgb.shape[1]
        ]
        result[rows][hidden[rows]] = np.rint(part[hidden[rows]]).astype(rgb.dtype)
    return result


def _bands(height: int) -> Iterator[slice]:
    return (slice(row, min(row + _BAND, height)) for row in range(0, height, _BAND))


def _weighted(rgb: PixelArray, alpha: PixelArray) -> tuple[_Floats, _Floats]:
    mass = alpha[..., None].astype(np.float32) / np.float32(np.iinfo(alpha.dtype).max)
    return rgb.astype(np.float32) * mass, mass


def _filled(colour: _Floats, mass: _Floats) -> _Floats:
    """Return colours without holes; where mass is below 1, the next coarser level is blended in.

    `colour` is multiplied by `mass`.
    """
    known: _Floats = np.divide(colour, np.maximum(mass, 1e-12), dtype=np.float32)
    if min(colour.shape[:2]) <= 1 and max(colour.shape[:2]) <= 1:
        return known
    cover: _Floats = np.minimum(mass, 1, dtype=np.float32)
    if (cover == 1).all():
        return known
    height, width = colour.shape[:2]
    around = _double(_filled(*_halve(np.multiply(known, cover, dtype=np.float32), cover)))[:height, :width]
    blend: _Floats = around + np.multiply(cover, known - around, dtype=np.float32)
    return blend


def _halve(colour: _Floats, mass: _Floats) -> tuple[_Floats, _Floats]:
    """Return sums over 2x2 pixels; an odd last row or column is summed alone."""
    return _pairs(_pairs(colour, 0), 1).astype(np.float32), _pairs(_pairs(mass, 0), 1).astype(np.float32)


def _pairs(values: _Floats, axis: int) -> _Floats:
    return np.add.reduceat(values, np.arange(0, values.shape[axis], 2), axis=axis)


def _double(values: _Floats) -> _Floats:
    """Double the size by linear interpolation between pixel centres; the border is repeated."""
    for axis in (0, 1):
        before = np.concatenate([values.take([0], axis), values], axis).take(range(values.shape[axis]), axis)
        after = np.concatenate([values, values.take([-1], axis)], axis).take(range(1, values.shape[axis] + 1), axis)
        pair = np.stack([0.75 * values + 0.25 * before, 0.75 * values + 0.25 * after], axis + 1)
        shape = list(values.shape)
        shape[axis] *= 2
        values = pair.reshape(shape).astype(np.float32)
    return values


def upscale_alpha(alpha: PixelArray, width: int, height: int) -> PixelArray:
    """Resize alpha (H, W) to (height, width), pixel centres aligned, antialiased.

    Bicubic, so that soft edges stay sharp; upscaled values are clipped to the range of the 3x3 source pixels around.
    """
    if alpha.shape == (height, width):
        return alpha
    size = (width, height)
    smooth = _resized(alpha, size, Image.Resampling.BICUBIC)
    if width >= alpha.shape[1] and height >= alpha.shape[0]:
        np.clip(
            smooth,
            _resized(_extreme(alpha, np.minimum), size, Image.Resampling.NEAREST),
            _resized(_extreme(alpha, np.maximum), size, Image.Resampling.NEAREST),
            out=smooth,
        )
    return np.clip(np.rint(smooth), 0, np.iinfo(alpha.dtype).max).astype(alpha.dtype)


def _resized(alpha: PixelArray, size: tuple[int, int], method: Image.Resampling) -> _Floats:
    return np.array(Image.fromarray(alpha.astype(np.float32)).resize(size, method), dtype=np.float32)


def _extreme(alpha: PixelArray, pick: np.ufunc) -> PixelArray:
    """Return the minimum or maximum of the 3x3 pixels around each pixel."""
    extreme: PixelArray = alpha
    for axis in (0, 1):
        around = np.pad(extreme, [(1, 1) if side == axis else (0, 0) for side in (0, 1)], mode="edge")
        count = alpha.shape[axis]
        shifted = [around.take(range(shift, shift + count), axis) for shift in (0, 1, 2)]
        extreme = pick(pick(shifted[0], shifted[1]), shifted[2]).astype(alpha.dtype, copy=False)
    return extreme
