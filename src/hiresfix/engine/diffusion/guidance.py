"""Denoise a batch of tiles with UNet, ControlNet and prompts: classifier-free guidance as one `TileDenoise`.

Guarantees:

- A batch of tiles is one call of each network, with the halves for prompt and negative prompt side by side.
- What does not change about the control image is computed once.
- The networks are never modified, so several denoisers may share them.
- Networks compute in their own dtype, the state stays float32, and nothing waits for the device.

The control image is the image that the ControlNet is conditioned on ("hint" in algorithm.md). Independent of grids,
samplers and schedules.

Sources: algorithm.md 3.4, 6 and 7; Ho and Salimans, Classifier-Free Diffusion Guidance (2022); Karras et
al., Elucidating the Design Space of Diffusion-Based Generative Models (2022), for c_in, c_skip and c_out.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from hiresfix.engine import devices
from hiresfix.engine.pixels import tiling
from hiresfix.errors import WeightsError

if TYPE_CHECKING:
    from diffusers.models.controlnets.controlnet import ControlNetModel
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    from hiresfix.engine.diffusion.multidiffusion import Tile, TileDenoise

RESIDUAL_DECAY = 0.825
"""Weight of a ControlNet residual, relative to the next deeper one."""
ENCODER_HALO = 3
"""Receptive field of the ControlNet's image encoder to each side, in output pixels: 23 / 8 input pixels, rounded up."""
MAX_CACHED_PIXELS = 2**20
"""Latent pixels of encoded control images to cache: 640 MiB with 320 channels in 16 bit."""
_BLOCK_SIDE = 128

EncodeControl = Callable[[Tensor], Tensor]
"""Control image (1, 3, height * factor, width * factor) -> (1, channels, height, width), on the device."""
EmbedTiles = Callable[["Sequence[Tile]"], Tensor]
"""n tiles of one size -> their encoded control images: (n, channels, height, width)."""


class Scaling(NamedTuple):
    """x0 = skip * x + control * anchor + output * network(input * x), for x = z0 + sigma * noise.

    Numbers, or tensors (1, channels, 1, 1). The anchor is the latent of the control image.
    """

    input: float | Tensor
    skip: float | Tensor
    output: float | Tensor
    control: float | Tensor = 0.0


def epsilon(sigma: float) -> Scaling:
    """Return the scaling of a network that predicts the noise."""
    return Scaling(input=1 / math.hypot(sigma, 1), skip=1.0, output=-sigma)


def velocity(sigma: float) -> Scaling:
    """Return the scaling of a network that predicts v = (noise - sigma * z0) / sqrt(sigma^2 + 1).

    Source: Salimans and Ho, 2022.
    """
    norm = math.hypot(sigma, 1)
    return Scaling(input=1 / norm, skip=1 / norm**2, output=-sigma / norm)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """Rule that turns the output of a UNet into the denoised latent x0.

    Args:
        scaling: (sigma, resemblance) -> scaling.
        guidance: `dynamic` -> guidance scale.
        anchored: The control image is the upscaled image, and its latent is the anchor. Otherwise the control image is
            made from the input, and there is no anchor.
    """

    scaling: Callable[[float, float], Scaling]
    guidance: Callable[[float], float] = float
    anchored: bool = False


PREDICTIONS = {
    "epsilon": Prediction(scaling=lambda sigma, resemblance: epsilon(sigma)),
    "v_prediction": Prediction(scaling=lambda sigma, resemblance: velocity(sigma)),
}


def find_prediction(name: str) -> Prediction:
    """Return the prediction type that a checkpoint names. Raises WeightsError if it is unknown."""
    if name not in PREDICTIONS:
        raise WeightsError(
            f"This checkpoint predicts {name!r}, which is not supported. Use one that predicts "
            f"{' or '.join(PREDICTIONS)}."
        )
    return PREDICTIONS[name]


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditioning:
    """Encoded prompt and negative prompt, (1, 77 * chunks, width) each; the numbers of chunks may differ."""

    cond: Tensor
    uncond: Tensor

    def contexts(self, dynamic: float) -> list[Tensor]:
        """Return the context of each network call, (halves, tokens, width), with the prompt's half first.

        A guidance of 1 leaves the negative prompt out. Attention to a repeated sequence equals attention to the
        sequence, so if one length divides the other, the shorter one is repeated and both share a call. Otherwise
        there are two calls, as the original makes for any difference. Nothing is padded, which would change the image.
        """
        if dynamic == 1:
            return [self.cond]
        tokens = max(self.cond.shape[1], self.uncond.shape[1])
        if tokens % self.cond.shape[1] or tokens % self.uncond.shape[1]:
            return [self.cond, self.uncond]
        return [torch.cat([half.repeat(1, tokens // half.shape[1], 1) for half in (self.cond, self.uncond)])]


def guided_denoiser(
    unet: UNet2DConditionModel,
    controlnet: ControlNetModel | None,
    conditioning: Conditioning,
    control_image: Tensor | None,
    *,
    resemblance: float,
    dynamic: float,
    timestep: Callable[[float], float],
    factor: int,
    scaling: Callable[[float], Scaling] = epsilon,
    anchor: Tensor | None = None,
    whole_control_image: bool = False,
) -> TileDenoise:
    """Return a denoiser of tiles: D_uncond + dynamic * (D_cond - D_uncond).

    Sides that the UNet cannot halve often enough are extended by their mirror image, and the output is cropped.

    Args:
        unet: The UNet; of the same dtype and device as the ControlNet.
        controlnet: The ControlNet; None, or a resemblance of 0, leaves it out.
        conditioning: The encoded prompts.
        control_image: (1, 3, height * factor, width * factor) of the canvas, in 0..1, or in 0..255 as uint8, on any
            device. Not needed without a ControlNet.
        resemblance: Weight of the ControlNet.
        dynamic: Guidance scale.
        timestep: sigma -> the networks' timestep, fractional.
        factor: Pixels per latent pixel along one axis.
        scaling: sigma -> scaling.
        anchor: (1, channels, height, width) of the canvas, for a scaling that uses one.
        whole_control_image: Use `embed_whole_canvas` instead of `embed_each_tile`, for grids that move.

    Raises:
        ValueError: The control image is missing or has the wrong size.
        WeightsError: The ControlNet expects its control image as BGR.
    """
    contexts = [context.to(unet.device, unet.dtype) for context in conditioning.contexts(dynamic)]
    control = None
    if controlnet is not None and resemblance != 0:
        embed = (embed_whole_canvas if whole_control_image else embed_each_tile)(
            _encoder(controlnet), _check_control_image(control_image, factor), factor
        )
        control = _Control(controlnet, embed, resemblance)
    multiple = 2**unet.num_upsamplers

    def denoise(x: Tensor, sigma: float, tiles: Sequence[Tile]) -> Tensor:
        scale = scaling(sigma)
        height, width = x.shape[-2:]
        sample = _mirror_to_multiple(x * scale.input, multiple).to(unet.dtype, memory_format=torch.channels_last)
        # Created on the device, because copying a number there would wait.
        t = torch.full((1,), timestep(sigma), dtype=torch.float32, device=x.device)
        embedded = None if control is None else _mirror_to_multiple(control.embed(tiles), multiple)
        halves: list[Tensor] = []
        for context in contexts:
            samples, text = sample.repeat(len(context), 1, 1, 1), _repeat_for_tiles(context, len(tiles))
            down, middle = (None, None) if control is None else control.residuals(samples, t, text, embedded)
            (output,) = unet(
                samples,
                t,
                text,
                down_block_additional_residuals=down,
                mid_block_additional_residual=middle,
                return_dict=False,
            )
            halves.extend(output[..., :height, :width].float().chunk(len(context)))
        cond, uncond = halves[0], halves[-1]
        # x0 is an affine function of the output, so guiding the output guides x0.
        x0 = scale.skip * x + scale.output * (uncond + dynamic * (cond - uncond))
        return x0 if anchor is None else x0 + scale.control * torch.cat([tile.crop(anchor) for tile in tiles])

    return denoise


def soft_weights(resemblance: float, count: int) -> list[float]:
    """Return the weight of each ControlNet residual, from the first block to the middle one, for both halves."""
    return [resemblance * RESIDUAL_DECAY ** (count - 1 - number) for number in range(count)]


class _Control:
    """A ControlNet that takes an encoded control image."""

    def __init__(self, network: ControlNetModel, embed: EmbedTiles, resemblance: float) -> None:
        # A shallow copy with shared weights but without the image encoder, as torch makes its replicas. `network`
        # itself stays unchanged, because others may be using it.
        self._network = copy.copy(network)
        self._network._modules = {**network._modules, "controlnet_cond_embedding": nn.Identity()}
        self._weights = soft_weights(resemblance, len(network.controlnet_down_blocks) + 1)
        self.embed = embed

    def residuals(
        self, samples: Tensor, t: Tensor, text: Tensor, embedded: Tensor | None
    ) -> tuple[list[Tensor], Tensor]:
        assert embedded is not None
        embedded = embedded.repeat(len(samples) // len(embedded), 1, 1, 1)
        down, middle = self._network(samples, t, text, embedded, return_dict=False)
        *weights, last = self._weights
        return [residual.mul_(weight) for residual, weight in zip(down, weights, strict=True)], middle.mul_(last)


def embed_each_tile(encode: EncodeControl, control_image: Tensor, factor: int) -> EmbedTiles:
    """Encode the control image of each tile as a separate image, as the original does, and cache what fits.

    Nothing is evicted: tiles come in the same order each time, so the oldest entry is always the next one needed.
    """
    cache: dict[Tile, Tensor] = {}

    def embed_tile(tile: Tile) -> Tensor:
        embedded = cache.get(tile)
        if embedded is None:
            embedded = encode(tile.crop(control_image, factor))
            if (len(cache) + 1) * tile.height * tile.width <= MAX_CACHED_PIXELS:
                cache[tile] = embedded
        return embedded

    return lambda tiles: torch.cat([embed_tile(tile) for tile in tiles])


def embed_whole_canvas(encode: EncodeControl, control_image: Tensor, factor: int) -> EmbedTiles:
    """Encode the control image of the whole canvas once, and crop tiles from the result.

    Differs from `embed_each_tile` only within `ENCODER_HALO` pixels of a tile's border, where the encoder sees the
    neighbouring pixels instead of zeros. On random networks this changes x0 by about 1 % of the control image's
    effect. Stores as many pixels as the canvas has.
    """
    canvas: list[Tensor] = []

    def embed(tiles: Sequence[Tile]) -> Tensor:
        if not canvas:
            canvas.append(_encode_in_blocks(encode, control_image, factor))
        return torch.cat([tile.crop(canvas[0]) for tile in tiles])

    return embed


def _encode_in_blocks(encode: EncodeControl, control_image: Tensor, factor: int) -> Tensor:
    """Encode the whole control image, with the intermediate results of only one block in memory at a time."""
    height, width = (side // factor for side in control_image.shape[-2:])
    rows = []
    for row in tiling.split_side(height, max_length=_BLOCK_SIDE, halo=ENCODER_HALO):
        blocks = []
        for column in tiling.split_side(width, max_length=_BLOCK_SIDE, halo=ENCODER_HALO):
            window = control_image[..., row.window.scaled(factor).slice, column.window.scaled(factor).slice]
            encoded = encode(window)
            blocks.append(encoded[..., row.core.within(row.window).slice, column.core.within(column.window).slice])
        rows.append(torch.cat(blocks, -1))
    return torch.cat(rows, -2)


def _encoder(network: ControlNetModel) -> EncodeControl:
    if network.config["controlnet_conditioning_channel_order"] != "rgb":
        raise WeightsError("This ControlNet expects its control image as BGR. Use one that expects RGB.")
    device, dtype = network.device, network.dtype

    def encode(control_image: Tensor) -> Tensor:
        image = devices.copy_to_device(control_image, device)
        image = image / 255 if image.dtype == torch.uint8 else image
        embedded = network.controlnet_cond_embedding(image.to(dtype, memory_format=torch.channels_last))
        assert isinstance(embedded, Tensor)
        return embedded

    return encode


def _check_control_image(control_image: Tensor | None, factor: int) -> Tensor:
    if control_image is None or control_image.shape[-2] % factor or control_image.shape[-1] % factor:
        size = "none" if control_image is None else f"{control_image.shape[-1]} x {control_image.shape[-2]}"
        raise ValueError(f"the control image is {size}; give one {factor} times the size of the latent canvas")
    return control_image


def _repeat_for_tiles(context: Tensor, tiles: int) -> Tensor:
    """Repeat (halves, tokens, width) to (halves * tiles, tokens, width): all tiles of one half, then of the next."""
    return context[:, None].expand(-1, tiles, -1, -1).flatten(0, 1)


def _mirror_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """Extend both sides to a multiple of `multiple` by the mirror image, which repeats the border pixel.

    This keeps latent pixels and the blocks of the control image under them aligned. It also keeps noise like noise;
    repeating only the border would make stripes.
    """
    for dim in (-2, -1):
        size = x.shape[dim] + -x.shape[dim] % multiple
        while x.shape[dim] < size:
            x = torch.cat((x, x.flip(dim)), dim)
        x = x.narrow(dim, 0, size)
    return x
