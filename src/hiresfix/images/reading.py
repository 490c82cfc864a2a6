"""Decoding: limits first, then pixels, then one colour policy for every kind of sample.

The table in `hiresfix.images` is the policy. Guarantees: untrusted bytes give a `DecodedImage` or raise `ImageError`;
pixels are decoded only after the header passed the limits; a call changes nothing global.
"""

from __future__ import annotations

import io
import re
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms
from PIL.JpegImagePlugin import JpegImageFile

from hiresfix import messages
from hiresfix.errors import ImageError
from hiresfix.images.containers import Container, heif, read_container
from hiresfix.images.image_types import DecodedImage, ImageHeader, PixelArray
from hiresfix.images.limits import ImageLimits, check_input
from hiresfix.images.metadata import clean_exif, clean_xmp, profile_space
from hiresfix.units import MEBIBYTE

# For the whole process: Pillow only warns about images just over its guard; we must not decode them.
warnings.simplefilter("error", Image.DecompressionBombWarning)


def read_header(data: bytes, limits: ImageLimits) -> ImageHeader:
    """Return format and size without decoding pixels.

    Raises:
        ImageError: the image cannot be read or is over a limit.
    """
    container = _read_within_limits(data, limits)
    width, height = container.width, container.height
    if container.orientation >= 5:
        width, height = height, width
    return ImageHeader(media_type=container.media_type, width=width, height=height, several=container.several)


def decode(data: bytes, limits: ImageLimits) -> DecodedImage:
    """Return the upright image.

    Raises:
        ImageError: the image is over a limit, damaged, or of an unsupported kind.
    """
    container = _read_within_limits(data, limits)
    try:
        raster = _raster(container)
    except ImageError:
        raise
    except Exception as error:
        # Decoders raise nearly any type on hostile bytes; for the caller all of them mean a damaged file.
        raise ImageError(messages.IMAGE_DAMAGED(kind=container.format)) from error
    samples = _upright(raster.samples, container.orientation)
    return _decoded_image(container, replace(raster, samples=samples))


def _read_within_limits(data: bytes, limits: ImageLimits) -> Container:
    if len(data) > limits.max_bytes:
        raise ImageError(messages.FILE_TOO_LARGE(limit=messages.plain_number(limits.max_bytes / MEBIBYTE)))
    container = read_container(data)
    check_input(container.width, container.height, limits)
    return container


@dataclass(frozen=True, slots=True, kw_only=True)
class _Raster:
    """Decoded samples (H, W, channels): 1 grey, 2 grey and alpha, 3 RGB, 4 RGB and alpha.

    `icc` is their profile, not checked yet; None if the colours were converted to sRGB.
    """

    samples: PixelArray
    icc: bytes | None
    quantisation: tuple[tuple[int, ...], ...] | None = None
    notes: tuple[str, ...] = ()


def _decoded_image(container: Container, raster: _Raster) -> DecodedImage:
    samples, notes = raster.samples, [*container.notes, *raster.notes]
    if container.format == "AVIF" and container.depth > 8:
        notes.append("AVIF with more than 8 bit was read as 8 bit.")
    if container.several:
        notes.append(messages.FIRST_FRAME_ONLY())
    channels = samples.shape[2]
    alpha = samples[..., -1] if channels in (2, 4) else None
    if alpha is not None and int(alpha.min()) == np.iinfo(alpha.dtype).max:
        alpha = None
    space = profile_space(raster.icc) if raster.icc else None
    grey = channels <= 2 and space != "RGB"
    icc = raster.icc if space == ("GRAY" if grey else "RGB") else None
    if raster.icc and icc is None:
        notes.append("The colour profile is damaged or made for another kind of image and was left out.")
    height, width = samples.shape[:2]
    exif = clean_exif(container.exif, width, height) if container.exif else None
    xmp = clean_xmp(container.xmp) if container.xmp else None
    if (container.exif and not exif and container.format != "TIFF") or (container.xmp and not xmp):
        notes.append("Metadata (EXIF or XMP) was damaged or too large and was left out.")
    dpi = container.dpi
    return DecodedImage(
        rgb=samples[..., :1].repeat(3, axis=2) if channels <= 2 else samples[..., :3].copy(),
        alpha=None if alpha is None else alpha.copy(),
        grey=grey,
        icc=icc,
        exif=exif,
        xmp=xmp,
        dpi=(dpi[1], dpi[0]) if dpi and container.orientation >= 5 else dpi,
        quantisation=raster.quantisation,
        notes=tuple(notes),
    )


def _upright(samples: PixelArray, orientation: int) -> PixelArray:
    """Apply EXIF 2.32, tag 274: 2 and 4 mirror, 3 turns by 180 degrees, 5 to 8 swap rows and columns."""
    if orientation >= 5:
        samples = samples.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        samples = samples[:, ::-1]
    if orientation in (3, 4, 7, 8):
        samples = samples[::-1]
    return samples


# --- pixels -----------------------------------------------------------------------------------------------------


def _raster(container: Container) -> _Raster:
    if container.format == "HEIF":
        return _heif_raster(container)
    file = b"".join(container.pieces)
    image = _open(container, file)
    deep = _deep_rawmodes(container, image)
    if deep:
        samples = _decode_deep(container, file, deep)
        raster = _Raster(samples=samples, icc=container.icc)
    else:
        image.load()
        if image.mode not in _CONVERSIONS:
            raise _unsupported(image.mode)
        raster = replace(_CONVERSIONS[image.mode](container, image), quantisation=_quantisation(image))
    if raster.samples.shape[:2] != (container.height, container.width):
        raise ValueError("the pixels have another size than the header")
    return raster if container.transparent is None else _with_transparent_colour(container, raster)


def _open(container: Container, file: bytes) -> Image.Image:
    # Allow one format only, so that hostile bytes reach no other parser of Pillow.
    image = Image.open(io.BytesIO(file), formats=(container.format,))
    if image.size != (container.width, container.height):
        raise ValueError("the decoder sees another size than the header")
    return image


def _quantisation(image: Image.Image) -> tuple[tuple[int, ...], ...] | None:
    """Return the tables of a JPEG in the order of their numbers; encoders use the first one for luminance."""
    if not isinstance(image, JpegImageFile) or not image.quantization:
        return None
    return tuple(tuple(image.quantization[number]) for number in sorted(image.quantization))


def _unsupported(kind: str) -> ImageError:
    return ImageError(messages.SAMPLES_UNSUPPORTED(kind=kind))


def _direct(container: Container, image: Image.Image) -> _Raster:
    samples = np.asarray(image)
    return _Raster(samples=samples if samples.ndim == 3 else samples[..., None], icc=container.icc)


def _converted(mode: str) -> Callable[[Container, Image.Image], _Raster]:
    return lambda container, image: _direct(container, image.convert(mode))


def _palette(container: Container, image: Image.Image) -> _Raster:
    return _direct(container, image.convert("RGBA" if image.has_transparency_data else "RGB"))


def _sixteen_grey(container: Container, image: Image.Image) -> _Raster:
    return _Raster(samples=np.asarray(image).astype(np.uint16)[..., None], icc=container.icc)


def _integers(container: Container, image: Image.Image) -> _Raster:
    samples = np.asarray(image)
    if samples.min() < 0 or samples.max() > 65_535:
        raise _unsupported("signed or 32 bit integer")
    return _sixteen_grey(container, image)


def _floats(container: Container, image: Image.Image) -> _Raster:
    samples = np.nan_to_num(np.asarray(image), nan=0.0, posinf=1.0, neginf=0.0)
    notes = ["Floating point samples were read as 16 bit, 0 being black and 1 white."]
    if samples.min() < 0 or samples.max() > 1:
        notes.append("Samples below 0 or above 1 were clipped.")
    whole = np.rint(np.clip(samples, 0, 1) * 65_535).astype(np.uint16)
    return _Raster(samples=whole[..., None], icc=container.icc, notes=tuple(notes))


def _cmyk(container: Container, image: Image.Image) -> _Raster:
    notes: list[str] = [messages.CMYK_CONVERTED()]
    if container.depth > 8:
        notes.append("CMYK with 16 bit was read as 8 bit.")
    if container.icc and profile_space(container.icc) == "CMYK":
        image = _to_srgb(image, ImageCms.ImageCmsProfile(io.BytesIO(container.icc)))
    else:
        notes[0] = "CMYK without a usable profile was converted to sRGB by the plain formula."
        image = image.convert("RGB")
    return _Raster(samples=np.asarray(image), icc=None, notes=tuple(notes))


def _lab(_container: Container, image: Image.Image) -> _Raster:
    image = _to_srgb(image, ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")))
    return _Raster(samples=np.asarray(image), icc=None, notes=("CIE L*a*b* was converted to sRGB.",))


def _to_srgb(image: Image.Image, profile: ImageCms.ImageCmsProfile) -> Image.Image:
    """Convert relative colorimetric with black point compensation, the default of image editors."""
    converted = ImageCms.profileToProfile(
        image,
        profile,
        ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")),
        renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
        outputMode="RGB",
        flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
    )
    assert converted is not None, "only None when working in place"
    return converted


_CONVERSIONS: dict[str, Callable[[Container, Image.Image], _Raster]] = {
    "1": _converted("L"),
    "L": _direct,
    "LA": _direct,
    "RGB": _direct,
    "RGBA": _direct,
    "La": _converted("LA"),
    "RGBa": _converted("RGBA"),
    "RGBX": _converted("RGB"),
    "YCbCr": _converted("RGB"),
    "P": _palette,
    "PA": _palette,
    "I;16": _sixteen_grey,
    "I;16B": _sixteen_grey,
    "I;16L": _sixteen_grey,
    "I": _integers,
    "F": _floats,
    "CMYK": _cmyk,
    "LAB": _lab,
}


# --- 16 bit colour ----------------------------------------------------------------------------------------------

# Pillow has no 16 bit RGB, but its decoders can unpack one byte of each sample: ";16B" takes the first, ";16L" the
# second, ";16N" the more significant one on this machine. Decoding twice gives both bytes.
_DEEP = re.compile(r"(RGB|RGBA|RGBX|RGBa);16([BLN])")
_ROWS = 64
_OTHER_BYTE = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}


def _deep_rawmodes(container: Container, image: Image.Image) -> tuple[str, str, str] | None:
    """Return (mode, rawmode of the high bytes, rawmode of the low bytes) of a 16 bit colour image, else None."""
    if container.depth != 16 or image.mode not in ("RGB", "RGBA") or not image.tile:  # type: ignore[attr-defined]
        return None
    arguments: Any = image.tile[0].args  # type: ignore[attr-defined]
    rawmode = arguments if isinstance(arguments, str) else arguments[0]
    if rawmode == "LA;16B":  # four bytes per pixel, so one pass as RGBA reads all of them
        return "LA", "RGBA", "RGBA"
    match = _DEEP.fullmatch(rawmode)
    if match is None:
        raise _unsupported("separately stored 16 bit")
    # "RGBa" would divide each byte by alpha; `_decode_deep` divides whole samples.
    layout = match[1].upper()
    return image.mode, f"{layout};16{match[2]}", f"{layout};16{_OTHER_BYTE[match[2]]}"


def _decode_deep(container: Container, file: bytes, rawmodes: tuple[str, str, str]) -> PixelArray:
    mode, high_mode, low_mode = rawmodes
    high = _decode_as(container, file, high_mode)
    if mode == "LA":
        return high.view(">u2").astype(np.uint16)
    samples = high.astype(np.uint16)
    np.left_shift(samples, 8, out=samples)
    del high
    np.bitwise_or(samples, _decode_as(container, file, low_mode), out=samples)
    return _divided_by_alpha(samples) if container.premultiplied and mode == "RGBA" else samples


def _decode_as(container: Container, file: bytes, rawmode: str) -> NDArray[np.uint8]:
    image: Any = _open(container, file)
    image.tile = [
        tile._replace(args=rawmode if isinstance(tile.args, str) else (rawmode, *tile.args[1:])) for tile in image.tile
    ]
    return np.array(image)


def _divided_by_alpha(samples: PixelArray) -> PixelArray:
    """Divide colours by alpha in place, a few rows at a time: the arithmetic needs 64 bits per sample."""
    top = np.iinfo(samples.dtype).max
    for at in range(0, len(samples), _ROWS):
        rows = samples[at : at + _ROWS]
        alpha = rows[..., 3:].astype(np.uint64)
        colour = (rows[..., :3] * np.uint64(top) + alpha // 2) // np.maximum(alpha, 1)
        rows[..., :3] = np.minimum(colour, top)
    return samples


def _with_transparent_colour(container: Container, raster: _Raster) -> _Raster:
    """Apply PNG's tRNS without palette: pixels of exactly this value, at the depth of the file, are transparent."""
    samples = raster.samples
    value = np.array(container.transparent, dtype=np.uint32)
    if container.depth < 8:
        value = value * 255 // (2**container.depth - 1)
    top = np.iinfo(samples.dtype).max
    alpha = np.where((samples == value).all(axis=2), 0, top).astype(samples.dtype)
    return replace(raster, samples=np.dstack([samples, alpha]))


def _heif_raster(container: Container) -> _Raster:
    assert heif.pillow_heif is not None, "the container was read with it"
    file = heif.pillow_heif.open_heif(io.BytesIO(b"".join(container.pieces)), convert_hdr_to_8bit=False)
    samples = np.array(file)
    if samples.ndim == 2:
        samples = samples[..., None]
    if samples.shape[:2] != (container.height, container.width) or samples.shape[2] not in (1, 2, 3, 4):
        raise ValueError("the pixels have another size than the header")
    if samples.dtype == np.uint16:
        # libheif puts samples in the upper bits; rescale them so that the brightest is 65535.
        brightest = 2**container.depth - 1
        samples = ((samples >> (16 - container.depth)).astype(np.uint32) * 65_535 // brightest).astype(np.uint16)
    if container.premultiplied and samples.shape[2] == 4:
        samples = _divided_by_alpha(samples)
    return _Raster(samples=samples, icc=container.icc)
