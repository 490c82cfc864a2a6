"""Tests; the folders mirror `src/hiresfix`."""

from pathlib import Path

ROOT = Path(__file__).parents[1]
"""The repository."""
