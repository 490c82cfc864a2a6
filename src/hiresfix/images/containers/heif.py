"""HEIC and HEIF files. libheif parses the boxes and does not decode pixels until asked."""

from __future__ import annotations

import io
from types import ModuleType

from hiresfix import messages
from hiresfix.errors import ImageError
from hiresfix.images.containers.common import Container

pillow_heif: ModuleType | None
try:
    import pillow_heif
except ImportError:  # optional decoder: without it HEIC is rejected with the advice to install it
    pillow_heif = None


def read_heif(data: bytes) -> Container:
    if pillow_heif is None:
        raise ImageError(messages.HEIC_NOT_INSTALLED())
    try:
        heif = pillow_heif.open_heif(io.BytesIO(data), convert_hdr_to_8bit=False)
    except Exception as error:  # decoders raise nearly any type on hostile bytes
        raise ValueError("libheif rejected it") from error
    width, height = heif.size
    return Container(
        format="HEIF",
        media_type="image/heic",
        width=width,
        height=height,
        pieces=(data,),
        depth=heif.info.get("bit_depth", 8),
        # libheif applies HEIF's own rotation and mirroring; EXIF's is informative only (ISO/IEC 23008-12).
        orientation=1,
        several=len(heif) > 1,
        premultiplied=heif.premultiplied_alpha,
        icc=heif.info.get("icc_profile"),
        exif=heif.info.get("exif"),
        xmp=heif.info.get("xmp"),
    )
