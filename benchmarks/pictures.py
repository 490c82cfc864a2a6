"""What the quality benchmarks are made of: originals, their reductions, and damage that can be made again.

A folder of pictures may hold a MANIFEST.csv with columns `file` and `split`: then its `dev` pictures are used, in the
order of their names; every first and second of four is for setting thresholds, the others are for judging.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]
OWN = Path(__file__).parents[1] / "examples"


Damage = Callable[[Pixels], Pixels]


def jpeg(quality: int) -> Damage:
    """As Pillow writes it by default, with colours at half the resolution."""

    def damage(rgb: Pixels) -> Pixels:
        file = io.BytesIO()
        Image.fromarray(rgb).save(file, "JPEG", quality=quality)
        return np.asarray(Image.open(file).convert("RGB"))

    return damage


def noise(sigma: float) -> Damage:
    """Independent in every sample, normal, `sigma` in levels; the same for every picture of the same size."""

    def damage(rgb: Pixels) -> Pixels:
        grain = np.random.default_rng(0).normal(0, sigma, rgb.shape)
        return np.asarray(np.clip(np.rint(rgb + grain), 0, 255), np.uint8)

    return damage


def both(sigma: float, quality: int) -> Damage:
    return lambda rgb: jpeg(quality)(noise(sigma)(rgb))


def nothing(rgb: Pixels) -> Pixels:
    return rgb


DAMAGES: Mapping[str, Damage] = {
    "clean": nothing,
    "jpeg 80": jpeg(80),
    "jpeg 60": jpeg(60),
    "jpeg 20": jpeg(20),
    "noise 2": noise(2),
    "noise 5": noise(5),
    "noise 15": noise(15),
    "noise 10, jpeg 40": both(10, 40),
}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Original:
    """A picture of good quality. judged: kept out of what sets thresholds."""

    name: str
    rgb: Pixels
    judged: bool

    def reduced(self, factor: int) -> Pixels:
        """Bicubic and antialiased, after cutting to a multiple of the factor."""
        width, height = (side // factor for side in (self.rgb.shape[1], self.rgb.shape[0]))
        whole = Image.fromarray(self.rgb[: height * factor, : width * factor])
        return np.asarray(whole.resize((width, height), Image.Resampling.BICUBIC))


def originals(folder: Path | None) -> Sequence[Original]:
    """The dev pictures of the folder, or the repository's own. Raises SystemExit for a folder without pictures."""
    if folder is None:
        files = sorted(OWN.glob("*.png"))
    elif (folder / "MANIFEST.csv").exists():
        with (folder / "MANIFEST.csv").open(newline="", encoding="utf-8") as table:
            files = sorted(folder / row["file"] for row in csv.DictReader(table) if row["split"] == "dev")
    else:
        files = sorted(path for path in folder.iterdir() if path.suffix in (".png", ".jpg"))
    if not files:
        raise SystemExit(f"{folder} holds no pictures. Name a folder with .png or .jpg files.")
    return [
        Original(name=path.stem, rgb=np.asarray(Image.open(path).convert("RGB")), judged=number % 4 >= 2)
        for number, path in enumerate(files)
    ]


def middle(rgb: Pixels, side: int) -> Pixels:
    """The middle `side` x `side` pixels, or all of a smaller side."""
    top, left = (max(0, (length - side) // 2) for length in rgb.shape[:2])
    return np.ascontiguousarray(rgb[top : top + side, left : left + side])


def part_of(original: Original, lowered: Pixels, side: int, factor: int) -> Pixels:
    """What of the original `middle(lowered, side)` shows."""
    top, left = (max(0, (length - side) // 2) * factor for length in lowered.shape[:2])
    height, width = (min(side, length) * factor for length in lowered.shape[:2])
    return np.ascontiguousarray(original.rgb[top : top + height, left : left + width])
