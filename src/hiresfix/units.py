"""Units that limits and sizes are stated in."""

from __future__ import annotations

from typing import Final

MEBIBYTE: Final = 1024 * 1024
"""Bytes."""
MEGAPIXEL: Final = 1_000_000
"""Pixels."""
