"""TIFF files (TIFF 6.0 and its technical notes)."""

from __future__ import annotations

from collections.abc import Mapping

from hiresfix.images import ifd
from hiresfix.images.containers.common import Container
from hiresfix.images.metadata import MAX_ICC_BYTES, MAX_XMP_BYTES

_SINGLE_VALUE_TAGS = (254, 256, 257, 259, 262, 266, 277, 278, 284, 292, 293, 317, 322, 323)
_LIST_TAGS = (258, 273, 279, 320, 324, 325, 338, 339, 347, 512, 513, 514, 519, 520, 521, 529, 530, 532)


def read_tiff(data: bytes) -> Container:
    order = ifd.byte_order(data)
    assert order is not None, "the magic bytes said so"
    directory = ifd.read_directory(data, ifd.first_offset(data, order), order)
    entries = directory.entries
    single = {tag: ifd.integers(entries.get(tag), order) for tag in _SINGLE_VALUE_TAGS}
    if any(len(single[tag]) != 1 for tag in _SINGLE_VALUE_TAGS if tag in entries) or not (single[256] and single[257]):
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
        pieces=ifd.single_page_file(data, directory, order, _SINGLE_VALUE_TAGS + _LIST_TAGS),
        depth=max(ifd.integers(entries.get(258), order), default=1),
        orientation=orientation[0] if orientation and 1 <= orientation[0] <= 8 else 1,
        several=directory.next_offset != 0,
        premultiplied=ifd.integers(entries.get(338), order)[:1] == (1,),
        icc=_tag_bytes(entries, 34675, MAX_ICC_BYTES),
        exif=data,
        xmp=_tag_bytes(entries, 700, MAX_XMP_BYTES),
        dpi=_dpi(entries, order),
    )


def _tag_bytes(entries: Mapping[int, ifd.IfdEntry], tag: int, max_bytes: int) -> bytes | None:
    entry = entries.get(tag)
    return bytes(entry.value) if entry and entry.kind in (1, 7) and len(entry.value) <= max_bytes else None


def _dpi(entries: Mapping[int, ifd.IfdEntry], order: ifd.ByteOrder) -> tuple[float, float] | None:
    unit = (ifd.integers(entries.get(296), order) or (2,))[0]
    factor = {2: 1.0, 3: 2.54}.get(unit, 0.0)
    x, y = (ifd.rational(entries.get(tag), order) * factor for tag in (282, 283))
    return (x, y) if x and y else None
