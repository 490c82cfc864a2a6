"""Upscale one image by a recipe: returns the image and metadata about what was done.

Guarantees: the result is exactly `recipe.scale` times the input, with its bit depth, transparency, profile and
metadata; a black or broken result is an error, never a success. Equal recipe, equal weights and equal device give
equal pixels. Networks stay loaded between runs. Knows no files and no jobs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from hiresfix import images
from hiresfix.engine import devices, progress
from hiresfix.engine.analysis import colour_lock, degradation, metrics
from hiresfix.engine.analysis.degradation import Degradation
from hiresfix.engine.analysis.metrics import Quality
from hiresfix.engine.pixels import resampling
from hiresfix.engine.pixels.arrays import ImageArray
from hiresfix.engine.progress import ProgressCallback
from hiresfix.engine.superres import networks, offline, tiled_inference
from hiresfix.engine.superres.networks import Network
from hiresfix.engine.superres.offline import PassPlan
from hiresfix.engine.superres.tiled_inference import PostProcess
from hiresfix.engine.weights import superres_files
from hiresfix.errors import BadResult, WeightsError
from hiresfix.images import DecodedImage
from hiresfix.models.catalog import find_weights
from hiresfix.models.store import ModelStore
from hiresfix.models.weight_files import WeightKind
from hiresfix.recipe import AUTO, Engine, Recipe

if TYPE_CHECKING:
    from hiresfix.engine.diffusion.loader import LoadedModel

FAITHFUL_ENGINE_NAME = "faithful (enlarger and back-projection)"
MIN_VISIBLE = 8 / 255
"""An image with a sample above this cannot become all black."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineResult:
    """An upscaled image and metadata of plain JSON values.

    Keys of the metadata:

    - engine, device, dtype.
    - input: `degradation.Degradation` of the input.
    - enlarger: name of the upscaling network, and because: the reason for choosing it.
    - weights: name and sha256 of each file.
    - evaluations of the upscaling network in each pass; not with diffusion.
    - tile: the longest side computed at once in input pixels; with diffusion both sides in latent pixels.
    - loras: name, text_encoder and unet of each; only with diffusion.
    - warnings: one sentence each.
    - quality: `metrics.Quality` of the result.
    """

    image: DecodedImage
    metadata: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class _EngineOutput:
    """The pixels of one engine, the rows and columns behind tile borders, and its part of the metadata."""

    rgb: ImageArray
    rows: tuple[int, ...] = ()
    columns: tuple[int, ...] = ()
    metadata: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class _InputAnalysis:
    """The degradation of the input, and the reason for choosing its upscaling network."""

    degradation: Degradation
    reason: str


class Upscaler:
    """Upscales images on one device. Not for several threads at once; make one for each worker."""

    def __init__(
        self, device: str = "auto", *, threads: int | None = None, exact: bool = False, compiled: bool = False
    ) -> None:
        """Choose the device; networks are loaded when they are first used.

        Args:
            device: auto, cpu, cuda, cuda:N or mps.
            threads: how many torch may use in this process; None leaves it as it is.
            exact: compute in float32, even where half precision would be faster.
            compiled: compile the diffusion networks at their first use, which takes about a minute.

        Raises:
            ConfigurationError: this machine has no such device.
        """
        self.device = devices.choose_device(device)
        self.dtype = torch.float32 if exact else devices.choose_dtype(self.device)
        self._compiled = compiled
        self._networks: dict[str, tuple[dict[str, str], Network]] = {}
        self._loaded: tuple[object, LoadedModel] | None = None
        self._store = ModelStore.at_home()
        if threads is not None:
            torch.set_num_threads(threads)

    @torch.inference_mode()
    def run(self, image: DecodedImage, recipe: Recipe, report: ProgressCallback) -> EngineResult:
        """Upscale the image. `report` is called about every second, and what it raises ends the run.

        Raises:
            WeightsError: weights are missing or do not fit.
            EngineFailed: computing failed; its subclass BadResult: the result is not worth returning.
            PromptError: the prompt cannot be used.
        """
        report = _monotonic(report)
        report(0.0)
        rgb = image.rgb if image.alpha is None else images.bleed(image.rgb, image.alpha)
        recipe, analysis = _analyse(rgb, image, recipe)
        run_engine = self._run_diffusion if recipe.engine is Engine.DIFFUSION else self._run_network
        output = run_engine(rgb, recipe, analysis, report)
        quality = metrics.measure(output.rgb, rgb, rows=output.rows, columns=output.columns, device=self.device)
        _refuse_broken(output.rgb, rgb, quality, recipe)
        alpha = image.alpha
        if alpha is not None:
            alpha = images.upscale_alpha(alpha, output.rgb.shape[1], output.rgb.shape[0])
        metadata = output.metadata | {
            "input": analysis.degradation.to_dict(),
            "enlarger": {"name": recipe.enlarger, "because": analysis.reason},
            "device": self.device.type,
            "dtype": str(self.dtype).removeprefix("torch."),
            "quality": quality.to_dict(),
        }
        report(1.0)
        return EngineResult(image=replace(image, rgb=output.rgb, alpha=alpha), metadata=metadata)

    def _run_network(
        self, rgb: ImageArray, recipe: Recipe, analysis: _InputAnalysis, report: ProgressCallback
    ) -> _EngineOutput:
        """Upscale with the network and back-projection; the offline engine adds texture noise."""
        weight, network = self._network(recipe.enlarger)
        offline_engine = recipe.engine is Engine.OFFLINE
        factors = pass_factors(recipe.scale, network.scale)
        plans = [
            offline.plan_pass(recipe.for_pass(number), reduction=network.scale // factor)
            if offline_engine
            else PassPlan()
            for number, factor in enumerate(factors)
        ]
        severity = degradation.severity(analysis.degradation) if offline_engine else 0.0
        resemblance, lock = offline.split_resemblance(recipe.resemblance, severity)
        result, tile = self._run_passes(network, rgb, recipe, factors, plans, resemblance, report)
        colour_lock.lock_colours(result, rgb, strength=lock, device=self.device)
        last = factors[-1]
        height, width = (side // last for side in result.shape[:2])  # of the input of the last pass
        rows, columns = tiled_inference.tile_borders(network, height, width, tile)
        metadata = {
            "engine": offline.ENGINE_NAME if offline_engine else FAITHFUL_ENGINE_NAME,
            "weights": [weight],
            "tile": tile,
            "evaluations": [plan.evaluations for plan in plans],
            "warnings": [
                *(offline.PROMPT_WARNINGS if offline_engine else ()),
                *((offline.DAMAGE_WARNING,) if lock else ()),
            ],
        }
        return _EngineOutput(
            rgb=result,
            rows=tuple(row * last for row in rows),
            columns=tuple(column * last for column in columns),
            metadata=metadata,
        )

    def _run_diffusion(
        self, rgb: ImageArray, recipe: Recipe, analysis: _InputAnalysis, report: ProgressCallback
    ) -> _EngineOutput:
        """Upscale with the diffusion pipeline."""
        # Imported here: it takes seconds that a faithful upscale does not need.
        from hiresfix.engine.diffusion import loader, pipeline

        weight, network = self._network(recipe.enlarger)
        if self._loaded is None or self._loaded[0] != loader.model_key(recipe):
            self._loaded = None  # before the next one is loaded: two may not fit
            loaded = loader.load_model(
                recipe, self._store, device=self.device, dtype=self.dtype, compiled=self._compiled
            )
            self._loaded = loader.model_key(recipe), loaded
        loaded = self._loaded[1]
        severity = degradation.severity(analysis.degradation)
        output = pipeline.run(loaded.model, network, rgb, recipe, report, severity=severity)
        lora_names = dict.fromkeys(lora.name for lora in output.loras)
        merged = [self._store.locate(name, WeightKind.LORA) for name in lora_names]
        files = [{"name": file.name, "sha256": file.sha256} for file in (*loaded.files, *merged)]
        damaged = severity > 0 and recipe.colour_lock > 0 and not recipe.classic
        metadata = {
            "engine": "clarity-classic" if recipe.classic else "clarity",
            "weights": [weight, *files],
            "loras": [{"name": tag.name, "text_encoder": tag.text_encoder, "unet": tag.unet} for tag in output.loras],
            "tile": [recipe.tile_height, recipe.tile_width],
            "warnings": [*output.warnings, *((offline.DAMAGE_WARNING,) if damaged else ())],
        }
        return _EngineOutput(rgb=output.rgb, rows=output.rows, columns=output.columns, metadata=metadata)

    def _run_passes(
        self,
        network: Network,
        rgb: ImageArray,
        recipe: Recipe,
        factors: Sequence[int],
        plans: Sequence[PassPlan],
        resemblance: float,
        report: ProgressCallback,
    ) -> tuple[ImageArray, int]:
        """Return the image at `recipe.scale`, and the tile that fitted into memory.

        Args:
            network: the upscaling network.
            rgb: the input.
            recipe: tile and sharpening.
            factors: by which each pass upscales.
            plans: settings of each pass.
            resemblance: how tightly to follow the input's pixels, 0..3.
            report: for all passes together.
        """
        # Work grows with the pixels that go in: 1 for the first pass, 16 for one after a fourfold pass.
        work = [math.prod(factors[:number]) ** 2 * plan.evaluations for number, plan in enumerate(plans)]
        tile = recipe.tile
        for number, (factor, plan) in enumerate(zip(factors, plans, strict=True)):
            part = progress.portion(report, sum(work[:number]) / sum(work), work[number] / sum(work))
            sharpness = recipe.sharpen if number == len(factors) - 1 else 0.0
            postprocess = _postprocess(plan, resemblance=resemblance, sharpness=sharpness)
            rgb, tile = offline.run_pass(network, rgb, plan, tile, factor=factor, postprocess=postprocess, report=part)
        return rgb, tile

    def _network(self, name: str) -> tuple[dict[str, str], Network]:
        """Return this upscaling network, of a package or installed by the operator, and its entry in the metadata."""
        if name not in self._networks:
            weight = find_weights(name)
            if weight is not None:
                sha256, network = weight.sha256, superres_files.load(weight)
            else:
                file = self._store.locate(name, WeightKind.ENLARGER)
                sha256, network = file.sha256, superres_files.load(file.path)
            self._networks[name] = {"name": name, "sha256": sha256}, networks.place(network, self.device, self.dtype)
        return self._networks[name]


def pass_factors(scale: int, network_scale: int) -> list[int]:
    """Return the factor of each pass; only the last may be less than the network's.

    Raises:
        WeightsError: no number of passes reaches this scale.
    """
    factors = []
    while scale > network_scale:
        if network_scale < 2 or scale % network_scale:
            raise WeightsError(
                f"A network of scale {network_scale} cannot upscale {scale} times. Use one of scale 2 or 4."
            )
        factors.append(network_scale)
        scale //= network_scale
    return [*factors, scale]


def _analyse(rgb: ImageArray, image: DecodedImage, recipe: Recipe) -> tuple[Recipe, _InputAnalysis]:
    """Detect the degradation of the input, and complete the recipe with the network that suits it.

    Args:
        rgb: the colours of the image, bled under its transparency.
        image: for its alpha channel and JPEG tables.
        recipe: returned with a network if it names none.
    """
    detected = degradation.detect(rgb, alpha=image.alpha, quantisation=image.quantisation)
    if recipe.enlarger != AUTO:
        return recipe, _InputAnalysis(degradation=detected, reason="the recipe names it")
    choice = degradation.choose_network(detected)
    return replace(recipe, enlarger=choice.network), _InputAnalysis(degradation=detected, reason=choice.reason)


def _postprocess(plan: PassPlan, *, resemblance: float, sharpness: float) -> PostProcess:
    """Return the function that pulls the upscaled pixels of a pass to its input, and then sharpens them."""
    weights = resampling.back_projection_weights(resemblance)

    def postprocess(y: Tensor, x: Tensor) -> Tensor:
        y = resampling.amplify_detail(y, x, plan.gain).clamp(0, 1)
        return resampling.sharpen(resampling.back_project(y, x, weights), sharpness)

    return postprocess


def _monotonic(report: ProgressCallback) -> ProgressCallback:
    """Return a callback that never reports less than before, even when a pass restarts after running out of memory."""
    highest = 0.0

    def report_highest(fraction: float) -> None:
        nonlocal highest
        highest = min(1.0, max(highest, fraction))
        report(highest)

    return report_highest


def _refuse_broken(result: ImageArray, source: ImageArray, quality: Quality, recipe: Recipe) -> None:
    height, width = (side * recipe.scale for side in source.shape[:2])
    if result.shape[:2] != (height, width):
        raise BadResult(f"The result has {result.shape[1]}x{result.shape[0]} pixels, not {width}x{height}.")
    if not result.any() and source.max() > MIN_VISIBLE * np.iinfo(source.dtype).max:
        raise BadResult("The result came out black. Check the weights, or use another device.")
    if not quality.alive and np.ptp(source) > MIN_VISIBLE * np.iinfo(source.dtype).max:
        raise BadResult("The result came out in one colour. Check the weights, or use another device.")
    if quality.drift_db < recipe.least_drift_db:
        raise BadResult(
            f"The result, scaled down, is {quality.drift_db:.0f} dB from the input; the minimum is "
            f"{recipe.least_drift_db:g} dB. Use less creativity or more resemblance."
        )
