"""Enlargers, and every knob of the offline engine, beside the originals they should have given back.

    python -m benchmarks.quality [--data DIR] [--quick] [--write]

Originals are reduced to a half and a quarter, cleanly and with damage, and enlarged again. One table for the methods,
one for the knobs, the same as CSV, and a sheet of pictures to look at: figures do not see everything.
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

from hiresfix.engine.analysis.degradation import CLEAN, DAMAGED
from hiresfix.models.catalog import CLARITY, FAITHFUL
from hiresfix.recipe import Engine, Recipe

from . import metrics, pictures, runs
from .metrics import Score
from .pictures import Original, Pixels

RESULTS = Path(__file__).parent / "results"
_QUICK = 1
SHOWN = 3
"""Pictures on the sheet."""

DEFAULT = CLARITY.preset
ALONE = Recipe(engine=Engine.FAITHFUL, creativity=0.0, resemblance=0.0)
METHODS: Mapping[str, Recipe | None] = {
    "bicubic": None,
    "Real-ESRGAN alone": replace(ALONE, enlarger=DAMAGED),
    "RealSR alone": replace(ALONE, enlarger=CLEAN),
    "faithful": FAITHFUL.preset,
    "**offline default**": DEFAULT,
}
KNOBS: Mapping[str, Recipe] = {
    **{f"creativity {value:g}": replace(DEFAULT, creativity=value) for value in (0.0, 0.2, 0.35, 0.7, 1.0)},
    **{f"resemblance {value:g}": replace(DEFAULT, resemblance=value) for value in (0.0, 3.0)},
    **{f"dynamic {value:g}": replace(DEFAULT, dynamic=value) for value in (1.0, 20.0, 50.0)},
    **{f"steps {value}": replace(DEFAULT, steps=value) for value in (30, 60)},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """An input: reduced by `factor` with `damage` of `pictures.DAMAGES`; `side` input pixels are enlarged."""

    factor: int
    damage: str
    side: int

    def __str__(self) -> str:
        return f"1/{self.factor}, {self.damage}"


CASES = (
    Case(factor=2, damage="clean", side=96),
    Case(factor=4, damage="clean", side=64),
    Case(factor=2, damage="jpeg 60", side=64),
    Case(factor=2, damage="noise 5", side=64),
    Case(factor=2, damage="noise 10, jpeg 40", side=64),
)
KNOB_CASE = Case(factor=2, damage="clean", side=64)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Row:
    picture: str
    case: Case
    method: str
    score: Score
    evaluations: int
    seconds: float
    result: Pixels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a folder of pictures; without it the repository's own")
    parser.add_argument("--quick", action="store_true", help="one picture and no knobs")
    parser.add_argument("--most", type=int, default=12, help="pictures at most")
    parser.add_argument("--write", action="store_true", help="write tables and sheet under benchmarks/results")
    arguments = parser.parse_args()
    chosen = [original for original in pictures.originals(arguments.data) if original.judged or not arguments.data]
    chosen = chosen[: _QUICK if arguments.quick else arguments.most]
    rows = list(measured(chosen, {} if arguments.quick else KNOBS))
    text = report(rows)
    print(text)
    if arguments.write:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "quality.md").write_text(text, encoding="utf-8")
        (RESULTS / "quality.csv").write_text(table_of(rows), encoding="utf-8")
        sheet(rows, chosen).save(RESULTS / "quality.png", optimize=True)


def measured(originals: Sequence[Original], knobs: Mapping[str, Recipe]) -> Iterator[Row]:
    made = runs.Runs()
    asked: list[tuple[Case, str, Recipe | None]] = [
        (case, name, recipe) for case in CASES for name, recipe in METHODS.items()
    ]
    asked += [(KNOB_CASE, name, recipe) for name, recipe in knobs.items()]
    with runs.progress() as bar:
        task = bar.add_task("pictures x methods", total=len(originals) * len(asked))
        for original in originals:
            for case, name, recipe in asked:
                yield row(made, original, case, name, recipe)
                bar.advance(task)


def row(made: runs.Runs, original: Original, case: Case, method: str, recipe: Recipe | None) -> Row:
    given, wanted = inputs(original, case)
    if recipe is None:
        size = wanted.shape[1::-1]
        done = runs.Made(
            rgb=np.asarray(Image.fromarray(given).resize(size, Image.Resampling.BICUBIC)), evaluations=0, seconds=0.0
        )
    else:
        done = made.upscale(given, replace(recipe, scale=case.factor, seed=1))
    return Row(
        picture=original.name,
        case=case,
        method=method,
        score=metrics.score(done.rgb, wanted, given),
        evaluations=done.evaluations,
        seconds=done.seconds,
        result=done.rgb,
    )


def inputs(original: Original, case: Case) -> tuple[Pixels, Pixels]:
    """What the engine is given, and what it should give back."""
    damaged = pictures.DAMAGES[case.damage](original.reduced(case.factor))
    return pictures.middle(damaged, case.side), pictures.part_of(original, damaged, case.side, case.factor)


HEAD = (
    "| | PSNR dB | SSIMULACRA2 | gradients | high frequencies | \\|log2\\| of them | grain | drift dB "
    "| CIEDE2000 mean | p95 | evaluations | time |\n| --- |" + " --: |" * 11
)


def report(rows: Sequence[Row]) -> str:
    lines = [
        "# Quality",
        "",
        f"{len({row.picture for row in rows})} photographs, their middle; means. What the columns mean and what is",
        "ideal: `benchmarks/metrics.py`. Grain is relative to RealSR alone. Time is relative to it too, in processor",
        "time of one thread. Neither PSNR nor SSIMULACRA2 rewards texture that is natural but not the original's.",
        "",
    ]
    for case in CASES:
        lines += [f"## {case}", "", *table(rows, case, list(METHODS)), ""]
    if any(row.method in KNOBS for row in rows):
        lines += [f"## Knobs, the others at their defaults: {KNOB_CASE}", "", *table(rows, KNOB_CASE, list(KNOBS)), ""]
    return "\n".join(lines)


def table(rows: Sequence[Row], case: Case, methods: Sequence[str]) -> list[str]:
    plain = [row for row in rows if row.case.factor == case.factor and row.method == "RealSR alone"]
    plain = [row for row in plain if row.case.damage == case.damage]
    lines = [HEAD]
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


def per_pixel(rows: Sequence[Row]) -> float:
    """Seconds for an input pixel."""
    return sum(row.seconds for row in rows) / sum(row.case.side**2 for row in rows)


def table_of(rows: Sequence[Row]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["picture", "reduced to", "damage", "method", *Score.__slots__, "evaluations", "seconds"])
    for row in rows:
        figures = [f"{value:.4f}" for value in row.score.to_dict().values()]
        case = [f"1/{row.case.factor}", row.case.damage]
        writer.writerow([row.picture, *case, row.method.strip("*"), *figures, row.evaluations, f"{row.seconds:.2f}"])
    return out.getvalue()


def sheet(rows: Sequence[Row], originals: Sequence[Original]) -> Image.Image:
    """A line for each of some pictures and cases: methods side by side, the original last; 256 colours, to be small."""
    cell, names = 192, [*METHODS, "original"]
    lines = [(original, case) for original in originals[:SHOWN] for case in (CASES[0], CASES[1], CASES[4])]
    canvas = Image.new("RGB", (cell * len(names), 16 + (cell + 14) * len(lines)), "white")
    draw = ImageDraw.Draw(canvas)
    for column, name in enumerate(names):
        draw.text((column * cell + 4, 2), name.strip("*"), fill="black")
    for line, (original, case) in enumerate(lines):
        top = 16 + line * (cell + 14)
        draw.text((4, top), f"{original.name}: {case}", fill="black")
        shown = {row.method: row.result for row in rows if row.picture == original.name and row.case == case}
        shown["original"] = inputs(original, case)[1]
        for column, name in enumerate(names):
            pixels = Image.fromarray(pictures.middle(shown[name], cell))
            canvas.paste(pixels.resize((cell, cell), Image.Resampling.NEAREST), (column * cell, top + 14))
    return canvas.quantize(256)


if __name__ == "__main__":
    main()
