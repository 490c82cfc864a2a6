"""WebP files (RFC 9649)."""

from __future__ import annotations

import struct

from hiresfix.images.containers.common import MAX_PARTS, Container
from hiresfix.images.metadata import MAX_ICC_BYTES, exif_orientation


def read_webp(data: bytes) -> Container:
    width, height = _size(data)
    chunks: dict[bytes, bytes] = {}
    frames, at = 0, 12
    for _ in range(MAX_PARTS):
        if at + 8 > len(data):
            break
        kind, length = struct.unpack_from("<4sI", data, at)
        frames += kind == b"ANMF"
        if kind in (b"ICCP", b"EXIF", b"XMP ") and length <= MAX_ICC_BYTES:
            chunks[kind] = data[at + 8 : at + 8 + length]
        at += 8 + length + length % 2
    exif = chunks.get(b"EXIF")
    return Container(
        format="WEBP",
        media_type="image/webp",
        width=width,
        height=height,
        pieces=(data,),
        orientation=exif_orientation(exif),
        several=frames > 1,
        icc=chunks.get(b"ICCP"),
        exif=exif,
        xmp=chunks.get(b"XMP "),
    )


def _size(data: bytes) -> tuple[int, int]:
    kind = data[12:16]
    if kind == b"VP8X":
        return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
    if kind == b"VP8L" and data[20] == 0x2F:
        (bits,) = struct.unpack_from("<I", data, 21)
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8 " and data[23:26] == b"\x9d\x01\x2a":
        width, height = struct.unpack_from("<HH", data, 26)
        return width & 0x3FFF, height & 0x3FFF
    raise ValueError("no VP8 bitstream")
