"""Generated hostile image files: truncated, false, multiplied, disguised, and valid ones with flipped bytes."""

from __future__ import annotations

import io
import random
import struct
import zipfile
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image

from tests import sample_images
from tests.sample_images import chunk, photo, save

SEED = 20_261_122
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "AVIF", "HEIF")
_PNG = b"\x89PNG\r\n\x1a\n"


def good(kind: str) -> bytes:
    """Return a small valid file with as much metadata as the format takes."""
    pixels = photo(40, 30, seed=3)
    if kind in ("PNG", "JPEG", "WEBP", "TIFF"):
        return save(pixels, kind, exif=b"Exif\0\0" + sample_images.exif(), icc_profile=sample_images.DISPLAY_P3)
    return save(pixels, kind)


def truncated() -> Iterator[tuple[str, bytes]]:
    for kind in FORMATS:
        file = good(kind)
        for part in (1, 4, 9, 13, 17, 29, 60, len(file) // 4, len(file) // 2, len(file) * 3 // 4, len(file) - 1):
            yield f"{kind} cut after {part}", file[:part]


def flipped(times: int) -> Iterator[tuple[str, bytes]]:
    """Yield each format `times` times with up to eight bytes changed; deterministic."""
    for kind in FORMATS:
        generator = random.Random(f"{SEED} {kind}")
        file = good(kind)
        for number in range(times):
            changed = bytearray(file)
            for _ in range(generator.randint(1, 8)):
                # Every second change is near the start, where the structure of all formats is.
                changed[generator.randrange(generator.choice((64, len(changed))))] = generator.randrange(256)
            yield f"{kind} flipped {number}", bytes(changed)


def png(width: int, height: int, *extra: bytes, depth: int = 8, colour: int = 2, rows: bytes = b"") -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(rows or bytes(1000)))
    return _PNG + chunk(b"IHDR", header) + b"".join(extra) + pixels + chunk(b"IEND", b"")


def _bombs() -> Iterator[tuple[str, bytes]]:
    zeros = zlib.compress(bytes(50_000_000), 9)
    row = b"\0" + bytes(3)
    yield "PNG of 2500 MP", sample_images.forged_png()
    yield (
        "PNG whose data continue after the image",
        _PNG
        + chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0))
        + chunk(b"IDAT", zeros)
        + chunk(b"IEND", b""),
    )
    yield "PNG with a zTXt bomb", png(1, 1, chunk(b"zTXt", b"a\0\0" + zeros), rows=row)
    yield "PNG with an iCCP bomb", png(1, 1, chunk(b"iCCP", b"a\0\0" + zeros), rows=row)
    yield "PNG with an iTXt bomb", png(1, 1, chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zeros), rows=row)
    yield (
        "PNG of a million chunks",
        _PNG + chunk(b"IHDR", struct.pack(">IIBBBBB", 9, 9, 8, 2, 0, 0, 0)) + (chunk(b"IDAT", b"") * 1_000_000),
    )
    yield "GIF of 2500 MP", sample_images.forged_gif()
    yield "GIF of empty extensions", good("GIF")[:13] + b"\x21\xfe\0" * 500_000
    yield "WebP of 2500 MP", sample_images.forged_webp()
    yield "WebP with the largest canvas", sample_images.forged_webp(16_384, 16_384)
    yield "TIFF of 2500 MP", _tiff({256: 50_000, 257: 50_000})
    yield "TIFF of a 2 GB strip", _tiff({279: 2**31 - 1})
    yield "TIFF of the largest tiles", _tiff({322: 16_384, 323: 16_384})
    yield (
        "BMP of 4e18 pixels",
        b"BM" + bytes(12) + struct.pack("<IiiHHI", 40, 2**31 - 1, -(2**31), 1, 24, 0) + bytes(40),
    )
    for kind in ("AVIF", "HEIF"):
        file = bytearray(good(kind))
        at = file.index(b"ispe") + 8
        for name, side in (("absurd", 2**32 - 1), ("large", 60_000), ("none", 0), ("a little more", 64)):
            file[at : at + 8] = struct.pack(">II", side, side)
            yield f"{kind} with {name} ispe", bytes(file)


def _tiff(changes: dict[int, int]) -> bytes:
    """Return an uncompressed 4x4 TIFF with entries changed or added."""
    values = {256: 4, 257: 4, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: 4, 279: 16, **changes}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(values.items()))
    return b"II*\0" + struct.pack("<I", 24) + bytes(16) + struct.pack("<H", len(values)) + entries + bytes(4)


def _false_headers() -> Iterator[tuple[str, bytes]]:
    for width, height in ((0, 0), (0, 5), (5, 0), (1, 65_535), (65_535, 1), (2**31 - 1, 1), (2**32 - 1, 2**32 - 1)):
        yield f"PNG of {width}x{height}", png(width, height)
    for width, height in ((0, 0), (1, 65_535), (65_535, 65_535)):
        file = bytearray(good("JPEG"))
        at = file.index(b"\xff\xc0") + 5
        file[at : at + 4] = struct.pack(">HH", height, width)
        yield f"JPEG of {width}x{height}", bytes(file)
        file = bytearray(good("GIF"))
        file[6:10] = struct.pack("<HH", width, height)
        yield f"GIF of {width}x{height}", bytes(file)
    yield (
        "PNG with indices outside its palette",
        png(4, 4, chunk(b"PLTE", b"\1\2\3"), colour=3, rows=(b"\0" + b"\xff" * 4) * 4),
    )
    yield "PNG with indices and no palette", png(4, 4, colour=3, rows=(b"\0" + b"\xff" * 4) * 4)
    yield (
        "PNG, 16 bit grey, tRNS",
        png(4, 4, chunk(b"tRNS", b"\1\2"), depth=16, colour=0, rows=(b"\0" + b"\1\2" * 4) * 4),
    )
    yield "PNG, tRNS of another kind", png(4, 4, chunk(b"tRNS", b"\1"), rows=(b"\0" + bytes(12)) * 4)
    cmyk = Image.fromarray(photo(40, 30)).convert("CMYK")
    broken = sample_images.odd_cmyk_profile()
    for cut in (100, 131, 140, 300, len(broken) - 5):
        yield f"CMYK with a profile cut after {cut}", save(cmyk, "JPEG", icc_profile=broken[:cut])
    oversized = broken[:128] + struct.pack(">I", 2**32 - 1) + broken[132:]
    yield "CMYK with a profile of 4e9 tags", save(cmyk, "JPEG", icc_profile=oversized)
    for order in "<>":
        magic = b"II*\0" if order == "<" else b"MM\0*"
        loop = magic + struct.pack(f"{order}IHHHIII", 8, 1, 0x8769, 4, 1, 8, 8)
        huge = magic + struct.pack(f"{order}IHHHIII", 8, 1, 0x010F, 2, 2**32 - 1, 8, 0)
        away = magic + struct.pack(f"{order}I", 2**32 - 1)
        for name, block in (("a loop", loop), ("4e9 values", huge), ("an offset far away", away)):
            for kind in ("JPEG", "PNG", "WEBP"):
                yield f"{kind} with {name} in its EXIF ({order})", save(photo(9, 9), kind, exif=b"Exif\0\0" + block)
            yield f"TIFF that is {name} ({order})", block + bytes(64)


def _disguised() -> Iterator[tuple[str, bytes]]:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("evil.html", "<script>alert(1)</script>")
    yield "PNG and ZIP", good("PNG") + archive.getvalue()
    yield "GIF and JavaScript", good("GIF") + b"=1;alert(1)//"
    yield "SVG", b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'
    page = b"<html><script>alert(1)</script></html>"
    for name, magic in (
        ("PNG", _PNG),
        ("JPEG", b"\xff\xd8\xff\xe0"),
        ("GIF", b"GIF89a"),
        ("WEBP", b"RIFF\xff\xff\0\0WEBPVP8 "),
        ("TIFF", b"II*\0"),
        ("BMP", b"BM" + bytes(12) + b"(\0\0\0"),
        ("AVIF", b"\0\0\0\x1cftypavif"),
        ("HEIF", b"\0\0\0\x1cftypheic"),
    ):
        yield f"HTML with the magic of {name}", magic + page
        yield f"only the magic of {name}", magic
    yield "nothing", b""
    yield "PostScript", b"%!PS-Adobe-3.0\n(/etc/passwd) run"


def _animated() -> Iterator[tuple[str, bytes]]:
    frames = [Image.fromarray(photo(20, 14, seed=seed)) for seed in range(4)]
    for kind in ("GIF", "PNG", "WEBP", "TIFF", "AVIF"):
        yield f"{kind} of several frames", save(frames[0], kind, save_all=True, append_images=frames[1:])
    wide = np.zeros((5, 4000, 3), np.uint8)
    yield (
        "GIF whose second frame is larger",
        save(frames[0], "GIF", save_all=True, append_images=[Image.fromarray(wide)]),
    )


def crafted() -> Iterator[tuple[str, bytes]]:
    """Yield all files except the truncated and the flipped ones."""
    for family in (_bombs, _false_headers, _disguised, _animated):
        yield from family()
