"""NumPy array types of the engine, and the luminance that all of its measurements share."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

ImageArray: TypeAlias = NDArray[Any]
"""(H, W, 3) or (H, W): uint8 or uint16 over the full range, or float in 0..1."""
Float32Array: TypeAlias = NDArray[np.float32]
Float64Array: TypeAlias = NDArray[np.float64]

LUMA_WEIGHTS = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in the luminance (ITU-R BT.601)."""


def luminance(red: Any, green: Any, blue: Any) -> Any:
    """Return the luminance of three channels, NumPy arrays or tensors of one shape, in their type."""
    return LUMA_WEIGHTS[0] * red + LUMA_WEIGHTS[1] * green + LUMA_WEIGHTS[2] * blue
