"""Pixels to bytes."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from hiresfix.images.values import Encoded, Picture, check_format
from hiresfix.recipe import OutputFormat


def encode(picture: Picture, output_format: OutputFormat, *, keep_metadata: bool = True) -> Encoded:
    check_format(picture.width, picture.height, output_format)
    rgb = picture.rgb if picture.rgb.dtype == np.uint8 else ((picture.rgb.astype(np.uint32) + 128) // 257)
    image = Image.fromarray(rgb.astype(np.uint8))
    out = io.BytesIO()
    image.save(out, {"jpg": "JPEG"}.get(output_format, output_format.upper()), icc_profile=picture.icc)
    media_type = {"jpg": "image/jpeg"}.get(output_format, f"image/{output_format}")
    return Encoded(data=out.getvalue(), media_type=media_type, width=picture.width, height=picture.height)
