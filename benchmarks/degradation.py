"""Degradation detection: what it finds, and whether the network it chooses beats a fixed choice.

    python -m benchmarks.degradation [--data DIR] [--quick] [--write]

Images are reduced to half their size, damaged and analysed whole; their middle is upscaled twice by both networks with
the default back-projection. Thresholds were set on the images of the first table; the second has other images. The
damage is in the pixels only, as in a JPEG that was saved again, so quantisation tables do not help.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks import metrics, run_cache, source_images
from benchmarks.run_cache import RunCache
from benchmarks.source_images import Original, Pixels
from hiresfix.engine.analysis import degradation
from hiresfix.engine.analysis.degradation import CLEAN_NETWORK, DAMAGED_NETWORK, Degradation
from hiresfix.engine.pixels import resampling

RESULTS = Path(__file__).parent / "results"
FACTOR = 2
SIDE = 64
BLEND = "half of each"
METHODS = ("bicubic", CLEAN_NETWORK, DAMAGED_NETWORK, BLEND)
QUICK_IMAGES = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class DegradationRow:
    """One damaged image: findings, chosen network, and (PSNR, SSIMULACRA2, gradients) of each method."""

    name: str
    judged: bool
    damage: str
    findings: Degradation
    chosen: str
    scores: dict[str, tuple[float, float, float]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of images; default: the example of the repository")
    parser.add_argument("--quick", action="store_true", help="few images")
    parser.add_argument("--max-images", type=int, help="maximum number of images")
    parser.add_argument("--write", action="store_true", help="write the tables under benchmarks/results")
    arguments = parser.parse_args()
    chosen = source_images.originals(arguments.data)[: arguments.max_images]
    if arguments.quick:
        chosen = [*chosen[:QUICK_IMAGES], *[original for original in chosen if original.judged][:QUICK_IMAGES]]
    rows = list(measure(chosen))
    text = report(rows)
    print(text)
    if arguments.write:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "degradation.md").write_text(text, encoding="utf-8")


def measure(originals: Sequence[Original]) -> Iterator[DegradationRow]:
    runs = RunCache()
    with run_cache.progress() as bar:
        task = bar.add_task("images x damages", total=len(originals) * len(source_images.DAMAGES))
        for original in originals:
            reduced = original.reduced(FACTOR)
            for name, damage in source_images.DAMAGES.items():
                yield row(runs, original, damage(reduced), name)
                bar.advance(task)


def row(runs: RunCache, original: Original, damaged: Pixels, damage: str) -> DegradationRow:
    findings = degradation.detect(damaged)
    choice = degradation.choose_network(findings).network
    part = source_images.middle(damaged, SIDE)
    expected = source_images.matching_part(original, damaged, SIDE, FACTOR)
    results = {name: postprocess(runs.network(part, name).rgb, part) for name in (CLEAN_NETWORK, DAMAGED_NETWORK)}
    results[BLEND] = np.asarray(np.rint(results[CLEAN_NETWORK] / 2 + results[DAMAGED_NETWORK] / 2), np.uint8)
    results["bicubic"] = np.asarray(Image.fromarray(part).resize(expected.shape[1::-1], Image.Resampling.BICUBIC))
    return DegradationRow(
        name=original.name,
        judged=original.judged,
        damage=damage,
        findings=findings,
        # The anime network is not run; its general version replaces it for images that look like drawings.
        chosen=CLEAN_NETWORK if choice == CLEAN_NETWORK else DAMAGED_NETWORK,
        scores={
            name: (
                metrics.psnr(result, expected),
                metrics.ssimulacra2(result, expected),
                metrics.gradients(result, expected),
            )
            for name, result in results.items()
        },
    )


def postprocess(upscaled: Pixels, part: Pixels) -> Pixels:
    """Do what the engine does after the network: resize, and back-project at the default resemblance."""
    cpu = torch.device("cpu")
    height, width = (side * FACTOR for side in part.shape[:2])
    y = resampling.resize(resampling.to_tensor(upscaled, cpu), height, width)
    y = resampling.back_project(y, resampling.to_tensor(part, cpu), resampling.back_projection_weights(0.6))
    return np.asarray(resampling.to_samples(y, np.dtype(np.uint8)))


def report(rows: Sequence[DegradationRow]) -> str:
    return "\n".join(
        [
            "# Degradation detection",
            "",
            *findings_table(rows),
            "",
            *comparison_table("Images used to set the thresholds", [row for row in rows if not row.judged]),
            *comparison_table("Other images", [row for row in rows if row.judged]),
            "SSIMULACRA2 is fitted to human judgements of compressed images; higher is better. Gradients is",
            "half the L1 distance between histograms of vertical steps; 0 is ideal. Bicubic adds no detail of its",
            "own, and half of each costs two evaluations: both are there for comparison.",
            "",
        ]
    )


def findings_table(rows: Sequence[DegradationRow]) -> list[str]:
    lines = [
        f"Findings on {len({row.name for row in rows})} photos at half their size: percentiles 10, 50 and 90.",
        "",
        "| damage | blockiness | noise | blur | line art | classified as damaged |",
        "| --- | --: | --: | --: | --: | --: |",
    ]
    for damage in source_images.DAMAGES:
        these = [row for row in rows if row.damage == damage]
        cells = [
            " / ".join(
                f"{value:.2f}" for value in np.percentile([getattr(row.findings, name) for row in these], [10, 50, 90])
            )
            for name in ("blockiness", "noise", "blur", "line_art")
        ]
        share = np.mean([row.chosen == DAMAGED_NETWORK for row in these])
        lines.append(f"| {damage} | {' | '.join(cells)} | {share:.0%} |")
    return lines


Choice = Callable[[DegradationRow], str]
CHOICES: dict[str, Choice] = {
    "always bicubic": lambda row: "bicubic",
    "always RealSR": lambda row: CLEAN_NETWORK,
    "always Real-ESRGAN": lambda row: DAMAGED_NETWORK,
    "**the choice**": lambda row: row.chosen,
    "best of both, knowing the original": lambda row: max(
        (CLEAN_NETWORK, DAMAGED_NETWORK), key=lambda name: row.scores[name][1]
    ),
    "always half of each": lambda row: BLEND,
}


def comparison_table(title: str, rows: Sequence[DegradationRow]) -> list[str]:
    """Return PSNR / SSIMULACRA2 / gradients of each choice, by damage and over all."""
    if not rows:
        return []
    lines = [
        f"## {title}: {len({row.name for row in rows})}",
        "",
        "PSNR in dB / SSIMULACRA2 / gradients. The last columns are means over all damaged images, and over all.",
        "",
        f"| | {' | '.join(source_images.DAMAGES)} | **damaged** | **all** |",
        f"| --- |{' --: |' * (len(source_images.DAMAGES) + 2)}",
    ]
    groups = [[row for row in rows if row.damage == damage] for damage in source_images.DAMAGES]
    groups += [[row for row in rows if row.damage != "clean"], list(rows)]
    for name, choose in CHOICES.items():
        cells = []
        for group in groups:
            psnr, ssimulacra2, gradients = np.mean([row.scores[choose(row)] for row in group], axis=0)
            cells.append(f"{psnr:.2f} / {ssimulacra2:.1f} / {gradients:.3f}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return [*lines, ""]


if __name__ == "__main__":
    main()
