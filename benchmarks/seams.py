"""Reliability of the seam metric: its values without seams, and with seams of known strength.

    python -m benchmarks.seams [--data DIR] [--images N] [--write]

Seamless results are photos whose input is the photo reduced to a half or a quarter, and the middle of photos upscaled
by the packaged networks. Borders lie where tiles of 64 input pixels would meet, at two places in each image. Faults are
added to every second tile of a checkerboard; for "tiles alone" a network upscaled each tile without its neighbours, and
the tiles were put side by side. Images differ in what is visible in them: a step of one level is obvious in a sky and
hidden in leaves, so no fault can be found in every image.

"figure" is `engine.analysis.seams.seam_ratios`, as in a job's `metadata.quality`. "bare" is the same without the
correction for chance. "before" is the metric it replaced: steps between the means of segments in luminance, those of
the image over those of the upscaled source, as the mean of the logarithms.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks import source_images, tables
from hiresfix.engine.analysis import seams
from hiresfix.engine.pixels import resampling
from hiresfix.engine.superres import tiled_inference
from hiresfix.engine.superres.networks import Network
from hiresfix.engine.weights import superres_files
from hiresfix.models.catalog import find_weights

TILE = 64
LIMIT = 1.1
FAST_NETWORK, GOOD_NETWORK = "realesr-animevideov3", "realsr-df2k"
SIDES = (160, 256)
CPU = torch.device("cpu")
Pixels = NDArray[np.uint8]
Borders = dict[str, list[int]]
Fault = Callable[[NDArray[np.float64], NDArray[np.bool_]], NDArray[np.float64]]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SeamCase:
    """A result, its input, and the borders where its tiles would meet."""

    result: Pixels
    source: Pixels
    borders: Borders


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of photos")
    parser.add_argument("--images", type=int, default=40, help="maximum number of images")
    parser.add_argument("--write", action="store_true", help="write the table under benchmarks/results")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    ratios: dict[str, dict[str, list[float]]] = {}
    with torch.inference_mode():
        for number, original in enumerate(source_images.originals(arguments.data)[: arguments.images]):
            for fault, case in cases(number, source_images.middle(original.rgb, 512)):
                for name, measure in METRICS.items():
                    ratio = measure(case)
                    if ratio is not None:
                        ratios.setdefault(fault, {}).setdefault(name, []).append(ratio)
            print(number, original.name, flush=True)
    rounded = {
        fault: {name: [round(each, 3) for each in all_] for name, all_ in row.items()} for fault, row in ratios.items()
    }
    tables.publish("seams", table(ratios), rounded, write=arguments.write, indent=None)


def cases(number: int, rgb: Pixels) -> Iterator[tuple[str, SeamCase]]:
    """Yield the name of the fault and the case, for one photo."""
    rgb = rgb[: rgb.shape[0] // 8 * 8, : rgb.shape[1] // 8 * 8]
    random = np.random.default_rng(number)
    scale = (2, 4)[number % 2]
    part = source_images.middle(rgb, SIDES[number // 2 % 2])
    upscale_network = network(GOOD_NETWORK if number % 8 == 0 else FAST_NETWORK)
    for source, result, by in (
        (reduced(rgb, scale), rgb, scale),
        (part, upscaled(upscale_network, part, scale), scale),
    ):
        for start in (TILE * by, 8 * int(random.integers(3, TILE * by // 8 - 3))):
            borders = grid(result, TILE * by, start)
            yield "none", SeamCase(result=result, source=source, borders=borders)
            for fault, fault_function in FAULTS.items():
                yield (
                    fault,
                    SeamCase(result=with_fault(result, borders, fault_function), source=source, borders=borders),
                )
    alone = np.concatenate(
        [
            np.concatenate([upscaled(network(FAST_NETWORK), tile, scale) for tile in columns(band)], 1)
            for band in rows(part)
        ]
    )
    yield "tiles alone", SeamCase(result=alone, source=part, borders=grid(alone, TILE * scale, TILE * scale))


def rows(rgb: Pixels) -> Iterator[Pixels]:
    return (rgb[top : top + TILE] for top in range(0, rgb.shape[0], TILE))


def columns(rgb: Pixels) -> Iterator[Pixels]:
    return (np.ascontiguousarray(rgb[:, left : left + TILE]) for left in range(0, rgb.shape[1], TILE))


def network(name: str) -> Network:
    if name not in _NETWORKS:
        weight = find_weights(name)
        assert weight is not None
        _NETWORKS[name] = superres_files.load(weight)
    return _NETWORKS[name]


_NETWORKS: dict[str, Network] = {}


def upscaled(network: Network, rgb: Pixels, scale: int) -> Pixels:
    """Upscale like the faithful engine at its default resemblance, in bands that match bit for bit."""
    postprocess = partial(resampling.back_project, weights=resampling.back_projection_weights(1.0))
    return tiled_inference.upscale(
        network, rgb, TILE, factor=scale, postprocess=postprocess, report=lambda fraction: None
    )


def reduced(rgb: Pixels, factor: int) -> Pixels:
    x = resampling.resize(resampling.to_tensor(rgb, CPU), rgb.shape[0] // factor, rgb.shape[1] // factor)
    return resampling.to_samples(x, rgb.dtype)


def grid(rgb: Pixels, pitch: int, start: int) -> Borders:
    down, across = (list(range(start, side - 16, pitch)) for side in rgb.shape[:2])
    return {"rows": down, "columns": across}


def with_fault(rgb: Pixels, borders: Borders, fault: Fault) -> Pixels:
    """Add the fault to every second tile."""
    down, across = (
        np.searchsorted(edges, np.arange(side), side="right")
        for edges, side in zip((borders["rows"], borders["columns"]), rgb.shape[:2], strict=True)
    )
    where = np.add.outer(down, across)[..., None] % 2 == 1
    return np.clip(np.rint(fault(rgb.astype(np.float64), where)), 0, 255).astype(np.uint8)


def blurred(rgb: NDArray[np.float64]) -> NDArray[np.float64]:
    for axis in (0, 1):
        rgb = (np.roll(rgb, 1, axis) + 2 * rgb + np.roll(rgb, -1, axis)) / 4
    return rgb


def half_pixel_shift(rgb: NDArray[np.float64]) -> NDArray[np.float64]:
    """Shift by half a pixel down and right, with the cubic through four pixels."""
    for axis in (0, 1):
        rgb = (9 * (rgb + np.roll(rgb, 1, axis)) - np.roll(rgb, 2, axis) - np.roll(rgb, -1, axis)) / 16
    return rgb


def brighter(levels: int) -> Fault:
    return lambda rgb, where: rgb + levels * where


def crisper(gain: float) -> Fault:
    return lambda rgb, where: rgb + where * (gain - 1) * (rgb - blurred(blurred(rgb)))


FAULTS: dict[str, Fault] = {
    "1 level brighter": brighter(1),
    "2 levels brighter": brighter(2),
    "4 levels brighter": brighter(4),
    "detail x 1.15": crisper(1.15),
    "detail x 1.5": crisper(1.5),
    "detail x 2": crisper(2.0),
    "slightly blurred": lambda rgb, where: np.where(where, blurred(rgb), rgb),
    "shifted by half a pixel": lambda rgb, where: np.where(where, half_pixel_shift(rgb), rgb),
    "shifted by a pixel": lambda rgb, where: np.where(where, np.roll(rgb, (1, 1), (0, 1)), rgb),
}


def current_metric(case: SeamCase, **options: float) -> float | None:
    (ratio,) = seams.seam_ratios(case.result, case.source, **case.borders, **options)  # type: ignore[arg-type]  # both kinds
    return ratio


def previous_metric(case: SeamCase) -> float | None:
    """Return the metric that was used before."""
    scale = case.result.shape[0] // case.source.shape[0]
    x = resampling.to_tensor(case.source, CPU)
    beneath = resampling.resize(x, case.source.shape[0] * scale, case.source.shape[1] * scale)
    luma = [(y[0] * y.new_tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(0).numpy()
            for y in (resampling.to_tensor(case.result, CPU), beneath)]  # fmt: skip
    logs = [each for border in case.borders["rows"] for each in segments(luma[0], luma[1], border)]
    logs += [each for border in case.borders["columns"] for each in segments(luma[0].T, luma[1].T, border)]
    return math.exp(float(np.mean(logs))) if logs else None


def segments(result: NDArray[np.float32], beneath: NDArray[np.float32], border: int) -> list[float]:
    if not 26 <= border <= result.shape[0] - 26:
        return []
    ratios = []
    for luma in (result, beneath):
        strip = luma[border - 26 : border + 26, : luma.shape[1] // 64 * 64].reshape(52, -1, 64).mean(2)
        steps = np.diff(strip, axis=0)
        sudden = np.log(np.abs(steps[1:-1] - (steps[2:] + steps[:-2]) / 2) * 2 / 3 + 0.25 / 255)
        ratios.append(sudden[24] - sudden[[0, 8, 16, 32, 40, 48]].mean(0))
    return [float(each) for each in ratios[0] - ratios[1]]


METRICS: dict[str, Callable[[SeamCase], float | None]] = {
    "figure": current_metric,
    "bare": partial(current_metric, standard_errors=0.0),
    "before": previous_metric,
}


def table(ratios: dict[str, dict[str, list[float]]]) -> str:
    guide = (__doc__ or "").partition("[--write]\n\n")[2]
    names = " | ".join(f"{name}: median | maximum | above {LIMIT}" for name in METRICS)
    text = f"""# Reliability of the seam metric

{guide}
| fault | results | {names} |
| --- | --: |{" --: | --: | --: |" * len(METRICS)}
"""
    for fault, row in ratios.items():
        cells = []
        for name in METRICS:
            each = np.array(row[name])
            cells += [f"{np.median(each):.2f}", f"{each.max():.2f}", f"{np.mean(each > LIMIT):.0%}"]
        text += f"| {fault} | {len(row['figure'])} | {' | '.join(cells)} |\n"
    return text


if __name__ == "__main__":
    main()
