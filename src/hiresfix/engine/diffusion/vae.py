"""VAE: convert pixels to latents and back, whole if that fits, otherwise in exact tiles.

Guarantees:

- Tiles give the same result as the whole image (`exact_tiling`), for Stable Diffusion's autoencoder.
- Non-finite values are never returned.
- Images are read and written piece by piece, so beyond the budget memory grows only with the latent.

Independent of recipes, prompts and files.
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
from hiresfix.engine.diffusion.exact_tiling import (
    ChainLayer,
    ImageFrame,
    NotFiniteError,
    ReadRegion,
    TiledRun,
    WriteRegion,
)
from hiresfix.engine.pixels import resampling
from hiresfix.engine.pixels.arrays import ImageArray
from hiresfix.engine.pixels.tiling import Span
from hiresfix.engine.progress import ProgressCallback
from hiresfix.errors import BadResult, WeightsError

Pixels: TypeAlias = Tensor | ImageArray
"""(1, 3, H, W) in 0..1, or (H, W, 3) uint8, uint16 or float in 0..1, which may be a memory map."""

DEFAULT_BUDGET = 3 << 30
"""Bytes of working memory."""


class Codec(Protocol):
    """Converts between pixels and the latents of a diffusion model.

    `report` may restart at 0 when memory runs out or the precision is not enough.
    """

    @property
    def factor(self) -> int:
        """Pixels per latent pixel along one axis."""

    @property
    def channels(self) -> int: ...

    def encode(self, pixels: Pixels, report: ProgressCallback) -> Tensor:
        """Return the latent, (1, channels, ceil(H / factor), ceil(W / factor)), float32, of about unit variance."""

    def decode(self, latent: Tensor, out: ImageArray, report: ProgressCallback, *, truncate: bool = False) -> None:
        """Decode a latent into `out`, cropping what the latent has beyond it.

        Args:
            latent: (1, channels, h, w).
            out: (H, W, 3), uint8, uint16 or float in 0..1.
            report: Gets the progress.
            truncate: Round integers down, as the original does, instead of to the nearest.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class Autoencoder:
    """`Codec` for diffusers' AutoencoderKL, on its device and in its precision.

    When memory runs out, the side of the image that fits is halved and the run repeated. Non-finite values in half
    precision lead to a second run in float32, where they raise BadResult.

    Args:
        network: The AutoencoderKL.
        budget: Bytes that one encoding or decoding may use, without weights and workspaces of kernels.
    """

    network: Any
    budget: int = DEFAULT_BUDGET

    @property
    def factor(self) -> int:
        return int(2 ** (len(self.network.config["block_out_channels"]) - 1))

    @property
    def channels(self) -> int:
        return int(self.network.config["latent_channels"])

    def single_pass_bytes(self, height: int, width: int) -> int:
        """Return the bytes that an image of height x width latent pixels needs to run in one piece."""
        layers = (*_encoder(self.network), *_decoder(self.network))
        return int(self._bytes_per_pixel(layers) * height * width * self.factor**2)

    def recompute_factor(self, height: int, width: int) -> float:
        """Return the work of decoding height x width latent pixels within the budget, relative to one piece.

        Raises:
            EngineFailed: They do not fit.
        """
        layers = _decoder(self.network)
        frame = self._frame(layers, height, width, math.isqrt(int(self.budget / self._bytes_per_pixel(layers))))
        return exact_tiling.total_cost(exact_tiling.plan_sections(layers, frame)) / exact_tiling.total_cost(
            exact_tiling.plan_sections(layers, replace(frame, budget=1 << 62))
        )

    def _bytes_per_pixel(self, layers: Sequence[ChainLayer]) -> float:
        """Return the bytes in memory per image pixel."""
        return max(layer.values_per_pixel for layer in layers) * float(self.network.dtype.itemsize)

    @torch.inference_mode()
    def encode(self, pixels: Pixels, report: ProgressCallback) -> Tensor:
        """Return the mean of the posterior, scaled for the diffusion model, float32 on the network's device.

        Sides that are not a multiple of the factor are extended by reflection at the right and the bottom.
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

            self._run_layers(_encoder(self.network), height, width, read, write, report)

        self._run_with_float32_retry(run)
        config = self.network.config
        return (mean - float(config.get("shift_factor") or 0.0)) * float(config["scaling_factor"])

    @torch.inference_mode()
    def decode(self, latent: Tensor, out: ImageArray, report: ProgressCallback, *, truncate: bool = False) -> None:
        """Decode a latent into `out`; see `Codec.decode`.

        Raises:
            ValueError: `out` is larger than the latent's image, or smaller by a whole latent pixel.
            BadResult: The network returns non-finite values.
        """
        height, width = latent.shape[2:]
        if any(
            -(-side // self.factor) != latent_side
            for side, latent_side in zip(out.shape, (height, width), strict=False)
        ):
            raise ValueError(f"{out.shape[1]}x{out.shape[0]} pixels cannot hold a latent of {width}x{height}")
        config = self.network.config
        z = latent / config["scaling_factor"] + (config.get("shift_factor") or 0.0)

        def run(self: Autoencoder) -> None:
            x = z.to(self.network.device, self.network.dtype)
            self._run_layers(
                _decoder(self.network),
                height,
                width,
                exact_tiling.region_reader(x),
                _pixel_writer(out, truncate),
                report,
            )

        self._run_with_float32_retry(run)

    def _run_with_float32_retry(self, run: Callable[[Autoencoder], None]) -> None:
        try:
            run(self)
        except NotFiniteError:
            if self.network.dtype.itemsize < 4:
                # A copy, so that other users of the network never see it in another precision.
                full = replace(self, network=copy.deepcopy(self.network).float())
                return full._run_with_float32_retry(run)
            raise BadResult("The autoencoder returned non-finite values, in float32 too. Check its weights.") from None

    def _run_layers(
        self,
        layers: Sequence[ChainLayer],
        height: int,
        width: int,
        read: ReadRegion,
        write: WriteRegion,
        report: ProgressCallback,
    ) -> None:
        """Run a whole image through the layers; height and width are in latent pixels."""
        like = next(self.network.parameters())

        def work(side: int) -> None:
            frame = self._frame(layers, height, width, side)
            sections = exact_tiling.plan_sections(layers, frame)
            TiledRun(layers=layers, sections=sections, frame=frame, like=like).run(read, write, report)

        devices.retry_with_smaller_tile(math.isqrt(int(self.budget / self._bytes_per_pixel(layers))), work)

    def _frame(self, layers: Sequence[ChainLayer], height: int, width: int, side: int) -> ImageFrame:
        """Return the frame whose budget fits a square image of `side` pixels in one piece."""
        return ImageFrame(
            height=height * self.factor,
            width=width * self.factor,
            itemsize=self.network.dtype.itemsize,
            budget=int(self._bytes_per_pixel(layers) * side**2),
        )


def _encoder(network: Any) -> list[ChainLayer]:
    """Return the layers from pixels in -1..1 to mean and log variance of the posterior."""
    encoder: Any = network.encoder
    _check_blocks(network, encoder.down_blocks, "DownEncoderBlock2D")
    layers, level = [_convolution(encoder.conv_in, 0)], 0
    for block in encoder.down_blocks:
        layers += [half for resnet in block.resnets for half in _residual(resnet, level)]
        for sampler in block.downsamplers or ():
            layers.append(
                _convolution(sampler.conv, level, level + 1, prepare=lambda y: functional.pad(y, (0, 1, 0, 1)))
            )
            level += 1
    layers += [*_middle(encoder.mid_block, level), _convolution(encoder.conv_out, level, norm=encoder.conv_norm_out)]
    quant: Any = network.quant_conv
    return [*layers, *([] if quant is None else [_convolution(quant, level)])]


def _decoder(network: Any) -> list[ChainLayer]:
    """Return the layers from unscaled latents to pixels in -1..1."""
    decoder: Any = network.decoder
    _check_blocks(network, decoder.up_blocks, "UpDecoderBlock2D")
    level = len(decoder.up_blocks) - 1
    quant: Any = network.post_quant_conv
    layers = [*([] if quant is None else [_convolution(quant, level)]), _convolution(decoder.conv_in, level)]
    layers += _middle(decoder.mid_block, level)
    for block in decoder.up_blocks:
        layers += [half for resnet in block.resnets for half in _residual(resnet, level)]
        for sampler in block.upsamplers or ():
            layers.append(
                _convolution(sampler.conv, level, level - 1, prepare=partial(functional.interpolate, scale_factor=2))
            )
            level -= 1
    return [*layers, _convolution(decoder.conv_out, level, norm=decoder.conv_norm_out)]


def _check_blocks(network: Any, blocks: Sequence[nn.Module], expected: str) -> None:
    kinds = {type(block).__name__ for block in blocks}
    if kinds != {expected} or network.config["act_fn"] != "silu":
        raise WeightsError(f"This autoencoder consists of {', '.join(sorted(kinds))}. Use one of {expected} and SiLU.")


def _middle(block: Any, level: int) -> list[ChainLayer]:
    first, *others = block.resnets
    layers = _residual(first, level)
    for attention, resnet in zip(block.attentions, others, strict=True):
        layers += [] if attention is None else [_attention(attention, level)]
        layers += _residual(resnet, level)
    return layers


def _residual(block: Any, level: int) -> list[ChainLayer]:
    def close(y: Tensor, skip: Tensor) -> Tensor:
        shortcut = skip if block.conv_shortcut is None else block.conv_shortcut(skip)
        return shortcut + block.conv2(y)  # type: ignore[no-any-return]  # a Tensor

    second = replace(_convolution(block.conv2, level, norm=block.norm2), work=close, starts_block=False)
    return [_convolution(block.conv1, level, norm=block.norm1), second]


def _attention(attention: Any, level: int) -> ChainLayer:
    """Return an attention layer; `TiledRun` does its work, because it needs the whole map."""
    channels = attention.to_q.in_features
    return ChainLayer(
        work=lambda y, skip: y,
        channels=(channels, channels),
        levels=(level, level),
        cost=4.0 * channels**2,
        norm=attention.group_norm,
        attention=attention,
    )


def _convolution(
    conv: nn.Conv2d,
    level: int,
    after: int | None = None,
    *,
    norm: nn.GroupNorm | None = None,
    prepare: Callable[[Tensor], Tensor] = lambda y: y,
) -> ChainLayer:
    return ChainLayer(
        work=lambda y, skip: conv(prepare(y)),
        channels=(conv.in_channels, conv.out_channels),
        levels=(level, level if after is None else after),
        cost=float(conv.weight.numel()),
        norm=norm,
        radius=conv.kernel_size[0] // 2,
    )


def _pixel_writer(out: ImageArray, truncate: bool) -> WriteRegion:
    max_value = float(np.iinfo(out.dtype).max) if out.dtype.kind == "u" else None

    def write(rows: Span, columns: Span, y: Tensor) -> None:
        if not bool(y.isfinite().all()):
            raise NotFiniteError
        region = out[rows.slice, columns.slice]
        values = (y[0, :, : region.shape[0], : region.shape[1]].float() * 0.5 + 0.5).clamp(0, 1)
        if max_value is not None:
            values = (values * max_value).floor() if truncate else (values * max_value).round()
        region[...] = resampling.to_host(values, out.dtype)

    return write


def _sides(pixels: Pixels) -> tuple[int, int]:
    height, width = pixels.shape[-2:] if isinstance(pixels, Tensor) else pixels.shape[:2]
    return int(height), int(width)


def _crop_pixels(pixels: Pixels, rows: Span, columns: Span, device: torch.device) -> Tensor:
    """Return (1, 3, rows, columns), float32 in 0..1 on the device, reflected beyond the image."""
    if isinstance(pixels, Tensor):
        crop = pixels[:, :, rows.slice, columns.slice].to(device).float()
    else:
        samples = pixels[rows.slice, columns.slice]
        if samples.dtype.kind == "u":
            crop = resampling.to_tensor(samples, device)
        else:
            crop = devices.copy_to_device(torch.from_numpy(samples.astype(np.float32)), device).permute(2, 0, 1)[None]
    for axis, length in ((2, rows.length), (3, columns.length)):
        if crop.shape[axis] < length:
            crop = crop.index_select(axis, resampling.mirrored_indices(crop.shape[axis], length).to(crop.device))
    return crop
