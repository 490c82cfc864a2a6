"""The two networks of the ESRGAN family, by their published parameter names, and enlarging tile by tile.

Guarantees: a state dict of the new ESRGAN layout (`conv_first`, `body.0.rdb1.conv1`, ... for RRDBNet;
`body.0`, `body.1`, ... for SRVGGNetCompact) loads as it is, and modules are registered in the order in which
the ncnn files store them. Networks take and give float tensors (1, 3, height, width) of nominal range 0..1;
what they give may overshoot it. Memory beside the result is that of one tile. Knows no files and no recipes.

Sources: Wang et al., ESRGAN (2018); Wang et al., Real-ESRGAN (2021), for the pixel-unshuffled input and SRVGG.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from hiresfix.engine import memory, resampling, tiling
from hiresfix.engine.tiling import Box
from hiresfix.errors import EngineFailed

Samples = NDArray[Any]
Report = Callable[[float], None]
"""Takes the done fraction of the work, 0..1, never less than before; raises `errors.Cancelled` to stop it."""
Finish = Callable[[Tensor, Tensor], Tensor]
"""(enlarged, input) -> enlarged, float32, for one tile; looks `reach` input pixels to each side at most."""

RESIDUAL = 0.2
SLOPE = 0.2


def _conv(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1)


class DenseBlock(nn.Module):
    """Five convolutions, each fed with everything before it; the result is added at `RESIDUAL` strength."""

    def __init__(self, features: int, growth: int) -> None:
        super().__init__()
        self.conv1 = _conv(features, growth)
        self.conv2 = _conv(features + growth, growth)
        self.conv3 = _conv(features + 2 * growth, growth)
        self.conv4 = _conv(features + 3 * growth, growth)
        self.conv5 = _conv(features + 4 * growth, features)

    def forward(self, x: Tensor) -> Tensor:
        seen = x
        for conv in (self.conv1, self.conv2, self.conv3, self.conv4):
            seen = torch.cat((seen, functional.leaky_relu_(conv(seen), SLOPE)), 1)
        return torch.add(x, self.conv5(seen), alpha=RESIDUAL)


class RRDB(nn.Module):
    def __init__(self, features: int, growth: int) -> None:
        super().__init__()
        self.rdb1 = DenseBlock(features, growth)
        self.rdb2 = DenseBlock(features, growth)
        self.rdb3 = DenseBlock(features, growth)

    def forward(self, x: Tensor) -> Tensor:
        return torch.add(x, self.rdb3(self.rdb2(self.rdb1(x))), alpha=RESIDUAL)


class RRDBNet(nn.Module):
    """ESRGAN's generator. `scale` = 2**ups / unshuffle; an input side need be no multiple of anything."""

    halo: ClassVar[int] = 64

    def __init__(
        self, *, blocks: int = 23, features: int = 64, growth: int = 32, ups: int = 2, unshuffle: int = 1
    ) -> None:
        super().__init__()
        self.scale = 2**ups // unshuffle
        self.unshuffle = unshuffle
        self.conv_first = _conv(3 * unshuffle**2, features)
        self.body = nn.Sequential(*(RRDB(features, growth) for _ in range(blocks)))
        self.conv_body = _conv(features, features)
        self.ups = [f"conv_up{number}" for number in range(1, ups + 1)]
        for name in self.ups:
            self.add_module(name, _conv(features, features))
        self.conv_hr = _conv(features, features)
        self.conv_last = _conv(features, 3)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        if self.unshuffle > 1:
            x = functional.pad(x, (0, -width % self.unshuffle, 0, -height % self.unshuffle), mode="replicate")
            x = functional.pixel_unshuffle(x, self.unshuffle)
        x = self.conv_first(x)
        x = x + self.conv_body(self.body(x))
        for name in self.ups:
            x = functional.leaky_relu_(
                self.get_submodule(name)(functional.interpolate(x, scale_factor=2, mode="nearest")), SLOPE
            )
        x = self.conv_last(functional.leaky_relu_(self.conv_hr(x), SLOPE))
        return x[..., : height * self.scale, : width * self.scale]


class SRVGGNetCompact(nn.Module):
    """A plain chain of convolutions and PReLUs over a pixel shuffle, added to the enlarged input."""

    halo: ClassVar[int] = 20

    def __init__(self, *, convs: int = 16, features: int = 64, scale: int = 4) -> None:
        super().__init__()
        self.scale = scale
        layers: list[nn.Module] = [_conv(3, features), nn.PReLU(features)]
        for _ in range(convs):
            layers += [_conv(features, features), nn.PReLU(features)]
        self.body = nn.Sequential(*layers, _conv(features, 3 * scale**2))

    def forward(self, x: Tensor) -> Tensor:
        detail = functional.pixel_shuffle(cast(Tensor, self.body(x)), self.scale)
        return detail + functional.interpolate(x, scale_factor=self.scale, mode="nearest")


Network = RRDBNet | SRVGGNetCompact


def enlarge(
    network: Network, rgb: Samples, *, factor: int, tile: int, finish: Finish, reach: int, report: Report
) -> tuple[Samples, int]:
    """The picture at `factor` times its size (at most the network's) and the longest side of a tile used.

    rgb: (H, W, 3) uint8 or uint16, kept. A tile goes through the network, the reduction to `factor` and `finish`
    in one go, so no float copy of a picture ever exists. Raises EngineFailed for values that are no numbers.
    """
    height, width = rgb.shape[:2]
    picture = tiling.whole(height, width)
    result = np.empty((height * factor, width * factor, 3), rgb.dtype)
    done = 0

    def work(core: Box) -> None:
        nonlocal done
        kept = core.grown(reach, picture)
        window = kept.grown(network.halo, picture)
        x = resampling.to_tensor(rgb[window.slices], _parameter(network).device)
        y = _run(network, x, kept.within(window), factor)
        rows, columns = kept.within(window).slices
        y = finish(y, x[..., rows, columns])
        rows, columns = core.within(kept).scaled(factor).slices
        y = y[..., rows, columns]
        if not bool(y.isfinite().all()):
            raise EngineFailed("The network gave values that are no numbers. Check its weights, or use float32.")
        result[core.scaled(factor).slices] = resampling.to_samples(y, rgb.dtype)
        done += core.height * core.width
        report(done / (height * width))

    align = network.unshuffle if isinstance(network, RRDBNet) else 1
    cores = tiling.grid(height, width, tile=tile, halo=network.halo, align=align)
    return result, memory.work_through(cores, work, align=align)


def _run(network: Network, x: Tensor, kept: Box, factor: int) -> Tensor:
    parameter = _parameter(network)
    y = network(x.to(parameter.dtype, memory_format=torch.channels_last)).float()
    rows, columns = kept.scaled(network.scale).slices
    y = y[..., rows, columns].contiguous()
    return resampling.resize(y, kept.height * factor, kept.width * factor)


def _parameter(network: Network) -> Tensor:
    return next(network.parameters())
