"""Panels of docs/artist.md: every parameter at up to three values, rendered by the offline engine on the CPU.

    python -m benchmarks.parameters       render all, and docs/img/parameters/panels.json, which records how

A panel shows the same detail of the same image as its neighbours; only one parameter differs. Each pixel is repeated up
to 256 pixels a side, so that a browser does not smooth the detail away. The inputs are in docs/img/parameters/sources.
Prompts have no panels, because the offline engine ignores them.
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

from benchmarks import run_cache
from benchmarks.run_cache import RunCache
from benchmarks.source_images import Pixels, middle
from hiresfix import images
from hiresfix.images import DecodedImage
from hiresfix.models.catalog import CLARITY, FAITHFUL, CatalogModel
from hiresfix.recipe import OutputFormat

FOLDER = Path(__file__).parents[1] / "docs" / "img" / "parameters"
SOURCES = FOLDER / "sources"
RECORD = FOLDER / "panels.json"
SIDE = 256
"""Maximum side of a panel; each pixel of the result is repeated a whole number of times."""
_BORDER = 8
"""Input pixels around the shown part, as context for the network."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One image: `parameter` at `value`, `others` as stated, everything else at its default, seed 1.

    `shown` is the side of the detail in input pixels, in the middle of `source`.
    """

    parameter: str
    value: float | int | str
    source: str
    shown: int = 64
    others: Mapping[str, Any] = field(default_factory=dict)
    model: CatalogModel = CLARITY

    @property
    def file(self) -> str:
        return f"{self.parameter}-{self.value}.webp"

    @property
    def values(self) -> dict[str, Any]:
        """Parameters as a caller sends them."""
        return {**({} if self.model is FAITHFUL else {"seed": 1}), **self.others, self.parameter: self.value}


def _row(parameter: str, values: Sequence[float | int | str], source: str, **more: Any) -> Iterator[Panel]:
    return (Panel(parameter=parameter, value=value, source=source, **more) for value in values)


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
class PanelImage:
    """Pixels of a panel, and the file size of the whole result in bytes."""

    shown: Image.Image
    bytes: int


def make(panel: Panel, runs: RunCache) -> PanelImage:
    """Render a panel with the engine and, for the format panels, the encoder."""
    recipe = panel.model.recipe(panel.values, seed=0)
    rgb = middle(source(panel.source), panel.shown + 2 * _BORDER)
    result = runs.upscale(rgb, recipe).rgb
    # Panels of formats show the decoded file, so that the effect of compression is visible.
    encoded = images.encode(DecodedImage(rgb=result), recipe.output_format, keep_metadata=False).data
    if recipe.output_format is not OutputFormat.PNG:
        result = images.decode(encoded, images.ImageLimits()).rgb.astype(np.uint8)
    detail = middle(result, panel.shown * recipe.scale)
    times = max(1, SIDE // len(detail))
    return PanelImage(shown=Image.fromarray(detail.repeat(times, 0).repeat(times, 1)), bytes=len(encoded))


def source(name: str) -> Pixels:
    return np.asarray(Image.open(SOURCES / f"{name}.png").convert("RGB"))


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    runs, record = RunCache(), {}
    with run_cache.progress() as bar:
        task = bar.add_task("panels", total=len(PANELS))
        for panel in PANELS:
            image = make(panel, runs)
            image.shown.save(FOLDER / panel.file, quality=88, method=6)
            record[panel.file] = {
                "model": panel.model.id,
                "params": panel.values,
                "source": f"sources/{panel.source}.png",
                "resultBytes": image.bytes,
            }
            bar.advance(task)
    RECORD.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
