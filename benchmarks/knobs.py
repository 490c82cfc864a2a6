"""The pictures of docs/artist.md: every knob at three values, made by the engine on the CPU.

    python -m benchmarks.knobs            make them all, and docs/img/knobs/panels.json, which says how

A panel shows the same detail of the same picture as its neighbours, and one knob differs. It is enlarged to 256 pixels
by repeating pixels, so that a browser does not smooth away what it is about. The inputs are in docs/img/knobs/sources.
Knobs without a picture here are those that change no pixels with the offline engine: prompts.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from hiresfix import images
from hiresfix.images import DecodedImage
from hiresfix.models.catalog import CLARITY, FAITHFUL, Model
from hiresfix.recipe import OutputFormat

from . import runs
from .pictures import Pixels, middle

FOLDER = Path(__file__).parents[1] / "docs" / "img" / "knobs"
SOURCES = FOLDER / "sources"
RECORD = FOLDER / "panels.json"
SIDE = 256
"""Pixels of a panel; at most: each of the result is repeated a whole number of times."""
_BORDER = 8
"""Input pixels around what is shown, for the network to see."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One picture: `knob` at `value`, the `others` as given and everything else at its default, seed 1.

    shown: the side of the detail in input pixels, in the middle of `source`.
    """

    knob: str
    value: float | int | str
    source: str
    shown: int = 64
    others: Mapping[str, Any] = field(default_factory=dict)
    model: Model = CLARITY

    @property
    def file(self) -> str:
        return f"{self.knob}-{self.value}.webp"

    @property
    def values(self) -> dict[str, Any]:
        """The parameters as a caller sends them."""
        return {**({} if self.model is FAITHFUL else {"seed": 1}), **self.others, self.knob: self.value}


def _row(knob: str, values: Sequence[float | int | str], source: str, **more: Any) -> Iterator[Panel]:
    return (Panel(knob=knob, value=value, source=source, **more) for value in values)


PANELS: tuple[Panel, ...] = (
    *_row("scale_factor", (2, 4, 8), "hedges", shown=32),
    *_row("creativity", (0, 0.35, 1), "hide", shown=40),
    *_row("resemblance", (0, 0.6, 3), "wall", others={"creativity": 1}),
    *_row("dynamic", (1, 6, 50), "wall"),
    *_row("num_inference_steps", (18, 30, 60), "hide", shown=40, others={"creativity": 1}),
    *_row("sharpen", (0, 3, 10), "wall"),
    *_row("seed", (1, 2, 3), "hide", shown=40, others={"creativity": 1}),
    *_row("output_format", ("png", "jpg", "webp"), "wall"),
    *_row("content", ("photo", "anime"), "drawing", model=FAITHFUL),
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Made:
    """A panel's pixels, and the bytes that the whole result has as a file."""

    shown: Image.Image
    bytes: int


def make(panel: Panel, made: runs.Runs) -> Made:
    """The panel, by the engine and, where the format matters, by the writer."""
    recipe = panel.model.recipe(panel.values, seed=0)
    given = middle(source(panel.source), panel.shown + 2 * _BORDER)
    result = made.upscale(given, recipe).rgb
    # Detail would hide what a container does to it: the format's own panels show its decoded file.
    encoded = images.encode(DecodedImage(rgb=result), recipe.output_format, keep_metadata=False).data
    if recipe.output_format is not OutputFormat.PNG:
        result = images.decode(encoded, images.Limits()).rgb.astype(np.uint8)
    detail = middle(result, panel.shown * recipe.scale)
    times = max(1, SIDE // len(detail))
    return Made(shown=Image.fromarray(detail.repeat(times, 0).repeat(times, 1)), bytes=len(encoded))


def source(name: str) -> Pixels:
    return np.asarray(Image.open(SOURCES / f"{name}.png").convert("RGB"))


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    made, record = runs.Runs(), {}
    with runs.progress() as bar:
        task = bar.add_task("panels", total=len(PANELS))
        for panel in PANELS:
            done = make(panel, made)
            done.shown.save(FOLDER / panel.file, quality=88, method=6)
            record[panel.file] = {
                "model": panel.model.id,
                "params": panel.values,
                "source": f"sources/{panel.source}.png",
                "resultBytes": done.bytes,
            }
            bar.advance(task)
    RECORD.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
