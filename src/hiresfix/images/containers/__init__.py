"""Container formats, read up to the first pixel: size, orientation, metadata, and the bytes for the pixel decoder.

Guarantees: magic bytes decide the format. Nothing here decodes or allocates pixels, follows an offset outside the file
or decompresses more than a metadata limit. The pieces for the pixel decoder contain no metadata where the format allows
removing it (PNG, JPEG, TIFF), so a broken EXIF block cannot spoil a good image, and only the first page of a TIFF.
Colour policy is in `hiresfix.images.reading`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping

from hiresfix import messages
from hiresfix.errors import ImageError
from hiresfix.images.containers.avif import read_avif
from hiresfix.images.containers.bmp import read_bmp
from hiresfix.images.containers.common import Container, ImageFormat
from hiresfix.images.containers.gif import read_gif
from hiresfix.images.containers.heif import read_heif
from hiresfix.images.containers.jpeg import read_jpeg
from hiresfix.images.containers.png import read_png
from hiresfix.images.containers.tiff import read_tiff
from hiresfix.images.containers.webp import read_webp

__all__ = ["Container", "ImageFormat", "read_container"]

_READERS: Mapping[ImageFormat, Callable[[bytes], Container]] = {
    "PNG": read_png,
    "JPEG": read_jpeg,
    "WEBP": read_webp,
    "GIF": read_gif,
    "TIFF": read_tiff,
    "BMP": read_bmp,
    "AVIF": read_avif,
    "HEIF": read_heif,
}
_MAGIC: tuple[tuple[bytes, ImageFormat], ...] = (
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"\xff\xd8\xff", "JPEG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
)
_BMP_HEADERS = {struct.pack("<I", size) for size in (12, 40, 52, 56, 64, 108, 124)}
_AVIF_BRANDS = {b"avif", b"avis"}
_HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}


def read_container(data: bytes) -> Container:
    """Read everything but the pixels.

    Raises:
        ImageError: the bytes are not an image of an accepted format, or their structure is broken.
    """
    image_format = _detect_format(data)
    if image_format is None:
        raise ImageError(messages.IMAGE_FORMAT_UNKNOWN())
    try:
        return _READERS[image_format](data)
    except (struct.error, IndexError, ValueError) as error:
        raise ImageError(messages.IMAGE_DAMAGED(kind=image_format)) from error


def _detect_format(data: bytes) -> ImageFormat | None:
    for magic, image_format in _MAGIC:
        if data.startswith(magic):
            return image_format
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data[:2] == b"BM" and data[14:18] in _BMP_HEADERS:
        return "BMP"
    if data[4:8] != b"ftyp":
        return None
    # ISO/IEC 14496-12, 4.3: major brand, minor version, compatible brands.
    length = min(int.from_bytes(data[:4], "big"), 256)
    brands = {data[8:12], *(data[at : at + 4] for at in range(16, length, 4))}
    if brands & _AVIF_BRANDS:
        return "AVIF"
    return "HEIF" if brands & _HEIF_BRANDS else None
