"""Evaluate a compact checkpoint on images it was not trained on, with the engine's own pipeline.

    python -m training.evaluation CHECKPOINT --data DIR --out DIR

The centre of each image is reduced to half its size and upscaled by the pipeline with default parameters. Prints the
metrics next to those of the super-resolution network alone ("enlarger"), and writes a contact sheet: network alone,
model, original.
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
from hiresfix.engine.diffusion.compact.checkpoint import CompactModel
from hiresfix.engine.diffusion.prompts import PromptEncoder
from hiresfix.engine.pixels import resampling
from hiresfix.engine.superres import networks
from hiresfix.engine.superres.networks import Network
from hiresfix.engine.weights import superres_files
from hiresfix.models.catalog import CLARITY, find_weights
from hiresfix.recipe import Recipe
from training import dataset
from training.dataset import Photo

CROP_SIDE = 128
MAX_IMAGES = 6
GOOD_WORDS, BAD_WORDS = "masterpiece, best quality, highres, sharp", "blurry, smooth, worst quality"
ImageArray = NDArray[np.uint8]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    device = devices.choose_device(arguments.device)
    model = checkpoint.load(arguments.checkpoint, device=device, dtype=torch.float32)
    dev = dataset.load_photos(dataset.image_files(arguments.data)[1], device)
    arguments.out.mkdir(parents=True, exist_ok=True)
    with torch.inference_mode():
        for name, figure in evaluate(model, dev, arguments.out, 0).items():
            print(f"{name:24} {figure:8.3f}")


def as_engine_model(model: CompactModel) -> pipeline.DiffusionModel:
    """Wrap a compact checkpoint for the engine's pipeline."""
    return pipeline.DiffusionModel(
        unet=model.unet,
        controlnet=model.controlnet,
        prompt_encoder=PromptEncoder(model.text_encoder),
        codec=model.codec,
        prediction=model.prediction,
    )


def recipe() -> Recipe:
    """Return the default recipe with tiles of 512 pixels and a sampler without noise, which would become grain."""
    return replace(CLARITY.presets["clarity"], tile_height=128, tile_width=128, sampler="dpmpp-2m-karras", seed=1)


def evaluate(model: CompactModel, dev: Sequence[Photo], out: Path, step: int) -> dict[str, float]:
    """Return the mean metrics over the first few images, and write a contact sheet to `out`.

    For the model and for the super-resolution network alone ("enlarger"):

    - psnr: in dB against the original.
    - gradients: half the L1 distance between the histograms of gradients and the original's.
    - detail: spectral energy above 0.25 cycles per pixel, relative to the original.

    For the model only:

    - grid: the spectrum at 1/4 cycles per pixel, relative to its neighbours.
    - words: the mean gradient with good words in the prompt, relative to bad words.
    """
    engine_model = as_engine_model(model)
    network = _superres_network(model.codec.device)
    rows: list[dict[str, float]] = []
    sheet = []
    for photo in dev[:MAX_IMAGES]:
        original = _centre_crop(photo)
        small = _halve(original)
        baseline = _upscale(network, small)
        result = pipeline.run(engine_model, network, small, recipe(), _ignore_progress).rgb
        good, bad = (
            pipeline.run(
                engine_model,
                network,
                small,
                replace(recipe(), prompt=prompt, negative_prompt=negative, creativity=0.6),
                _ignore_progress,
            ).rgb
            for prompt, negative in ((GOOD_WORDS, BAD_WORDS), (BAD_WORDS, GOOD_WORDS))
        )
        row = {f"{name} of {source}": measure(image, original) for name, measure in _MEASURES.items()
               for source, image in (("enlarger", baseline), ("model", result))}  # fmt: skip
        row["grid"] = grid_peak(result)
        row["words"] = _mean_gradient(good) / max(_mean_gradient(bad), 1e-6)
        rows.append(row)
        sheet.append(np.concatenate([baseline, result, original], 1))
    Image.fromarray(np.concatenate(sheet)).save(out / f"sheet-{step:07}.png")
    return {name: round(float(np.mean([row[name] for row in rows])), 3) for name in rows[0]}


def grid_peak(image: ImageArray) -> float:
    """Return the spectrum's largest line at 1/4 cycles per pixel, relative to its neighbours; 1 means no grid."""
    luma = metrics.luma(image)
    peaks: list[float] = []
    for axis in (0, 1):
        spectrum = np.abs(np.fft.rfft(np.diff(luma, axis=axis), axis=axis)).mean(1 - axis)
        line = round(len(spectrum) / 2)
        neighbours = np.concatenate([spectrum[line - 4 : line - 1], spectrum[line + 2 : line + 5]])
        peaks.append(float(spectrum[line - 1 : line + 2].max()) / max(float(np.median(neighbours)), 1e-9))
    return max(peaks)


_MEASURES: dict[str, Callable[[ImageArray, ImageArray], float]] = {
    "psnr": metrics.psnr,
    "gradients": metrics.gradients,
    "detail": lambda image, original: metrics.high_frequencies(image) / max(metrics.high_frequencies(original), 1e-9),
}


def _mean_gradient(x: ImageArray) -> float:
    return float(np.abs(np.diff(metrics.luma(x), axis=0)).mean())


def _centre_crop(photo: Photo) -> ImageArray:
    height, width = photo.clean.shape[1:]
    side = min(2 * CROP_SIDE, height, width) // 8 * 8
    top, left = (height - side) // 2, (width - side) // 2
    crop: Tensor = photo.clean[:, top : top + side, left : left + side]
    return np.ascontiguousarray(crop.permute(1, 2, 0).cpu().numpy())


def _halve(original: ImageArray) -> ImageArray:
    x = resampling.to_tensor(original, torch.device("cpu"))
    small = functional.interpolate(x, scale_factor=0.5, mode="bicubic", antialias=True)
    return np.asarray(resampling.to_samples(small, np.dtype(np.uint8)))


def _upscale(network: Network, small: ImageArray) -> ImageArray:
    device = next(network.parameters()).device
    x = network(resampling.to_tensor(small, device)).clamp(0, 1)
    y = resampling.resize(x, 2 * small.shape[0], 2 * small.shape[1])
    return np.asarray(resampling.to_samples(y, np.dtype(np.uint8)))


@cache
def _superres_network(device: torch.device) -> Network:
    weight = find_weights(dataset.UPSCALE_NETWORK)
    assert weight is not None
    return networks.place(superres_files.load(weight), device, devices.choose_dtype(device))


def _ignore_progress(fraction: float) -> None:
    pass


if __name__ == "__main__":
    main()
