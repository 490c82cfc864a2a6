"""What looking at a picture finds, and whether the enlarger chosen by it beats always taking the same.

    python -m benchmarks.inspection [--data DIR] [--quick] [--write]

Pictures are reduced to a half, damaged, looked at whole, and their middle enlarged twice by both networks with the
default back-projection. Thresholds were set on the pictures of the first table, the second is of others. The damage
reaches the pixels only, as in a JPEG that was saved again: no quantisation tables help.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from hiresfix.engine.analysis import degradation
from hiresfix.engine.analysis.degradation import CLEAN, DAMAGED, Findings
from hiresfix.engine.pixels import resampling

from . import metrics, pictures, runs
from .pictures import Original, Pixels

RESULTS = Path(__file__).parent / "results"
FACTOR = 2
SIDE = 64
BLEND = "half of each"
METHODS = ("bicubic", CLEAN, DAMAGED, BLEND)
_QUICK = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One damaged picture: what was found, what is chosen, and (PSNR, SSIMULACRA2, gradients) of each method."""

    name: str
    judged: bool
    damage: str
    findings: Findings
    chosen: str
    scores: dict[str, tuple[float, float, float]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a folder of pictures; without it the repository's own")
    parser.add_argument("--quick", action="store_true", help="few pictures")
    parser.add_argument("--most", type=int, help="pictures at most")
    parser.add_argument("--write", action="store_true", help="write the tables under benchmarks/results")
    arguments = parser.parse_args()
    chosen = pictures.originals(arguments.data)[: arguments.most]
    if arguments.quick:
        chosen = [*chosen[:_QUICK], *[original for original in chosen if original.judged][:_QUICK]]
    rows = list(measured(chosen))
    text = report(rows)
    print(text)
    if arguments.write:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "inspection.md").write_text(text, encoding="utf-8")


def measured(originals: Sequence[Original]) -> Iterator[Row]:
    made = runs.Runs()
    with runs.progress() as bar:
        task = bar.add_task("pictures x damages", total=len(originals) * len(pictures.DAMAGES))
        for original in originals:
            lowered = original.reduced(FACTOR)
            for name, damage in pictures.DAMAGES.items():
                yield row(made, original, damage(lowered), name)
                bar.advance(task)


def row(made: runs.Runs, original: Original, damaged: Pixels, damage: str) -> Row:
    findings = degradation.inspect(damaged)
    choice = degradation.choose(findings).enlarger
    part = pictures.middle(damaged, SIDE)
    wanted = pictures.part_of(original, damaged, SIDE, FACTOR)
    results = {name: finished(made.network(part, name).rgb, part) for name in (CLEAN, DAMAGED)}
    results[BLEND] = np.asarray(np.rint(results[CLEAN] / 2 + results[DAMAGED] / 2), np.uint8)
    results["bicubic"] = np.asarray(Image.fromarray(part).resize(wanted.shape[1::-1], Image.Resampling.BICUBIC))
    return Row(
        name=original.name,
        judged=original.judged,
        damage=damage,
        findings=findings,
        # The anime network is not run: for a picture taken for a drawing its general sister stands in.
        chosen=CLEAN if choice == CLEAN else DAMAGED,
        scores={
            name: (
                metrics.psnr(result, wanted),
                metrics.ssimulacra2(result, wanted),
                metrics.gradients(result, wanted),
            )
            for name, result in results.items()
        },
    )


def finished(enlarged: Pixels, part: Pixels) -> Pixels:
    """As the engine does after the network: reduced to the wanted size, and following the input at the default."""
    cpu = torch.device("cpu")
    height, width = (side * FACTOR for side in part.shape[:2])
    y = resampling.resize(resampling.to_tensor(enlarged, cpu), height, width)
    y = resampling.follow(y, resampling.to_tensor(part, cpu), resampling.rounds(0.6))
    return np.asarray(resampling.to_samples(y, np.dtype(np.uint8)))


def report(rows: Sequence[Row]) -> str:
    return "\n".join(
        [
            "# What looking at a picture finds, and what it is good for",
            "",
            *found(rows),
            "",
            *compared("Pictures that thresholds were set on", [row for row in rows if not row.judged]),
            *compared("Other pictures", [row for row in rows if row.judged]),
            "SSIMULACRA2 was fitted to people's judgements of compressed pictures; the more the better. Gradients is",
            "half the L1 distance between histograms of vertical steps; 0 is ideal. Always bicubic is no enlarger with",
            "detail of its own, and a half of each costs two evaluations: both are there to compare.",
            "",
        ]
    )


def found(rows: Sequence[Row]) -> list[str]:
    lines = [
        f"Findings on {len({row.name for row in rows})} photographs at half their size: 10th percentile, median, 90th.",
        "",
        "| damage | blockiness | noise | blur | line art | taken for damaged |",
        "| --- | --: | --: | --: | --: | --: |",
    ]
    for damage in pictures.DAMAGES:
        these = [row for row in rows if row.damage == damage]
        cells = [
            " / ".join(
                f"{value:.2f}" for value in np.percentile([getattr(row.findings, name) for row in these], [10, 50, 90])
            )
            for name in ("blockiness", "noise", "blur", "line_art")
        ]
        share = np.mean([row.chosen == DAMAGED for row in these])
        lines.append(f"| {damage} | {' | '.join(cells)} | {share:.0%} |")
    return lines


Pick = Callable[[Row], str]
PICKS: dict[str, Pick] = {
    "always bicubic": lambda row: "bicubic",
    "always RealSR": lambda row: CLEAN,
    "always Real-ESRGAN": lambda row: DAMAGED,
    "**the choice**": lambda row: row.chosen,
    "best of both, knowing the original": lambda row: max((CLEAN, DAMAGED), key=lambda name: row.scores[name][1]),
    "always half of each": lambda row: BLEND,
}


def compared(title: str, rows: Sequence[Row]) -> list[str]:
    """PSNR / SSIMULACRA2 / gradients of each way to pick, for every damage and over all."""
    if not rows:
        return []
    lines = [
        f"## {title}: {len({row.name for row in rows})}",
        "",
        "PSNR in dB / SSIMULACRA2 / gradients. The last columns: over all that are damaged, and over all.",
        "",
        f"| | {' | '.join(pictures.DAMAGES)} | **damaged** | **all** |",
        f"| --- |{' --: |' * (len(pictures.DAMAGES) + 2)}",
    ]
    groups = [[row for row in rows if row.damage == damage] for damage in pictures.DAMAGES]
    groups += [[row for row in rows if row.damage != "clean"], list(rows)]
    for name, pick in PICKS.items():
        cells = []
        for group in groups:
            psnr, ssimulacra2, gradients = np.mean([row.scores[pick(row)] for row in group], axis=0)
            cells.append(f"{psnr:.2f} / {ssimulacra2:.1f} / {gradients:.3f}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return [*lines, ""]


if __name__ == "__main__":
    main()
