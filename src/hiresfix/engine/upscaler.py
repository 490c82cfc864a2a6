"""The whole story of one enlargement: picture and recipe in, picture and an account of what was done out.

Guarantees: the result is exactly `recipe.scale` times the input, of its bit depth and with its transparency,
profile and metadata; a black or broken result is an error, never a success. Equal recipe, equal weights and
equal device give equal pixels. Networks stay warm between runs. Knows no files and no jobs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from hiresfix import images
from hiresfix.catalog import WeightFile, find_weights
from hiresfix.engine import enlarging, ganprior, memory, resampling, weights
from hiresfix.engine.enlarging import Finish, Report, Samples
from hiresfix.engine.esrgan import Network
from hiresfix.errors import EngineFailed, WeightsError
from hiresfix.images import Picture
from hiresfix.recipe import Engine, Recipe

FAITHFUL_NAME = "faithful (enlarger and back-projection)"
NOT_BLACK = 8 / 255
"""A picture with a sample above this cannot come out all black."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Upscaled:
    """`metadata` holds plain JSON values.

    engine; weights [{name, sha256}]; device; dtype; tile, the longest side computed at once in input pixels;
    warnings, one sentence each; quality {drift_db}, PSNR of the result scaled down against the input.
    """

    picture: Picture
    metadata: dict[str, Any]


class Upscaler:
    """Enlarges pictures on one device. Not for several threads at once; make one a worker."""

    def __init__(self, device: str = "auto", *, threads: int | None = None) -> None:
        """device: auto, cpu, cuda, cuda:N or mps. threads: how many torch may use in this process; None leaves it.

        Raises ConfigurationError for a device that is not there.
        """
        self.device = memory.choose_device(device)
        self.dtype = memory.choose_dtype(self.device)
        self._networks: dict[str, Network] = {}
        if threads is not None:
            torch.set_num_threads(threads)

    @torch.inference_mode()
    def run(self, picture: Picture, recipe: Recipe, report: Report) -> Upscaled:
        """Raises WeightsError, EngineFailed, and what `report` raises: it is called about once a second."""
        weight = _weight(recipe)
        network = self._network(weight)
        report = _rising(report)
        report(0.0)
        rgb = picture.rgb if picture.alpha is None else images.bleed(picture.rgb, picture.alpha)
        result, tile = self._passes(network, rgb, recipe, report)
        _refuse_black(result, rgb)
        alpha = picture.alpha
        if alpha is not None:
            alpha = images.enlarge_alpha(alpha, result.shape[1], result.shape[0])
        report(1.0)
        creative = recipe.engine is Engine.GAN_PRIOR
        metadata = {
            "engine": ganprior.NAME if creative else FAITHFUL_NAME,
            "weights": [{"name": weight.name, "sha256": weight.sha256}],
            "device": self.device.type,
            "dtype": str(self.dtype).removeprefix("torch."),
            "tile": tile,
            "warnings": ganprior.warnings(recipe) if creative else [],
            "quality": {"drift_db": round(resampling.drift(result, rgb), 2)},
        }
        return Upscaled(picture=replace(picture, rgb=result, alpha=alpha), metadata=metadata)

    def _passes(self, network: Network, rgb: Samples, recipe: Recipe, report: Report) -> tuple[Samples, int]:
        """The picture at `recipe.scale` in as many passes as the network needs, and the tile that fitted."""
        factors = passes(recipe.scale, network.scale)
        # Work grows with the pixels that go in: 1 for the first pass, 16 for one that follows a fourfold.
        work = [math.prod(factors[:number]) ** 2 for number in range(len(factors))]
        tile = recipe.tile
        for number, factor in enumerate(factors):
            enlarge = partial(
                enlarging.enlarge,
                network,
                rgb,
                factor=factor,
                finish=_finish(recipe, last=number == len(factors) - 1),
                report=_portion(report, sum(work[:number]) / sum(work), work[number] / sum(work)),
            )
            rgb, tile = memory.with_room(tile, enlarge)
        return rgb, tile

    def _network(self, weight: WeightFile) -> Network:
        if weight.name not in self._networks:
            self._networks[weight.name] = memory.place(weights.load(weight), self.device, self.dtype)
        return self._networks[weight.name]


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


def _weight(recipe: Recipe) -> WeightFile:
    weight = find_weights(recipe.enlarger)
    if weight is None:
        raise WeightsError(f"There are no weights {recipe.enlarger!r}. `hiresfix models` lists those there are.")
    return weight


def _finish(recipe: Recipe, *, last: bool) -> Finish:
    """What happens to the enlarged pixels of a pass: they follow what went in, and are sharpened after the last."""
    rounds = resampling.rounds(recipe.resemblance)
    strength = recipe.sharpen if last else 0.0
    return lambda y, x: resampling.sharpen(resampling.follow(y.clamp(0, 1), x, rounds), strength)


def _portion(report: Report, start: float, share: float) -> Report:
    return lambda fraction: report(start + share * fraction)


def _rising(report: Report) -> Report:
    """Never reports less than before, though a pass begins anew when memory ran out."""
    highest = 0.0

    def rising(fraction: float) -> None:
        nonlocal highest
        highest = min(1.0, max(highest, fraction))
        report(highest)

    return rising


def _refuse_black(result: Samples, source: Samples) -> None:
    if not result.any() and source.max() > NOT_BLACK * np.iinfo(source.dtype).max:
        raise EngineFailed("The result came out black. Check the weights, or use another device.")
