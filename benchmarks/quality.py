"""Quality of all methods, and of every parameter of the offline engine, against the originals.

    python -m benchmarks.quality [--data DIR] [--quick] [--write]

Originals are reduced to a half and a quarter, cleanly and with damage, and upscaled again. Writes one table for the
methods, one for the parameters, the same as CSV, and a sheet of images to look at, because metrics do not show
everything.
"""

from __future__ import annotations

import argparse
import csv
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from benchmarks import metrics, run_cache, source_images
from benchmarks.metrics import Score
from benchmarks.run_cache import CachedRun, RunCache
from benchmarks.source_images import Original, Pixels
from hiresfix.engine.analysis.degradation import CLEAN_NETWORK, DAMAGED_NETWORK
from hiresfix.models.catalog import CLARITY, FAITHFUL
from hiresfix.recipe import Engine, Recipe

RESULTS = Path(__file__).parent / "results"
QUICK_IMAGES = 1
SHOWN = 3
"""Number of images on the sheet."""

DEFAULT = CLARITY.preset
ALONE = Recipe(engine=Engine.FAITHFUL, creativity=0.0, resemblance=0.0)
METHODS: Mapping[str, Recipe | None] = {
    "bicubic": None,
    "Real-ESRGAN alone": replace(ALONE, enlarger=DAMAGED_NETWORK),
    "RealSR alone": replace(ALONE, enlarger=CLEAN_NETWORK),
    "faithful": FAITHFUL.preset,
    "**offline default**": DEFAULT,
}
PARAMETERS: Mapping[str, Recipe] = {
    **{f"creativity {value:g}": replace(DEFAULT, creativity=value) for value in (0.0, 0.2, 0.35, 0.7, 1.0)},
    **{f"resemblance {value:g}": replace(DEFAULT, resemblance=value) for value in (0.0, 3.0)},
    **{f"dynamic {value:g}": replace(DEFAULT, dynamic=value) for value in (1.0, 20.0, 50.0)},
    **{f"steps {value}": replace(DEFAULT, steps=value) for value in (30, 60)},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class QualityCase:
    """An input reduced by `factor` with `damage` of `source_images.DAMAGES`; `side` input pixels are upscaled."""

    factor: int
    damage: str
    side: int

    def __str__(self) -> str:
        return f"1/{self.factor}, {self.damage}"


CASES = (
    QualityCase(factor=2, damage="clean", side=96),
    QualityCase(factor=4, damage="clean", side=64),
    QualityCase(factor=2, damage="jpeg 60", side=64),
    QualityCase(factor=2, damage="noise 5", side=64),
    QualityCase(factor=2, damage="noise 10, jpeg 40", side=64),
)
PARAMETER_CASE = QualityCase(factor=2, damage="clean", side=64)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class QualityRow:
    image: str
    case: QualityCase
    method: str
    score: Score
    evaluations: int
    seconds: float
    result: Pixels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of images; default: the example of the repository")
    parser.add_argument("--quick", action="store_true", help="one image and no parameters")
    parser.add_argument("--max-images", type=int, default=12, help="maximum number of images")
    parser.add_argument("--write", action="store_true", help="write tables and sheet under benchmarks/results")
    arguments = parser.parse_args()
    chosen = [original for original in source_images.originals(arguments.data) if original.judged or not arguments.data]
    chosen = chosen[: QUICK_IMAGES if arguments.quick else arguments.max_images]
    rows = list(measure(chosen, {} if arguments.quick else PARAMETERS))
    text = report(rows)
    print(text)
    if arguments.write:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "quality.md").write_text(text, encoding="utf-8")
        (RESULTS / "quality.csv").write_text(csv_text(rows), encoding="utf-8")
        sheet(rows, chosen).save(RESULTS / "quality.png", optimize=True)


def measure(originals: Sequence[Original], parameters: Mapping[str, Recipe]) -> Iterator[QualityRow]:
    runs = RunCache()
    requests: list[tuple[QualityCase, str, Recipe | None]] = [
        (case, name, recipe) for case in CASES for name, recipe in METHODS.items()
    ]
    requests += [(PARAMETER_CASE, name, recipe) for name, recipe in parameters.items()]
    with run_cache.progress() as bar:
        task = bar.add_task("images x methods", total=len(originals) * len(requests))
        for original in originals:
            for case, name, recipe in requests:
                yield row(runs, original, case, name, recipe)
                bar.advance(task)


def row(runs: RunCache, original: Original, case: QualityCase, method: str, recipe: Recipe | None) -> QualityRow:
    input_part, original_part = inputs(original, case)
    if recipe is None:
        size = original_part.shape[1::-1]
        run = CachedRun(
            rgb=np.asarray(Image.fromarray(input_part).resize(size, Image.Resampling.BICUBIC)),
            evaluations=0,
            seconds=0.0,
        )
    else:
        run = runs.upscale(input_part, replace(recipe, scale=case.factor, seed=1))
    return QualityRow(
        image=original.name,
        case=case,
        method=method,
        score=metrics.score(run.rgb, original_part, input_part),
        evaluations=run.evaluations,
        seconds=run.seconds,
        result=run.rgb,
    )


def inputs(original: Original, case: QualityCase) -> tuple[Pixels, Pixels]:
    """Return the input of the engine and the part of the original it should restore."""
    damaged = source_images.DAMAGES[case.damage](original.reduced(case.factor))
    return source_images.middle(damaged, case.side), source_images.matching_part(
        original, damaged, case.side, case.factor
    )


TABLE_HEAD = (
    "| | PSNR dB | SSIMULACRA2 | gradients | high frequencies | \\|log2\\| of them | grain | drift dB "
    "| CIEDE2000 mean | p95 | evaluations | time |\n| --- |" + " --: |" * 11
)


def report(rows: Sequence[QualityRow]) -> str:
    lines = [
        "# Quality",
        "",
        f"{len({row.image for row in rows})} photos, their middle; means. `benchmarks/metrics.py` explains the columns",
        "and their ideal values. Grain and time are relative to RealSR alone; time is CPU time of one thread.",
        "Neither PSNR nor SSIMULACRA2 rewards texture that is natural but not that of the original.",
        "",
    ]
    for case in CASES:
        lines += [f"## {case}", "", *table(rows, case, list(METHODS)), ""]
    if any(row.method in PARAMETERS for row in rows):
        lines += [
            f"## Parameters, the others at their defaults: {PARAMETER_CASE}",
            "",
            *table(rows, PARAMETER_CASE, list(PARAMETERS)),
            "",
        ]
    return "\n".join(lines)


def table(rows: Sequence[QualityRow], case: QualityCase, methods: Sequence[str]) -> list[str]:
    plain = [row for row in rows if row.case.factor == case.factor and row.method == "RealSR alone"]
    plain = [row for row in plain if row.case.damage == case.damage]
    lines = [TABLE_HEAD]
    for method in methods:
        these = [row for row in rows if row.case == case and row.method == method]
        means = {name: float(np.nanmean([row.score.to_dict()[name] for row in these])) for name in Score.__slots__}
        spectrum = np.mean([abs(math.log2(max(row.score.high_frequencies, 1e-3))) for row in these])
        grain = means["grain"] - float(np.nanmean([row.score.grain for row in plain]))
        time = per_pixel(these) / per_pixel(plain)
        lines.append(
            f"| {method} | {means['psnr_db']:.2f} | {means['ssimulacra2']:.1f} | {means['gradients']:.3f} "
            f"| {means['high_frequencies']:.2f} | {spectrum:.2f} | {grain:+.2f} | {means['drift_db']:.1f} "
            f"| {means['ciede_mean']:.2f} | {means['ciede_p95']:.2f} "
            f"| {np.mean([row.evaluations for row in these]):.1f} | {time:.2f} |"
        )
    return lines


def per_pixel(rows: Sequence[QualityRow]) -> float:
    """Return the seconds per input pixel."""
    return sum(row.seconds for row in rows) / sum(row.case.side**2 for row in rows)


def csv_text(rows: Sequence[QualityRow]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["image", "reduced to", "damage", "method", *Score.__slots__, "evaluations", "seconds"])
    for row in rows:
        figures = [f"{value:.4f}" for value in row.score.to_dict().values()]
        case = [f"1/{row.case.factor}", row.case.damage]
        writer.writerow([row.image, *case, row.method.strip("*"), *figures, row.evaluations, f"{row.seconds:.2f}"])
    return out.getvalue()


def sheet(rows: Sequence[QualityRow], originals: Sequence[Original]) -> Image.Image:
    """Return a sheet with a row per image and case: methods side by side, the original last; 256 colours."""
    cell, names = 192, [*METHODS, "original"]
    lines = [(original, case) for original in originals[:SHOWN] for case in (CASES[0], CASES[1], CASES[4])]
    canvas = Image.new("RGB", (cell * len(names), 16 + (cell + 14) * len(lines)), "white")
    draw = ImageDraw.Draw(canvas)
    for column, name in enumerate(names):
        draw.text((column * cell + 4, 2), name.strip("*"), fill="black")
    for line, (original, case) in enumerate(lines):
        top = 16 + line * (cell + 14)
        draw.text((4, top), f"{original.name}: {case}", fill="black")
        shown = {row.method: row.result for row in rows if row.image == original.name and row.case == case}
        shown["original"] = inputs(original, case)[1]
        for column, name in enumerate(names):
            pixels = Image.fromarray(source_images.middle(shown[name], cell))
            canvas.paste(pixels.resize((cell, cell), Image.Resampling.NEAREST), (column * cell, top + 14))
    return canvas.quantize(256)


if __name__ == "__main__":
    main()
