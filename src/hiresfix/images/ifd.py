"""TIFF directories, the structure that both TIFF files and EXIF blocks are made of (TIFF 6.0, section 2).

Guarantees: reads within the given bytes only, copies nothing until asked, and takes no more value bytes than the
structure itself holds, so that entries pointing at the same data cannot multiply it. It knows no meaning of any tag.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

Order = Literal["<", ">"]

_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
"""Bytes of one value of each field type; 13 is the IFD pointer of the TIFF technical note 1."""

SHORT, LONG = 3, 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One tag. `value` holds its bytes in the file's order, `raw` the 12 bytes of the entry as they stand."""

    kind: int
    count: int
    value: bytes | memoryview
    raw: bytes | memoryview = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class Directory:
    """The readable entries, and where the next directory is (0: there is none)."""

    entries: Mapping[int, Entry]
    next_offset: int


def byte_order(data: bytes | memoryview) -> Order | None:
    """The order a classic TIFF header declares; None when `data` does not begin with one."""
    start = bytes(data[:4])
    if start == b"II*\0":
        return "<"
    return ">" if start == b"MM\0*" else None


def first_offset(data: bytes | memoryview, order: Order) -> int:
    return int(struct.unpack_from(f"{order}I", data, 4)[0])


def read_directory(data: bytes | memoryview, offset: int, order: Order) -> Directory:
    """Entries of unknown type, or reaching outside `data`, are left out. Raises struct.error when the directory
    itself does not fit.
    """
    view = memoryview(data)
    (count,) = struct.unpack_from(f"{order}H", view, offset)
    budget = len(view)
    entries: dict[int, Entry] = {}
    for at in range(offset + 2, offset + 2 + 12 * count, 12):
        tag, kind, number, pointer = struct.unpack_from(f"{order}HHII", view, at)
        size = _SIZES.get(kind, 0) * number
        start = at + 8 if size <= 4 else pointer
        if size == 0 or size > budget or start + size > len(view):
            continue
        budget -= size
        entries[tag] = Entry(kind=kind, count=number, value=view[start : start + size], raw=view[at : at + 12])
    end = offset + 2 + 12 * count
    next_offset = struct.unpack_from(f"{order}I", view, end)[0] if end + 4 <= len(view) else 0
    return Directory(entries=entries, next_offset=next_offset)


def integers(entry: Entry | None, order: Order) -> tuple[int, ...]:
    """The values of a SHORT or LONG entry; empty for any other."""
    if entry is None or entry.kind not in (SHORT, LONG):
        return ()
    return struct.unpack(f"{order}{entry.count}{'H' if entry.kind == SHORT else 'I'}", entry.value)


def rational(entry: Entry | None, order: Order) -> float:
    """The first value of a RATIONAL entry; 0 when there is none or its denominator is 0."""
    if entry is None or entry.kind != 5:
        return 0.0
    numerator, denominator = struct.unpack_from(f"{order}II", entry.value)
    return numerator / denominator if denominator else 0.0


def unsigned(kind: int, value: int, order: Order) -> Entry:
    """An entry of one SHORT or LONG."""
    return Entry(kind=kind, count=1, value=struct.pack(f"{order}{'H' if kind == SHORT else 'I'}", value))


def write_directory(entries: Mapping[int, Entry], offset: int, order: Order) -> bytes:
    """A directory without successor, to stand at `offset`, followed by the values that do not fit into entries."""
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


def reduced(data: bytes, directory: Directory, order: Order, tags: Iterable[int]) -> tuple[bytes | memoryview, ...]:
    """Pieces of a TIFF file with this directory alone and of it only `tags`; all offsets still hold."""
    kept = [directory.entries[tag].raw for tag in sorted(tags) if tag in directory.entries]
    padding = b"\0" * (len(data) % 2)
    header = data[:4] + struct.pack(f"{order}I", len(data) + len(padding))
    return (header, memoryview(data)[8:], padding, struct.pack(f"{order}H", len(kept)), *kept, b"\0\0\0\0")
