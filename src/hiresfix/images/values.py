"""The values pictures travel in, and the limits that are checked on numbers alone, before any pixel exists.

Guarantees: every refusal is a `PictureError` whose text names the limit and the way out. It knows no file
format beyond the largest side each output format can store.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hiresfix.errors import PictureError
from hiresfix.recipe import SCALES, OutputFormat

MEBIBYTE = 1024 * 1024
MEGAPIXEL = 1_000_000

Samples = NDArray[np.uint8 | np.uint16]

LARGEST_SIDE = {OutputFormat.PNG: 2**31 - 1, OutputFormat.JPG: 65_500, OutputFormat.WEBP: 16_383}
"""Pixels a side: PNG's 31-bit field; libjpeg's JPEG_MAX_DIMENSION; WebP's 14-bit field."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What is accepted. A megapixel is 1 000 000 pixels; all three are inclusive.

    Raises ValueError for an input limit above Pillow's decompression-bomb guard (`PIL.Image.MAX_IMAGE_PIXELS`,
    89 MP unless the process changed it): the guard stays the second line behind this limit and is never moved.
    """

    max_bytes: int = 25 * MEBIBYTE
    max_input_megapixels: float = 64.0
    max_output_megapixels: float = 64.0

    def __post_init__(self) -> None:
        if min(self.max_bytes, self.max_input_megapixels, self.max_output_megapixels) <= 0:
            raise ValueError("limits must be above zero")
        guard = (Image.MAX_IMAGE_PIXELS or 0) / MEGAPIXEL
        if self.max_input_megapixels > guard:
            raise ValueError(
                f"max_input_megapixels is {self.max_input_megapixels:g}, above Pillow's decompression-bomb guard of "
                f"{guard:.1f} MP. Use at most {int(guard)}."
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What is known before a pixel is decoded: media type by magic bytes, pixels a side as the picture is seen
    (orientation applied), and whether there are more frames or pages than the first, which is all we use.
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
    """Upright pixels and what has to travel with them.

    rgb: (H, W, 3), uint8 or uint16 over the full range, in the colour space of `icc` (sRGB when None), never
    premultiplied. alpha: (H, W) of the same dtype, or None when nothing is transparent. grey: the source had one
    channel, the three of `rgb` are equal and the output gets one channel again.
    exif: a TIFF structure without the "Exif" prefix; xmp: a packet. Neither holds a position, a thumbnail or an
    orientation. dpi: (x, y). quantisation: the tables of 64 steps of the JPEG it was read from, luminance first.
    notes: what was changed or left out while reading, one sentence each.
    """

    rgb: Samples
    alpha: Samples | None = None
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
class Encoded:
    """A finished file. notes: what the format could not hold, one sentence each."""

    data: bytes
    media_type: str
    width: int
    height: int
    notes: tuple[str, ...] = ()


def megapixels(width: int, height: int) -> str:
    """'48', '0.3': megapixels rounded for a message."""
    count = width * height / MEGAPIXEL
    return f"{count:.0f}" if count >= 10 else f"{count:.1f}"


def check_input(width: int, height: int, limits: Limits) -> None:
    """Raises PictureError when a picture of this size must not be decoded."""
    if width <= 0 or height <= 0:
        raise PictureError("The picture has no pixels. Send a picture at least 1 pixel wide and high.")
    if width * height > limits.max_input_megapixels * MEGAPIXEL:
        raise PictureError(
            f"The picture is {width}x{height}, {megapixels(width, height)} MP; the limit is "
            f"{limits.max_input_megapixels:g} MP. Make it smaller first."
        )


def check_output(size: Header | tuple[int, int], scale: int, limits: Limits) -> None:
    """Raises PictureError when `scale` times the size exceeds the output limit; names the largest scale that fits."""
    width, height = size.size if isinstance(size, Header) else size
    most = limits.max_output_megapixels * MEGAPIXEL
    if width * height * scale**2 <= most:
        return
    fitting = [smaller for smaller in SCALES if smaller < scale and width * height * smaller**2 <= most]
    advice = f"Use {max(fitting)}." if fitting else "Make the picture smaller first."
    raise PictureError(
        f"{scale}x of {width}x{height} is {megapixels(width * scale, height * scale)} MP; "
        f"the limit is {limits.max_output_megapixels:g} MP. {advice}"
    )


def check_format(width: int, height: int, output_format: OutputFormat) -> None:
    """Raises PictureError when the format cannot store a side of so many pixels, the way out being PNG."""
    largest = LARGEST_SIDE[output_format]
    if max(width, height) > largest:
        raise PictureError(
            f"{output_format.upper()} stores at most {largest} pixels a side; the result is {width}x{height}. Use png."
        )
