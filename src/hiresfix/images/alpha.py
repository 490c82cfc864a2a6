"""Transparency."""

from __future__ import annotations

import numpy as np
from PIL import Image

from hiresfix.images.values import Samples


def bleed(rgb: Samples, alpha: Samples) -> Samples:
    return rgb


def enlarge_alpha(alpha: Samples, width: int, height: int) -> Samples:
    enlarged = Image.fromarray(alpha.astype(np.float32)).resize((width, height), Image.Resampling.BICUBIC)
    top = np.iinfo(alpha.dtype).max
    return np.clip(np.rint(np.asarray(enlarged)), 0, top).astype(alpha.dtype)
