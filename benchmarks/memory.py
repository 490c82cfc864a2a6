"""Memory of the host by image size; each case runs in its own process.

    python -m benchmarks.memory [--max-side SIDE] [--write]
    python -m benchmarks.memory --model [--write]

Peak resident memory (ru_maxrss): in total, and above that of the process with everything imported and its networks
loaded. The networks are tiny ones of the real classes with random weights, so the numbers show what grows with the
image. `engine/diffusion/offload.py` plans the memory of real networks on a separate device: `--model` shows its plans
for Stable Diffusion 1.5, from the shapes of all tensors, and measures nothing.
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
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks import tables

LIMIT_GB = 6.0
SIDES = (512, 1024, 2048, 4096)
RESULT_SIDES = (2048, 4096, 8192)
DEVICES_GB = (4, 6, 8, 12, 24, 80)
ENGINES = ("faithful", "offline", "clarity")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--max-side", type=int, default=SIDES[-1], help="largest input side in pixels")
    parser.add_argument("--model", action="store_true", help="only the plans for separate devices")
    parser.add_argument("--write", action="store_true", help="write the table under benchmarks/results")
    parser.add_argument("--case", nargs=2, metavar=("ENGINE", "SIDE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(measure(arguments.case[0], int(arguments.case[1]))))
        return
    if arguments.model:
        rows = list(plans())
        tables.publish("memory-model", plans_table(rows), rows, write=arguments.write)
        return
    rows = []
    for engine in ENGINES:
        for side in (side for side in SIDES if side <= arguments.max_side):
            command = [sys.executable, "-m", "benchmarks.memory", "--case", engine, str(side)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            rows.append(json.loads(done.stdout.splitlines()[-1]))
            print(rows[-1], flush=True)
    tables.publish("memory", table(rows), rows, write=arguments.write)


def measure(engine: str, side: int) -> dict[str, Any]:
    """Measure one case in this process, which must not have run another one before."""
    import numpy as np
    import torch

    torch.set_num_threads(1)
    upscale = prepare_upscale(engine)
    rng = np.random.default_rng(0)
    with torch.inference_mode():
        upscale(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8))
        baseline = peak_gb()
        rgb = np.empty((side, side, 3), np.uint8)
        for row in range(side):  # row by row, so that filling it takes no extra memory
            rgb[row] = rng.integers(0, 256, (side, 3), dtype=np.uint8)
        started = time.perf_counter()
        result = upscale(rgb)
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


def prepare_upscale(engine: str) -> Callable[[Any], Any]:
    """Return a function that upscales an array with `Upscaler.run`, at scale 2 and otherwise default."""
    from dataclasses import replace

    from benchmarks import tiny_networks
    from hiresfix.images import DecodedImage
    from hiresfix.models.catalog import CLARITY, FAITHFUL

    preset = FAITHFUL.preset if engine == "faithful" else CLARITY.presets[engine]
    upscaler, recipe = tiny_networks.upscaler(replace(preset, enlarger=tiny_networks.NETWORK, steps=4))
    return lambda rgb: upscaler.run(DecodedImage(rgb=rgb), recipe, lambda fraction: None).image.rgb


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        f"""# Memory of the host by image size

Scale 2, 8 bits, one process per case, {os.cpu_count()} {platform.machine()} cores, Python {platform.python_version()}.
Tiny networks of the real classes with random weights, on the CPU. Baseline: everything imported, networks loaded, one
small image done. Pixels: the samples of input and result, which are always needed. Goal: a result of 64 megapixels
fits into {LIMIT_GB:.0f} GB in total.

| engine | result MP | baseline GB | above it GB | of which pixels GB | total GB |
| --- | --: | --: | --: | --: | --: |"""
    ]
    lines += [
        f"| {row['engine']} | {row['result_mp']:g} | {row['baseline_gb']} | {row['above_gb']} | {row['pixels_gb']} "
        f"| {row['peak_gb']} |"
        for row in rows
    ]
    return "\n".join(lines) + "\n"


def plans() -> Iterator[dict[str, Any]]:
    """Yield the plan for each device, with half a gigabyte left to its driver."""
    from dataclasses import replace

    from benchmarks.engine import stable_diffusion
    from hiresfix.engine.diffusion import offload
    from hiresfix.engine.diffusion.vae import Autoencoder
    from hiresfix.errors import EngineFailed
    from hiresfix.models.catalog import CLARITY

    recipe = CLARITY.presets["clarity"]
    model = stable_diffusion(recipe)
    codec = model.codec
    assert isinstance(codec, Autoencoder)
    for side in RESULT_SIDES:
        need = model.memory_need(recipe, side, side)
        for device in DEVICES_GB:
            row: dict[str, Any] = {"result_mp": side**2 >> 20, "device_gb": device, "tiles": need.tiles}
            try:
                plan = offload.make_plan(int((device - 0.5) * 2**30), need)
                repetition = replace(codec, budget=plan.autoencoder_bytes).recompute_factor(side // 8, side // 8)
                taken = replace(
                    plan, autoencoder_bytes=min(plan.autoencoder_bytes, codec.single_pass_bytes(side // 8, side // 8))
                )
            except EngineFailed as error:
                yield {**row, "refused": error.message}
                continue
            yield {
                **row,
                "together": plan.all_on_device,
                "batch": plan.batch,
                "decoder_work": round(repetition, 1),
                "peak_gb": round(taken.peak_bytes(need) / 2**30, 1),
            }


def plans_table(rows: list[dict[str, Any]]) -> str:
    lines = [
        """# Planned memory of a separate device

Stable Diffusion 1.5 with its tile ControlNet in half precision, preset `clarity`: the plan of the engine for such a
device, from the shapes of all tensors, with half a gigabyte left to the driver. Nothing here is measured. Networks:
"together" if all stay on the device, "in turns" if only the active ones do and the others wait in host memory. Decoder
work: relative to decoding in one piece, because parts overlap.

| result MP | device GB | networks | tiles at once | decoder work | peak GB |
| --: | --: | --- | --: | --: | --: |"""
    ]
    for row in rows:
        start = f"| {row['result_mp']} | {row['device_gb']} "
        if "refused" in row:
            lines.append(f"{start}| refused: {row['refused']} | | | |")
            continue
        where = "together" if row["together"] else "in turns"
        tiles = f"{row['batch']} of {row['tiles']}"
        lines.append(f"{start}| {where} | {tiles} | {row['decoder_work']} | {row['peak_gb']} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
