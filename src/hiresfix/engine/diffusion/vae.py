"""Pixels to latents and back, whole where that fits and otherwise in tiles that give the same picture.

Guarantees: what `chain` guarantees of tiles, for Stable Diffusion's autoencoder; nothing that is not a number is
ever returned. Pictures go in and out piece by piece, so that beyond the given budget memory grows with the latent
only. Knows no recipes, no prompts and no files.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from hiresfix.engine import devices
from hiresfix.engine.diffusion import exact_tiling
from hiresfix.engine.diffusion.exact_tiling import Frame, Layer, NotFiniteError, Read, Stream, Write
from hiresfix.engine.pixels import resampling
from hiresfix.engine.pixels.resampling import Samples
from hiresfix.engine.pixels.tiling import Span
from hiresfix.engine.progress import Report
from hiresfix.errors import BadResult, WeightsError

Pixels: TypeAlias = Tensor | Samples
"""(1, 3, H, W) in 0..1, or (H, W, 3) uint8, uint16 or float in 0..1, which may be a memory map."""

BUDGET = 3 << 30


class Codec(Protocol):
    """What stands between pixels and the latents that a diffusion model works on.

    `report` may begin anew when memory ran out or precision did not suffice.
    """

    @property
    def factor(self) -> int:
        """Pixels per latent pixel along one axis."""

    @property
    def channels(self) -> int: ...

    def encode(self, pixels: Pixels, report: Report) -> Tensor:
        """(1, channels, ceil(H / factor), ceil(W / factor)) float32, of about unit variance."""

    def decode(self, latent: Tensor, out: Samples, report: Report, *, truncate: bool = False) -> None:
        """Fills `out` (H, W, 3), uint8, uint16 or float in 0..1; what the latent holds beyond it is cut off.

        truncate: integers are rounded down, as the original does, instead of to the nearest.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class Autoencoder:
    """The `Codec` of `network`, diffusers' AutoencoderKL, on its device and in its precision.

    budget: bytes that one encoding or decoding may take on that device, weights and kernels' workspaces excluded.
    Running out of memory halves the picture side that fits and tries again. Values that are no numbers in half
    precision lead to a second try in float32; there, they raise BadResult.
    """

    network: Any
    budget: int = BUDGET

    @property
    def factor(self) -> int:
        return int(2 ** (len(self.network.config["block_out_channels"]) - 1))

    @property
    def channels(self) -> int:
        return int(self.network.config["latent_channels"])

    def bytes_for(self, height: int, width: int) -> int:
        """What a picture of so many latent pixels takes in one piece."""
        layers = (*_encoder(self.network), *_decoder(self.network))
        return int(self._each(layers) * height * width * self.factor**2)

    def repetition(self, height: int, width: int) -> float:
        """How many times the work of one piece the budget makes of decoding so many latent pixels, 1 or more.

        Raises EngineFailed where they do not fit.
        """
        layers = _decoder(self.network)
        frame = self._frame(layers, height, width, math.isqrt(int(self.budget / self._each(layers))))
        return exact_tiling.cost(exact_tiling.plan(layers, frame)) / exact_tiling.cost(
            exact_tiling.plan(layers, replace(frame, budget=1 << 62))
        )

    def _each(self, layers: Sequence[Layer]) -> float:
        """Bytes for each pixel of the picture."""
        return max(layer.values for layer in layers) * float(self.network.dtype.itemsize)

    @torch.inference_mode()
    def encode(self, pixels: Pixels, report: Report) -> Tensor:
        """The posterior's mean, scaled as the diffusion model wants it, float32 on the network's device.

        Sides that are no multiple of the factor are continued by reflection at the right and the bottom.
        """
        height, width = (-(-side // self.factor) for side in _sides(pixels))
        mean = torch.empty((1, self.channels, height, width), device=self.network.device)

        def write(rows: Span, columns: Span, moments: Tensor) -> None:
            if not bool(moments.isfinite().all()):
                raise NotFiniteError
            mean[:, :, rows.slice, columns.slice] = moments[:, : self.channels]

        def run(self: Autoencoder) -> None:
            def read(rows: Span, columns: Span) -> Tensor:
                values = _crop_pixels(pixels, rows, columns, self.network.device)
                return (values * 2 - 1).to(self.network.dtype)

            self._through(_encoder(self.network), height, width, read, write, report)

        self._retrying(run)
        config = self.network.config
        return (mean - float(config.get("shift_factor") or 0.0)) * float(config["scaling_factor"])

    @torch.inference_mode()
    def decode(self, latent: Tensor, out: Samples, report: Report, *, truncate: bool = False) -> None:
        """Raises ValueError if `out` is larger than the latent's picture, or smaller by a whole latent pixel."""
        height, width = latent.shape[2:]
        if any(-(-side // self.factor) != wanted for side, wanted in zip(out.shape, (height, width), strict=False)):
            raise ValueError(f"{out.shape[1]}x{out.shape[0]} pixels cannot hold a latent of {width}x{height}")
        config = self.network.config
        z = latent / config["scaling_factor"] + (config.get("shift_factor") or 0.0)

        def run(self: Autoencoder) -> None:
            x = z.to(self.network.device, self.network.dtype)
            self._through(
                _decoder(self.network), height, width, exact_tiling.cropper(x), _writer(out, truncate), report
            )

        self._retrying(run)

    def _retrying(self, run: Callable[[Autoencoder], None]) -> None:
        try:
            run(self)
        except NotFiniteError:
            if self.network.dtype.itemsize < 4:
                # A copy, so that whoever else holds the network never sees it in another precision.
                full = replace(self, network=copy.deepcopy(self.network).float())
                return full._retrying(run)
            raise BadResult(
                "The autoencoder gave values that are no numbers, in float32 too. Check the weights."
            ) from None

    def _through(
        self, layers: Sequence[Layer], height: int, width: int, read: Read, write: Write, report: Report
    ) -> None:
        """All of a picture through the layers; height and width in latent pixels."""
        like = next(self.network.parameters())

        def work(side: int) -> None:
            frame = self._frame(layers, height, width, side)
            sections = exact_tiling.plan(layers, frame)
            Stream(layers=layers, sections=sections, frame=frame, like=like).run(read, write, report)

        devices.with_room(math.isqrt(int(self.budget / self._each(layers))), work)

    def _frame(self, layers: Sequence[Layer], height: int, width: int, side: int) -> Frame:
        """`side` stands for the budget: it is that of the largest square picture that goes through whole."""
        return Frame(
            height=height * self.factor,
            width=width * self.factor,
            itemsize=self.network.dtype.itemsize,
            budget=int(self._each(layers) * side**2),
        )


def _encoder(network: Any) -> list[Layer]:
    """Pixels of -1..1 -> mean and log variance of the posterior."""
    encoder: Any = network.encoder
    _check(network, encoder.down_blocks, "DownEncoderBlock2D")
    layers, level = [_step(encoder.conv_in, 0)], 0
    for block in encoder.down_blocks:
        layers += [half for resnet in block.resnets for half in _residual(resnet, level)]
        for sampler in block.downsamplers or ():
            layers.append(_step(sampler.conv, level, level + 1, prepare=lambda y: functional.pad(y, (0, 1, 0, 1))))
            level += 1
    layers += [*_middle(encoder.mid_block, level), _step(encoder.conv_out, level, norm=encoder.conv_norm_out)]
    quant: Any = network.quant_conv
    return [*layers, *([] if quant is None else [_step(quant, level)])]


def _decoder(network: Any) -> list[Layer]:
    """Latents as the encoder gives them, unscaled -> pixels of -1..1."""
    decoder: Any = network.decoder
    _check(network, decoder.up_blocks, "UpDecoderBlock2D")
    level = len(decoder.up_blocks) - 1
    quant: Any = network.post_quant_conv
    layers = [*([] if quant is None else [_step(quant, level)]), _step(decoder.conv_in, level)]
    layers += _middle(decoder.mid_block, level)
    for block in decoder.up_blocks:
        layers += [half for resnet in block.resnets for half in _residual(resnet, level)]
        for sampler in block.upsamplers or ():
            layers.append(
                _step(sampler.conv, level, level - 1, prepare=partial(functional.interpolate, scale_factor=2))
            )
            level -= 1
    return [*layers, _step(decoder.conv_out, level, norm=decoder.conv_norm_out)]


def _check(network: Any, blocks: Sequence[nn.Module], wanted: str) -> None:
    kinds = {type(block).__name__ for block in blocks}
    if kinds != {wanted} or network.config["act_fn"] != "silu":
        raise WeightsError(f"This autoencoder is made of {', '.join(sorted(kinds))}. Use one of {wanted} and SiLU.")


def _middle(block: Any, level: int) -> list[Layer]:
    first, *others = block.resnets
    layers = _residual(first, level)
    for attention, resnet in zip(block.attentions, others, strict=True):
        layers += [] if attention is None else [_attention(attention, level)]
        layers += _residual(resnet, level)
    return layers


def _residual(block: Any, level: int) -> list[Layer]:
    def close(y: Tensor, skip: Tensor) -> Tensor:
        shortcut = skip if block.conv_shortcut is None else block.conv_shortcut(skip)
        return shortcut + block.conv2(y)  # type: ignore[no-any-return]  # a Tensor

    second = replace(_step(block.conv2, level, norm=block.norm2), work=close, opens=False)
    return [_step(block.conv1, level, norm=block.norm1), second]


def _attention(attention: Any, level: int) -> Layer:
    """Its work is done by `_Stream`, because it looks at everything."""
    channels = attention.to_q.in_features
    return Layer(
        work=lambda y, skip: y,
        channels=(channels, channels),
        levels=(level, level),
        cost=4.0 * channels**2,
        norm=attention.group_norm,
        attention=attention,
    )


def _step(
    conv: nn.Conv2d,
    level: int,
    after: int | None = None,
    *,
    norm: nn.GroupNorm | None = None,
    prepare: Callable[[Tensor], Tensor] = lambda y: y,
) -> Layer:
    return Layer(
        work=lambda y, skip: conv(prepare(y)),
        channels=(conv.in_channels, conv.out_channels),
        levels=(level, level if after is None else after),
        cost=float(conv.weight.numel()),
        norm=norm,
        reach=conv.kernel_size[0] // 2,
    )


def _writer(out: Samples, truncate: bool) -> Write:
    most = float(np.iinfo(out.dtype).max) if out.dtype.kind == "u" else None

    def write(rows: Span, columns: Span, y: Tensor) -> None:
        if not bool(y.isfinite().all()):
            raise NotFiniteError
        place = out[rows.slice, columns.slice]
        values = (y[0, :, : place.shape[0], : place.shape[1]].float() * 0.5 + 0.5).clamp(0, 1)
        if most is not None:
            values = (values * most).floor() if truncate else (values * most).round()
        place[...] = resampling.to_host(values, out.dtype)

    return write


def _sides(pixels: Pixels) -> tuple[int, int]:
    height, width = pixels.shape[-2:] if isinstance(pixels, Tensor) else pixels.shape[:2]
    return int(height), int(width)


def _crop_pixels(pixels: Pixels, rows: Span, columns: Span, device: torch.device) -> Tensor:
    """(1, 3, rows, columns) float32 in 0..1 on the device, reflected where the span goes beyond the picture."""
    if isinstance(pixels, Tensor):
        crop = pixels[:, :, rows.slice, columns.slice].to(device).float()
    else:
        samples = pixels[rows.slice, columns.slice]
        if samples.dtype.kind == "u":
            crop = resampling.to_tensor(samples, device)
        else:
            crop = devices.send(torch.from_numpy(samples.astype(np.float32)), device).permute(2, 0, 1)[None]
    for axis, wanted in ((2, rows.length), (3, columns.length)):
        if crop.shape[axis] < wanted:
            crop = crop.index_select(axis, resampling.mirrored(crop.shape[axis], wanted).to(crop.device))
    return crop
