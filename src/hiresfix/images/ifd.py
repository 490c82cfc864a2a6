"""TIFF directories (IFDs), the structure of TIFF files and EXIF blocks (TIFF 6.0, section 2).

Guarantees: reads only within the given bytes, copies nothing until asked, and accepts no more value bytes than the
structure itself has, so entries that point to the same data cannot multiply it. It does not interpret tags.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

ByteOrder = Literal["<", ">"]

_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
"""Bytes per value of each field type; 13 is the IFD pointer of TIFF technical note 1."""

SHORT, LONG = 3, 4


@dataclass(frozen=True, slots=True, kw_only=True)
class IfdEntry:
    """One tag. `value` has its bytes in the byte order of the file, `raw` the 12 bytes of the entry itself."""

    kind: int
    count: int
    value: bytes | memoryview
    raw: bytes | memoryview = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class Directory:
    """Readable entries of a directory, and the offset of the next one (0 if there is none)."""

    entries: Mapping[int, IfdEntry]
    next_offset: int


def byte_order(data: bytes | memoryview) -> ByteOrder | None:
    """Return the byte order of a classic TIFF header; None if `data` does not start with one."""
    start = bytes(data[:4])
    if start == b"II*\0":
        return "<"
    return ">" if start == b"MM\0*" else None


def first_offset(data: bytes | memoryview, order: ByteOrder) -> int:
    return int(struct.unpack_from(f"{order}I", data, 4)[0])


def read_directory(data: bytes | memoryview, offset: int, order: ByteOrder) -> Directory:
    """Read a directory, leaving out entries of unknown type and entries that reach outside `data`.

    Raises:
        struct.error: the directory itself does not fit.
    """
    view = memoryview(data)
    (count,) = struct.unpack_from(f"{order}H", view, offset)
    budget = len(view)
    entries: dict[int, IfdEntry] = {}
    for at in range(offset + 2, offset + 2 + 12 * count, 12):
        tag, kind, number, pointer = struct.unpack_from(f"{order}HHII", view, at)
        size = _SIZES.get(kind, 0) * number
        start = at + 8 if size <= 4 else pointer
        if size == 0 or size > budget or start + size > len(view):
            continue
        budget -= size
        entries[tag] = IfdEntry(kind=kind, count=number, value=view[start : start + size], raw=view[at : at + 12])
    end = offset + 2 + 12 * count
    next_offset = struct.unpack_from(f"{order}I", view, end)[0] if end + 4 <= len(view) else 0
    return Directory(entries=entries, next_offset=next_offset)


def integers(entry: IfdEntry | None, order: ByteOrder) -> tuple[int, ...]:
    """Return the values of a SHORT or LONG entry; empty for any other."""
    if entry is None or entry.kind not in (SHORT, LONG):
        return ()
    return struct.unpack(f"{order}{entry.count}{'H' if entry.kind == SHORT else 'I'}", entry.value)


def rational(entry: IfdEntry | None, order: ByteOrder) -> float:
    """Return the first value of a RATIONAL entry; 0 if there is none or its denominator is 0."""
    if entry is None or entry.kind != 5:
        return 0.0
    numerator, denominator = struct.unpack_from(f"{order}II", entry.value)
    return numerator / denominator if denominator else 0.0


def unsigned(kind: int, value: int, order: ByteOrder) -> IfdEntry:
    """Return an entry with one SHORT or LONG."""
    return IfdEntry(kind=kind, count=1, value=struct.pack(f"{order}{'H' if kind == SHORT else 'I'}", value))


def write_directory(entries: Mapping[int, IfdEntry], offset: int, order: ByteOrder) -> bytes:
    """Return the bytes of a last directory at `offset`, followed by the values that do not fit into entries."""
    after = offset + 2 + 12 * len(entries) + 4
    head, tail = [struct.pack(f"{order}H", len(entries))], b""
    for tag, entry in sorted(entries.items()):
        value = bytes(entry.value)
        if len(value) <= 4:
            field = value.ljust(4, b"\0")
        else:
            field = struct.pack(f"{order}I", after + len(tail))
            tail += value + b"\0" * (len(value) % 2)
        head.append(struct.pack(f"{order}HHI", tag, entry.kind, entry.count) + field)
    return b"".join(head) + b"\0\0\0\0" + tail


def single_page_file(
    data: bytes, directory: Directory, order: ByteOrder, tags: Iterable[int]
) -> tuple[bytes | memoryview, ...]:
    """Return the pieces of a TIFF file with only this directory and only `tags` of it; all offsets stay valid."""
    kept = [directory.entries[tag].raw for tag in sorted(tags) if tag in directory.entries]
    padding = b"\0" * (len(data) % 2)
    header = data[:4] + struct.pack(f"{order}I", len(data) + len(padding))
    return (header, memoryview(data)[8:], padding, struct.pack(f"{order}H", len(kept)), *kept, b"\0\0\0\0")
