"""AVIF files. libavif (in Pillow) parses the boxes and does not decode pixels until asked."""

from __future__ import annotations

import io

from PIL import Image

from hiresfix.images.containers.common import Container
from hiresfix.images.metadata import exif_orientation


def read_avif(data: bytes) -> Container:
    try:
        image = Image.open(io.BytesIO(data), formats=("AVIF",))
    except Exception as error:  # decoders raise nearly any type on hostile bytes
        raise ValueError("libavif rejected it") from error
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
