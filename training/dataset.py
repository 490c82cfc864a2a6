"""Load the training images: clean images, and copies that were reduced and upscaled again by our own network.

A folder of images is enough. If it has a MANIFEST.csv with the columns `file` and `split` ("train" or "dev"), that
split is used. Otherwise one image in ten, chosen by a hash of its name, is kept for evaluation. The upscaled copies
are computed once and cached.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rich.progress import track
from torch import Generator, Tensor
from torch.nn import functional

from hiresfix.engine import devices
from hiresfix.engine.superres import networks
from hiresfix.engine.weights import superres_files
from hiresfix.models.catalog import find_weights
from training import degradations

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}
DEV_ONE_IN = 10
"""Without a manifest, one image in so many is for evaluation."""
UPSCALE_NETWORK = "realsr-df2k"
REDUCTIONS = (2, 3, 4)
"""Factors by which images are reduced before they are upscaled again."""
_MIN_SIDE = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Photo:
    """One image and its upscaled copies, all (3, H, W), uint8, on the device."""

    name: str
    clean: Tensor
    upscaled: tuple[Tensor, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingBatch:
    """Clean crops and the control images that the network sees, both (n, 3, side, side) in 0..1."""

    clean: Tensor
    control: Tensor


def image_files(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return the images for training and those for evaluation.

    Raises:
        ValueError: The folder has no images.
    """
    manifest = folder / "MANIFEST.csv"
    if manifest.is_file():
        with manifest.open(newline="", encoding="utf-8") as file:
            split = {row["file"]: row["split"] for row in csv.DictReader(file)}
    else:
        split = {}
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    dev = [path for path in paths if split.get(path.name, _split_of(path.name)) == "dev"]
    train = [path for path in paths if path not in set(dev)]
    if not train:
        raise ValueError(f"{folder} has no images for training. Name a folder of {', '.join(sorted(SUFFIXES))} files.")
    return train, dev or train[:1]


def _split_of(name: str) -> str:
    return "dev" if hashlib.sha256(name.encode()).digest()[0] % DEV_ONE_IN == 0 else "train"


def load_photos(paths: Sequence[Path], device: torch.device) -> list[Photo]:
    """Load images to the device; those with a side below 64 pixels are left out."""
    images = [(path.name, _read(path)) for path in track(paths, description="Reading images", transient=True)]
    return [Photo(name=name, clean=x.to(device)) for name, x in images if min(x.shape[1:]) >= _MIN_SIDE]


def _read(path: Path) -> Tensor:
    with Image.open(path) as image:
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).contiguous()


def add_upscaled_copies(photos: Sequence[Photo], cache: Path, device: torch.device, *, seed: int) -> list[Photo]:
    """Add to each photo one copy for each of `REDUCTIONS`, upscaled by `UPSCALE_NETWORK`.

    Half of the reduced images go through a light JPEG first. Copies are cached as files in `cache`.
    """
    cache.mkdir(parents=True, exist_ok=True)
    weight = find_weights(UPSCALE_NETWORK)
    assert weight is not None
    network = networks.place(superres_files.load(weight), device, devices.choose_dtype(device))
    generator = Generator().manual_seed(seed)
    results = []
    for photo in track(photos, description="Upscaling reduced copies", transient=True):
        copies = []
        for factor in REDUCTIONS:
            quality = int(torch.randint(60, 96, (), generator=generator)) if _coin_flip(generator) else None
            path = cache / f"{photo.name}-{factor}-{seed}.pt"
            if not path.is_file():
                x = photo.clean[None].float() / 255
                part = path.with_suffix(".part")
                torch.save(_upscaled_copy(network, x, factor, quality).cpu(), part)
                part.replace(path)
            copies.append(torch.load(path, weights_only=True).to(device))
        results.append(Photo(name=photo.name, clean=photo.clean, upscaled=tuple(copies)))
    return results


def _coin_flip(generator: Generator) -> bool:
    return bool(torch.rand((), generator=generator) < 0.5)


@torch.inference_mode()
def _upscaled_copy(network: torch.nn.Module, x: Tensor, factor: int, quality: int | None) -> Tensor:
    height, width = x.shape[-2:]
    small = functional.interpolate(x, (height // factor, width // factor), mode="bicubic", antialias=True).clamp(0, 1)
    if quality is not None:
        small = degradations.jpeg(small, quality)
    large = network(small).clamp(0, 1)
    back = functional.interpolate(large, (height, width), mode="bicubic", antialias=True)
    return (back[0].clamp(0, 1) * 255).round().to(torch.uint8)


def batches(photos: Sequence[Photo], *, count: int, side: int, generator: Generator) -> Iterator[TrainingBatch]:
    """Yield batches of random crops, rotated and mirrored, without end.

    The control image is an upscaled copy (40 %), a degraded crop (55 %), or the crop itself.

    Raises:
        ValueError: No image is large enough.
    """
    usable = [photo for photo in photos if min(photo.clean.shape[1:]) >= side]
    if not usable:
        raise ValueError(f"No image has {side} pixels on both sides. Use larger images, or a smaller --crop.")
    while True:
        clean, control = [], []
        for _ in range(count):
            photo = usable[int(torch.randint(len(usable), (), generator=generator))]
            copy = int(torch.randint(len(photo.upscaled), (), generator=generator)) if photo.upscaled else -1
            pair = (photo.clean, photo.upscaled[copy] if copy >= 0 else photo.clean)
            clean_crop, copy_crop = _random_crop(pair, side, generator)
            clean.append(clean_crop)
            control.append(_control_for(clean_crop, copy_crop if copy >= 0 else None, generator))
        yield TrainingBatch(clean=torch.cat(clean), control=torch.cat(control))


def _random_crop(pair: tuple[Tensor, Tensor], side: int, generator: Generator) -> tuple[Tensor, Tensor]:
    height, width = pair[0].shape[1:]
    top, left = (int(torch.randint(length - side + 1, (), generator=generator)) for length in (height, width))
    quarter_turns, mirror = (int(torch.randint(count, (), generator=generator)) for count in (4, 2))

    def crop(x: Tensor) -> Tensor:
        y = torch.rot90(x[None, :, top : top + side, left : left + side].float() / 255, quarter_turns, (2, 3))
        return y.flip(3) if mirror else y

    return crop(pair[0]), crop(pair[1])


def _control_for(clean: Tensor, copy: Tensor | None, generator: Generator) -> Tensor:
    draw = float(torch.rand((), generator=generator))
    if copy is not None and draw < 0.4:
        return copy
    return clean if draw > 0.95 else degradations.degrade(clean, generator)
