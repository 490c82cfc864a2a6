"""Source images of the quality benchmarks: originals, their reductions, and reproducible damage.

A folder of images may have a MANIFEST.csv with the columns `file` and `split`. Then its `dev` images are used, sorted
by name. Of every four images the first two are for setting thresholds, the others for judging.
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
EXAMPLES = Path(__file__).parents[1] / "examples"


Damage = Callable[[Pixels], Pixels]


def jpeg(quality: int) -> Damage:
    """Compress as Pillow does by default, with chroma at half the resolution."""

    def damage(rgb: Pixels) -> Pixels:
        file = io.BytesIO()
        Image.fromarray(rgb).save(file, "JPEG", quality=quality)
        return np.asarray(Image.open(file).convert("RGB"))

    return damage


def noise(sigma: float) -> Damage:
    """Add normal noise, independent in every sample, `sigma` in levels; the same for all images of one size."""

    def damage(rgb: Pixels) -> Pixels:
        grain = np.random.default_rng(0).normal(0, sigma, rgb.shape)
        return np.asarray(np.clip(np.rint(rgb + grain), 0, 255), np.uint8)

    return damage


def both(sigma: float, quality: int) -> Damage:
    return lambda rgb: jpeg(quality)(noise(sigma)(rgb))


def no_damage(rgb: Pixels) -> Pixels:
    return rgb


DAMAGES: Mapping[str, Damage] = {
    "clean": no_damage,
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
    """An image of good quality; `judged` ones are not used to set thresholds."""

    name: str
    rgb: Pixels
    judged: bool

    def reduced(self, factor: int) -> Pixels:
        """Reduce bicubic and antialiased, after cropping to a multiple of the factor."""
        width, height = (side // factor for side in (self.rgb.shape[1], self.rgb.shape[0]))
        whole = Image.fromarray(self.rgb[: height * factor, : width * factor])
        return np.asarray(whole.resize((width, height), Image.Resampling.BICUBIC))


def originals(folder: Path | None) -> Sequence[Original]:
    """Return the dev images of the folder, or the example of the repository.

    Raises:
        SystemExit: the folder has no images.
    """
    if folder is None:
        files = sorted(EXAMPLES.glob("*.png"))
    elif (folder / "MANIFEST.csv").exists():
        with (folder / "MANIFEST.csv").open(newline="", encoding="utf-8") as table:
            files = sorted(folder / row["file"] for row in csv.DictReader(table) if row["split"] == "dev")
    else:
        files = sorted(path for path in folder.iterdir() if path.suffix in (".png", ".jpg"))
    if not files:
        raise SystemExit(f"{folder} has no images. Name a folder with .png or .jpg files.")
    return [
        Original(name=path.stem, rgb=np.asarray(Image.open(path).convert("RGB")), judged=number % 4 >= 2)
        for number, path in enumerate(files)
    ]


def middle(rgb: Pixels, side: int) -> Pixels:
    """Return the middle `side` x `side` pixels; a shorter side is kept whole."""
    top, left = (max(0, (length - side) // 2) for length in rgb.shape[:2])
    return np.ascontiguousarray(rgb[top : top + side, left : left + side])


def matching_part(original: Original, reduced: Pixels, side: int, factor: int) -> Pixels:
    """Return the part of the original that `middle(reduced, side)` shows."""
    top, left = (max(0, (length - side) // 2) * factor for length in reduced.shape[:2])
    height, width = (min(side, length) * factor for length in reduced.shape[:2])
    return np.ascontiguousarray(original.rgb[top : top + height, left : left + width])
