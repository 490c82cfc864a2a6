"""How true results stay to their input: colours, drift, shift and seams of every engine at its defaults.

    python -m benchmarks.fidelity [--data DIR] [--pictures N] [--side N] [--compact DIR] [--engines "A;B"] [--write]

Pictures: the middle of photographs (of DIR, those whose names hold "dev" where there are any; else the repository's
example), a flat one and a gradient. Tiles are small, so that small pictures have borders to judge. The figures are
those of a job's `metadata.quality`.

Enlarging runs with the packaged weights. With a checkpoint that `training.run` wrote the preset "clarity" runs with it
as "clarity, trained": a diffusion model of pictures, small and trained briefly. "clarity, random" has tiny networks of
the real classes with random weights, which know nothing of pictures: the worst that what ties a result to its input
could be given. What a published checkpoint reads is not measured here. `clarity-classic` ties nothing, as the original
does not, and has no row: with such networks it would read what they are. Seams read 1 where the evidence of so few
borders shows none (`benchmarks.seams`): bands of "faithful" meet bit for bit.
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

from benchmarks import record, tiny
from hiresfix.engine.diffusion import loader
from hiresfix.engine.diffusion.compact import checkpoint
from hiresfix.engine.upscaler import Upscaler
from hiresfix.images import DecodedImage
from hiresfix.models.catalog import CLARITY, FAITHFUL
from hiresfix.recipe import Engine, Recipe

EXAMPLE = Path(__file__).parents[1] / "examples" / "colosseum.png"
LATENT_TILE, TILE = 16, 64
QUICK = "realesr-animevideov3"
"""What enlarges before diffusion; which one does hardly matters to what is tied to the input afterwards."""
PRESETS: dict[str, Recipe] = {
    "faithful": FAITHFUL.preset,
    "offline": CLARITY.presets["offline"],
    "clarity, random": CLARITY.presets["clarity"],
}
LIMITS = {"seam_ratio": 1.1, "ciede2000_mean": 1.0, "ciede2000_p95": 3.0, "drift_db": 34.0, "shift_px": 0.1}
COLUMNS = ("drift_db", "ciede2000_mean", "ciede2000_p95", "shift_px", "seam_ratio", "seam_ratio_stretched")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of photographs")
    parser.add_argument("--pictures", type=int, default=4, help="how many of them")
    parser.add_argument("--side", type=int, default=160, help="of the part that is used, in pixels")
    parser.add_argument("--compact", type=Path, help="a checkpoint folder of training.run")
    parser.add_argument("--engines", help="only these, with ; between; what others had is kept in the table")
    parser.add_argument("--write", action="store_true", help="write the table under benchmarks/results")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    pictures = list(drawn(arguments.side)) + list(photographs(arguments.data, arguments.pictures, arguments.side))
    engines = {engine: prepared(preset) for engine, preset in PRESETS.items()}
    if arguments.compact:
        engines["clarity, trained"] = trained(arguments.compact)
    rows: list[dict[str, Any]] = []
    if arguments.engines:
        engines = {name: engines[name] for name in arguments.engines.split(";")}
        kept = json.loads((record.RESULTS / "fidelity.json").read_text(encoding="utf-8"))
        rows = [row for row in kept if row["engine"] not in engines]
    for engine, (upscaler, recipe) in engines.items():
        for name, rgb in pictures:
            quality = upscaler.run(DecodedImage(rgb=rgb), recipe, lambda fraction: None).metadata["quality"]
            rows.append({"engine": engine, "picture": name, **quality})
            print(rows[-1], flush=True)
    record.tell("fidelity", table(rows, arguments.side), rows, write=arguments.write)


def drawn(side: int) -> Iterator[tuple[str, NDArray[Any]]]:
    """Sixteen bits, because the steps between 8-bit levels are seams of one level themselves."""
    yield "flat", np.full((side, side, 3), (33_000, 21_000, 44_000), np.uint16)
    x, y = np.meshgrid(np.linspace(8_000, 56_000, side), np.linspace(10_000, 50_000, side))
    yield "gradient", np.dstack([x, y, (x + y) / 2]).astype(np.uint16)


def photographs(folder: Path | None, count: int, side: int) -> Iterator[tuple[str, NDArray[Any]]]:
    """Every so many of the folder's pictures, in the order of their names."""
    paths = [EXAMPLE]
    if folder is not None:
        every = sorted(path for path in folder.iterdir() if path.suffix in (".jpg", ".png"))
        paths = [path for path in every if "dev" in path.name] or every
        paths = paths[:: max(1, len(paths) // count)][:count]
    for path in paths:
        image = Image.open(path).convert("RGB")
        left, top = (image.width - side) // 2, (image.height - side) // 2
        yield path.stem, np.asarray(image.crop((left, top, left + side, top + side)))


def prepared(preset: Recipe) -> tuple[Upscaler, Recipe]:
    if preset.engine is not Engine.DIFFUSION:
        return Upscaler("cpu"), replace(preset, tile=TILE, seed=1)
    recipe = replace(preset, enlarger=QUICK, tile_height=LATENT_TILE, tile_width=LATENT_TILE, tile=TILE, seed=1)
    return tiny.upscaler(recipe)


def trained(folder: Path) -> tuple[Upscaler, Recipe]:
    """The preset with the checkpoint in the folder, at tiles of as many pixels as Stable Diffusion's have here."""
    cpu = torch.device("cpu")
    model = evaluation.engine_model(checkpoint.load(folder, device=cpu, dtype=torch.float32))
    side = LATENT_TILE * 8 // model.codec.factor
    recipe = replace(CLARITY.presets["clarity"], enlarger=QUICK, tile_height=side, tile_width=side, tile=TILE, seed=1)
    upscaler = Upscaler("cpu")
    upscaler._assembled = loader.key(recipe), loader.Assembled(model=model, files=())
    return upscaler, recipe


def table(rows: list[dict[str, Any]], side: int) -> str:
    guide = (__doc__ or "").partition("[--write]\n\n")[2]
    text = f"""# How true results stay to their input

{guide}
{side}x{side} pixels, scale 2, enlarger's tile {TILE} pixels, diffusion's {LATENT_TILE} latent pixels; on
{os.cpu_count()} {platform.machine()} cores. To be met at the defaults: seam ratio at most 1.1, CIEDE2000 at most 1 in
the mean and 3 at the 95th percentile, PSNR of the result scaled down at least 34 dB, shift at most 0.1 pixels of the
input. What misses is in bold.

| engine | picture | PSNR dB | CIEDE2000 mean | p95 | shift px | seams | seams, contrast x 4 |
| --- | --- | --: | --: | --: | --: | --: | --: |
"""
    for row in rows:
        text += f"| {row['engine']} | {row['picture']} | {' | '.join(shown(row, name) for name in COLUMNS)} |\n"
    return text


def shown(row: dict[str, Any], name: str) -> str:
    value = row[name]
    if value is None:
        return ""
    limit = LIMITS.get(name, math.inf)
    missed = value < limit if name == "drift_db" else value > limit
    return f"**{value:g}**" if missed else f"{value:g}"


if __name__ == "__main__":
    main()
