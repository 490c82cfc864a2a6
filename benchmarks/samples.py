"""The samples on the pages, made again with the settings that the pages show.

    python -m benchmarks.samples [--only NAME]

Reads the small pictures beside which it writes the large ones, in the package's static files. On a CPU each takes about
a minute; another device gives pixels that differ in the last bit.
"""

from __future__ import annotations

import argparse

import numpy as np
from PIL import Image

from hiresfix.server.web.samples import SAMPLES, Sample
from hiresfix.server.web.static_files import FOLDER

from .runs import Runs

QUALITY = 82


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=[sample.name for sample in SAMPLES], help="one sample")
    only = parser.parse_args().only
    runs = Runs()
    for sample in SAMPLES:
        if only in (None, sample.name):
            print(f"{sample.name}: {make(runs, sample):.0f} s")


def make(runs: Runs, sample: Sample) -> float:
    """Write the large picture; the seconds of processor time it took."""
    rgb = np.asarray(Image.open(FOLDER / sample.before).convert("RGB"))
    # Seed 0 for models that draw nothing at random.
    made = runs.upscale(rgb, sample.model.recipe({"image": "", **sample.params}, seed=0))
    Image.fromarray(made.rgb).save(FOLDER / sample.after, quality=QUALITY, method=6)
    return made.seconds


if __name__ == "__main__":
    main()
