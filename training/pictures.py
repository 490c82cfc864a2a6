"""Training pictures on the device: clean ones, and what our own enlargers make of smaller copies of them.

A folder of pictures is enough; where it has a MANIFEST.csv with the columns `file` and `split`, its split is kept,
otherwise one picture in ten, chosen by its name, is for development. Enlarged copies are computed once and kept.
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
DEV_SHARE = 10
ENLARGER = "realsr-df2k"
REDUCTIONS = (2, 3, 4)
_PART = 192
_LEAST = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Photo:
    """(3, H, W) uint8: the picture, and enlarged copies of reductions of it, each of the same size."""

    name: str
    clean: Tensor
    enlarged: tuple[Tensor, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """(n, 3, side, side) in 0..1: clean crops, and what the network is shown of them."""

    clean: Tensor
    control: Tensor


def files(folder: Path) -> tuple[list[Path], list[Path]]:
    """The pictures to train on, and those to judge by. Raises ValueError where there are none."""
    manifest = folder / "MANIFEST.csv"
    if manifest.is_file():
        with manifest.open(newline="", encoding="utf-8") as opened:
            split = {row["file"]: row["split"] for row in csv.DictReader(opened)}
    else:
        split = {}
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    dev = [path for path in found if split.get(path.name, _by_name(path.name)) == "dev"]
    train = [path for path in found if path not in set(dev)]
    if not train:
        raise ValueError(f"{folder} holds no pictures to train on. Name a folder of {', '.join(sorted(SUFFIXES))}.")
    return train, dev or train[:1]


def _by_name(name: str) -> str:
    return "dev" if hashlib.sha256(name.encode()).digest()[0] % DEV_SHARE == 0 else "train"


def load(paths: Sequence[Path], device: torch.device) -> list[Photo]:
    """Pictures below 64 pixels a side are left out."""
    read = [(path.name, _read(path)) for path in track(paths, description="Reading pictures", transient=True)]
    return [Photo(name=name, clean=x.to(device)) for name, x in read if min(x.shape[1:]) >= _LEAST]


def _read(path: Path) -> Tensor:
    with Image.open(path) as image:
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).contiguous()


def enlarged(photos: Sequence[Photo], cache: Path, device: torch.device, *, seed: int) -> list[Photo]:
    """With a copy of each by `ENLARGER` from each of `REDUCTIONS`, half of them through a light JPEG first."""
    cache.mkdir(parents=True, exist_ok=True)
    weight = find_weights(ENLARGER)
    assert weight is not None
    network = networks.place(superres_files.load(weight), device, devices.choose_dtype(device))
    generator = Generator().manual_seed(seed)
    made = []
    for photo in track(photos, description="Enlarging smaller copies", transient=True):
        copies = []
        for factor in REDUCTIONS:
            quality = int(torch.randint(60, 96, (), generator=generator)) if _coin(generator) else None
            kept = cache / f"{photo.name}-{factor}-{seed}.pt"
            if not kept.is_file():
                x = photo.clean[None].float() / 255
                part = kept.with_suffix(".part")
                torch.save(_copy(network, x, factor, quality).cpu(), part)
                part.replace(kept)
            copies.append(torch.load(kept, weights_only=True).to(device))
        made.append(Photo(name=photo.name, clean=photo.clean, enlarged=tuple(copies)))
    return made


def _coin(generator: Generator) -> bool:
    return bool(torch.rand((), generator=generator) < 0.5)


@torch.inference_mode()
def _copy(network: torch.nn.Module, x: Tensor, factor: int, quality: int | None) -> Tensor:
    height, width = x.shape[-2:]
    small = functional.interpolate(x, (height // factor, width // factor), mode="bicubic", antialias=True).clamp(0, 1)
    if quality is not None:
        small = degradations.jpeg(small, quality)
    large = network(small).clamp(0, 1)
    back = functional.interpolate(large, (height, width), mode="bicubic", antialias=True)
    return (back[0].clamp(0, 1) * 255).round().to(torch.uint8)


def batches(photos: Sequence[Photo], *, count: int, side: int, generator: Generator) -> Iterator[Batch]:
    """Without end: random crops, turned and mirrored.

    What is shown: an enlarged copy (40 %), a worse one (55 %), or the picture itself.
    """
    usable = [photo for photo in photos if min(photo.clean.shape[1:]) >= side]
    if not usable:
        raise ValueError(f"No picture has {side} pixels on both sides. Use larger pictures, or a smaller --crop.")
    while True:
        clean, control = [], []
        for _ in range(count):
            photo = usable[int(torch.randint(len(usable), (), generator=generator))]
            copy = int(torch.randint(len(photo.enlarged), (), generator=generator)) if photo.enlarged else -1
            pair = (photo.clean, photo.enlarged[copy] if copy >= 0 else photo.clean)
            one, other = _cut(pair, side, generator)
            clean.append(one)
            control.append(_shown(one, other if copy >= 0 else None, generator))
        yield Batch(clean=torch.cat(clean), control=torch.cat(control))


def _cut(pair: tuple[Tensor, Tensor], side: int, generator: Generator) -> tuple[Tensor, Tensor]:
    height, width = pair[0].shape[1:]
    top, left = (int(torch.randint(room - side + 1, (), generator=generator)) for room in (height, width))
    quarter, mirror = (int(torch.randint(most, (), generator=generator)) for most in (4, 2))

    def cut(x: Tensor) -> Tensor:
        crop = torch.rot90(x[None, :, top : top + side, left : left + side].float() / 255, quarter, (2, 3))
        return crop.flip(3) if mirror else crop

    return cut(pair[0]), cut(pair[1])


def _shown(clean: Tensor, copy: Tensor | None, generator: Generator) -> Tensor:
    draw = float(torch.rand((), generator=generator))
    if copy is not None and draw < 0.4:
        return copy
    return clean if draw > 0.95 else degradations.worse(clean, generator)
