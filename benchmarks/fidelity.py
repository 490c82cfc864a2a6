"""Fidelity of results to their input: colours, drift, shift and seams of every engine at its defaults.

    python -m benchmarks.fidelity [--data DIR] [--images N] [--side N] [--compact DIR] [--engines "A;B"] [--write]

Images: the middle of photos (of DIR, those with "dev" in their names if there are any; else the example of the
repository), a flat one and a gradient. Tiles are small, so that small images have borders to judge. The metrics are
those of a job's `metadata.quality`.

Super-resolution runs with the packaged weights. With a checkpoint written by `training.run`, the preset "clarity" runs
as "clarity, trained": a small, briefly trained diffusion model. "clarity, random" has tiny networks of the real classes
with random weights, which know nothing about images: the worst case for what ties a result to its input. Published
checkpoints are not measured here. `clarity-classic` ties nothing to the input, like the original program, so it has no
row: with such networks it would only show the networks. Seams are 1 where so few borders give no evidence of any
(`benchmarks.seams`): the bands of "faithful" match bit for bit.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from training import evaluation

from benchmarks import tables, tiny_networks
from hiresfix.engine.diffusion import loader
from hiresfix.engine.diffusion.compact import checkpoint
from hiresfix.engine.upscaler import Upscaler
from hiresfix.images import DecodedImage
from hiresfix.models.catalog import CLARITY, FAITHFUL
from hiresfix.recipe import Engine, Recipe

EXAMPLE = Path(__file__).parents[1] / "examples" / "colosseum.png"
LATENT_TILE, TILE = 16, 64
FAST_NETWORK = "realesr-animevideov3"
"""Network used before diffusion; the choice hardly affects what is tied to the input afterwards."""
PRESETS: dict[str, Recipe] = {
    "faithful": FAITHFUL.preset,
    "offline": CLARITY.presets["offline"],
    "clarity, random": CLARITY.presets["clarity"],
}
LIMITS = {"seam_ratio": 1.1, "ciede2000_mean": 1.0, "ciede2000_p95": 3.0, "drift_db": 34.0, "shift_px": 0.1}
COLUMNS = ("drift_db", "ciede2000_mean", "ciede2000_p95", "shift_px", "seam_ratio", "seam_ratio_stretched")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of photos")
    parser.add_argument("--images", type=int, default=4, help="how many of them")
    parser.add_argument("--side", type=int, default=160, help="side of the part that is used, in pixels")
    parser.add_argument("--compact", type=Path, help="a checkpoint folder of training.run")
    parser.add_argument("--engines", help='only these, separated by ";"; the others keep their saved rows')
    parser.add_argument("--write", action="store_true", help="write the table under benchmarks/results")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    images = list(generated_images(arguments.side)) + list(
        photo_crops(arguments.data, arguments.images, arguments.side)
    )
    engines = {engine: prepare(preset) for engine, preset in PRESETS.items()}
    if arguments.compact:
        engines["clarity, trained"] = prepare_trained(arguments.compact)
    rows: list[dict[str, Any]] = []
    if arguments.engines:
        engines = {name: engines[name] for name in arguments.engines.split(";")}
        saved_rows = json.loads((tables.RESULTS / "fidelity.json").read_text(encoding="utf-8"))
        rows = [row for row in saved_rows if row["engine"] not in engines]
    for engine, (upscaler, recipe) in engines.items():
        for name, rgb in images:
            quality = upscaler.run(DecodedImage(rgb=rgb), recipe, lambda fraction: None).metadata["quality"]
            rows.append({"engine": engine, "image": name, **quality})
            print(rows[-1], flush=True)
    tables.publish("fidelity", table(rows, arguments.side), rows, write=arguments.write)


def generated_images(side: int) -> Iterator[tuple[str, NDArray[Any]]]:
    """Yield images of 16 bits, because steps between 8-bit levels are seams themselves."""
    yield "flat", np.full((side, side, 3), (33_000, 21_000, 44_000), np.uint16)
    x, y = np.meshgrid(np.linspace(8_000, 56_000, side), np.linspace(10_000, 50_000, side))
    yield "gradient", np.dstack([x, y, (x + y) / 2]).astype(np.uint16)


def photo_crops(folder: Path | None, count: int, side: int) -> Iterator[tuple[str, NDArray[Any]]]:
    """Yield crops of images spread evenly over the folder, sorted by name."""
    paths = [EXAMPLE]
    if folder is not None:
        all_paths = sorted(path for path in folder.iterdir() if path.suffix in (".jpg", ".png"))
        paths = [path for path in all_paths if "dev" in path.name] or all_paths
        paths = paths[:: max(1, len(paths) // count)][:count]
    for path in paths:
        image = Image.open(path).convert("RGB")
        left, top = (image.width - side) // 2, (image.height - side) // 2
        yield path.stem, np.asarray(image.crop((left, top, left + side, top + side)))


def prepare(preset: Recipe) -> tuple[Upscaler, Recipe]:
    if preset.engine is not Engine.DIFFUSION:
        return Upscaler("cpu"), replace(preset, tile=TILE, seed=1)
    recipe = replace(preset, enlarger=FAST_NETWORK, tile_height=LATENT_TILE, tile_width=LATENT_TILE, tile=TILE, seed=1)
    return tiny_networks.upscaler(recipe)


def prepare_trained(folder: Path) -> tuple[Upscaler, Recipe]:
    """Return the preset with the checkpoint in the folder, at tiles of as many pixels as Stable Diffusion's."""
    cpu = torch.device("cpu")
    model = evaluation.as_engine_model(checkpoint.load(folder, device=cpu, dtype=torch.float32))
    side = LATENT_TILE * 8 // model.codec.factor
    recipe = replace(
        CLARITY.presets["clarity"], enlarger=FAST_NETWORK, tile_height=side, tile_width=side, tile=TILE, seed=1
    )
    upscaler = Upscaler("cpu")
    upscaler._loaded = loader.model_key(recipe), loader.LoadedModel(model=model, files=())
    return upscaler, recipe


def table(rows: list[dict[str, Any]], side: int) -> str:
    guide = (__doc__ or "").partition("[--write]\n\n")[2]
    text = f"""# Fidelity of results to their input

{guide}
{side}x{side} pixels, scale 2, super-resolution tile {TILE} pixels, diffusion tile {LATENT_TILE} latent pixels; on
{os.cpu_count()} {platform.machine()} cores. Goals at the defaults: seam ratio at most 1.1, CIEDE2000 at most 1 in
the mean and 3 at the 95th percentile, PSNR of the result scaled down at least 34 dB, shift at most 0.1 pixels of the
input. Values that miss a goal are in bold.

| engine | image | PSNR dB | CIEDE2000 mean | p95 | shift px | seams | seams, contrast x 4 |
| --- | --- | --: | --: | --: | --: | --: | --: |
"""
    for row in rows:
        text += f"| {row['engine']} | {row['image']} | {' | '.join(cell(row, name) for name in COLUMNS)} |\n"
    return text


def cell(row: dict[str, Any], name: str) -> str:
    value = row[name]
    if value is None:
        return ""
    limit = LIMITS.get(name, math.inf)
    missed = value < limit if name == "drift_db" else value > limit
    return f"**{value:g}**" if missed else f"{value:g}"


if __name__ == "__main__":
    main()
