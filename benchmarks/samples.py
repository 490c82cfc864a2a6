"""Sample images of the model pages, made again with the parameters that the pages show.

    python -m benchmarks.samples [--only NAME]

Reads the small images in the static files of the package and writes the large ones next to them. On a CPU each takes
about a minute; another device gives pixels that differ in the last bit.
"""

from __future__ import annotations

import argparse

import numpy as np
from PIL import Image

from benchmarks.run_cache import RunCache
from hiresfix.server.web.samples import SAMPLES, SampleImage
from hiresfix.server.web.static_files import FOLDER

QUALITY = 82


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=[sample.name for sample in SAMPLES], help="one sample")
    only = parser.parse_args().only
    runs = RunCache()
    for sample in SAMPLES:
        if only in (None, sample.name):
            print(f"{sample.name}: {make(runs, sample):.0f} s")


def make(runs: RunCache, sample: SampleImage) -> float:
    """Write the large image and return the CPU seconds it took."""
    rgb = np.asarray(Image.open(FOLDER / sample.before).convert("RGB"))
    # Models without randomness get seed 0.
    result = runs.upscale(rgb, sample.model.recipe({"image": "", **sample.params}, seed=0))
    Image.fromarray(result.rgb).save(FOLDER / sample.after, quality=QUALITY, method=6)
    return result.seconds


if __name__ == "__main__":
    main()
