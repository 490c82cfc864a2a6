"""The two networks of the ESRGAN family, with their published parameter names, fed band by band.

Guarantees: a state dict of the new ESRGAN layout (`conv_first`, `body.0.rdb1.conv1`, ... for RRDBNet; `body.0`,
`body.1`, ... for SRVGGNetCompact) loads as it is, and modules are registered in the order in which the ncnn files
store them. An image fed in bands of rows gives the same result as the whole image, bit for bit where the device's
convolutions do not depend on the size of their input. No row is computed twice: every convolution keeps the border
rows of a band for the next, where tiles with a halo would compute them again. Networks take and return float32
(1, 3, height, width) with a nominal range of 0..1; the result may overshoot it. Knows no files, no image arrays and
no recipes.

Sources: Wang et al., ESRGAN (2018); Wang et al., Real-ESRGAN (2021), for the pixel-unshuffled input and SRVGG.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

RESIDUAL = 0.2
SLOPE = 0.2
_MAX_HALO = 80
_TAIL_ROWS = 64
"""Rows of features that are upsampled at once: at four times the side they need sixteen times the memory."""


class RowBuffer:
    """The rows that each layer keeps for the next band of the same image; one buffer for each run.

    `last` tells the layers that the image ends with this band, so that they pad with zeros below it. `tick` is called
    every few layers with the multiplications (weights times pixels) since the last call; what it raises ends the run.
    """

    def __init__(self, tick: Callable[[int], None] | None = None) -> None:
        self.last = True
        self._kept: dict[nn.Module, Tensor] = {}
        self._tick = tick
        self._work = 0

    def conv(self, conv: nn.Conv2d, *parts: Tensor) -> tuple[Tensor, Tensor]:
        """Convolve 3x3 with zero padding; return the rows that are complete, and the input cut to these rows.

        A row needs the next one: each band comes out one row late, until the last.

        Args:
            conv: the layer; also the key of its kept rows.
            parts: the input, (1, channels, rows, width) each, concatenated along the channels.
        """
        parts = tuple(part.to(conv.weight.dtype) for part in parts)
        if self.last and conv not in self._kept:  # the whole image at once: the convolution pads by itself
            x = torch.cat(parts, 1) if len(parts) > 1 else parts[0]
            self._work += conv.weight.numel() * x.shape[2] * x.shape[3]
            return functional.conv2d(x, conv.weight, conv.bias, padding=1), x
        x = self._frame(conv, parts)
        rows = max(0, x.shape[2] - 2)
        if rows == 0:
            return x.new_empty((1, conv.out_channels, 0, x.shape[3])), x[:, :, :0]
        self._work += conv.weight.numel() * rows * x.shape[3]
        return functional.conv2d(x, conv.weight, conv.bias, padding=(0, 1)), x[:, :, 1:-1]

    def match(self, layer: nn.Module, x: Tensor, rows: int) -> Tensor:
        """Return the next `rows` rows that `layer` was given so far, and keep the others."""
        if layer in self._kept:
            x = torch.cat((self._kept.pop(layer), x), 2)
        if x.shape[2] > rows:
            self._kept[layer] = x[:, :, rows:].clone()
        return x[:, :, :rows]

    def tick(self) -> None:
        """Report the multiplications since the last call."""
        if self._tick is not None and self._work:
            self._tick(self._work)
        self._work = 0

    def _frame(self, conv: nn.Conv2d, parts: tuple[Tensor, ...]) -> Tensor:
        """Return the parts in one tensor, with the kept rows above and zero rows at the borders of the image."""
        height, width = parts[0].shape[2:]
        above = self._kept.get(conv)
        start = 1 if above is None else above.shape[2]
        framed = torch.empty(
            (1, conv.in_channels, start + height + self.last, width),
            dtype=conv.weight.dtype,
            device=conv.weight.device,
            memory_format=torch.channels_last,
        )
        framed[:, :, :start] = 0 if above is None else above
        torch.cat(parts, 1, out=framed[:, :, start : start + height])
        if self.last:
            framed[:, :, -1] = 0
        else:
            self._kept[conv] = framed[:, :, -2:].clone()
        return framed


class DenseBlock(nn.Module):
    """Five convolutions, each fed with the input and all results before it; `RESIDUAL` of the last is added."""

    def __init__(self, features: int, growth: int) -> None:
        super().__init__()
        self.conv1 = _conv(features, growth)
        self.conv2 = _conv(features + growth, growth)
        self.conv3 = _conv(features + 2 * growth, growth)
        self.conv4 = _conv(features + 3 * growth, growth)
        self.conv5 = _conv(features + 4 * growth, features)

    def forward(self, x: Tensor, rows: RowBuffer) -> Tensor:
        parts = [x]
        for conv in (self.conv1, self.conv2, self.conv3, self.conv4):
            new, seen = rows.conv(conv, *parts)
            parts = [seen, functional.leaky_relu_(new, SLOPE)]
        y, _ = rows.conv(self.conv5, *parts)
        return torch.add(rows.match(self, x, y.shape[2]), y, alpha=RESIDUAL)


class RRDB(nn.Module):
    def __init__(self, features: int, growth: int) -> None:
        super().__init__()
        self.rdb1 = DenseBlock(features, growth)
        self.rdb2 = DenseBlock(features, growth)
        self.rdb3 = DenseBlock(features, growth)

    def forward(self, x: Tensor, rows: RowBuffer) -> Tensor:
        y = x.to(self.rdb1.conv1.weight.dtype)
        for block in (self.rdb1, self.rdb2, self.rdb3):
            y = block(y, rows)
        return torch.add(rows.match(self, x, y.shape[2]), y.to(x.dtype), alpha=RESIDUAL)


class RRDBNet(nn.Module):
    """ESRGAN's generator; `scale` is 2**ups / unshuffle.

    `halo`: input pixels beside a strip; leaving out those beyond changes nothing visible.
    """

    def __init__(
        self, *, blocks: int = 23, features: int = 64, growth: int = 32, ups: int = 2, unshuffle: int = 1
    ) -> None:
        super().__init__()
        self.scale = 2**ups // unshuffle
        self.unshuffle = unshuffle
        # Deep networks see less than they could: benchmarks/superres.py --halo measures it.
        self.halo = min(_MAX_HALO, 15 * blocks + 6) * unshuffle
        self.conv_first = _conv(3 * unshuffle**2, features)
        self.body = nn.ModuleList(RRDB(features, growth) for _ in range(blocks))
        self.conv_body = _conv(features, features)
        self._ups = [f"conv_up{number}" for number in range(1, ups + 1)]
        for name in self._ups:
            self.add_module(name, _conv(features, features))
        self.conv_hr = _conv(features, features)
        self.conv_last = _conv(features, 3)

    @property
    def work(self) -> float:
        """Multiplications for each input pixel."""
        trunk = sum(map(_weight_count, (self.conv_first, *self.body, self.conv_body)))
        tail = sum(_weight_count(self.get_submodule(name)) * 4**number for number, name in enumerate(self._ups, 1))
        tail += 4 ** len(self._ups) * (_weight_count(self.conv_hr) + _weight_count(self.conv_last))
        return float(trunk + tail) / self.unshuffle**2

    def lower_precision(self, dtype: torch.dtype) -> None:
        """Compute in `dtype`, except the sum of the blocks and the first, the joining and the last convolution.

        These three are a hundredth of the work, and rounding them too would cost 6 to 9 dB against float32.
        """
        for name in ("body", *self._ups, "conv_hr"):
            self.get_submodule(name).to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        x = functional.pad(x, (0, -width % self.unshuffle, 0, -height % self.unshuffle), mode="replicate")
        y = torch.cat(list(self.band(x, RowBuffer())), 2)
        return y[:, :, : height * self.scale, : width * self.scale]

    def band(self, x: Tensor, rows: RowBuffer) -> Iterator[Tensor]:
        """Yield the next rows of the result for the next rows of an image; sides are multiples of `unshuffle`."""
        first, _ = rows.conv(self.conv_first, functional.pixel_unshuffle(x, self.unshuffle))
        y = first
        for block in self.body:
            y = block(y, rows)
            rows.tick()
        y, _ = rows.conv(self.conv_body, y)
        y = rows.match(self, first, y.shape[2]) + y
        del first
        last = rows.last
        pieces = torch.split(y, _TAIL_ROWS, 2)
        for number, piece in enumerate(pieces, 1):
            rows.last = last and number == len(pieces)
            yield self._tail(piece, rows)
            rows.tick()

    def _tail(self, y: Tensor, rows: RowBuffer) -> Tensor:
        for name in self._ups:
            y, _ = rows.conv(self.get_submodule(name), _repeat(y, 2))  # type: ignore[arg-type]  # all are Conv2d
            y = functional.leaky_relu_(y, SLOPE)
        y, _ = rows.conv(self.conv_hr, y)
        y, _ = rows.conv(self.conv_last, functional.leaky_relu_(y, SLOPE))
        return y.float()


class SRVGGNetCompact(nn.Module):
    """A plain chain of convolutions and PReLUs with a pixel shuffle, added to the repeated input."""

    unshuffle = 1

    def __init__(self, *, convs: int = 16, features: int = 64, scale: int = 4) -> None:
        super().__init__()
        self.scale = scale
        self.halo = convs + 2  # one pixel for each convolution: its whole reach
        layers: list[nn.Module] = [_conv(3, features), nn.PReLU(features)]
        for _ in range(convs):
            layers += [_conv(features, features), nn.PReLU(features)]
        self.body = nn.ModuleList([*layers, _conv(features, 3 * scale**2)])

    @property
    def work(self) -> float:
        """Multiplications for each input pixel."""
        return float(_weight_count(self.body))

    def lower_precision(self, dtype: torch.dtype) -> None:
        """Compute all but the last convolution in `dtype`."""
        for layer in list(self.body)[:-1]:
            layer.to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat(list(self.band(x, RowBuffer())), 2)

    def band(self, x: Tensor, rows: RowBuffer) -> Iterator[Tensor]:
        """Yield the next rows of the result for the next rows of an image."""
        y = x
        for layer in self.body:
            y = rows.conv(layer, y)[0] if isinstance(layer, nn.Conv2d) else layer(y)
            rows.tick()
        detail = functional.pixel_shuffle(y.float(), self.scale)
        yield detail + _repeat(rows.match(self, x, y.shape[2]), self.scale)


Network = RRDBNet | SRVGGNetCompact


def stream(network: Network, bands: Iterable[tuple[Tensor, bool]], tick: Callable[[int], None]) -> Iterator[Tensor]:
    """Yield the rows of the result in pieces. bands: from top to bottom, each with whether it is the last."""
    rows = RowBuffer(tick)
    for x, last in bands:
        rows.last = last
        yield from network.band(x, rows)


def _conv(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1)


def _weight_count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters() if parameter.dim() == 4)


def _repeat(x: Tensor, times: int) -> Tensor:
    """Repeat every pixel `times` times along both axes; no rows give no rows."""
    if x.shape[2] == 0:
        return x.new_empty((1, x.shape[1], 0, x.shape[3] * times))
    return functional.interpolate(x, scale_factor=times, mode="nearest")


def place(network: Network, device: torch.device, dtype: torch.dtype) -> Network:
    """Move the network to the device in the memory layout that suits convolutions best; return it.

    On a GPU all of it computes in `dtype`; on a CPU only what `lower_precision` says, the rest costs little in float32.
    """
    network = network.to(device)
    if device.type == "cuda":
        network.to(dtype)
    elif dtype != torch.float32:
        network.lower_precision(dtype)
    for parameter in network.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return network
