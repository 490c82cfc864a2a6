"""How good a compact checkpoint is, on pictures it has not seen, through the engine as callers run it.

    python -m training.evaluation CHECKPOINT --data DIR --out DIR

Each picture's middle is reduced to half, enlarged by the network that the offline engine uses, and diffused at the
default settings. Figures beside those of the enlarger alone; a contact sheet to look at.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from benchmarks import metrics
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional

from hiresfix.engine import devices
from hiresfix.engine.diffusion import pipeline
from hiresfix.engine.diffusion.compact import checkpoint
from hiresfix.engine.diffusion.compact.checkpoint import Compact
from hiresfix.engine.diffusion.prompts import Conditioner
from hiresfix.engine.pixels import resampling
from hiresfix.engine.superres import networks
from hiresfix.engine.superres.networks import Network
from hiresfix.engine.weights import superres_files
from hiresfix.models.catalog import CLARITY, find_weights
from hiresfix.recipe import Recipe
from training import pictures
from training.pictures import Photo

SIDE = 128
MOST = 6
GOOD, BAD = "masterpiece, best quality, highres, sharp", "blurry, smooth, worst quality"
Pixels = NDArray[np.uint8]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    device = devices.choose_device(arguments.device)
    model = checkpoint.load(arguments.checkpoint, device=device, dtype=torch.float32)
    dev = pictures.load(pictures.files(arguments.data)[1], device)
    arguments.out.mkdir(parents=True, exist_ok=True)
    with torch.inference_mode():
        for name, figure in judge(model, dev, arguments.out, 0).items():
            print(f"{name:24} {figure:8.3f}")


def engine_model(model: Compact) -> pipeline.Model:
    """As the engine runs it."""
    return pipeline.Model(
        unet=model.unet,
        controlnet=model.controlnet,
        conditioner=Conditioner(model.text_encoder),
        codec=model.codec,
        prediction=model.prediction,
    )


def recipe() -> Recipe:
    """The defaults, in tiles of 512 pixels. Without noise in the steps: a small network makes grain of it."""
    return replace(CLARITY.presets["clarity"], tile_height=128, tile_width=128, sampler="dpmpp-2m-karras", seed=1)


def judge(model: Compact, dev: Sequence[Photo], out: Path, step: int) -> dict[str, float]:
    """Means over the first few pictures; the sheet goes to `out`.

    psnr in dB against the original; gradients: half the L1 distance of the histograms of gradients to the original's;
    detail: spectral energy above 0.25 cycles a pixel as a ratio to the original's; each for the enlarger too. grid:
    the spectrum at 1/4 cycles a pixel beside its neighbourhood; words: mean gradient with good words over bad ones.
    """
    model_of = engine_model(model)
    enlarger = _enlarger(model.codec.device)
    rows: list[dict[str, float]] = []
    sheet = []
    for photo in dev[:MOST]:
        original = _middle(photo)
        small = _reduced(original)
        plain = _enlarged(enlarger, small)
        made = pipeline.run(model_of, enlarger, small, recipe(), _silent).rgb
        said = [
            pipeline.run(
                model_of, enlarger, small, replace(recipe(), prompt=yes, negative_prompt=no, creativity=0.6), _silent
            ).rgb
            for yes, no in ((GOOD, BAD), (BAD, GOOD))
        ]
        row = {f"{name} of {whose}": measure(picture, original) for name, measure in _MEASURES.items()
               for whose, picture in (("enlarger", plain), ("model", made))}  # fmt: skip
        row["grid"] = grid_peak(made)
        row["words"] = _gradient(said[0]) / max(_gradient(said[1]), 1e-6)
        rows.append(row)
        sheet.append(np.concatenate([plain, made, original], 1))
    Image.fromarray(np.concatenate(sheet)).save(out / f"sheet-{step:07}.png")
    return {name: round(float(np.mean([row[name] for row in rows])), 3) for name in rows[0]}


def grid_peak(made: Pixels) -> float:
    """The largest of the spectrum's lines at 1/4 cycles a pixel, relative to its neighbours: 1 is no grid."""
    luma = metrics.luma(made)
    peaks: list[float] = []
    for axis in (0, 1):
        spectrum = np.abs(np.fft.rfft(np.diff(luma, axis=axis), axis=axis)).mean(1 - axis)
        line = round(len(spectrum) / 2)
        around = np.concatenate([spectrum[line - 4 : line - 1], spectrum[line + 2 : line + 5]])
        peaks.append(float(spectrum[line - 1 : line + 2].max()) / max(float(np.median(around)), 1e-9))
    return max(peaks)


_MEASURES: dict[str, Callable[[Pixels, Pixels], float]] = {
    "psnr": metrics.psnr,
    "gradients": metrics.gradients,
    "detail": lambda made, original: metrics.high_frequencies(made) / max(metrics.high_frequencies(original), 1e-9),
}


def _gradient(x: Pixels) -> float:
    return float(np.abs(np.diff(metrics.luma(x), axis=0)).mean())


def _middle(photo: Photo) -> Pixels:
    height, width = photo.clean.shape[1:]
    side = min(2 * SIDE, height, width) // 8 * 8
    top, left = (height - side) // 2, (width - side) // 2
    cut: Tensor = photo.clean[:, top : top + side, left : left + side]
    return np.ascontiguousarray(cut.permute(1, 2, 0).cpu().numpy())


def _reduced(original: Pixels) -> Pixels:
    x = resampling.to_tensor(original, torch.device("cpu"))
    small = functional.interpolate(x, scale_factor=0.5, mode="bicubic", antialias=True)
    return np.asarray(resampling.to_samples(small, np.dtype(np.uint8)))


def _enlarged(enlarger: Network, small: Pixels) -> Pixels:
    device = next(enlarger.parameters()).device
    x = enlarger(resampling.to_tensor(small, device)).clamp(0, 1)
    y = resampling.resize(x, 2 * small.shape[0], 2 * small.shape[1])
    return np.asarray(resampling.to_samples(y, np.dtype(np.uint8)))


@cache
def _enlarger(device: torch.device) -> Network:
    weight = find_weights(pictures.ENLARGER)
    assert weight is not None
    return networks.place(superres_files.load(weight), device, devices.choose_dtype(device))


def _silent(fraction: float) -> None:
    pass


if __name__ == "__main__":
    main()
