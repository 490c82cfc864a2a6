"""The networks of the compact checkpoint, untrained, in two sizes.

Attention is to the words only, so that cost is linear and tiles may have any size; what the words say of the whole
picture reaches every resolution through the time embedding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.controlnets.controlnet import ControlNetModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from hiresfix.engine.diffusion.compact import checkpoint, dct_codec
from hiresfix.engine.diffusion.compact.checkpoint import Compact, WordEmbedding
from hiresfix.engine.diffusion.compact.dct_codec import BlockTransform
from hiresfix.engine.diffusion.compact.preconditioning import Preconditioning


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """Channels of the UNet's levels, residual blocks a level, width of an embedded word."""

    channels: tuple[int, ...]
    layers: int
    words: int


SIZES = {
    "tiny": Size(channels=(32, 32, 32), layers=1, words=32),
    "s": Size(channels=(64, 96, 160), layers=1, words=96),
    "m": Size(channels=(96, 160, 256), layers=2, words=128),
}
"""tiny is for tests."""


def build(size: Size, words: tuple[int, ...], codec: BlockTransform, known: Preconditioning, seed: int) -> Compact:
    """Random weights from the seed, float32 on the CPU."""
    torch.manual_seed(seed)
    levels = len(size.channels)
    shared: dict[str, Any] = {
        "in_channels": dct_codec.CHANNELS,
        "block_out_channels": size.channels,
        "layers_per_block": size.layers,
        "cross_attention_dim": size.words,
        "attention_head_dim": 8,
        "down_block_types": ("CrossAttnDownBlock2D",) * levels,
        "mid_block_type": "UNetMidBlock2D",
        "only_cross_attention": True,
        "resnet_time_scale_shift": "scale_shift",
        "addition_embed_type": "text",
        "addition_embed_type_num_heads": 8,
        "norm_num_groups": 16,
    }
    up = ("CrossAttnUpBlock2D",) * levels
    unet = UNet2DConditionModel(out_channels=dct_codec.CHANNELS, up_block_types=up, **shared)
    controlnet = ControlNetModel(conditioning_embedding_out_channels=(16, 32, 96), **shared)
    _wake(controlnet)
    config = CLIPTextConfig(
        vocab_size=checkpoint.rows(words),
        hidden_size=size.words,
        intermediate_size=2 * size.words,
        num_hidden_layers=2,
        num_attention_heads=4,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    text_encoder = CLIPTextModel(config)
    checkpoint.give_words(text_encoder, WordEmbedding(words, size.words))
    return Compact(
        unet=unet, controlnet=controlnet, text_encoder=text_encoder, words=words, codec=codec, preconditioning=known
    )


def _wake(controlnet: ControlNetModel) -> None:
    """Convolutions of zeros only make sense on top of a UNet that has been trained before."""
    for conv in (*controlnet.controlnet_down_blocks, controlnet.controlnet_mid_block):
        assert isinstance(conv, nn.Conv2d)
        nn.init.normal_(conv.weight, std=0.5 / conv.in_channels**0.5)
    last = controlnet.controlnet_cond_embedding.conv_out
    nn.init.normal_(last.weight, std=0.5 / (9 * last.in_channels) ** 0.5)
