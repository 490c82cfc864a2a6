"""The whole story of one enlargement: picture and recipe in, picture and an account of what was done out.

Guarantees: the result is exactly `recipe.scale` times the input, of its bit depth and with its transparency,
profile and metadata; a black or broken result is an error, never a success. Equal recipe, equal weights and
equal device give equal pixels. Networks stay warm between runs. Knows no files and no jobs.
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
from hiresfix.engine.analysis.degradation import Findings
from hiresfix.engine.analysis.metrics import Quality
from hiresfix.engine.pixels import resampling
from hiresfix.engine.pixels.resampling import Samples
from hiresfix.engine.progress import Report
from hiresfix.engine.superres import networks, offline, tiled_inference
from hiresfix.engine.superres.networks import Network
from hiresfix.engine.superres.offline import Plan
from hiresfix.engine.superres.tiled_inference import Finish
from hiresfix.engine.weights import superres_files
from hiresfix.errors import BadResult, WeightsError
from hiresfix.images import DecodedImage
from hiresfix.models.catalog import find_weights
from hiresfix.models.store import Store
from hiresfix.models.weight_files import Kind
from hiresfix.recipe import AUTO, Engine, Recipe

if TYPE_CHECKING:
    from hiresfix.engine.diffusion.loader import Assembled

FAITHFUL_NAME = "faithful (enlarger and back-projection)"
NOT_BLACK = 8 / 255
"""A picture with a sample above this cannot come out all black."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Upscaled:
    """`metadata` holds plain JSON values.

    engine; input: `inspection.Findings`; enlarger {name, because}; weights [{name, sha256}]; evaluations of the
    enlarger in each pass, where nothing else makes the picture; device; dtype; tile: the longest side computed at once
    in input pixels, or both sides in latent pixels; loras [{name, text_encoder, unet}] of a diffusion; warnings, one
    sentence each; quality: `fidelity.Quality` of whatever engine made it.
    """

    picture: DecodedImage
    metadata: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Made:
    """What an engine gives: the pixels, where in them pieces computed apart meet, and its part of the metadata."""

    rgb: Samples
    rows: tuple[int, ...] = ()
    columns: tuple[int, ...] = ()
    metadata: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Looked:
    """What was found in the input, and why its enlarger is the one it is."""

    found: Findings
    because: str


class Upscaler:
    """Enlarges pictures on one device. Not for several threads at once; make one a worker."""

    def __init__(
        self, device: str = "auto", *, threads: int | None = None, exact: bool = False, compiled: bool = False
    ) -> None:
        """device: auto, cpu, cuda, cuda:N or mps. threads: how many torch may use in this process; None leaves it.
        exact: compute in float32, even where half of it would be faster. compiled: the diffusion networks are compiled
        at their first use, which takes about a minute (`compiling`).

        Raises ConfigurationError for a device that is not there.
        """
        self.device = devices.choose_device(device)
        self.dtype = torch.float32 if exact else devices.choose_dtype(self.device)
        self._compiled = compiled
        self._networks: dict[str, tuple[dict[str, str], Network]] = {}
        self._assembled: tuple[object, Assembled] | None = None
        self._store = Store.at_home()
        if threads is not None:
            torch.set_num_threads(threads)

    @torch.inference_mode()
    def run(self, picture: DecodedImage, recipe: Recipe, report: Report) -> Upscaled:
        """Raises WeightsError, EngineFailed, PromptError, and what `report` raises: it is called about every second.

        Of EngineFailed, BadResult is for a picture that was made and is not worth returning.
        """
        report = _rising(report)
        report(0.0)
        rgb = picture.rgb if picture.alpha is None else images.bleed(picture.rgb, picture.alpha)
        recipe, looked = _looked(rgb, picture, recipe)
        make = self._diffused if recipe.engine is Engine.DIFFUSION else self._enlarged
        made = make(rgb, recipe, looked, report)
        quality = metrics.measure(made.rgb, rgb, rows=made.rows, columns=made.columns, device=self.device)
        _refuse_broken(made.rgb, rgb, quality, recipe)
        alpha = picture.alpha
        if alpha is not None:
            alpha = images.enlarge_alpha(alpha, made.rgb.shape[1], made.rgb.shape[0])
        metadata = made.metadata | {
            "input": looked.found.to_dict(),
            "enlarger": {"name": recipe.enlarger, "because": looked.because},
            "device": self.device.type,
            "dtype": str(self.dtype).removeprefix("torch."),
            "quality": quality.to_dict(),
        }
        report(1.0)
        return Upscaled(picture=replace(picture, rgb=made.rgb, alpha=alpha), metadata=metadata)

    def _enlarged(self, rgb: Samples, recipe: Recipe, looked: _Looked, report: Report) -> _Made:
        """By the network alone, following the input; with what the offline engine invents, if that is asked for."""
        weight, network = self._network(recipe.enlarger)
        creative = recipe.engine is Engine.GAN_PRIOR
        factors = passes(recipe.scale, network.scale)
        plans = [
            offline.plan(recipe.of_pass(number), reduction=network.scale // factor) if creative else offline.Plan()
            for number, factor in enumerate(factors)
        ]
        severity = degradation.severity(looked.found) if creative else 0.0
        follow, lock = offline.following(recipe.resemblance, severity)
        result, tile = self._passes(network, rgb, recipe, factors, plans, follow, report)
        colour_lock.lock_colours(result, rgb, strength=lock, device=self.device)
        last = factors[-1]
        height, width = (side // last for side in result.shape[:2])  # of what entered the last pass
        rows, columns = tiled_inference.borders(network, height, width, tile)
        metadata = {
            "engine": offline.NAME if creative else FAITHFUL_NAME,
            "weights": [weight],
            "tile": tile,
            "evaluations": [plan.evaluations for plan in plans],
            "warnings": [
                *(offline.WARNINGS if creative else ()),
                *((offline.REPAIRED,) if lock else ()),
            ],
        }
        return _Made(
            rgb=result,
            rows=tuple(row * last for row in rows),
            columns=tuple(column * last for column in columns),
            metadata=metadata,
        )

    def _diffused(self, rgb: Samples, recipe: Recipe, looked: _Looked, report: Report) -> _Made:
        """By the hi-res fix."""
        from hiresfix.engine.diffusion import (  # they take seconds, which a faithful upscale need not wait
            loader,
            pipeline,
        )

        weight, network = self._network(recipe.enlarger)
        if self._assembled is None or self._assembled[0] != loader.key(recipe):
            self._assembled = None  # before the next one is loaded: two may not fit
            assembled = loader.assemble(
                recipe, self._store, device=self.device, dtype=self.dtype, compiled=self._compiled
            )
            self._assembled = loader.key(recipe), assembled
        assembled = self._assembled[1]
        severity = degradation.severity(looked.found)
        made = pipeline.run(assembled.model, network, rgb, recipe, report, severity=severity)
        merged = [self._store.locate(name, Kind.LORA) for name in dict.fromkeys(lora.name for lora in made.loras)]
        files = [{"name": file.name, "sha256": file.sha256} for file in (*assembled.files, *merged)]
        repaired = severity > 0 and recipe.colour_lock > 0 and not recipe.classic
        metadata = {
            "engine": "clarity-classic" if recipe.classic else "clarity",
            "weights": [weight, *files],
            "loras": [{"name": tag.name, "text_encoder": tag.text_encoder, "unet": tag.unet} for tag in made.loras],
            "tile": [recipe.tile_height, recipe.tile_width],
            "warnings": [*made.warnings, *((offline.REPAIRED,) if repaired else ())],
        }
        return _Made(rgb=made.rgb, rows=made.rows, columns=made.columns, metadata=metadata)

    def _passes(
        self,
        network: Network,
        rgb: Samples,
        recipe: Recipe,
        factors: Sequence[int],
        plans: Sequence[Plan],
        resemblance: float,
        report: Report,
    ) -> tuple[Samples, int]:
        """The picture at `recipe.scale`, and the tile that fitted."""
        # Work grows with the pixels that go in: 1 for the first pass, 16 for one that follows a fourfold.
        work = [math.prod(factors[:number]) ** 2 * plan.evaluations for number, plan in enumerate(plans)]
        tile = recipe.tile
        for number, (factor, plan) in enumerate(zip(factors, plans, strict=True)):
            part = progress.portion(report, sum(work[:number]) / sum(work), work[number] / sum(work))
            finish = _finish(recipe, plan, resemblance=resemblance, last=number == len(factors) - 1)
            rgb, tile = offline.run(network, rgb, plan, tile, factor=factor, finish=finish, report=part)
        return rgb, tile

    def _network(self, name: str) -> tuple[dict[str, str], Network]:
        """The enlarger of this name, of a package or installed by the operator, and its entry for the metadata."""
        if name not in self._networks:
            weight = find_weights(name)
            if weight is not None:
                sha256, network = weight.sha256, superres_files.load(weight)
            else:
                file = self._store.locate(name, Kind.ENLARGER)
                sha256, network = file.sha256, superres_files.load(file.path)
            self._networks[name] = {"name": name, "sha256": sha256}, networks.place(network, self.device, self.dtype)
        return self._networks[name]


def passes(scale: int, network_scale: int) -> list[int]:
    """The factor of each pass; only the last may be less than the network's. Raises WeightsError if none can."""
    factors = []
    while scale > network_scale:
        if network_scale < 2 or scale % network_scale:
            raise WeightsError(
                f"A network of scale {network_scale} cannot enlarge {scale} times. Use one of scale 2 or 4."
            )
        factors.append(network_scale)
        scale //= network_scale
    return [*factors, scale]


def _looked(rgb: Samples, picture: DecodedImage, recipe: Recipe) -> tuple[Recipe, _Looked]:
    """The recipe, with an enlarger if it names none, and what the picture, bled to `rgb`, looks like."""
    found = degradation.inspect(rgb, alpha=picture.alpha, quantisation=picture.quantisation)
    if recipe.enlarger != AUTO:
        return recipe, _Looked(found=found, because="the recipe names it")
    choice = degradation.choose(found)
    return replace(recipe, enlarger=choice.enlarger), _Looked(found=found, because=choice.because)


def _finish(recipe: Recipe, plan: Plan, *, resemblance: float, last: bool) -> Finish:
    """What happens to the enlarged pixels of a pass: they follow what went in, and are sharpened after the last."""
    rounds = resampling.rounds(resemblance)
    strength = recipe.sharpen if last else 0.0

    def finish(y: Tensor, x: Tensor) -> Tensor:
        y = resampling.accent(y, x, plan.gain).clamp(0, 1)
        return resampling.sharpen(resampling.follow(y, x, rounds), strength)

    return finish


def _rising(report: Report) -> Report:
    """Never reports less than before, though a pass begins anew when memory ran out."""
    highest = 0.0

    def rising(fraction: float) -> None:
        nonlocal highest
        highest = min(1.0, max(highest, fraction))
        report(highest)

    return rising


def _refuse_broken(result: Samples, source: Samples, quality: Quality, recipe: Recipe) -> None:
    wanted = tuple(side * recipe.scale for side in source.shape[:2])
    if result.shape[:2] != wanted:
        raise BadResult(f"The result has {result.shape[1]}x{result.shape[0]} pixels, not {wanted[1]}x{wanted[0]}.")
    if not result.any() and source.max() > NOT_BLACK * np.iinfo(source.dtype).max:
        raise BadResult("The result came out black. Check the weights, or use another device.")
    if not quality.alive and np.ptp(source) > NOT_BLACK * np.iinfo(source.dtype).max:
        raise BadResult("The result came out in one colour. Check the weights, or use another device.")
    if quality.drift_db < recipe.least_drift_db:
        raise BadResult(
            f"The result, scaled down, is {quality.drift_db:.0f} dB from the input, and {recipe.least_drift_db:g} are "
            "the least. Use less creativity or more resemblance."
        )
