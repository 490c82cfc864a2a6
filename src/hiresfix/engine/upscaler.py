"""The whole story of one enlargement: picture and recipe in, picture and an account of what was done out.

Guarantees: the result is exactly `recipe.scale` times the input, of its bit depth and with its transparency,
profile and metadata; a black or broken result is an error, never a success. Equal recipe, equal weights and
equal device give equal pixels. Networks stay warm between runs. Knows no files and no jobs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hiresfix import images
from hiresfix.catalog import WeightFile, find_weights
from hiresfix.engine import esrgan, ganprior, memory, resampling, weights
from hiresfix.engine.esrgan import Network, Report, Samples
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
        """Raises WeightsError, EngineFailed, and what `report` raises, between two tiles."""
        weight = _weight(recipe)
        network = self._network(weight)
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
        """Enlarges by `recipe.scale` in as many passes as the network needs, sharpening in the last."""
        factors = passes(recipe.scale, network.scale)
        weights_of_rounds = resampling.rounds(recipe.resemblance)
        # Work grows with the pixels that go in: 1 for the first pass, 16 for the one after a fourfold.
        work = [int(np.prod(factors[:number])) ** 2 for number in range(len(factors))]
        tile = 0
        for number, factor in enumerate(factors):
            strength = recipe.sharpen if number == len(factors) - 1 else 0.0

            def finish(y: Tensor, x: Tensor, strength: float = strength) -> Tensor:
                return resampling.sharpen(resampling.follow(y.clamp(0, 1), x, weights_of_rounds), strength)

            rgb, used = esrgan.enlarge(
                network,
                rgb,
                factor=factor,
                tile=recipe.tile,
                finish=finish,
                reach=resampling.FOLLOW_REACH,
                report=_portion(report, sum(work[:number]) / sum(work), work[number] / sum(work)),
            )
            tile = max(tile, used)
        return rgb, tile

    def _network(self, weight: WeightFile) -> Network:
        if weight.name not in self._networks:
            network = weights.load(weight).to(self.device, self.dtype)
            for parameter in network.parameters():
                if parameter.dim() == 4:
                    parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
            self._networks[weight.name] = network
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


def _portion(report: Report, start: float, share: float) -> Callable[[float], None]:
    return lambda fraction: report(min(1.0, start + share * fraction))


def _refuse_black(result: Samples, source: Samples) -> None:
    if not result.any() and source.max() > NOT_BLACK * np.iinfo(source.dtype).max:
        raise EngineFailed("The result came out black. Check the weights, or use another device.")
