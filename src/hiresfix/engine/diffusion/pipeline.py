"""Hi-res fix pipeline: upscale, add noise, and let a diffusion model restore detail, tile by tile.

Guarantees:

- The result is exactly `scale` times the input and has its bit depth.
- The same recipe on the same device gives the same pixels. The noise is the same on every device.
- Cancelling takes effect within one batch of tiles.

Scales above 2 run as several passes of factor 2, each with less creativity and its own seed (algorithm.md 2).
`recipe.classic` computes what the original computes, except for its listed defects (algorithm.md 15): uniform tiles
that do not move, noise levels in float16, an upscale network that gets blue first and is reduced by Lanczos,
rounding down, and sharpening with halos. Otherwise: feathered tiles on a moving grid, exact noise levels, and back
projection that keeps the result faithful to the input. Independent of files, jobs and transparency.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from hiresfix.engine import devices, progress
from hiresfix.engine.analysis import colour_lock
from hiresfix.engine.diffusion import guidance, multidiffusion, prompts
from hiresfix.engine.diffusion.guidance import PREDICTIONS, Conditioning, Prediction
from hiresfix.engine.diffusion.multidiffusion import Grid
from hiresfix.engine.diffusion.offload import MemoryNeed, NetworkGroups, OffloadPlan
from hiresfix.engine.diffusion.prompts import LoraTag, PromptEncoder
from hiresfix.engine.diffusion.sampling import SAMPLERS, Noise, NoiseTable, Sampler, add_noise
from hiresfix.engine.diffusion.vae import DEFAULT_BUDGET, Autoencoder, Codec
from hiresfix.engine.pixels import resampling, tiling
from hiresfix.engine.pixels.arrays import ImageArray
from hiresfix.engine.pixels.tiling import Span
from hiresfix.engine.progress import ProgressCallback
from hiresfix.engine.superres import tiled_inference
from hiresfix.engine.superres.networks import Network
from hiresfix.errors import BadResult, ConfigurationError
from hiresfix.recipe import Recipe

if TYPE_CHECKING:
    from diffusers.models.controlnets.controlnet import ControlNetModel
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

MIN_LATENT_SIDE = 8
"""Latent pixels. A smaller image is extended by its mirror image, and the result is cropped."""
_BAND_ROWS = 256
"""Rows of pixels that are resized or sharpened at once."""
_BACK_PROJECTION_SHARE = 0.02
"""Share of the whole work; it follows the last pass."""
_BACK_PROJECTION_ROUNDS = 3
"""With so many rounds, even untrained networks stay within a colour difference of 1 at the defaults."""
_LATENT_COPIES = 12
"""Copies of the latent at the worst moment: state, two changes, sums of tiles, noise and intermediate results."""

# For an output of 4 MP, and one evaluation (algorithm.md 13). Only the ratios matter.
_UPSCALE_TFLOP, _ENCODE_TFLOP, _EVALUATION_TFLOP, _DECODE_TFLOP = 37.6, 26.1, 75.0, 48.5

MergeLoras = Callable[[Sequence[LoraTag]], tuple[str, ...]]
"""Replaces the LoRAs in UNet and text encoder by these; returns one sentence for each problem."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DiffusionModel:
    """The networks of one checkpoint, ready to run on one device.

    Args:
        unet: The UNet.
        controlnet: The tile ControlNet, if there is one.
        prompt_encoder: Encodes prompts.
        codec: Converts between pixels and latents.
        merge: Merges LoRAs into the networks.
        prediction: How the denoised latent follows from the UNet's output.
        batch: Tiles in one batch, to begin with.
        network_groups: The same networks, if each image needs a memory plan; None moves and limits nothing.
        plan: The memory plan of the current image.
    """

    unet: UNet2DConditionModel
    controlnet: ControlNetModel | None
    prompt_encoder: PromptEncoder
    codec: Codec
    merge: MergeLoras = lambda loras: ()
    prediction: Prediction = PREDICTIONS["epsilon"]
    batch: int = 1
    network_groups: NetworkGroups | None = None
    plan: OffloadPlan | None = None

    @property
    def device(self) -> torch.device:
        """Device on which the networks compute, even while they wait on the host."""
        return self.unet.device if self.network_groups is None else self.network_groups.device

    def with_plan(self, recipe: Recipe, height: int, width: int) -> DiffusionModel:
        """Return the model with a memory plan for a result of height x width pixels.

        Raises:
            EngineFailed: The device is too small.
        """
        if self.network_groups is None or not isinstance(self.codec, Autoencoder):
            return self
        plan = self.network_groups.plan(self.memory_need(recipe, height, width))
        if plan is None:
            return self
        return replace(self, plan=plan, batch=plan.batch, codec=replace(self.codec, budget=plan.autoencoder_bytes))

    def memory_need(self, recipe: Recipe, height: int, width: int) -> MemoryNeed:
        """Return the memory that a result of height x width pixels needs.

        Requires `network_groups` and a codec of type `Autoencoder`.
        """
        assert self.network_groups is not None
        assert isinstance(self.codec, Autoencoder)
        height, width = (-(-side // self.codec.factor) for side in (height, width))
        return self.network_groups.memory_need(
            canvas=self._canvas_bytes(height * width),
            autoencoder_bytes=min(DEFAULT_BUDGET, self.codec.single_pass_bytes(height, width)),
            tiles=len(_grid(recipe, height, width).tiles(0)),
        )

    def activate(self, choose: Callable[[NetworkGroups], tuple[nn.Module, ...]]) -> None:
        """Move these networks to the device, offloading the others if planned."""
        if self.network_groups is not None and self.plan is not None:
            self.network_groups.activate(choose(self.network_groups), self.plan)

    def _canvas_bytes(self, pixels: int) -> int:
        """Return the bytes of the sampler's latents and the encoded control image, for so many latent pixels."""
        latents = _LATENT_COPIES * self.codec.channels * torch.float32.itemsize
        network = self.controlnet
        control = 0 if network is None else network.config["block_out_channels"][0] * network.dtype.itemsize
        return pixels * (latents + control)


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineResult:
    """The upscaled image and how it was made.

    Args:
        rgb: The image.
        rows: Pixel rows at which tiles of the last pass meet.
        columns: Pixel columns at which tiles of the last pass meet.
        loras: The merged LoRAs.
        warnings: One sentence for each part of the prompt or LoRA that was ignored.
    """

    rgb: ImageArray
    rows: tuple[int, ...]
    columns: tuple[int, ...]
    loras: tuple[LoraTag, ...]
    warnings: tuple[str, ...]


def pass_factors(scale: int) -> list[int]:
    """Return the factor of each pass: 2 for each doubling, or a single 1."""
    return [2] * (scale.bit_length() - 1) or [1]


def run(
    model: DiffusionModel,
    upscale_network: Network,
    rgb: ImageArray,
    recipe: Recipe,
    report: ProgressCallback,
    *,
    severity: float = 0.0,
) -> PipelineResult:
    """Upscale an image by `recipe.scale`.

    Args:
        model: The networks to use.
        upscale_network: Super-resolution network that upscales before diffusion.
        rgb: (H, W, 3), uint8 or uint16.
        recipe: All parameters.
        report: Gets the progress; what it raises ends the run.
        severity: How damaged the input is, 0..1.

    Raises:
        ConfigurationError: The sampler does not exist.
        WeightsError: The checkpoint is of an unknown kind, or a LoRA does not fit.
        PromptError: The prompt is too long.
        EngineFailed: The device is too small, or the result is unusable (`BadResult`).
    """
    height, width = rgb.shape[:2]
    min_side = math.ceil(MIN_LATENT_SIDE * model.codec.factor / pass_factors(recipe.scale)[0])
    result = tiling.cut_mirrored(rgb, Span(start=0, end=max(min_side, height)), Span(start=0, end=max(min_side, width)))
    model = model.with_plan(recipe, *(side * recipe.scale for side in result.shape[:2]))
    conditioning, loras, warnings = _conditioning(model, recipe)
    passes = _passes(model, upscale_network, recipe, conditioning)
    # Each pass has four times the pixels of the one before.
    work = [4**number * sum(one_pass.work) for number, one_pass in enumerate(passes)]
    weights = back_projection_weights(recipe, severity)
    passes_report = progress.portion(report, 0.0, 1 - _BACK_PROJECTION_SHARE if weights else 1.0)
    for number, one_pass in enumerate(passes):
        pass_report = progress.portion(passes_report, sum(work[:number]) / sum(work), work[number] / sum(work))
        result, grid = one_pass.run(result, pass_report)
    result = np.ascontiguousarray(result[: height * recipe.scale, : width * recipe.scale])
    if not recipe.classic:
        colour_lock.lock_colours(result, rgb, strength=recipe.colour_lock, device=model.device)
    if weights:
        last_report = progress.portion(report, 1 - _BACK_PROJECTION_SHARE, _BACK_PROJECTION_SHARE)
        colour_lock.back_project(result, rgb, weights, device=model.device, report=last_report)
    result = sharpen(result, recipe.sharpen, classic=recipe.classic, device=model.device)
    rows, columns = _tile_borders(grid, model.codec.factor, result)
    return PipelineResult(rgb=result, rows=rows, columns=columns, loras=loras, warnings=warnings)


def _passes(model: DiffusionModel, upscale_network: Network, recipe: Recipe, conditioning: Conditioning) -> list[_Pass]:
    return [
        _Pass(
            model=model,
            upscale_network=upscale_network,
            recipe=recipe,
            sampler=_sampler(recipe),
            conditioning=conditioning,
            factor=factor,
            creativity=recipe.for_pass(number).creativity,
            seed=recipe.for_pass(number).seed,
        )
        for number, factor in enumerate(pass_factors(recipe.scale))
    ]


def back_projection_weights(recipe: Recipe, severity: float = 0.0) -> list[float]:
    """Return the weight of each round of back projection, which pulls the downscaled result towards the input.

    Detail finer than the input's pixels stays free. The weight is full up to the default creativity and from the
    default resemblance on. It falls with more creativity or less resemblance; at creativity 1 or resemblance 0 only
    colours and brightness of larger areas are tied to the input, by `colour_lock.lock_colours`. The same holds for a
    damaged input up to a resemblance of 1, because following its pixels would bring the damage back.
    `recipe.colour_lock` scales the weight; the classic preset uses none.
    """
    if recipe.classic:
        return []
    default = Recipe()
    creativity = min(1.0, (1 - recipe.creativity) / (1 - default.creativity))
    intact, damaged = min(1.0, recipe.resemblance / default.resemblance), max(0.0, recipe.resemblance - 1) / 2
    weight = recipe.colour_lock * creativity * ((1 - severity) * intact + severity * damaged)
    return [weight] * _BACK_PROJECTION_ROUNDS if weight > 0 else []


def _conditioning(model: DiffusionModel, recipe: Recipe) -> tuple[Conditioning, tuple[LoraTag, ...], tuple[str, ...]]:
    """Merge the LoRAs and encode the prompts; return the conditioning, the merged LoRAs and warnings."""
    tags = prompts.extract_tags(recipe.prompt, recipe.offered_loras)
    preset_loras = [LoraTag(name=name, text_encoder=strength, unet=strength) for name, strength in recipe.loras]
    loras = (*preset_loras, *tags.loras)
    merge_warnings = model.merge(loras)
    model.activate(lambda groups: groups.text)
    # The names of embeddings go into the negative prompt: all that a recipe names describe what to avoid.
    negative = " ".join((recipe.negative_prompt, *recipe.embeddings))
    cond, uncond = (model.prompt_encoder(text, loras) for text in (tags.prompt, negative))
    return Conditioning(cond=cond, uncond=uncond), loras, (*tags.warnings, *merge_warnings)


def _sampler(recipe: Recipe) -> Sampler:
    if recipe.sampler not in SAMPLERS:
        raise ConfigurationError(f"There is no sampler {recipe.sampler!r}. Use one of {', '.join(SAMPLERS)}.")
    return SAMPLERS[recipe.sampler]


def _grid(recipe: Recipe, height: int, width: int) -> Grid:
    make = multidiffusion.classic_grid if recipe.classic else multidiffusion.feathered_grid
    return make(height, width, tile_height=recipe.tile_height, tile_width=recipe.tile_width)


@dataclass(frozen=True, kw_only=True)
class _Pass:
    """One pass: upscale, encode, denoise, decode."""

    model: DiffusionModel
    upscale_network: Network
    recipe: Recipe
    sampler: Sampler
    conditioning: Conditioning
    factor: int
    creativity: float
    seed: int

    @cached_property
    def table(self) -> NoiseTable:
        return NoiseTable.scaled_linear(half=self.recipe.classic)

    @cached_property
    def sigmas(self) -> Sequence[float]:
        return self.sampler.sigmas(self.table, self.recipe.steps, self.creativity)

    @property
    def evaluations(self) -> int:
        return self.sampler.evaluations * (len(self.sigmas) - 2) + 1

    @property
    def work(self) -> tuple[float, ...]:
        """Relative cost of upscaling, encoding, denoising and decoding."""
        return _UPSCALE_TFLOP * (self.factor > 1), _ENCODE_TFLOP, _EVALUATION_TFLOP * self.evaluations, _DECODE_TFLOP

    def run(self, rgb: ImageArray, report: ProgressCallback) -> tuple[ImageArray, Grid]:
        work = self.work
        upscale_report, encode_report, denoise_report, decode_report = (
            progress.portion(report, sum(work[:part]) / sum(work), work[part] / sum(work)) for part in range(4)
        )
        upscaled = self._upscale(rgb, upscale_report)
        self.model.activate(lambda groups: groups.autoencoder)
        latent = self.model.codec.encode(upscaled, encode_report)
        grid = _grid(self.recipe, *latent.shape[2:])
        source, factor = (upscaled, 1) if self.model.prediction.anchored else (rgb, self.factor)
        height, width = (side * self.model.codec.factor for side in latent.shape[2:])
        self.model.activate(lambda groups: groups.denoising)
        control_image = make_control_image(source, height, width, factor, latent.device)
        latent = self._denoise(latent, control_image, grid, denoise_report)
        self.model.activate(lambda groups: groups.autoencoder)
        # Reuse the memory of the upscaled image, which is no longer needed.
        self.model.codec.decode(latent, upscaled, decode_report, truncate=self.recipe.classic)
        return upscaled, grid

    def _upscale(self, rgb: ImageArray, report: ProgressCallback) -> ImageArray:
        if self.factor == 1:
            report(1.0)
            return rgb.copy()
        source = rgb[..., ::-1] if self.recipe.classic else rgb  # the original feeds the network blue first
        upscale = partial(
            tiled_inference.upscale,
            self.upscale_network,
            source,
            factor=self.factor,
            postprocess=lambda y, x: y.clamp(0, 1),
            report=report,
            resize=partial(_classic_resize, levels=np.iinfo(rgb.dtype).max)
            if self.recipe.classic
            else resampling.resize,
        )
        result, _ = devices.retry_with_smaller_tile(self.recipe.tile, upscale)
        return np.ascontiguousarray(result[..., ::-1]) if self.recipe.classic else result

    def _denoise(self, latent: Tensor, control_image: Tensor, grid: Grid, report: ProgressCallback) -> Tensor:
        model, recipe = self.model, self.recipe
        done = 0.0

        def tick(share: float) -> None:
            nonlocal done
            done += share / self.evaluations
            report(min(1.0, done))

        tile_denoise = guidance.guided_denoiser(
            model.unet,
            model.controlnet,
            self.conditioning,
            control_image,
            resemblance=recipe.resemblance,
            dynamic=model.prediction.guidance(recipe.dynamic),
            timestep=self.table.timestep,
            factor=model.codec.factor,
            scaling=lambda sigma: model.prediction.scaling(sigma, recipe.resemblance),
            anchor=latent if model.prediction.anchored else None,
            whole_control_image=not recipe.classic,
        )
        denoise = multidiffusion.tiled_denoiser(tile_denoise, grid, batch=model.batch, tick=tick)
        noise = Noise(seed=self.seed, shape=tuple(latent.shape), device=latent.device)
        x = add_noise(latent, noise, self.sigmas[0])
        latent = self.sampler.run(denoise, x, self.sigmas, noise.step, lambda fraction: None)
        if not bool(latent.isfinite().all()):
            raise BadResult("The diffusion model returned non-finite values. Check its weights and LoRAs.")
        return latent


def make_control_image(rgb: ImageArray, height: int, width: int, factor: int, device: torch.device) -> Tensor:
    """Make the control image ("hint" in algorithm.md): `rgb` upscaled by bicubic interpolation, in 8 bits.

    As in the original, the interpolation has a = -0.75. The canvas beyond the image is filled with its mirror image,
    as in the latent. Computed on the device in bands, and stored on the host.

    Args:
        rgb: The pass's input, or the upscaled image for a model that is anchored to it.
        height: Height of the canvas in pixels.
        width: Width of the canvas in pixels.
        factor: Upscale factor.
        device: Where to compute.

    Returns:
        (1, 3, height, width), uint8.
    """
    h, w = rgb.shape[:2]
    control_image = torch.empty((1, 3, h * factor, w * factor), dtype=torch.uint8)
    for top in range(0, h, _BAND_ROWS):
        low, high = max(0, top - 3), min(h, top + _BAND_ROWS + 3)
        x = resampling.to_tensor(rgb[low:high], device)
        y = x if factor == 1 else functional.interpolate(x, scale_factor=factor, mode="bicubic", align_corners=False)
        rows = min(_BAND_ROWS, h - top)
        y = y[:, :, (top - low) * factor : (top - low + rows) * factor]
        control_image[:, :, top * factor : (top + rows) * factor] = (y.clamp(0, 1) * 255).round().to(torch.uint8)
    if control_image.shape[2:] == (height, width):
        return control_image
    rows_of = resampling.mirrored_indices(h * factor, height)
    return control_image[:, :, rows_of][..., resampling.mirrored_indices(w * factor, width)]


def _classic_resize(y: Tensor, height: int, width: int, *, levels: int) -> Tensor:
    """Resize as the original does: clamp, round down to integer samples, then reduce by Lanczos."""
    return resampling.resize_lanczos((y.clamp(0, 1) * levels).floor() / levels, height, width)


def sharpen(
    rgb: ImageArray, strength: float, *, classic: bool = False, device: torch.device = torch.device("cpu")
) -> ImageArray:
    """Sharpen an image in place, in bands."""
    sharpen_band = resampling.sharpen_channels if classic else resampling.sharpen
    if strength == 0:
        return rgb
    source = rgb.copy()
    for top in range(0, rgb.shape[0], _BAND_ROWS):
        low, high = max(0, top - 1), min(rgb.shape[0], top + _BAND_ROWS + 1)
        y = sharpen_band(resampling.to_tensor(source[low:high], device), strength)
        rgb[top : top + _BAND_ROWS] = resampling.to_samples(y, rgb.dtype)[top - low : top - low + _BAND_ROWS]
    return rgb


def _tile_borders(grid: Grid, factor: int, rgb: ImageArray) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the inner edges of the first evaluation's tiles, in pixels of the result."""
    tiles = grid.tiles(0)
    rows = {edge * factor for tile in tiles for edge in (tile.top, tile.top + tile.height)}
    columns = {edge * factor for tile in tiles for edge in (tile.left, tile.left + tile.width)}
    return (
        tuple(sorted(row for row in rows if 0 < row < rgb.shape[0])),
        tuple(sorted(column for column in columns if 0 < column < rgb.shape[1])),
    )
