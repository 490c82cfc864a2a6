"""Diffusion pipeline against diffusers' pipeline on the same tiles, and the work both have to compute.

    python -m benchmarks.engine [--width N] [--side N] [--device D] [--compile] [--write]
    python -m benchmarks.engine --model

The networks are of the real classes with random weights: speed does not depend on the weights. `--width` is the number
of channels of the UNet's first block: 320 is Stable Diffusion 1.5, smaller ones suit a CPU. Both sides get the same
networks, precision, memory layout, attention kernels, tiles, number of evaluations and embedded prompts. `--model`
counts the work of the real architecture without computing it.
"""

from __future__ import annotations

import argparse
import copy
import gc
import itertools
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.controlnets.controlnet import ControlNetModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.utils import logging
from numpy.typing import NDArray
from rich.progress import track
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPTextConfig, CLIPTextModel

from benchmarks import tables
from benchmarks.superres import machine, test_image
from hiresfix.engine import devices
from hiresfix.engine.diffusion import compiling, multidiffusion, peak_memory
from hiresfix.engine.diffusion import pipeline as hires_fix
from hiresfix.engine.diffusion.multidiffusion import Tile
from hiresfix.engine.diffusion.offload import NetworkGroups
from hiresfix.engine.diffusion.prompts import PromptEncoder
from hiresfix.engine.diffusion.sampling import SAMPLERS, NoiseTable
from hiresfix.engine.diffusion.vae import Autoencoder, Codec, Pixels
from hiresfix.engine.progress import ProgressCallback
from hiresfix.engine.superres import networks, tiled_inference
from hiresfix.engine.superres.networks import Network
from hiresfix.engine.weights import superres_files
from hiresfix.models.catalog import CLARITY, find_weights
from hiresfix.recipe import Recipe

RUNS = 3
REAL = 320
SAMPLER = "dpmpp-2m-sde-karras"
TOKENS, CLIP_WIDTH, WORDS = 77, 768, 49408
CLIP: dict[str, Any] = {
    "vocab_size": WORDS, "hidden_size": CLIP_WIDTH, "intermediate_size": 3072,
    "num_hidden_layers": 12, "num_attention_heads": 12,
}  # fmt: skip
DEFAULT_SIDE = 1024
H200_TFLOPS = 790.0
"""Dense bf16 of one H200 as measured for algorithm.md 13; the data sheet says 989."""

STAGES = ("text, super-resolution", "encoder", "hint, diffusion", "decoder", "account")

Pixels8 = NDArray[np.uint8]


@dataclass(frozen=True, slots=True, kw_only=True)
class Networks:
    """Networks of Stable Diffusion 1.x at some width; `context` is the width of an embedded token."""

    unet: UNet2DConditionModel
    controlnet: ControlNetModel
    vae: AutoencoderKL
    context: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineTiming:
    """Time of one way to run a job: median seconds after warm-up, counted TFLOP, peak device memory on CUDA."""

    way: str
    seconds: float
    tflop: float
    peak_gib: float | None
    note: str = ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=64, help="channels of the UNet's first block, a multiple of 32")
    parser.add_argument(
        "--side", type=int, default=512, help="side of the input in pixels; that of the result is twice as large"
    )
    parser.add_argument("--device", default="auto")
    parser.add_argument("--compile", action="store_true", help="also measure both with torch.compile")
    parser.add_argument("--model", action="store_true", help="only count what the real architecture computes")
    parser.add_argument("--write", action="store_true", help="write the tables under benchmarks/results")
    arguments = parser.parse_args()
    device = devices.choose_device(arguments.device)
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    if arguments.model:
        name, text, data = "engine-model", *model_of_work()
    else:
        name = f"engine-{device.type}"
        text, data = side_by_side(arguments.width, arguments.side, device, compiled=arguments.compile)
    tables.publish(name, text, data, write=arguments.write)


def build_networks(width: int, device: torch.device, dtype: torch.dtype, *, vae_dtype: torch.dtype) -> Networks:
    """Return Stable Diffusion 1.5 with `width` instead of 320 channels, the rest in proportion."""
    blocks = (width, width * 2, width * 4, width * 4)
    context = CLIP_WIDTH * width // REAL // 8 * 8
    down = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",)
    shape: dict[str, Any] = {"block_out_channels": blocks, "cross_attention_dim": context, "attention_head_dim": 8}
    torch.manual_seed(0)
    with device if device.type == "meta" else torch.device("cpu"):
        unet = UNet2DConditionModel(sample_size=64, down_block_types=down, **shape)
        hint = tuple(max(8, side * width // REAL) for side in (16, 32, 96, 256))
        controlnet = ControlNetModel(down_block_types=down, conditioning_embedding_out_channels=hint, **shape)
        side = max(32, 128 * width // REAL // 32 * 32)
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(side, side * 2, side * 4, side * 4),
            layers_per_block=2,
            latent_channels=4,
            sample_size=512,
        )
    # The method of torch: that of diffusers warns about layers that should stay in float32; there are none.
    place: Any = nn.Module.to
    for network, precision in ((unet, dtype), (controlnet, dtype), (vae, vae_dtype)):
        place(network, device, precision, memory_format=torch.channels_last).eval().requires_grad_(False)
    return Networks(unet=unet, controlnet=controlnet, vae=vae, context=context)


def stable_diffusion(recipe: Recipe) -> hires_fix.DiffusionModel:
    """Return the real architecture in half precision on the meta device, for planning."""
    nets = build_networks(REAL, torch.device("meta"), torch.float16, vae_dtype=torch.float16)
    with torch.device("meta"):
        text: Any = CLIPTextModel(CLIPTextConfig(**CLIP))
    return hires_fix.DiffusionModel(
        unet=nets.unet,
        controlnet=nets.controlnet,
        prompt_encoder=PromptEncoder(text.half(), []),
        codec=Autoencoder(network=nets.vae),
        network_groups=_network_groups(nets, text, recipe, torch.device("meta")),
    )


def _network_groups(nets: Networks, text: nn.Module, recipe: Recipe, device: torch.device) -> NetworkGroups:
    tile = peak_memory.evaluation_bytes(
        nets.unet, nets.controlnet, height=recipe.tile_height, width=recipe.tile_width, factor=8
    )
    return NetworkGroups(
        device=device, text=(text,), denoising=(nets.unet, nets.controlnet), autoencoder=(nets.vae,), tile=tile
    )


# --- side by side ---


def side_by_side(width: int, side: int, device: torch.device, *, compiled: bool) -> tuple[str, Any]:
    dtype = devices.choose_dtype(device)
    vae_dtype = torch.float32 if device.type == "cpu" else dtype  # as the engine has it
    nets = build_networks(width, device, dtype, vae_dtype=vae_dtype)
    weight = find_weights("realesr-animevideov3")
    assert weight is not None
    upscale_network = networks.place(superres_files.load(weight), device, dtype)
    rgb = test_image(side)
    benchmark = _Benchmark(nets=nets, upscale_network=upscale_network, rgb=rgb, device=device)
    timings = [
        benchmark.time_hiresfix("clarity-classic"),
        benchmark.time_hiresfix("clarity"),
        benchmark.time_diffusers(together=True),
    ]
    timings.append(benchmark.time_diffusers(together=False))
    if compiled:
        compiling.compile_blocks(nets.unet, nets.controlnet)
        timings += [
            benchmark.time_hiresfix("clarity-classic", note="torch.compile"),
            benchmark.time_diffusers(together=True, note="compile"),
        ]
    stages = benchmark.stages()
    data = {"timings": [asdict(timing) for timing in timings], "stages": stages}
    return _report(benchmark, width, timings, stages), data


@dataclass(frozen=True, slots=True, kw_only=True)
class _Benchmark:
    nets: Networks
    upscale_network: Network
    rgb: Pixels8
    device: torch.device

    @property
    def recipe(self) -> Recipe:
        """The default job without colour lock and third-order solver, which diffusers does not have."""
        return replace(CLARITY.presets["clarity"], seed=1, colour_lock=0.0, sampler=SAMPLER)

    @property
    def classic(self) -> Recipe:
        return replace(self.recipe, classic=True)

    @property
    def tiles(self) -> tuple[Tile, ...]:
        """Tiles of the original program, used by both sides."""
        latent = len(self.rgb) * 2 // 8
        recipe = self.recipe
        grid = multidiffusion.classic_grid(latent, latent, tile_height=recipe.tile_height, tile_width=recipe.tile_width)
        return grid.tiles(0)

    @property
    def evaluations(self) -> int:
        sampler = SAMPLERS[SAMPLER]
        recipe = self.recipe
        return len(sampler.sigmas(NoiseTable.scaled_linear(), recipe.steps, recipe.creativity)) - 1

    @torch.inference_mode()
    def time_hiresfix(self, preset: str, note: str = "") -> PipelineTiming:
        recipe = self.classic if preset == "clarity-classic" else self.recipe
        model = self.model()
        x = self.rgb
        batch = f"{len(self.tiles)} tiles" if recipe.classic else "feathered, moving tiles"
        return self.timed(
            f"hiresfix {preset}",
            lambda: hires_fix.run(model, self.upscale_network, x, recipe, _silent),
            note=note or batch,
        )

    def model(self) -> hires_fix.DiffusionModel:
        text = _text_encoder(self.nets.context).to(self.device, self.nets.unet.dtype)
        prompt_encoder = PromptEncoder(text, [])
        codec = Autoencoder(network=self.nets.vae)
        embedded_prompts = {}

        def embed_once(text: str, loras: Any) -> Any:
            # Both sides get embedded prompts.
            if text not in embedded_prompts:
                embedded_prompts[text] = prompt_encoder(text, loras)
            return embedded_prompts[text]

        return hires_fix.DiffusionModel(
            unet=self.nets.unet,
            controlnet=self.nets.controlnet,
            prompt_encoder=embed_once,  # type: ignore[arg-type] # as the class, remembering
            codec=codec,
            network_groups=_network_groups(self.nets, text, self.recipe, self.device)
            if self.device.type != "cpu"
            else None,
        )

    @torch.inference_mode()
    def time_diffusers(self, *, together: bool, note: str = "") -> PipelineTiming:
        """Time the pipeline of diffusers on the tiles of the upscaled image, each as an image."""
        pipeline = _pipeline(self.nets)
        generator = torch.Generator().manual_seed(1)
        context = self.nets.context
        prompt, negative = (torch.randn(1, TOKENS, context).to(self.device, self.nets.unet.dtype) for _ in range(2))
        evaluations, recipe, tiles = self.evaluations, self.recipe, self.tiles

        def run() -> None:
            upscaled = tiled_inference.upscale(
                self.upscale_network,
                self.rgb,
                recipe.tile,
                factor=2,
                postprocess=lambda y, x: y.clamp(0, 1),
                report=_silent,
            )
            pixels = torch.from_numpy(upscaled).permute(2, 0, 1)[None].to(self.device, torch.float32) / 255
            hint = (
                hires_fix.make_control_image(self.rgb, upscaled.shape[0], upscaled.shape[1], 2, self.device).to(
                    self.device
                )
                / 255
            )
            groups = [list(tiles)] if together else [[tile] for tile in tiles]
            for group in groups:
                pipeline(
                    image=torch.cat([tile.crop(pixels, 8) for tile in group]),
                    control_image=torch.cat([tile.crop(hint, 8) for tile in group]),
                    prompt_embeds=prompt.repeat(len(group), 1, 1),
                    negative_prompt_embeds=negative.repeat(len(group), 1, 1),
                    num_inference_steps=recipe.steps,
                    strength=(evaluations + 0.5) / recipe.steps,
                    guidance_scale=recipe.dynamic,
                    controlnet_conditioning_scale=recipe.resemblance,
                    generator=generator,
                    output_type="np",
                )

        way = "diffusers, tiles in one batch" if together else "diffusers, tile by tile"
        return self.timed(way, run, note=note)

    def timed(self, way: str, run: Callable[[], object], note: str = "") -> PipelineTiming:
        run()  # nothing is compiled while operators are counted
        with FlopCounterMode(display=False) as counter:
            run()
        if self.device.type == "cuda":
            gc.collect()
            torch.cuda.reset_peak_memory_stats(self.device)
        seconds = [self.clock(run) for _ in track(range(RUNS), description=way, transient=True)]
        cuda = self.device.type == "cuda"
        return PipelineTiming(
            way=way,
            seconds=round(statistics.median(seconds), 3),
            tflop=round(counter.get_total_flops() / 1e12, 3),
            peak_gib=round(torch.cuda.max_memory_allocated(self.device) / 2**30, 2) if cuda else None,
            note=note,
        )

    def clock(self, run: Callable[[], object]) -> float:
        self.settle()
        start = time.perf_counter()
        run()
        self.settle()
        return time.perf_counter() - start

    def settle(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    @torch.inference_mode()
    def stages(self) -> list[dict[str, Any]]:
        """Time our stages: the intervals between the calls that `hires_fix.run` makes to its codec."""
        with FlopCounterMode(display=False) as counter:
            counted = self._stage_marks(lambda: counter.get_total_flops())
        timed = [self._stage_marks(self._now) for _ in range(RUNS)]
        seconds = [statistics.median(run[stage] for run in timed) for stage in range(len(STAGES))]
        return [
            {"stage": name, "seconds": round(took, 3), "tflop": round(flop / 1e12, 3)}
            for name, took, flop in zip(STAGES, seconds, counted, strict=True)
        ]

    def _now(self) -> float:
        self.settle()
        return time.perf_counter()

    def _stage_marks(self, read: Callable[[], float]) -> list[float]:
        """Return the growth of `read` in each of `STAGES`."""
        model = self.model()
        marked = _Marked(model.codec, read)
        recipe = self.classic
        hires_fix.run(replace(model, codec=marked), self.upscale_network, self.rgb, recipe, _silent)
        marked.mark()
        return [after - before for before, after in itertools.pairwise(marked.marks)]


class _Marked:
    """Codec that reads a counter before and after each call, and once at the start."""

    def __init__(self, codec: Codec, read: Callable[[], float]) -> None:
        self._codec, self._read = codec, read
        self.factor, self.channels = codec.factor, codec.channels
        self.marks = [read()]

    def mark(self) -> None:
        self.marks.append(self._read())

    def encode(self, pixels: Pixels, report: ProgressCallback) -> Tensor:
        self.mark()
        latent = self._codec.encode(pixels, report)
        self.mark()
        return latent

    def decode(self, latent: Tensor, out: Any, report: ProgressCallback, *, truncate: bool = False) -> None:
        self.mark()
        self._codec.decode(latent, out, report, truncate=truncate)
        self.mark()


def _silent(fraction: float) -> None:
    pass


def _text_encoder(width: int) -> Any:
    torch.manual_seed(0)
    heads = max(1, width // 64)
    config = CLIPTextConfig(
        vocab_size=WORDS,
        hidden_size=width // heads * heads,
        intermediate_size=width,
        num_hidden_layers=1,
        num_attention_heads=heads,
    )
    network: Any = CLIPTextModel(config)
    return network.eval()


def _pipeline(nets: Networks) -> Any:
    import diffusers

    library: Any = diffusers  # its classes are untyped
    vae: Any = copy.deepcopy(nets.vae)
    pipeline = library.StableDiffusionControlNetImg2ImgPipeline(
        vae=vae.to(nets.unet.dtype),  # it knows one precision only
        text_encoder=None,
        tokenizer=None,
        unet=nets.unet,
        controlnet=nets.controlnet,
        scheduler=library.DPMSolverMultistepScheduler(
            beta_schedule="scaled_linear",
            beta_start=0.00085,
            beta_end=0.012,
            algorithm_type="sde-dpmsolver++",
            use_karras_sigmas=True,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _report(benchmark: _Benchmark, width: int, timings: list[PipelineTiming], stages: list[dict[str, Any]]) -> str:
    first, tiles = timings[0], benchmark.tiles
    side = len(benchmark.rgb)
    where = torch.cuda.get_device_name(benchmark.device) if benchmark.device.type == "cuda" else machine()
    dtype = str(benchmark.nets.unet.dtype).removeprefix("torch.")
    lines = [
        "# Diffusion pipeline against diffusers",
        "",
        f"{side}x{side} -> {side * 2}x{side * 2}, Stable Diffusion 1.5 with {width} channels instead of {REAL},",
        f"random weights, {dtype}; {benchmark.evaluations} evaluations of {len(tiles)} tiles of",
        f"{tiles[0].width}x{tiles[0].height} with both halves of guidance;",
        f"super-resolution realesr-animevideov3. Median of {RUNS} after a warm-up run.",
        f"{where}",
        "",
        "TFLOP are counted at run time (multiply-add = 2). The classic preset and diffusers work on the same tiles;",
        "diffusers encodes and decodes each tile alone, on a CPU in bfloat16 because it has only one precision;",
        "hiresfix does so with the whole image, on a CPU in float32.",
        "",
        "| way | s | ratio | TFLOP | TFLOP/s | peak GiB | |",
        "| --- | --: | --: | --: | --: | --: | --- |",
    ]
    for f in timings:
        peak = "" if f.peak_gib is None else f"{f.peak_gib:.2f}"
        lines.append(
            f"| {f.way} | {f.seconds:.2f} | {f.seconds / first.seconds:.2f} | {f.tflop:.2f} "
            f"| {f.tflop / f.seconds:.2f} | {peak} | {f.note} |"
        )
    lines += ["", "## Stages of clarity-classic", "", "| stage | s | TFLOP | TFLOP/s |", "| --- | --: | --: | --: |"]
    for row in stages:
        rate = row["tflop"] / max(row["seconds"], 1e-9)
        lines.append(f"| {row['stage']} | {row['seconds']:.2f} | {row['tflop']:.3f} | {rate:.2f} |")
    return "\n".join(lines) + "\n"


# --- work of the real architecture ---


def model_of_work() -> tuple[str, Any]:
    """Count the TFLOP of a job of 1024x1024 -> 2048x2048 by part, on networks without weights."""
    meta = torch.device("meta")
    nets = build_networks(REAL, meta, torch.float32, vae_dtype=torch.float32)
    recipe = CLARITY.presets["clarity"]
    latent = DEFAULT_SIDE * 2 // 8
    sizes = {"tile_height": recipe.tile_height, "tile_width": recipe.tile_width}
    classic = multidiffusion.classic_grid(latent, latent, **sizes)
    feathered = multidiffusion.feathered_grid(latent, latent, **sizes)
    sampler = SAMPLERS[recipe.sampler]
    evaluations = len(sampler.sigmas(NoiseTable.scaled_linear(), recipe.steps, recipe.creativity)) - 1
    super_resolution = 35.85e6 * DEFAULT_SIDE**2 / 1e12  # RRDBNet, for each input pixel (algorithm.md 13)
    rows, parts = (
        [],
        {"encoder": _encoding(nets, latent), "decoder": _decoding(nets, latent), "super_resolution": super_resolution},
    )
    for name, grid in (("clarity-classic", classic), ("clarity", feathered)):
        tile, count = grid.tiles(0)[0], len(grid.tiles(0))
        unet, control = _unet_work(nets, tile), _control_work(nets, tile)
        diffusion = 2 * evaluations * count * (unet + control)
        total = diffusion + sum(parts.values())
        rows.append(
            {
                "preset": name,
                "tiles": count,
                "tile": f"{tile.width}x{tile.height}",
                "unet_sample": round(unet, 3),
                "controlnet_sample": round(control, 3),
                "diffusion": round(diffusion, 1),
                **{part: round(work, 1) for part, work in parts.items()},
                "total": round(total, 1),
                "floor_s": round(total / H200_TFLOPS, 2),
            }
        )
    return _model_report(rows, evaluations), rows


def _counted(run: Callable[[], object]) -> float:
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        run()
    return float(counter.get_total_flops()) / 1e12


def _sample(nets: Networks, tile: Tile) -> tuple[Tensor, Tensor, Tensor]:
    meta = torch.device("meta")
    x = torch.empty(1, 4, tile.height, tile.width, device=meta)
    return x, torch.empty(1, device=meta), torch.empty(1, TOKENS, nets.context, device=meta)


def _unet_work(nets: Networks, tile: Tile) -> float:
    return _counted(lambda: nets.unet(*_sample(nets, tile)))


def _control_work(nets: Networks, tile: Tile) -> float:
    """Count without the encoder of the control image, which runs once per job."""
    x, t, text = _sample(nets, tile)
    hint = torch.empty(1, 3, tile.height * 8, tile.width * 8, device=x.device)
    encoder: nn.Module = nets.controlnet.controlnet_cond_embedding
    return _counted(lambda: nets.controlnet(x, t, text, hint)) - _counted(lambda: encoder(hint))


def _encoding(nets: Networks, latent: int) -> float:
    return _counted(lambda: nets.vae.encoder(torch.empty(1, 3, latent * 8, latent * 8, device="meta")))


def _decoding(nets: Networks, latent: int) -> float:
    return _counted(lambda: nets.vae.decoder(torch.empty(1, 4, latent, latent, device="meta")))


def _model_report(rows: list[dict[str, Any]], evaluations: int) -> str:
    columns = list(rows[0])
    lines = [
        "# Work of a job",
        "",
        f"{DEFAULT_SIDE}x{DEFAULT_SIDE} -> {DEFAULT_SIDE * 2}x{DEFAULT_SIDE * 2}, Stable Diffusion 1.5, tile",
        f"ControlNet and a 4x RRDBNet at the defaults, {evaluations} evaluations: TFLOP, counted on networks without",
        "weights (multiply-add = 2).",
        f"floor_s: the total at {H200_TFLOPS:.0f} TFLOP/s, dense bfloat16 of an H200: a bound, not measured.",
        "",
        "| " + " | ".join(columns) + " |",
        "| --- |" + " --: |" * (len(columns) - 1),
        *("| " + " | ".join(str(row[column]) for column in columns) + " |" for row in rows),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
