"""The example images of the parameters match what the engine makes today."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from benchmarks import parameters
from benchmarks.parameters import PANELS, Panel
from benchmarks.run_cache import RunCache
from PIL import Image

MIN_PSNR = 30.0
"""Decibels. WebP at quality 88 reaches more, and devices differ by less."""


def _panel(file: str) -> Panel:
    return next(panel for panel in PANELS if panel.file == file)


def _psnr(first: Image.Image, second: Image.Image) -> float:
    difference = np.asarray(first.convert("RGB"), float) - np.asarray(second.convert("RGB"), float)
    return float(10 * np.log10(255**2 / np.mean(difference**2)))


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunCache:
    monkeypatch.setattr("benchmarks.run_cache.FOLDER", tmp_path)  # ignore earlier runs
    return RunCache()


def test_parameter_image_matches_the_engine(runs: RunCache) -> None:
    image = parameters.make(_panel("creativity-1.webp"), runs).shown
    psnr = {
        value: _psnr(image, Image.open(parameters.FOLDER / f"creativity-{value}.webp")) for value in ("0", "0.35", "1")
    }
    assert max(psnr, key=psnr.__getitem__) == "1", psnr
    assert psnr["1"] > MIN_PSNR


def test_record_has_the_values_of_each_panel() -> None:
    record = json.loads(parameters.RECORD.read_text())
    assert {file: entry["params"] for file, entry in record.items()} == {panel.file: panel.values for panel in PANELS}
