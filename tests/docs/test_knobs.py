"""The pictures of the knobs are what the engine makes today."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from benchmarks import parameters
from benchmarks.parameters import PANELS, Panel
from benchmarks.run_cache import RunCache
from PIL import Image

LEAST_DB = 30.0
"""A WebP of quality 88 keeps more; devices differ by less."""


def _panel(file: str) -> Panel:
    return next(panel for panel in PANELS if panel.file == file)


def _psnr(one: Image.Image, other: Image.Image) -> float:
    difference = np.asarray(one.convert("RGB"), float) - np.asarray(other.convert("RGB"), float)
    return float(10 * np.log10(255**2 / np.mean(difference**2)))


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunCache:
    monkeypatch.setattr("benchmarks.run_cache.FOLDER", tmp_path)  # nothing made before counts
    return RunCache()


def test_a_picture_of_a_knob_is_what_the_engine_makes_of_its_settings(runs: RunCache) -> None:
    made = parameters.make(_panel("creativity-1.webp"), runs).shown
    nearness = {
        value: _psnr(made, Image.open(parameters.FOLDER / f"creativity-{value}.webp")) for value in ("0", "0.35", "1")
    }
    assert max(nearness, key=nearness.__getitem__) == "1", nearness
    assert nearness["1"] > LEAST_DB


def test_the_record_says_how_each_panel_is_made() -> None:
    record = json.loads(parameters.RECORD.read_text())
    assert {file: entry["params"] for file, entry in record.items()} == {panel.file: panel.values for panel in PANELS}
