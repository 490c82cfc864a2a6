"""Test images: photo-like arrays, real files of every format, and files with false headers."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from hiresfix.images import ifd

Bytes8 = NDArray[np.uint8]
Forger = Callable[[], bytes]


def photo(width: int, height: int, *, seed: int = 0, channels: int = 3) -> Bytes8:
    """Return (H, W, channels) with large shapes, fine texture and some noise, like a photo."""
    random = np.random.default_rng(seed)
    layers = np.zeros((height, width, channels), np.float32)
    for cell in (1, 4, 16, 64):
        small = random.random((height // cell + 2, width // cell + 2, channels), dtype=np.float32)
        for channel in range(channels):
            layer = Image.fromarray(small[..., channel]).resize((width, height), Image.Resampling.BICUBIC)
            layers[..., channel] += np.asarray(layer) * cell**0.5
    layers -= layers.min()
    return np.asarray(layers / max(float(layers.max()), 1e-6) * 255, np.uint8)


def smooth(width: int, height: int) -> Bytes8:
    """Return (H, W, 3) gradients, which lossy formats keep within a few levels; every corner differs."""
    x, y = np.meshgrid(np.linspace(30, 220, width), np.linspace(40, 200, height))
    return np.asarray(np.dstack([x, y, (x + y) / 2]), np.uint8)


def save(pixels: NDArray[Any] | Image.Image, file_format: str, **options: Any) -> bytes:
    """Return a file written by Pillow (HEIF: pillow-heif)."""
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    out = io.BytesIO()
    if file_format == "HEIF":
        import pillow_heif

        pillow_heif.from_pillow(image).save(out, **options)
    else:
        image.save(out, file_format, **options)
    return out.getvalue()


def png(width: int = 64, height: int = 48, *, seed: int = 0) -> bytes:
    return save(photo(width, height, seed=seed), "PNG")


def jpeg(width: int = 64, height: int = 48, *, seed: int = 0) -> bytes:
    return save(photo(width, height, seed=seed), "JPEG", quality=92)


def cut_out(width: int = 64, height: int = 48, *, soft: bool = True) -> Bytes8:
    """Return (H, W, 4): an orange disc with a soft or hard edge; the transparent pixels around it are pure green."""
    centre = np.hypot(*np.ogrid[-2 * height : 2 * height, -2 * width : 2 * width])
    mask = Image.fromarray(np.asarray(np.where(centre < 1.4 * height, 255, 0), np.uint8))
    alpha = np.asarray(mask.filter(ImageFilter.GaussianBlur(3)).resize((width, height), Image.Resampling.BOX))
    if not soft:
        alpha = np.where(alpha < 128, 0, 255)
    colour = np.where((alpha > 0)[..., None], (230, 120, 20), (0, 255, 0))
    return np.asarray(np.dstack([colour, alpha]), np.uint8)


# --- false or broken files --------------------------------------------------------------------------------------


def chunk(kind: bytes, content: bytes) -> bytes:
    """Return a PNG chunk."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def forged_png(width: int = 50_000, height: int = 50_000) -> bytes:
    """Return a few dozen bytes whose header says 2 500 MP."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(b"\0" * 1000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def forged_gif(width: int = 50_000, height: int = 50_000) -> bytes:
    file = bytearray(save(photo(8, 8)[..., 0], "GIF"))
    file[6:10] = struct.pack("<HH", width, height)
    return bytes(file)


def forged_webp(width: int = 50_000, height: int = 50_000) -> bytes:
    """Return an extended WebP whose canvas is far larger than its bitstream."""
    file = save(cut_out(8, 8), "WEBP")
    canvas = b"\x10\0\0\0" + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    start = file.index(b"VP8X") + 8
    return file[:start] + canvas + file[start + 10 :]


def truncated_jpeg() -> bytes:
    file = jpeg(200, 150)
    return file[: len(file) // 2]


# --- metadata and profiles --------------------------------------------------------------------------------------


def exif(
    *, orientation: int = 1, gps: bool = True, order: ifd.ByteOrder = "<", width: int = 1, height: int = 1
) -> bytes:
    """Return a block with camera, date, sizes, maker note, GPS position and thumbnail, without the "Exif" prefix."""
    text = {0x010F: b"Acme\0", 0x0110: b"Camera One\0", 0x0132: b"2026:01:02 03:04:05\0"}
    first = {tag: ifd.IfdEntry(kind=2, count=len(value), value=value) for tag, value in text.items()}
    first[0x0112] = ifd.unsigned(ifd.SHORT, orientation, order)
    detail = {
        0x829A: ifd.IfdEntry(kind=5, count=1, value=struct.pack(f"{order}II", 1, 250)),
        0x927C: ifd.IfdEntry(kind=7, count=12, value=b"SECRET-SERIAL"[:12]),
        0xA002: ifd.unsigned(ifd.LONG, width, order),
        0xA003: ifd.unsigned(ifd.LONG, height, order),
    }
    degrees = struct.pack(f"{order}6I", 35, 1, 41, 1, 22, 1)
    position = {1: ifd.IfdEntry(kind=2, count=2, value=b"N\0"), 2: ifd.IfdEntry(kind=5, count=3, value=degrees)}
    first[0x8769] = first[0x8825] = ifd.unsigned(ifd.LONG, 0, order)
    if not gps:
        del first[0x8825]
    at = 8 + len(ifd.write_directory(first, 8, order))
    first[0x8769] = ifd.unsigned(ifd.LONG, at, order)
    detail_bytes = ifd.write_directory(detail, at, order)
    after = at + len(detail_bytes)
    if gps:
        first[0x8825] = ifd.unsigned(ifd.LONG, after, order)
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8)
    tail = ifd.write_directory(position, after, order) if gps else b""
    return head + ifd.write_directory(first, 8, order) + detail_bytes + tail + b"THUMBNAIL"


def rotated(orientation: int, file_format: str = "JPEG", width: int = 40, height: int = 24) -> bytes:
    """Return a file that shows `smooth(width, height)` once its EXIF orientation is applied."""
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    image = Image.fromarray(smooth(width, height))
    if orientation in undo:
        image = image.transpose(undo[orientation])
    options: dict[str, Any] = {"exif": b"Exif\0\0" + exif(orientation=orientation)}
    if file_format == "JPEG":
        options |= {"quality": 98, "subsampling": "4:4:4"}
    return save(image, file_format, **options)


def _profile(space: bytes, device: bytes, pcs: bytes, tags: dict[bytes, bytes]) -> bytes:
    """Return an ICC version 2 profile (ICC.1:2001-04) with these tags."""
    tags = {b"desc": b"desc\0\0\0\0\0\0\0\x05test\0" + b"\0" * 78, b"cprt": b"text\0\0\0\0none\0", **tags}
    table, body, at = struct.pack(">I", len(tags)), b"", 132 + 12 * len(tags)
    for name, content in tags.items():
        content += b"\0" * (-len(content) % 4)
        table += name + struct.pack(">II", at + len(body), len(content))
        body += content
    white = struct.pack(">3i", 63190, 65536, 54061)
    head = struct.pack(">I4xI", at + len(body), 0x02400000) + device + space + pcs
    head += struct.pack(">6H", 2026, 1, 1, 0, 0, 0) + b"acsp" + b"\0" * 28 + white
    return head.ljust(128, b"\0") + table + body


def _xyz(*values: float) -> bytes:
    return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(value * 65536) for value in values))


def _gamma(value: float) -> bytes:
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(value * 256))


_WHITE = _xyz(0.9642, 1.0, 0.8249)
_CURVES = {name: _gamma(2.2) for name in (b"rTRC", b"gTRC", b"bTRC")}

DISPLAY_P3 = _profile(
    b"RGB ",
    b"mntr",
    b"XYZ ",
    {
        b"wtpt": _WHITE,
        b"rXYZ": _xyz(0.5151, 0.2412, -0.0011),
        b"gXYZ": _xyz(0.2920, 0.6922, 0.0419),
        b"bXYZ": _xyz(0.1571, 0.0666, 0.7841),
        **_CURVES,
    },
)
ADOBE_RGB = _profile(
    b"RGB ",
    b"mntr",
    b"XYZ ",
    {
        b"wtpt": _WHITE,
        b"rXYZ": _xyz(0.6097, 0.3111, 0.0195),
        b"gXYZ": _xyz(0.2053, 0.6257, 0.0609),
        b"bXYZ": _xyz(0.1492, 0.0632, 0.7446),
        **_CURVES,
    },
)
GREY_GAMMA_18 = _profile(b"GRAY", b"mntr", b"XYZ ", {b"wtpt": _WHITE, b"kTRC": _gamma(1.8)})


def odd_cmyk_profile() -> bytes:
    """Return a profile whose cyan ink prints red, so that a conversion that ignores it is visible."""
    red, white, black = (136, 208, 195), (255, 128, 128), (0, 128, 128)  # L*a*b* as 8 bit
    cells = [
        black if key else red if cyan else white for cyan in (0, 1) for _m in (0, 1) for _y in (0, 1) for key in (0, 1)
    ]
    ramp = bytes(range(256))
    identity = struct.pack(">9i", *(65536 if at % 4 == 0 else 0 for at in range(9)))
    table = b"mft1\0\0\0\0\x04\x03\x02\0" + identity + ramp * 4 + bytes(value for cell in cells for value in cell)
    return _profile(b"CMYK", b"prtr", b"Lab ", {b"wtpt": _WHITE, b"A2B0": table + ramp * 3})


XMP = (
    b'<?xpacket begin="\xef\xbb\xbf" id="W5M0MpCehiHzreSzNTczkc9d"?>\n<x:xmpmeta xmlns:x="adobe:ns:meta/">'
    b'<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about=""'
    b' xmlns:exif="http://ns.adobe.com/exif/1.0/" xmlns:tiff="http://ns.adobe.com/tiff/1.0/"'
    b' xmlns:dc="http://purl.org/dc/elements/1.1/" xmlns:xmp="http://ns.adobe.com/xap/1.0/"'
    b' xmlns:drone="http://example.com/drone/" drone:GpsLongitude="139.7" tiff:Orientation="6"'
    b" exif:GPSLatitude='35,41.0N' xmp:Rating=\"5\"><exif:GPSAltitude>40/1</exif:GPSAltitude>"
    b'<exif:GPSTimeStamp rdf:resource="x>y"/><dc:creator><rdf:Seq><rdf:li>Ada</rdf:li></rdf:Seq></dc:creator>'
    b'</rdf:Description></rdf:RDF></x:xmpmeta>\n<?xpacket end="w"?>'
)


def deep_tiff(samples: NDArray[np.uint16], *, order: ifd.ByteOrder = "<", extra: int | None = None) -> bytes:
    """Return an uncompressed 16 bit RGB(A) TIFF; `extra` is ExtraSamples: 1 premultiplied, 2 plain alpha."""
    height, width, channels = samples.shape
    values = {256: width, 257: height, 259: 1, 262: 2, 277: channels, 278: height, 273: 0, 279: samples.nbytes}
    entries = {tag: ifd.unsigned(ifd.LONG, value, order) for tag, value in values.items()}
    entries[258] = ifd.IfdEntry(kind=3, count=channels, value=struct.pack(f"{order}{channels}H", *[16] * channels))
    if extra is not None:
        entries[338] = ifd.unsigned(ifd.SHORT, extra, order)
    at = 8 + len(ifd.write_directory(entries, 8, order))
    entries[273] = ifd.unsigned(ifd.LONG, at, order)
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8)
    return head + ifd.write_directory(entries, 8, order) + samples.astype(f"{order}u2").tobytes()
