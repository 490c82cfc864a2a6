"""What the networks say about a batch of tiles: UNet, ControlNet and prompts, as one `TileDenoise`.

Guarantees: each batch of tiles is one call of either network, with the half that follows the prompt and the half
that follows the negative prompt side by side; everything about the hint that does not change is computed once; the
networks are never changed, so several denoisers may share them. Networks compute in their own dtype, the state
stays float32, and nothing waits for the device. Knows no grid, no sampler and no schedule.

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

DECAY = 0.825
"""Each residual of the ControlNet weighs this much of the next deeper one's."""
ENCODER_HALO = 3
"""How many of its output pixels the hint encoder sees to each side: 23 input pixels, an eighth, rounded up."""
KEPT_PIXELS = 2**20
"""Encoded hints are kept for so many latent pixels: 640 MiB with 320 channels in 16 bit."""
_BLOCK = 128

Encode = Callable[[Tensor], Tensor]
"""A hint (1, 3, height * factor, width * factor) -> (1, channels, height, width), on the device."""
Embed = Callable[["Sequence[Tile]"], Tensor]
"""n tiles of one size -> their hints, encoded: (n, channels, height, width)."""


class Scaling(NamedTuple):
    """x0 = skip * x + control * anchor + output * network(input * x), for x = z0 + sigma * noise.

    Numbers, or tensors (1, channels, 1, 1). The anchor is what the control picture itself is as a latent.
    """

    input: float | Tensor
    skip: float | Tensor
    output: float | Tensor
    control: float | Tensor = 0.0


def epsilon(sigma: float) -> Scaling:
    """The network predicts the noise."""
    return Scaling(input=1 / math.hypot(sigma, 1), skip=1.0, output=-sigma)


def velocity(sigma: float) -> Scaling:
    """The network predicts v = (noise - sigma * z0) / sqrt(sigma^2 + 1) (Salimans and Ho, 2022)."""
    norm = math.hypot(sigma, 1)
    return Scaling(input=1 / norm, skip=1 / norm**2, output=-sigma / norm)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """How x0 follows from what a UNet says: `scaling(sigma, resemblance)`, and the guidance for a `dynamic`.

    anchored: the enlarged picture is what the ControlNet sees, and its latent is the anchor. Otherwise the ControlNet
    sees the input, and there is none.
    """

    scaling: Callable[[float, float], Scaling]
    guidance: Callable[[float], float] = float
    anchored: bool = False


PREDICTIONS = {
    "epsilon": Prediction(scaling=lambda sigma, resemblance: epsilon(sigma)),
    "v_prediction": Prediction(scaling=lambda sigma, resemblance: velocity(sigma)),
}


def prediction(name: str) -> Prediction:
    """The one a checkpoint states. Raises WeightsError for one that is not known."""
    if name not in PREDICTIONS:
        raise WeightsError(
            f"A checkpoint that predicts {name!r} cannot be used. Choose one that predicts {' or '.join(PREDICTIONS)}."
        )
    return PREDICTIONS[name]


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditioning:
    """Embeddings of the prompt and of the negative prompt, (1, 77 * chunks, width) each; chunks may differ."""

    cond: Tensor
    uncond: Tensor

    def contexts(self, dynamic: float) -> list[Tensor]:
        """What each call of the networks is conditioned on, (halves, tokens, width), the prompt's half first.

        Guidance of 1 leaves the negative prompt out. Attention to a sequence repeated as a whole is attention to
        the sequence, so one that fits evenly into the other joins it in one call; where none does, two calls are
        made, as the original makes them for any difference. Nothing is padded, which would change the picture.
        """
        if dynamic == 1:
            return [self.cond]
        tokens = max(self.cond.shape[1], self.uncond.shape[1])
        if tokens % self.cond.shape[1] or tokens % self.uncond.shape[1]:
            return [self.cond, self.uncond]
        return [torch.cat([half.repeat(1, tokens // half.shape[1], 1) for half in (self.cond, self.uncond)])]


def guided(
    unet: UNet2DConditionModel,
    controlnet: ControlNetModel | None,
    conditioning: Conditioning,
    hint: Tensor | None,
    *,
    resemblance: float,
    dynamic: float,
    timestep: Callable[[float], float],
    factor: int,
    scaling: Callable[[float], Scaling] = epsilon,
    anchor: Tensor | None = None,
    whole_hint: bool = False,
) -> TileDenoise:
    """x0 of tiles: D_uncond + dynamic * (D_cond - D_uncond), by networks of one dtype on one device.

    hint: (1, 3, height * factor, width * factor) of the canvas, 0..1, or 0..255 in uint8, on any device; not needed
    without a ControlNet or at a resemblance of 0, which leaves it out. timestep: sigma -> the networks' own,
    fractional. anchor: (1, channels, height, width) of the canvas, for a scaling that has one. whole_hint: `whole`
    instead of `apart`, for grids that move. Sides that the UNet cannot halve often enough are mirrored at their end
    for it, and what comes out is cut off there. Raises ValueError for a hint that is missing or does not fit,
    WeightsError for a ControlNet that wants its colours the other way round.
    """
    contexts = [context.to(unet.device, unet.dtype) for context in conditioning.contexts(dynamic)]
    control = None
    if controlnet is not None and resemblance != 0:
        embed = (whole if whole_hint else apart)(_encoder(controlnet), _checked(hint, factor), factor)
        control = _Control(controlnet, embed, resemblance)
    multiple = 2**unet.num_upsamplers

    def denoise(x: Tensor, sigma: float, tiles: Sequence[Tile]) -> Tensor:
        scale = scaling(sigma)
        height, width = x.shape[-2:]
        sample = _mirrored(x * scale.input, multiple).to(unet.dtype, memory_format=torch.channels_last)
        # Made on the device: a number would be copied there, which waits.
        t = torch.full((1,), timestep(sigma), dtype=torch.float32, device=x.device)
        embedded = None if control is None else _mirrored(control.embed(tiles), multiple)
        halves: list[Tensor] = []
        for context in contexts:
            samples, text = sample.repeat(len(context), 1, 1, 1), _for_each(context, len(tiles))
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
        # Guiding what the network says guides x0, which is an affine function of it.
        x0 = scale.skip * x + scale.output * (uncond + dynamic * (cond - uncond))
        return x0 if anchor is None else x0 + scale.control * torch.cat([tile.of(anchor) for tile in tiles])

    return denoise


def soft_weights(resemblance: float, count: int) -> list[float]:
    """What each of the ControlNet's residuals counts, from the first block's to the middle's, in both halves."""
    return [resemblance * DECAY ** (count - 1 - number) for number in range(count)]


class _Control:
    """A ControlNet that is given its hint already encoded."""

    def __init__(self, network: ControlNetModel, embed: Embed, resemblance: float) -> None:
        # The same network, down to each weight, without its encoder. `network` itself stays as it was: others may
        # be using it. This is how torch's own replicas are made.
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


def apart(encode: Encode, hint: Tensor, factor: int) -> Embed:
    """Each tile's hint is encoded as a picture of its own, as the original does, and kept while there is room.

    What is kept is kept to the end: tiles come round in the same order, so to drop the oldest would be to drop the
    one that is needed next.
    """
    kept: dict[Tile, Tensor] = {}

    def one(tile: Tile) -> Tensor:
        embedded = kept.get(tile)
        if embedded is None:
            embedded = encode(tile.of(hint, factor))
            if (len(kept) + 1) * tile.height * tile.width <= KEPT_PIXELS:
                kept[tile] = embedded
        return embedded

    return lambda tiles: torch.cat([one(tile) for tile in tiles])


def whole(encode: Encode, hint: Tensor, factor: int) -> Embed:
    """The whole canvas's hint is encoded once, and tiles are cut out of it wherever they lie.

    Differs from `apart` only within `ENCODER_HALO` pixels of a tile's border, where the encoder sees what the
    picture goes on with instead of zeros: in x0, on random networks, about 1 % of what the hint itself makes.
    Keeps as many pixels as the canvas has.
    """
    made: list[Tensor] = []

    def embed(tiles: Sequence[Tile]) -> Tensor:
        if not made:
            made.append(_in_blocks(encode, hint, factor))
        return torch.cat([tile.of(made[0]) for tile in tiles])

    return embed


def _in_blocks(encode: Encode, hint: Tensor, factor: int) -> Tensor:
    """What `encode` makes of the whole hint, holding no more than a block of what it makes on the way."""
    height, width = (side // factor for side in hint.shape[-2:])
    rows = []
    for row in tiling.parts(height, most=_BLOCK, halo=ENCODER_HALO):
        blocks = []
        for column in tiling.parts(width, most=_BLOCK, halo=ENCODER_HALO):
            seen = hint[..., row.window.scaled(factor).slice, column.window.scaled(factor).slice]
            kept = encode(seen)[..., row.core.within(row.window).slice, column.core.within(column.window).slice]
            blocks.append(kept)
        rows.append(torch.cat(blocks, -1))
    return torch.cat(rows, -2)


def _encoder(network: ControlNetModel) -> Encode:
    if network.config["controlnet_conditioning_channel_order"] != "rgb":
        raise WeightsError("This ControlNet wants its hint's colours as BGR. Use one that wants RGB.")
    device, dtype = network.device, network.dtype

    def encode(hint: Tensor) -> Tensor:
        seen = devices.send(hint, device)
        seen = seen / 255 if seen.dtype == torch.uint8 else seen
        embedded = network.controlnet_cond_embedding(seen.to(dtype, memory_format=torch.channels_last))
        assert isinstance(embedded, Tensor)
        return embedded

    return encode


def _checked(hint: Tensor | None, factor: int) -> Tensor:
    if hint is None or hint.shape[-2] % factor or hint.shape[-1] % factor:
        size = "none" if hint is None else f"{hint.shape[-1]} x {hint.shape[-2]}"
        raise ValueError(f"the ControlNet's hint is {size}; give one {factor} times the size of the latent canvas")
    return hint


def _for_each(context: Tensor, tiles: int) -> Tensor:
    """(halves, tokens, width) -> (halves * tiles, tokens, width): all tiles of the first half, then of the next."""
    return context[:, None].expand(-1, tiles, -1, -1).flatten(0, 1)


def _mirrored(x: Tensor, multiple: int) -> Tensor:
    """Continued to multiples of `multiple` by its mirror image, which begins with the border pixel once more.

    So a latent pixel and the block of the hint under it land in the same place, and noise stays noise, where
    repeated borders would be stripes.
    """
    for dim in (-2, -1):
        size = x.shape[dim] + -x.shape[dim] % multiple
        while x.shape[dim] < size:
            x = torch.cat((x, x.flip(dim)), dim)
        x = x.narrow(dim, 0, size)
    return x
