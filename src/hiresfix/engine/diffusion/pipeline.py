"""Clarity's hi-res fix: enlarge, add noise, and let a diffusion model find the detail again, tile by tile.

Guarantees: the result is exactly `scale` times the input, of its bit depth; the same recipe on the same device gives
the same pixels, and the noise is the same on every device; a stop is heeded within one batch of tiles. Larger scales
are passes of two, each with less creativity and a seed of its own (algorithm.md 2). `recipe.classic` computes
what the original does but for its listed defects (15): uniform tiles that stay where they are, its float16 noise
levels, an enlarger fed with blue first and reduced by Lanczos, rounding down, sharpening with halos. Otherwise:
feathered tiles on a moving grid, exact noise levels, and what the input shows tied to the input (`tie`). Knows no
files, no jobs and no transparency.
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
from hiresfix.engine.diffusion.offload import Need, Plan, Residents
from hiresfix.engine.diffusion.prompts import Conditioner, LoraTag
from hiresfix.engine.diffusion.sampling import SAMPLERS, Noise, NoiseTable, Sampler, noised
from hiresfix.engine.diffusion.vae import BUDGET, Autoencoder, Codec
from hiresfix.engine.pixels import resampling
from hiresfix.engine.pixels.resampling import Samples
from hiresfix.engine.progress import Report
from hiresfix.engine.superres import tiled_inference
from hiresfix.engine.superres.networks import Network
from hiresfix.errors import BadResult, ConfigurationError
from hiresfix.recipe import Recipe

if TYPE_CHECKING:
    from diffusers.models.controlnets.controlnet import ControlNetModel
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

LEAST = 8
"""Latent pixels a side: a smaller picture is continued by its mirror image, and its result cut again."""
_BAND = 256
_TYING = 0.02
"""Share of the work that follows the last pass."""
_ROUNDS = 3
"""Of `resampling.follow`: with so many, even networks that know nothing of pictures stay within a colour difference
of 1 at the defaults."""
_LATENTS = 12
"""Copies of the latent at the worst moment: the state, two changes, the sums of tiles, noise, and what is in work."""

# TFLOP of each part for an output of 4 MP and one evaluation (algorithm.md 13): only their ratios matter.
_ENLARGING, _ENCODING, _EVALUATION, _DECODING = 37.6, 26.1, 75.0, 48.5

Merge = Callable[[Sequence[LoraTag]], tuple[str, ...]]
"""Makes these the LoRAs in UNet and text encoder; one sentence for each problem."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """The networks of one checkpoint, warm on one device. `batch`: how many tiles at once to begin with.

    `residents`: the same networks where memory has to be planned for each picture; None leaves all as it is.
    `plan`: that of one picture.
    """

    unet: UNet2DConditionModel
    controlnet: ControlNetModel | None
    conditioner: Conditioner
    codec: Codec
    merge: Merge = lambda loras: ()
    prediction: Prediction = PREDICTIONS["epsilon"]
    batch: int = 1
    residents: Residents | None = None
    plan: Plan | None = None

    @property
    def device(self) -> torch.device:
        """On which the networks act, wherever they wait."""
        return self.unet.device if self.residents is None else self.residents.device

    def planned(self, recipe: Recipe, height: int, width: int) -> Model:
        """With a plan for a result of height x width pixels. Raises EngineFailed where the device is too small."""
        if self.residents is None or not isinstance(self.codec, Autoencoder):
            return self
        plan = self.residents.plan(self.need(recipe, height, width))
        if plan is None:
            return self
        return replace(self, plan=plan, batch=plan.batch, codec=replace(self.codec, budget=plan.section))

    def need(self, recipe: Recipe, height: int, width: int) -> Need:
        """What a result of height x width pixels takes, with `residents` and an `Autoencoder`."""
        assert self.residents is not None
        assert isinstance(self.codec, Autoencoder)
        height, width = (-(-side // self.codec.factor) for side in (height, width))
        return self.residents.need(
            canvas=self._canvas_bytes(height * width),
            section=min(BUDGET, self.codec.bytes_for(height, width)),
            tiles=len(_grid(recipe, height, width).tiles(0)),
        )

    def bring(self, acting: Callable[[Residents], tuple[nn.Module, ...]]) -> None:
        """These of the residents to the device, as the plan says."""
        if self.residents is not None and self.plan is not None:
            self.residents.bring(acting(self.residents), self.plan)

    def _canvas_bytes(self, pixels: int) -> int:
        """The sampler's latents and what it remembers, and the encoded hint, for so many latent pixels."""
        latents = _LATENTS * self.codec.channels * torch.float32.itemsize
        network = self.controlnet
        hint = 0 if network is None else network.config["block_out_channels"][0] * network.dtype.itemsize
        return pixels * (latents + hint)


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """The picture, the pixel rows and columns at which tiles of the last pass met, the LoRAs that were merged, and what
    was not followed.
    """

    rgb: Samples
    rows: tuple[int, ...]
    columns: tuple[int, ...]
    loras: tuple[LoraTag, ...]
    warnings: tuple[str, ...]


def passes(scale: int) -> list[int]:
    """The factor of each pass: twos, or a single 1."""
    return [2] * (scale.bit_length() - 1) or [1]


def run(
    model: Model, enlarger: Network, rgb: Samples, recipe: Recipe, report: Report, *, severity: float = 0.0
) -> Made:
    """(H, W, 3) uint8 or uint16 -> the same at `recipe.scale` times the sides; severity: of its damage, 0..1.

    Raises ConfigurationError for a sampler there is not, WeightsError for a checkpoint of an unknown kind or LoRAs
    that do not fit, PromptError, EngineFailed, and what `report` raises.
    """
    height, width = rgb.shape[:2]
    least = math.ceil(LEAST * model.codec.factor / passes(recipe.scale)[0])
    made = np.pad(rgb, ((0, max(0, least - height)), (0, max(0, least - width)), (0, 0)), mode="reflect")
    model = model.planned(recipe, *(side * recipe.scale for side in made.shape[:2]))
    conditioning, loras, warnings = _conditioning(model, recipe)
    rounds = _rounds(model, enlarger, recipe, conditioning)
    work = [4**number * sum(one.work) for number, one in enumerate(rounds)]  # four times the pixels in each
    ties = tie(recipe, severity)
    making = progress.portion(report, 0.0, 1 - _TYING if ties else 1.0)
    for number, one in enumerate(rounds):
        part = progress.portion(making, sum(work[:number]) / sum(work), work[number] / sum(work))
        made, grid = one.run(made, part)
    made = np.ascontiguousarray(made[: height * recipe.scale, : width * recipe.scale])
    if not recipe.classic:
        colour_lock.lock_colours(made, rgb, strength=recipe.colour_lock, device=model.device)
    if ties:
        tying = progress.portion(report, 1 - _TYING, _TYING)
        colour_lock.follow(made, rgb, ties, device=model.device, report=tying)
    made = sharpened(made, recipe.sharpen, classic=recipe.classic, device=model.device)
    rows, columns = _borders(grid, model.codec.factor, made)
    return Made(rgb=made, rows=rows, columns=columns, loras=loras, warnings=warnings)


def _rounds(model: Model, enlarger: Network, recipe: Recipe, conditioning: Conditioning) -> list[_Pass]:
    return [
        _Pass(
            model=model,
            enlarger=enlarger,
            recipe=recipe,
            sampler=_sampler(recipe),
            conditioning=conditioning,
            factor=factor,
            creativity=recipe.of_pass(number).creativity,
            seed=recipe.of_pass(number).seed,
        )
        for number, factor in enumerate(passes(recipe.scale))
    ]


def tie(recipe: Recipe, severity: float = 0.0) -> list[float]:
    """The weights with which the result, scaled down, is pulled to the input; what is finer than it stays free.

    Full at up to the default creativity and from the default resemblance on, less with more creativity or less
    resemblance, until at creativity 1 or resemblance 0 only colours and brightness of larger areas are tied, by
    `fidelity.lock_colours`. So they are in a damaged input, unless more than 1 is asked for: to follow its pixels would
    bring the damage back. `recipe.colour_lock` scales all of it; the classic preset ties nothing.
    """
    if recipe.classic:
        return []
    default = Recipe()
    bound = min(1.0, (1 - recipe.creativity) / (1 - default.creativity))
    whole, damaged = min(1.0, recipe.resemblance / default.resemblance), max(0.0, recipe.resemblance - 1) / 2
    weight = recipe.colour_lock * bound * ((1 - severity) * whole + severity * damaged)
    return [weight] * _ROUNDS if weight > 0 else []


def _conditioning(model: Model, recipe: Recipe) -> tuple[Conditioning, tuple[LoraTag, ...], tuple[str, ...]]:
    """Prompts as the networks hear them, the LoRAs that are merged for them, and what was not followed."""
    tagged = prompts.take_tags(recipe.prompt, recipe.offered_loras)
    always = [LoraTag(name=name, text_encoder=strength, unet=strength) for name, strength in recipe.loras]
    loras = (*always, *tagged.loras)
    unmatched = model.merge(loras)
    model.bring(lambda residents: residents.text)
    # The names of embeddings are words of the negative prompt: all that are known say what is not wanted.
    negative = " ".join((recipe.negative_prompt, *recipe.embeddings))
    cond, uncond = (model.conditioner(text, loras) for text in (tagged.prompt, negative))
    return Conditioning(cond=cond, uncond=uncond), loras, (*tagged.warnings, *unmatched)


def _sampler(recipe: Recipe) -> Sampler:
    if recipe.sampler not in SAMPLERS:
        raise ConfigurationError(f"There is no sampler {recipe.sampler!r}. Use one of {', '.join(SAMPLERS)}.")
    return SAMPLERS[recipe.sampler]


def _grid(recipe: Recipe, height: int, width: int) -> Grid:
    make = multidiffusion.classic_grid if recipe.classic else multidiffusion.feathered_grid
    return make(height, width, tile_height=recipe.tile_height, tile_width=recipe.tile_width)


@dataclass(frozen=True, kw_only=True)
class _Pass:
    """One round of enlarging and diffusing."""

    model: Model
    enlarger: Network
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
        """What enlarging, encoding, diffusing and decoding cost, to each other."""
        return _ENLARGING * (self.factor > 1), _ENCODING, _EVALUATION * self.evaluations, _DECODING

    def run(self, rgb: Samples, report: Report) -> tuple[Samples, Grid]:
        work = self.work
        enlarging_, encoding, diffusing, decoding = (
            progress.portion(report, sum(work[:part]) / sum(work), work[part] / sum(work)) for part in range(4)
        )
        enlarged = self._enlarged(rgb, enlarging_)
        self.model.bring(lambda residents: residents.coding)
        latent = self.model.codec.encode(enlarged, encoding)
        grid = _grid(self.recipe, *latent.shape[2:])
        seen, factor = (enlarged, 1) if self.model.prediction.anchored else (rgb, self.factor)
        height, width = (side * self.model.codec.factor for side in latent.shape[2:])
        self.model.bring(lambda residents: residents.diffusing)
        followed = hint(seen, height, width, factor, latent.device)
        latent = self._diffused(latent, followed, grid, diffusing)
        self.model.bring(lambda residents: residents.coding)
        # Into the enlarged picture's own memory: nothing needs it any more.
        self.model.codec.decode(latent, enlarged, decoding, truncate=self.recipe.classic)
        return enlarged, grid

    def _enlarged(self, rgb: Samples, report: Report) -> Samples:
        if self.factor == 1:
            report(1.0)
            return rgb.copy()
        turned = rgb[..., ::-1] if self.recipe.classic else rgb  # the original feeds the network blue first
        enlarge = partial(
            tiled_inference.enlarge,
            self.enlarger,
            turned,
            factor=self.factor,
            finish=lambda y, x: y.clamp(0, 1),
            report=report,
            resize=partial(_as_published, levels=np.iinfo(rgb.dtype).max) if self.recipe.classic else resampling.resize,
        )
        result, _ = devices.with_room(self.recipe.tile, enlarge)
        return np.ascontiguousarray(result[..., ::-1]) if self.recipe.classic else result

    def _diffused(self, latent: Tensor, hint: Tensor, grid: Grid, report: Report) -> Tensor:
        model, recipe = self.model, self.recipe
        done = 0.0

        def tick(share: float) -> None:
            nonlocal done
            done += share / self.evaluations
            report(min(1.0, done))

        tile_denoise = guidance.guided(
            model.unet,
            model.controlnet,
            self.conditioning,
            hint,
            resemblance=recipe.resemblance,
            dynamic=model.prediction.guidance(recipe.dynamic),
            timestep=self.table.timestep,
            factor=model.codec.factor,
            scaling=lambda sigma: model.prediction.scaling(sigma, recipe.resemblance),
            anchor=latent if model.prediction.anchored else None,
            whole_hint=not recipe.classic,
        )
        denoise = multidiffusion.tiled(tile_denoise, grid, batch=model.batch, tick=tick)
        noise = Noise(seed=self.seed, shape=tuple(latent.shape), device=latent.device)
        x = noised(latent, noise, self.sigmas[0])
        latent = self.sampler.run(denoise, x, self.sigmas, noise.step, lambda fraction: None)
        if not bool(latent.isfinite().all()):
            raise BadResult("The diffusion model gave values that are no numbers. Check its weights and LoRAs.")
        return latent


def hint(rgb: Samples, height: int, width: int, factor: int, device: torch.device) -> Tensor:
    """What the ControlNet follows: the pass's input, enlarged by bicubic interpolation to (1, 3, height, width), uint8.

    As the original's, it is of the input and not of the network's enlargement, in 8 bits, with a = -0.75. What a canvas
    has beyond the picture is mirrored, as the latent's is. Made on the device and kept on the host, band by band.
    """
    h, w = rgb.shape[:2]
    made = torch.empty((1, 3, h * factor, w * factor), dtype=torch.uint8)
    for top in range(0, h, _BAND):
        low, high = max(0, top - 3), min(h, top + _BAND + 3)
        x = resampling.to_tensor(rgb[low:high], device)
        y = x if factor == 1 else functional.interpolate(x, scale_factor=factor, mode="bicubic", align_corners=False)
        rows = min(_BAND, h - top)
        y = y[:, :, (top - low) * factor : (top - low + rows) * factor]
        made[:, :, top * factor : (top + rows) * factor] = (y.clamp(0, 1) * 255).round().to(torch.uint8)
    if made.shape[2:] == (height, width):
        return made
    rows_of = resampling.mirrored(h * factor, height)
    return made[:, :, rows_of][..., resampling.mirrored(w * factor, width)]


def _as_published(y: Tensor, height: int, width: int, *, levels: int) -> Tensor:
    """What the original's enlarger gives: cut off and rounded down to samples, then reduced."""
    return resampling.lanczos((y.clamp(0, 1) * levels).floor() / levels, height, width)


def sharpened(
    rgb: Samples, strength: float, *, classic: bool = False, device: torch.device = torch.device("cpu")
) -> Samples:
    """`resampling.sharpen`, or `sharpen_each`, in bands, in place."""
    sharpen = resampling.sharpen_each if classic else resampling.sharpen
    if strength == 0:
        return rgb
    source = rgb.copy()
    for top in range(0, rgb.shape[0], _BAND):
        low, high = max(0, top - 1), min(rgb.shape[0], top + _BAND + 1)
        y = sharpen(resampling.to_tensor(source[low:high], device), strength)
        rgb[top : top + _BAND] = resampling.to_samples(y, rgb.dtype)[top - low : top - low + _BAND]
    return rgb


def _borders(grid: Grid, factor: int, rgb: Samples) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Inner edges of the first evaluation's tiles, in pixels of the result."""
    tiles = grid.tiles(0)
    rows = {edge * factor for tile in tiles for edge in (tile.top, tile.top + tile.height)}
    columns = {edge * factor for tile in tiles for edge in (tile.left, tile.left + tile.width)}
    return (
        tuple(sorted(row for row in rows if 0 < row < rgb.shape[0])),
        tuple(sorted(column for column in columns if 0 < column < rgb.shape[1])),
    )
