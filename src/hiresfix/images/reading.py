"""Bytes to pixels."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from hiresfix.errors import PictureError
from hiresfix.images.values import Header, Limits, Picture, check_input

_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "AVIF")


def _open(data: bytes, limits: Limits) -> Image.Image:
    if len(data) > limits.max_bytes:
        raise PictureError(f"The picture has {len(data)} bytes; the limit is {limits.max_bytes}. Make it smaller.")
    try:
        image = Image.open(io.BytesIO(data), formats=_FORMATS)
    except UnidentifiedImageError as error:
        raise PictureError("Not a picture we can read. Send PNG, JPEG, WebP, GIF, TIFF, BMP, AVIF or HEIC.") from error
    except Exception as error:
        raise PictureError("The picture is damaged. Save it again and retry.") from error
    check_input(*image.size, limits)
    return image


def read_header(data: bytes, limits: Limits) -> Header:
    image = _open(data, limits)
    width, height = image.size
    if image.getexif().get(0x0112, 1) >= 5:
        width, height = height, width
    return Header(media_type=Image.MIME[image.format or "PNG"], width=width, height=height)


def decode(data: bytes, limits: Limits) -> Picture:
    image = _open(data, limits)
    try:
        upright = ImageOps.exif_transpose(image)
        has_alpha = upright.has_transparency_data
        pixels = np.asarray(upright.convert("RGBA" if has_alpha else "RGB"))
    except Exception as error:
        raise PictureError("The picture is damaged. Save it again and retry.") from error
    return Picture(
        rgb=pixels[..., :3].copy(),
        alpha=pixels[..., 3].copy() if has_alpha else None,
        grey=image.mode in ("1", "L", "LA"),
        icc=image.info.get("icc_profile"),
    )
