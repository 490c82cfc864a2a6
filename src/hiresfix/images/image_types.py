"""Images in memory: pixel arrays, the header of a file, a decoded image and an encoded file."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

PixelArray = NDArray[np.uint8 | np.uint16]
"""Samples over the full range of their type."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageHeader:
    """Facts about a file, read before its pixels are decoded.

    Attributes:
        media_type: by magic bytes.
        width: pixels as displayed, with the orientation applied.
        height: likewise.
        several: True if there are more frames or pages than the first, which is the only one used.
    """

    media_type: str
    width: int
    height: int
    several: bool = False

    @property
    def size(self) -> tuple[int, int]:
        return self.width, self.height


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DecodedImage:
    """Upright pixels, and the metadata that travels with them.

    Attributes:
        rgb: (H, W, 3), uint8 or uint16 over the full range, in the colour space of `icc`, never premultiplied.
        alpha: (H, W) of the same dtype; None if nothing is transparent.
        grey: True if the source had one channel. The three channels of `rgb` are then equal, and the output gets one.
        icc: colour profile; None for sRGB.
        exif: TIFF structure without the "Exif" prefix, without position, thumbnail or orientation.
        xmp: XMP packet, cleaned in the same way.
        dpi: (x, y).
        quantisation: tables of 64 steps of the JPEG it was read from, luminance first.
        notes: what was changed or left out while reading, one sentence each.
    """

    rgb: PixelArray
    alpha: PixelArray | None = None
    grey: bool = False
    icc: bytes | None = None
    exif: bytes | None = None
    xmp: bytes | None = None
    dpi: tuple[float, float] | None = None
    quantisation: tuple[tuple[int, ...], ...] | None = None
    notes: tuple[str, ...] = ()

    @property
    def width(self) -> int:
        return int(self.rgb.shape[1])

    @property
    def height(self) -> int:
        return int(self.rgb.shape[0])

    @property
    def size(self) -> tuple[int, int]:
        return self.width, self.height


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedImage:
    """A finished image file. `notes` says what the format could not hold, one sentence each."""

    data: bytes
    media_type: str
    width: int
    height: int
    notes: tuple[str, ...] = ()
