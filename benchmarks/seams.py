"""Whether the figure for seams can be trusted: what it reads without seams, and with seams of known strength.

    python -m benchmarks.seams [--data DIR] [--pictures N] [--write]

Seamless results are photographs themselves, whose input is the photograph reduced to a half or a quarter, and what
the packaged enlargers make of the middle of photographs. Borders lie as tiles of 64 input pixels would put them, at
two places in each picture. Faults are planted in every second tile of a checkerboard, but for "tiles alone": there a
network enlarged each tile without seeing the next, and they were put side by side. Pictures differ in what can be
seen in them: a step of one level is plain in a sky and hidden in leaves, so no fault can be found in every picture.

"figure" is `engine.seams.ratios` as in a job's `metadata.quality`. "bare" is the same without taking off what chance
makes. "before" is what the figure was until it was replaced: steps of segments' means in luminance, the picture's
over the enlarged source's, as the mean of the logarithms.
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

from benchmarks import pictures, record
from hiresfix.engine.analysis import seams
from hiresfix.engine.pixels import resampling
from hiresfix.engine.superres import tiled_inference
from hiresfix.engine.superres.networks import Network
from hiresfix.engine.weights import superres_files
from hiresfix.models.catalog import find_weights

TILE = 64
LIMIT = 1.1
QUICK, GOOD = "realesr-animevideov3", "realsr-df2k"
SIDES = (160, 256)
CPU = torch.device("cpu")
Pixels = NDArray[np.uint8]
Borders = dict[str, list[int]]
Fault = Callable[[NDArray[np.float64], NDArray[np.bool_]], NDArray[np.float64]]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Case:
    """A result, what it was made of, and where its tiles would meet."""

    result: Pixels
    source: Pixels
    borders: Borders


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of photographs")
    parser.add_argument("--pictures", type=int, default=40, help="how many of them at most")
    parser.add_argument("--write", action="store_true", help="write the table under benchmarks/results")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, dict[str, list[float]]] = {}
    with torch.inference_mode():
        for number, original in enumerate(pictures.originals(arguments.data)[: arguments.pictures]):
            for fault, case in cases(number, pictures.middle(original.rgb, 512)):
                for name, measure in FIGURES.items():
                    ratio = measure(case)
                    if ratio is not None:
                        found.setdefault(fault, {}).setdefault(name, []).append(ratio)
            print(number, original.name, flush=True)
    rounded = {
        fault: {name: [round(each, 3) for each in all_] for name, all_ in row.items()} for fault, row in found.items()
    }
    record.tell("seams", table(found), rounded, write=arguments.write, indent=None)


def cases(number: int, rgb: Pixels) -> Iterator[tuple[str, Case]]:
    """What fault is in it, and the case; of one photograph."""
    rgb = rgb[: rgb.shape[0] // 8 * 8, : rgb.shape[1] // 8 * 8]
    random = np.random.default_rng(number)
    scale = (2, 4)[number % 2]
    part = pictures.middle(rgb, SIDES[number // 2 % 2])
    enlarger = network(GOOD if number % 8 == 0 else QUICK)
    for source, result, by in (
        (reduced(rgb, scale), rgb, scale),
        (part, enlarged(enlarger, part, scale), scale),
    ):
        for start in (TILE * by, 8 * int(random.integers(3, TILE * by // 8 - 3))):
            borders = grid(result, TILE * by, start)
            yield "none", Case(result=result, source=source, borders=borders)
            for fault, plant in FAULTS.items():
                yield fault, Case(result=planted(result, borders, plant), source=source, borders=borders)
    alone = np.concatenate(
        [np.concatenate([enlarged(network(QUICK), tile, scale) for tile in columns(band)], 1) for band in rows(part)]
    )
    yield "tiles alone", Case(result=alone, source=part, borders=grid(alone, TILE * scale, TILE * scale))


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


def enlarged(network: Network, rgb: Pixels, scale: int) -> Pixels:
    """As the faithful engine does at its default resemblance, in bands that meet bit for bit."""
    finish = partial(resampling.follow, weights=resampling.rounds(1.0))
    return tiled_inference.enlarge(network, rgb, TILE, factor=scale, finish=finish, report=lambda fraction: None)


def reduced(rgb: Pixels, factor: int) -> Pixels:
    x = resampling.resize(resampling.to_tensor(rgb, CPU), rgb.shape[0] // factor, rgb.shape[1] // factor)
    return resampling.to_samples(x, rgb.dtype)


def grid(rgb: Pixels, pitch: int, start: int) -> Borders:
    down, across = (list(range(start, side - 16, pitch)) for side in rgb.shape[:2])
    return {"rows": down, "columns": across}


def planted(rgb: Pixels, borders: Borders, fault: Fault) -> Pixels:
    """The fault in every second tile."""
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


def between(rgb: NDArray[np.float64]) -> NDArray[np.float64]:
    """Moved by half a pixel down and right, by the cubic that passes through four."""
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
    "moved by half a pixel": lambda rgb, where: np.where(where, between(rgb), rgb),
    "moved by a pixel": lambda rgb, where: np.where(where, np.roll(rgb, (1, 1), (0, 1)), rgb),
}


def figure(case: Case, **options: float) -> float | None:
    (ratio,) = seams.ratios(case.result, case.source, **case.borders, **options)  # type: ignore[arg-type]  # both kinds
    return ratio


def before(case: Case) -> float | None:
    """The figure that this replaced."""
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


FIGURES: dict[str, Callable[[Case], float | None]] = {
    "figure": figure,
    "bare": partial(figure, errors=0.0),
    "before": before,
}


def table(found: dict[str, dict[str, list[float]]]) -> str:
    guide = (__doc__ or "").partition("[--write]\n\n")[2]
    names = " | ".join(f"{name}: median | most | above {LIMIT}" for name in FIGURES)
    text = f"""# Whether the figure for seams can be trusted

{guide}
| fault | results | {names} |
| --- | --: |{" --: | --: | --: |" * len(FIGURES)}
"""
    for fault, row in found.items():
        cells = []
        for name in FIGURES:
            each = np.array(row[name])
            cells += [f"{np.median(each):.2f}", f"{each.max():.2f}", f"{np.mean(each > LIMIT):.0%}"]
        text += f"| {fault} | {len(row['figure'])} | {' | '.join(cells)} |\n"
    return text


if __name__ == "__main__":
    main()
