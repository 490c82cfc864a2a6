"""JPEG files (ITU-T T.81, JFIF 1.02, EXIF 2.32, ICC.1 annex B.4)."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from hiresfix import messages
from hiresfix.errors import ImageError
from hiresfix.images.containers.common import MAX_PARTS, Container, Piece
from hiresfix.images.metadata import EXIF_PREFIX, exif_orientation

_START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_BARE_MARKERS = frozenset({0x01, *range(0xD0, 0xD9)})
_XMP_HEADER = b"http://ns.adobe.com/xap/1.0/\0"
_ICC_HEADER = b"ICC_PROFILE\0"


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield (marker, begin, end) of each segment, marker included, up to and including the first start of scan."""
    at = 2
    for _ in range(MAX_PARTS):
        at = data.find(b"\xff", at)
        while at >= 0 and data[at + 1] == 0xFF:  # fill bytes
            at += 1
        if at < 0:
            raise ValueError("no scan")
        marker = data[at + 1]
        if marker == 0 or marker in _BARE_MARKERS:
            at += 2
            continue
        (length,) = struct.unpack_from(">H", data, at + 2)
        if length < 2:
            raise ValueError("segment without a length")
        yield marker, at, at + 2 + length
        if marker == 0xDA:
            return
        at += 2 + length
    raise ValueError("too many segments")


def read_jpeg(data: bytes) -> Container:
    view = memoryview(data)
    pieces: list[Piece] = [view[:2]]
    frame: tuple[int, int, int] | None = None
    exif, xmp, icc, dpi = b"", None, list[bytes](), None
    for marker, begin, end in _segments(data):
        content = data[begin + 4 : end]
        if marker in _START_OF_FRAME:
            frame = struct.unpack_from(">BHH", content)
        if marker == 0xE1 and content.startswith(EXIF_PREFIX):
            exif += content[6:]
        elif marker == 0xE1 and content.startswith(_XMP_HEADER):
            xmp = content[len(_XMP_HEADER) :]
        elif marker == 0xE2 and content.startswith(_ICC_HEADER):
            icc.append(content[12:])
        elif marker == 0xE0 and content.startswith(b"JFIF\0"):
            dpi = _jfif_dpi(content)
        if not (0xE0 <= marker <= 0xEF or marker == 0xFE) or (marker == 0xEE and content.startswith(b"Adobe")):
            pieces.append(view[begin : len(data) if marker == 0xDA else end])
    if frame is None:
        raise ValueError("no frame")
    if frame[0] != 8:
        raise ImageError(messages.JPEG_DEPTH_UNSUPPORTED(bits=frame[0]))
    profile, notes = _join_profile(icc)
    return Container(
        format="JPEG",
        media_type="image/jpeg",
        width=frame[2],
        height=frame[1],
        pieces=tuple(pieces),
        depth=frame[0],
        orientation=exif_orientation(exif),
        icc=profile,
        exif=exif or None,
        xmp=xmp,
        dpi=dpi,
        notes=notes,
    )


def _jfif_dpi(content: bytes) -> tuple[float, float] | None:
    unit, x, y = struct.unpack_from(">BHH", content, 7)
    factor = {1: 1.0, 2: 2.54}.get(unit)
    return (x * factor, y * factor) if factor and x and y else None


def _join_profile(segments: list[bytes]) -> tuple[bytes | None, tuple[str, ...]]:
    """Join the segments of an ICC profile; each begins with its number, from 1, and the number of segments."""
    segments = sorted(segments)
    if [(part[0], part[1]) for part in segments] == [(n + 1, len(segments)) for n in range(len(segments))]:
        return b"".join(part[2:] for part in segments) or None, ()
    return None, ("The colour profile is incomplete and was left out.",)
