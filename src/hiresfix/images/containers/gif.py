"""GIF files (GIF89a specification)."""

from __future__ import annotations

import struct

from hiresfix.images.containers.common import MAX_PARTS, Container


def read_gif(data: bytes) -> Container:
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    at = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    at = _skip_extensions(data, at)
    if data[at] != 0x2C:
        raise ValueError("no image")
    left, top, frame_width, frame_height, flags = struct.unpack_from("<HHHHB", data, at + 1)
    after = _skip_blocks(data, at + 11 + (3 << (flags & 7) + 1 if flags & 0x80 else 0))
    after = _skip_extensions(data, after)
    return Container(
        format="GIF",
        media_type="image/gif",
        # A frame that exceeds the declared screen makes it larger, as in browsers and in Pillow.
        width=max(width, left + frame_width),
        height=max(height, top + frame_height),
        pieces=(data,),
        several=data[after : after + 1] == b"\x2c",
    )


def _skip_extensions(data: bytes, at: int) -> int:
    for _ in range(MAX_PARTS):
        if data[at : at + 1] != b"\x21":
            return at
        at = _skip_blocks(data, at + 2)
    raise ValueError("too many extensions")


def _skip_blocks(data: bytes, at: int) -> int:
    # 25 MiB in full blocks of 255 bytes are 103 000 blocks; with emptier blocks the search for a second frame stops.
    for _ in range(4 * MAX_PARTS):
        if at >= len(data) or data[at] == 0:
            break
        at += 1 + data[at]
    return at + 1
