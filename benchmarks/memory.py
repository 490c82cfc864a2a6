"""How much memory of the host a picture takes, by its size: each case in a process of its own.

    python -m benchmarks.memory [--most SIDE] [--write]

Peak resident memory (ru_maxrss) above what the process takes with everything imported and its networks loaded, and in
all. The networks are of the real classes and tiny, with random weights: what they hold is small, so what grows with the
picture shows; what real ones hold depends on the tile, and is bounded by `engine/residence.py` on a device of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
LIMIT_GB = 6.0
SIDES = (512, 1024, 2048, 4096)
ENGINES = ("faithful", "offline", "clarity")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--most", type=int, default=SIDES[-1], help="longest side of an input, in pixels")
    parser.add_argument("--write", action="store_true", help="write the table under benchmarks/results")
    parser.add_argument("--case", nargs=2, metavar=("ENGINE", "SIDE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(measure(arguments.case[0], int(arguments.case[1]))))
        return
    rows = []
    for engine in ENGINES:
        for side in (side for side in SIDES if side <= arguments.most):
            command = [sys.executable, "-m", "benchmarks.memory", "--case", engine, str(side)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            rows.append(json.loads(done.stdout.splitlines()[-1]))
            print(rows[-1], flush=True)
    text = table(rows)
    print(text)
    if arguments.write:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "memory.md").write_text(text, encoding="utf-8")
        (RESULTS / "memory.json").write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


def measure(engine: str, side: int) -> dict[str, Any]:
    """One case, in this process, which must not have run another before."""
    import numpy as np
    import torch

    torch.set_num_threads(1)
    enlarge = prepared(engine)
    rng = np.random.default_rng(0)
    with torch.inference_mode():
        enlarge(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8))
        baseline = peak_gb()
        rgb = np.empty((side, side, 3), np.uint8)
        for row in range(side):  # row by row, so that drawing it takes no memory itself
            rgb[row] = rng.integers(0, 256, (side, 3), dtype=np.uint8)
        started = time.perf_counter()
        result = enlarge(rgb)
    assert result.shape == (2 * side, 2 * side, 3)
    return {
        "engine": engine,
        "side": side,
        "result_mp": round(4 * side**2 / 2**20, 2),
        "baseline_gb": round(baseline, 2),
        "above_gb": round(peak_gb() - baseline, 2),
        "pixels_gb": round((rgb.nbytes + result.nbytes) / 1e9, 2),
        "peak_gb": round(peak_gb(), 2),
        "seconds": round(time.perf_counter() - started),
    }


def peak_gb() -> float:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def prepared(engine: str) -> Callable[[Any], Any]:
    """A picture's samples to those of its enlargement by `Upscaler.run`, at scale 2 and otherwise default."""
    from dataclasses import replace

    from benchmarks import tiny
    from hiresfix.catalog import CLARITY, FAITHFUL
    from hiresfix.images import Picture

    preset = FAITHFUL.preset if engine == "faithful" else CLARITY.presets[engine]
    upscaler, recipe = tiny.upscaler(replace(preset, enlarger=tiny.ENLARGER, steps=4))
    return lambda rgb: upscaler.run(Picture(rgb=rgb), recipe, lambda fraction: None).picture.rgb


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        f"""# Memory of the host, by the size of the picture

Scale 2, 8 bits, one process a case, {os.cpu_count()} {platform.machine()} cores, Python {platform.python_version()}.
Tiny networks of the real classes with random weights, on the CPU. Baseline: everything imported, networks loaded, one
small picture done. Pixels: the samples of input and result, without which nothing can be done. A result of 64
megapixels is to fit into {LIMIT_GB:.0f} GB in all.

| engine | result MP | baseline GB | above it GB | of it pixels GB | in all GB |
| --- | --: | --: | --: | --: | --: |"""
    ]
    lines += [
        f"| {row['engine']} | {row['result_mp']:g} | {row['baseline_gb']} | {row['above_gb']} | {row['pixels_gb']} "
        f"| {row['peak_gb']} |"
        for row in rows
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
