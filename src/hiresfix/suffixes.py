"""How picture files are called. What is in them is found out by looking at it."""

from __future__ import annotations

from typing import Final

FORMAT_OF_SUFFIX: Final = {".png": "png", ".jpg": "jpg", ".jpeg": "jpg", ".webp": "webp"}
"""What can be written."""
SUFFIXES: Final = FORMAT_OF_SUFFIX.keys() | {".gif", ".tif", ".tiff", ".bmp", ".avif", ".heic", ".heif"}
"""What can be read."""
