"""Values shared by the readers of all container formats."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

ImageFormat = Literal["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "AVIF", "HEIF"]
Piece = bytes | memoryview

MAX_PARTS = 65_536
"""Maximum number of chunks or blocks. Encoders write 4 to 64 KiB at a time, so real files have a few thousand."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Container:
    """An image file before its pixels are decoded.

    Attributes:
        format: as its magic bytes say.
        media_type: MIME type.
        width: pixels, as stored; `orientation` is not applied yet.
        height: likewise.
        pieces: bytes for the pixel decoder, to be joined.
        depth: bits per sample.
        orientation: EXIF orientation, 1..8.
        several: True if there are more frames or pages than the first.
        transparent: sample values that PNG's tRNS makes transparent in an image without palette, at `depth`.
        premultiplied: True if the colours are already multiplied by alpha.
        icc: profile as found, not cleaned.
        exif: likewise.
        xmp: likewise.
        dpi: (x, y).
        notes: what was left out, one sentence each.
    """

    format: ImageFormat
    media_type: str
    width: int
    height: int
    pieces: tuple[Piece, ...]
    depth: int = 8
    orientation: int = 1
    several: bool = False
    transparent: tuple[int, ...] | None = None
    premultiplied: bool = False
    icc: bytes | None = None
    exif: bytes | None = None
    xmp: bytes | None = None
    dpi: tuple[float, float] | None = None
    notes: tuple[str, ...] = ()
