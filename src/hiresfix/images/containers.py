"""File formats, read as far as the first pixel: size, orientation, metadata, and which bytes the decoder needs.

Guarantees: magic bytes decide the format. Nothing here decodes or allocates pixels, follows an offset outside the
file or decompresses more than a metadata limit. The pieces handed to the pixel decoder hold no metadata where the
format lets them be taken out (PNG, JPEG, TIFF), so a broken EXIF block cannot spoil a good picture, and only the
first page of a TIFF. It knows no colour policy (`hiresfix.images.reading` does).
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Literal

from PIL import Image

from hiresfix.errors import PictureError
from hiresfix.images import ifd
from hiresfix.images.metadata import EXIF_PREFIX, MAX_ICC_BYTES, MAX_XMP_BYTES, exif_orientation

pillow_heif: ModuleType | None
try:
    import pillow_heif
except ImportError:  # an optional decoder: without it HEIC is refused with the advice to install it
    pillow_heif = None

Format = Literal["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "AVIF", "HEIF"]
Piece = bytes | memoryview

ADVICE = "Send PNG, JPEG, WebP, GIF, TIFF, BMP, AVIF or HEIC."
DAMAGED = "The {} file is damaged or incomplete. Save or download it again and retry."


@dataclass(frozen=True, slots=True, kw_only=True)
class Container:
    """A file before its pixels are decoded.

    width, height: pixels a side as stored; `orientation` (EXIF's 1..8) has still to be applied. depth: bits a sample.
    pieces: what the pixel decoder gets, joined. transparent: the sample values PNG's tRNS makes transparent in a
    picture without palette, at `depth`. icc, exif, xmp: as found, uncleaned. several: there are more frames or pages.
    premultiplied: colours of the file are already multiplied by alpha.
    """

    format: Format
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


def read_container(data: bytes) -> Container:
    """Raises PictureError for bytes that are no picture of an accepted format, or whose structure is broken."""
    kind = _sniff(data)
    if kind is None:
        raise PictureError(f"This is not a picture of a known format. {ADVICE}")
    try:
        return _READERS[kind](data)
    except (struct.error, IndexError, ValueError) as error:
        raise PictureError(DAMAGED.format(kind)) from error


def _sniff(data: bytes) -> Format | None:
    for magic, kind in _MAGIC:
        if data.startswith(magic):
            return kind
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data[:2] == b"BM" and data[14:18] in _BMP_HEADERS:
        return "BMP"
    if data[4:8] == b"ftyp":
        return _sniff_brands(data)
    return None


_MAGIC: tuple[tuple[bytes, Format], ...] = (
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"\xff\xd8\xff", "JPEG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
)
_BMP_HEADERS = {struct.pack("<I", size) for size in (12, 40, 52, 56, 64, 108, 124)}


def _sniff_brands(data: bytes) -> Format | None:
    # ISO/IEC 14496-12, 4.3: major brand, minor version, compatible brands.
    length = min(int.from_bytes(data[:4], "big"), 256)
    brands = {data[8:12], *(data[at : at + 4] for at in range(16, length, 4))}
    if brands & {b"avif", b"avis"}:
        return "AVIF"
    return "HEIF" if brands & {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"} else None


# --- PNG (W3C Portable Network Graphics, third edition) ---------------------------------------------------------

_MAX_PARTS = 65_536
"""Chunks or blocks a file may have: encoders write 4 to 64 KiB at a time, so real files have a few thousand."""
_PNG_DEPTHS = {0: {1, 2, 4, 8, 16}, 2: {8, 16}, 3: {1, 2, 4, 8}, 4: {8, 16}, 6: {8, 16}}


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """(type, begin, end) of each chunk's content, up to IEND or to where the file was cut off."""
    at = 8
    for _ in range(_MAX_PARTS):
        if at + 8 > len(data):
            return
        length, kind = struct.unpack_from(">I4s", data, at)
        yield kind, at + 8, min(at + 8 + length, len(data))
        at += 12 + length
        if kind == b"IEND":
            return
    raise ValueError("too many chunks")


@dataclass(slots=True)
class _PngParts:
    pieces: list[Piece]
    several: bool = False
    trns: bytes = b""
    icc: bytes | None = None
    exif: bytes | None = None
    xmp: bytes | None = None
    dpi: tuple[float, float] | None = None
    notes: list[str] = field(default_factory=list)


def _read_png(data: bytes) -> Container:
    length, kind, width, height, depth, colour = struct.unpack_from(">I4sIIBB", data, 8)
    if kind != b"IHDR" or length != 13 or depth not in _PNG_DEPTHS.get(colour, ()):
        raise ValueError("no valid IHDR")
    parts = _PngParts(pieces=[memoryview(data)[:8]])
    for chunk, begin, end in _png_chunks(data):
        if chunk in (b"IHDR", b"PLTE", b"IDAT", b"IEND") or (chunk == b"tRNS" and colour == 3):
            parts.pieces.append(memoryview(data)[begin - 8 : end + 4])
        else:
            _read_png_extra(parts, chunk, data[begin:end] if end - begin <= MAX_ICC_BYTES else b"")
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


def _read_png_extra(parts: _PngParts, chunk: bytes, content: bytes) -> None:
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


def _inflate(compressed: bytes, most: int) -> bytes | None:
    """None when the stream is broken or holds more than `most` bytes."""
    inflater = zlib.decompressobj()
    try:
        content = inflater.decompress(compressed, most)
    except zlib.error:
        return None
    return content if inflater.eof else None


# --- JPEG (ITU-T T.81, JFIF 1.02, EXIF 2.32, ICC.1 annex B.4) ---------------------------------------------------

_START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_BARE_MARKERS = frozenset({0x01, *range(0xD0, 0xD9)})
_XMP_HEADER = b"http://ns.adobe.com/xap/1.0/\0"
_ICC_HEADER = b"ICC_PROFILE\0"


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """(marker, begin, end) of each segment including its marker, up to and with the first start of scan."""
    at = 2
    for _ in range(_MAX_PARTS):
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


def _read_jpeg(data: bytes) -> Container:
    view = memoryview(data)
    pieces: list[Piece] = [view[:2]]
    frame: tuple[int, int, int] | None = None
    exif, xmp, icc, dpi = b"", None, list[bytes](), None
    for marker, begin, end in _jpeg_segments(data):
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
        raise PictureError(f"JPEG with {frame[0]} bit a sample is not supported. Save it as PNG and retry.")
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
    """Segments begin with their number, from 1, and how many there are."""
    segments = sorted(segments)
    if [(part[0], part[1]) for part in segments] == [(n + 1, len(segments)) for n in range(len(segments))]:
        return b"".join(part[2:] for part in segments) or None, ()
    return None, ("The colour profile is incomplete and was left out.",)


# --- WebP (RFC 9649) --------------------------------------------------------------------------------------------


def _read_webp(data: bytes) -> Container:
    width, height = _webp_size(data)
    chunks: dict[bytes, bytes] = {}
    frames, at = 0, 12
    for _ in range(_MAX_PARTS):
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


def _webp_size(data: bytes) -> tuple[int, int]:
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


# --- GIF (GIF89a specification) ---------------------------------------------------------------------------------


def _read_gif(data: bytes) -> Container:
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    at = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    at = _skip_gif_extensions(data, at)
    if data[at] != 0x2C:
        raise ValueError("no image")
    left, top, frame_width, frame_height, flags = struct.unpack_from("<HHHHB", data, at + 1)
    after = _skip_gif_blocks(data, at + 11 + (3 << (flags & 7) + 1 if flags & 0x80 else 0))
    after = _skip_gif_extensions(data, after)
    return Container(
        format="GIF",
        media_type="image/gif",
        # A frame reaching over the declared screen enlarges it, as it does in browsers and in Pillow.
        width=max(width, left + frame_width),
        height=max(height, top + frame_height),
        pieces=(data,),
        several=data[after : after + 1] == b"\x2c",
    )


def _skip_gif_extensions(data: bytes, at: int) -> int:
    for _ in range(_MAX_PARTS):
        if data[at : at + 1] != b"\x21":
            return at
        at = _skip_gif_blocks(data, at + 2)
    raise ValueError("too many extensions")


def _skip_gif_blocks(data: bytes, at: int) -> int:
    # 25 MiB in full blocks of 255 bytes are 103 000; half-empty ones are no reason to search on for a second frame.
    for _ in range(4 * _MAX_PARTS):
        if at >= len(data) or data[at] == 0:
            break
        at += 1 + data[at]
    return at + 1


# --- TIFF (TIFF 6.0 and its technical notes) --------------------------------------------------------------------

_TIFF_SINGLE = (254, 256, 257, 259, 262, 266, 277, 278, 284, 292, 293, 317, 322, 323)
_TIFF_LISTS = (258, 273, 279, 320, 324, 325, 338, 339, 347, 512, 513, 514, 519, 520, 521, 529, 530, 532)


def _read_tiff(data: bytes) -> Container:
    order = ifd.byte_order(data)
    assert order is not None, "the magic bytes said so"
    directory = ifd.read_directory(data, ifd.first_offset(data, order), order)
    entries = directory.entries
    single = {tag: ifd.integers(entries.get(tag), order) for tag in _TIFF_SINGLE}
    if any(len(single[tag]) != 1 for tag in _TIFF_SINGLE if tag in entries) or not (single[256] and single[257]):
        raise ValueError("tags that must have one value")
    (width,), (height,) = single[256], single[257]
    tile = [value for tag in (322, 323) for value in single[tag]]
    if any(value > 16_384 for value in tile):
        raise ValueError("tiles larger than any writer makes")
    orientation = ifd.integers(entries.get(274), order)
    return Container(
        format="TIFF",
        media_type="image/tiff",
        width=width,
        height=height,
        pieces=ifd.reduced(data, directory, order, _TIFF_SINGLE + _TIFF_LISTS),
        depth=max(ifd.integers(entries.get(258), order), default=1),
        orientation=orientation[0] if orientation and 1 <= orientation[0] <= 8 else 1,
        several=directory.next_offset != 0,
        premultiplied=ifd.integers(entries.get(338), order)[:1] == (1,),
        icc=_tag_bytes(entries, 34675, MAX_ICC_BYTES),
        exif=data,
        xmp=_tag_bytes(entries, 700, MAX_XMP_BYTES),
        dpi=_tiff_dpi(entries, order),
    )


def _tag_bytes(entries: Mapping[int, ifd.Entry], tag: int, most: int) -> bytes | None:
    entry = entries.get(tag)
    return bytes(entry.value) if entry and entry.kind in (1, 7) and len(entry.value) <= most else None


def _tiff_dpi(entries: Mapping[int, ifd.Entry], order: ifd.Order) -> tuple[float, float] | None:
    unit = (ifd.integers(entries.get(296), order) or (2,))[0]
    factor = {2: 1.0, 3: 2.54}.get(unit, 0.0)
    x, y = (ifd.rational(entries.get(tag), order) * factor for tag in (282, 283))
    return (x, y) if x and y else None


# --- BMP (Windows bitmap headers) -------------------------------------------------------------------------------


def _read_bmp(data: bytes) -> Container:
    core = data[14] == 12
    width, height = struct.unpack_from("<HH" if core else "<ii", data, 18)
    return Container(
        format="BMP", media_type="image/bmp", width=width, height=abs(height), pieces=(data,)
    )  # a negative height means rows from the top


# --- AVIF and HEIC (their libraries parse the boxes; neither decodes before it is asked for pixels) --------------


def _read_avif(data: bytes) -> Container:
    try:
        image = Image.open(io.BytesIO(data), formats=("AVIF",))
    except Exception as error:  # a decoder on a stranger's bytes: whatever it raises means the same
        raise ValueError("libavif refused it") from error
    exif = image.info.get("exif")
    at = data.find(b"av1C")  # AV1-ISOBMFF 2.3.3: high_bitdepth is bit 6 of the third byte
    deep = at >= 0 and len(data) > at + 6 and bool(data[at + 6] & 0x40)
    return Container(
        format="AVIF",
        media_type="image/avif",
        width=image.width,
        height=image.height,
        pieces=(data,),
        depth=10 if deep else 8,
        orientation=exif_orientation(exif),
        several=getattr(image, "n_frames", 1) > 1,
        icc=image.info.get("icc_profile"),
        exif=exif,
        xmp=image.info.get("xmp"),
    )


def _read_heif(data: bytes) -> Container:
    if pillow_heif is None:
        raise PictureError(
            "HEIC pictures need the package pillow-heif on this machine. Install it (pip install pillow-heif), "
            "or send PNG or JPEG."
        )
    try:
        heif = pillow_heif.open_heif(io.BytesIO(data), convert_hdr_to_8bit=False)
    except Exception as error:  # see _read_avif
        raise ValueError("libheif refused it") from error
    width, height = heif.size
    return Container(
        format="HEIF",
        media_type="image/heic",
        width=width,
        height=height,
        pieces=(data,),
        depth=heif.info.get("bit_depth", 8),
        # HEIF's own rotation and mirroring are applied by libheif; EXIF's is informative only (ISO/IEC 23008-12).
        orientation=1,
        several=len(heif) > 1,
        premultiplied=heif.premultiplied_alpha,
        icc=heif.info.get("icc_profile"),
        exif=heif.info.get("exif"),
        xmp=heif.info.get("xmp"),
    )


_READERS: Mapping[Format, Callable[[bytes], Container]] = {
    "PNG": _read_png,
    "JPEG": _read_jpeg,
    "WEBP": _read_webp,
    "GIF": _read_gif,
    "TIFF": _read_tiff,
    "BMP": _read_bmp,
    "AVIF": _read_avif,
    "HEIF": _read_heif,
}
