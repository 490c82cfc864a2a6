"""Fake engine as a user of a peer would write it: decode, repeat each pixel, encode. Needs Pillow and numpy."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image


def upscale(uri: str, factor: int = 2) -> str:
    """Upscale a data URI; return a data URI."""
    image = Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("RGB")
    file = io.BytesIO()
    Image.fromarray(np.asarray(image).repeat(factor, 0).repeat(factor, 1)).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
