"""PNG files (W3C Portable Network Graphics, third edition)."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field

from hiresfix.images.containers.common import MAX_PARTS, Container, Piece
from hiresfix.images.metadata import MAX_ICC_BYTES, MAX_XMP_BYTES, exif_orientation

_DEPTHS = {0: {1, 2, 4, 8, 16}, 2: {8, 16}, 3: {1, 2, 4, 8}, 4: {8, 16}, 6: {8, 16}}


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield (type, begin, end) of each chunk's content, up to IEND or the end of a truncated file."""
    at = 8
    for _ in range(MAX_PARTS):
        if at + 8 > len(data):
            return
        length, kind = struct.unpack_from(">I4s", data, at)
        yield kind, at + 8, min(at + 8 + length, len(data))
        at += 12 + length
        if kind == b"IEND":
            return
    raise ValueError("too many chunks")


@dataclass(slots=True)
class _PngContent:
    """Everything that is read from the chunks; `pieces` goes to the pixel decoder."""

    pieces: list[Piece]
    several: bool = False
    trns: bytes = b""
    icc: bytes | None = None
    exif: bytes | None = None
    xmp: bytes | None = None
    dpi: tuple[float, float] | None = None
    notes: list[str] = field(default_factory=list)


def read_png(data: bytes) -> Container:
    length, kind, width, height, depth, colour = struct.unpack_from(">I4sIIBB", data, 8)
    if kind != b"IHDR" or length != 13 or depth not in _DEPTHS.get(colour, ()):
        raise ValueError("no valid IHDR")
    parts = _PngContent(pieces=[memoryview(data)[:8]])
    for chunk, begin, end in _chunks(data):
        if chunk in (b"IHDR", b"PLTE", b"IDAT", b"IEND") or (chunk == b"tRNS" and colour == 3):
            parts.pieces.append(memoryview(data)[begin - 8 : end + 4])
        else:
            _read_metadata_chunk(parts, chunk, data[begin:end] if end - begin <= MAX_ICC_BYTES else b"")
    transparent = None
    if len(parts.trns) == {0: 2, 2: 6}.get(colour):
        transparent = struct.unpack(f">{len(parts.trns) // 2}H", parts.trns)
    return Container(
        format="PNG",
        media_type="image/png",
        width=width,
        height=height,
        pieces=tuple(parts.pieces),
        depth=depth,
        orientation=exif_orientation(parts.exif),
        several=parts.several,
        transparent=transparent,
        icc=parts.icc,
        exif=parts.exif,
        xmp=parts.xmp,
        dpi=parts.dpi,
        notes=tuple(parts.notes),
    )


def _read_metadata_chunk(parts: _PngContent, chunk: bytes, content: bytes) -> None:
    if chunk == b"tRNS":
        parts.trns = content
    elif chunk == b"iCCP":
        parts.icc = _inflate(content.partition(b"\0")[2][1:], MAX_ICC_BYTES)
        if parts.icc is None:
            parts.notes.append("The colour profile is damaged or too large and was left out.")
    elif chunk == b"eXIf":
        parts.exif = content
    elif chunk == b"iTXt" and content.startswith(b"XML:com.adobe.xmp\0"):
        compressed, text = content[18:19] == b"\1", content[20:].split(b"\0", 2)[-1]
        parts.xmp = _inflate(text, MAX_XMP_BYTES) if compressed else text
    elif chunk == b"pHYs" and len(content) == 9 and content[8] == 1:
        x, y = struct.unpack(">II", content[:8])
        parts.dpi = (x * 0.0254, y * 0.0254)
    elif chunk == b"acTL" and len(content) == 8:
        parts.several = int.from_bytes(content[:4], "big") > 1


def _inflate(compressed: bytes, max_bytes: int) -> bytes | None:
    """Return the inflated bytes; None if the stream is broken or longer than `max_bytes`."""
    inflater = zlib.decompressobj()
    try:
        content = inflater.decompress(compressed, max_bytes)
    except zlib.error:
        return None
    return content if inflater.eof else None
