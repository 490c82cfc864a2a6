"""BMP files (Windows bitmap headers)."""

from __future__ import annotations

import struct

from hiresfix.images.containers.common import Container


def read_bmp(data: bytes) -> Container:
    core = data[14] == 12
    width, height = struct.unpack_from("<HH" if core else "<ii", data, 18)
    # A negative height means that rows are stored from the top.
    return Container(format="BMP", media_type="image/bmp", width=width, height=abs(height), pieces=(data,))
