"""Cleaning of the metadata that travels with the pixels: EXIF, XMP and ICC profiles.

Guarantees: a cleaned EXIF block or XMP packet contains no position, no thumbnail, no orientation but the upright one
and no pixel size but the one given; both are rebuilt from what was parsed, so nothing can hide in gaps. A profile that
passes `profile_space` can be opened by LittleCMS. Data that cannot be parsed is dropped.
"""

from __future__ import annotations

import io
import re
import struct
from dataclasses import dataclass, field
from typing import Final
from xml.parsers import expat

from PIL import ImageCms

from hiresfix.images import ifd
from hiresfix.units import MEBIBYTE

EXIF_PREFIX: Final = b"Exif\0\0"
MAX_ICC_BYTES: Final = 4 * MEBIBYTE
MAX_XMP_BYTES: Final = MEBIBYTE
MAX_EXIF_BYTES: Final = 65_527
"""Of a cleaned block: a JPEG segment of 65 533 bytes minus the prefix. Without a thumbnail a few KiB are usual."""

_ORIENTATION, _EXIF_POINTER, _WIDTH, _HEIGHT = 0x0112, 0x8769, 0xA002, 0xA003

# Tags of the first directory that describe the image (EXIF 2.32, table 4, and Microsoft's Rating and XP* tags).
# An allow list, because in a TIFF file the same directory also says where the pixels are.
_DESCRIPTIVE = frozenset(
    {0x010E, 0x010F, 0x0110, 0x011A, 0x011B, 0x0128, 0x0131, 0x0132, 0x013B, 0x013C, 0x4746, 0x4749, 0x8298}
    | set(range(0x9C9B, 0x9CA0))
)
# Tags of the Exif directory that would be wrong or harmful in the result: compression of the old file, maker note
# (its offsets break when moved, and its format is secret), interoperability pointer, and everything counted in pixels
# of the old file (subject area and location, focal plane resolution).
_STALE = frozenset({0x9101, 0x9102, 0x927C, 0xA005, 0x9214, 0xA214, 0xA20E, 0xA20F, 0xA210})


def exif_orientation(exif: bytes | None) -> int:
    """Return the orientation, 1..8; 1 if the block has none or cannot be read."""
    try:
        data = (exif or b"").removeprefix(EXIF_PREFIX)
        if (order := ifd.byte_order(data)) is None:
            return 1
        directory = ifd.read_directory(data, ifd.first_offset(data, order), order)
        (value,) = ifd.integers(directory.entries.get(_ORIENTATION), order) or (1,)
    except (struct.error, ValueError):
        return 1
    return value if 1 <= value <= 8 else 1


def clean_exif(exif: bytes, width: int, height: int) -> bytes | None:
    """Rebuild an EXIF block for an upright image of this size.

    Args:
        exif: the block, with or without prefix; a whole TIFF file is valid too.
        width: of the result.
        height: of the result.

    Returns:
        The block without prefix; None if nothing in it can be read, or if it would not fit into a JPEG segment.
    """
    data = exif.removeprefix(EXIF_PREFIX)
    order = ifd.byte_order(data)
    if order is None:
        return None
    try:
        main = ifd.read_directory(data, ifd.first_offset(data, order), order).entries
        pointer = ifd.integers(main.get(_EXIF_POINTER), order)
        detail = ifd.read_directory(data, pointer[0], order).entries if pointer else {}
    except struct.error:
        return None
    first = {tag: entry for tag, entry in main.items() if tag in _DESCRIPTIVE and entry.kind != 13}
    second = {tag: entry for tag, entry in detail.items() if tag not in _STALE and entry.kind != 13}
    if not first and not second:
        return None
    first[_ORIENTATION] = ifd.unsigned(ifd.SHORT, 1, order)
    second[_WIDTH] = ifd.unsigned(ifd.LONG, width, order)
    second[_HEIGHT] = ifd.unsigned(ifd.LONG, height, order)
    # The pointer's value does not change the length of the first directory, so one dry run gives the offset.
    first[_EXIF_POINTER] = ifd.unsigned(ifd.LONG, 0, order)
    after = 8 + len(ifd.write_directory(first, 8, order))
    first[_EXIF_POINTER] = ifd.unsigned(ifd.LONG, after, order)
    header = bytes(data[:4]) + struct.pack(f"{order}I", 8)
    block = header + ifd.write_directory(first, 8, order) + ifd.write_directory(second, after, order)
    return block if len(block) <= MAX_EXIF_BYTES else None


# Positions under any prefix (drone makers use their own), then properties that describe the pixels of the old file.
_UNWANTED = re.compile(
    r"[^:]+:gps.*|exif:pixel[xy]dimension|tiff:(orientation|imagewidth|imagelength)|xmp:thumbnails"
    r"|xmpnote:hasextendedxmp|hdrgm:version",
    re.IGNORECASE,
)
_ATTRIBUTE = re.compile(rb"""\s+([^\s=/>]+)\s*=\s*("[^"]*"|'[^']*')""")


class _DoctypeFound(Exception):
    """The packet declares a document type: entities could hide or multiply text."""


@dataclass(slots=True)
class _TokenCollector:
    """Start of each XML token, and the element that it opens (+1) or closes (-1)."""

    parser: expat.XMLParserType
    tokens: list[tuple[int, int, str]] = field(default_factory=list)

    def start(self, name: str, _attributes: dict[str, str]) -> None:
        self.tokens.append((self.parser.CurrentByteIndex, 1, name))

    def end(self, name: str) -> None:
        self.tokens.append((self.parser.CurrentByteIndex, -1, name))

    def other(self, _text: str) -> None:
        self.tokens.append((self.parser.CurrentByteIndex, 0, ""))

    def doctype(self, *_declaration: object) -> None:
        raise _DoctypeFound


def clean_xmp(xmp: bytes) -> bytes | None:
    """Remove positions and properties of the old file; return None if the packet is not well-formed UTF-8."""
    packet = xmp.rstrip(b"\0")
    if not packet or len(packet) > MAX_XMP_BYTES:
        return None
    parser = expat.ParserCreate("utf-8")
    collector = _TokenCollector(parser)
    parser.StartElementHandler, parser.EndElementHandler = collector.start, collector.end
    parser.DefaultHandler, parser.StartDoctypeDeclHandler = collector.other, collector.doctype
    try:
        parser.Parse(packet, True)
    except (expat.ExpatError, _DoctypeFound):
        return None
    return _without_unwanted(packet, collector.tokens)


def _without_unwanted(packet: bytes, tokens: list[tuple[int, int, str]]) -> bytes:
    # A token ends where the next one begins. `<x/>` is reported twice at one place: its text belongs to the start tag.
    begins = [begin for begin, _, _ in tokens] + [len(packet)]
    output, inside = [packet[: begins[0]]], 0
    for number, (begin, step, name) in enumerate(tokens):
        closes_itself = step == 1 and begins[number + 1] == begin
        token = packet[begin : begins[number + 1 + closes_itself]]
        if step == -1 and number and begins[number - 1] == begin:
            token = b""
        if inside or (step == 1 and _UNWANTED.fullmatch(name)):
            inside += step
        else:
            output.append(_ATTRIBUTE.sub(_filter_attribute, token) if step == 1 else token)
    return b"".join(output)


def _filter_attribute(match: re.Match[bytes]) -> bytes:
    return b"" if _UNWANTED.fullmatch(match[1].decode("utf-8", "replace")) else match[0]


def profile_space(icc: bytes) -> str | None:
    """Return the colour space of a profile, such as "RGB", "GRAY" or "CMYK" (ICC.1:2022, 7.2); None if it is broken."""
    if not 132 <= len(icc) <= MAX_ICC_BYTES or icc[36:40] != b"acsp":
        return None
    try:
        ImageCms.ImageCmsProfile(io.BytesIO(icc))
    except (ImageCms.PyCMSError, OSError):
        return None
    return icc[16:20].decode("ascii", "replace").strip()
