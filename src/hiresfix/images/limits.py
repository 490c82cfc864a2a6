"""Limits on files and sizes, checked on numbers alone, before any pixel exists.

Guarantees: every rejection is an `ImageError` that names the limit and says what to do.
"""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image

from hiresfix import messages
from hiresfix.errors import ImageError
from hiresfix.images.image_types import ImageHeader
from hiresfix.recipe import SCALES, OutputFormat
from hiresfix.units import MEBIBYTE, MEGAPIXEL

MAX_SIDE = {OutputFormat.PNG: 2**31 - 1, OutputFormat.JPG: 65_500, OutputFormat.WEBP: 16_383}
"""Maximum width and height in pixels: PNG's 31-bit field; libjpeg's JPEG_MAX_DIMENSION; WebP's 14-bit field."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageLimits:
    """Inclusive limits on what is accepted. A megapixel is 1 000 000 pixels.

    Raises:
        ValueError: a limit is not positive, or the input limit is above Pillow's decompression-bomb guard
            (`PIL.Image.MAX_IMAGE_PIXELS`, 89 MP unless the process changed it). The guard stays as the second line of
            defence and is never moved.
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


def megapixels(width: int, height: int) -> str:
    """Return the size in megapixels, rounded for a message: '48', '0.3'."""
    count = width * height / MEGAPIXEL
    return f"{count:.0f}" if count >= 10 else f"{count:.1f}"


def check_input(width: int, height: int, limits: ImageLimits) -> None:
    """Raise ImageError if an image of this size must not be decoded."""
    if width <= 0 or height <= 0:
        raise ImageError(messages.IMAGE_EMPTY())
    if width * height > limits.max_input_megapixels * MEGAPIXEL:
        raise ImageError(
            messages.IMAGE_TOO_MANY_PIXELS(
                size=f"{width}x{height}",
                megapixels=megapixels(width, height),
                limit=messages.plain_number(limits.max_input_megapixels),
            )
        )


def check_output(size: ImageHeader | tuple[int, int], scale: int, limits: ImageLimits) -> None:
    """Raise ImageError if the result exceeds the output limit; the message names the largest scale that fits."""
    width, height = size.size if isinstance(size, ImageHeader) else size
    max_pixels = limits.max_output_megapixels * MEGAPIXEL
    if width * height * scale**2 <= max_pixels:
        return
    fitting = [smaller for smaller in SCALES if smaller < scale and width * height * smaller**2 <= max_pixels]
    params: dict[str, messages.Param] = {
        "scale": scale,
        "size": f"{width}x{height}",
        "megapixels": megapixels(width * scale, height * scale),
        "limit": messages.plain_number(limits.max_output_megapixels),
    }
    if fitting:
        raise ImageError(messages.SCALE_TOO_LARGE(**params, fitting=max(fitting)))
    raise ImageError(messages.IMAGE_TOO_LARGE_TO_SCALE(**params))


def check_format(width: int, height: int, output_format: OutputFormat) -> None:
    """Raise ImageError if the format cannot store so many pixels a side; the message suggests PNG."""
    max_side = MAX_SIDE[output_format]
    if max(width, height) > max_side:
        raise ImageError(
            messages.SIDE_TOO_LONG_FOR_FORMAT(format=output_format.upper(), largest=max_side, size=f"{width}x{height}")
        )
