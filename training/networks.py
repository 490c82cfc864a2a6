"""Build the untrained networks of the compact checkpoint, in two sizes.

The UNet attends only to words, so its cost is linear and tiles may have any size. The time embedding carries what the
words say about the whole image to every resolution.
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
from hiresfix.engine.diffusion.compact.checkpoint import CompactModel, WordEmbedding
from hiresfix.engine.diffusion.compact.dct_codec import BlockTransform
from hiresfix.engine.diffusion.compact.preconditioning import Preconditioning


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkSize:
    """Channels of the UNet's levels, residual blocks per level, and width of the word embedding."""

    channels: tuple[int, ...]
    layers: int
    word_width: int


SIZES = {
    "tiny": NetworkSize(channels=(32, 32, 32), layers=1, word_width=32),
    "s": NetworkSize(channels=(64, 96, 160), layers=1, word_width=96),
    "m": NetworkSize(channels=(96, 160, 256), layers=2, word_width=128),
}
"""Sizes by name; "tiny" is for tests."""


def build(
    size: NetworkSize, words: tuple[int, ...], codec: BlockTransform, preconditioning: Preconditioning, seed: int
) -> CompactModel:
    """Build the networks with random weights from the seed, float32 on the CPU."""
    torch.manual_seed(seed)
    levels = len(size.channels)
    shared: dict[str, Any] = {
        "in_channels": dct_codec.CHANNELS,
        "block_out_channels": size.channels,
        "layers_per_block": size.layers,
        "cross_attention_dim": size.word_width,
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
    _initialise_zero_convolutions(controlnet)
    config = CLIPTextConfig(
        vocab_size=checkpoint.row_count(words),
        hidden_size=size.word_width,
        intermediate_size=2 * size.word_width,
        num_hidden_layers=2,
        num_attention_heads=4,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    text_encoder = CLIPTextModel(config)
    checkpoint.set_word_embedding(text_encoder, WordEmbedding(words, size.word_width))
    return CompactModel(
        unet=unet,
        controlnet=controlnet,
        text_encoder=text_encoder,
        word_ids=words,
        codec=codec,
        preconditioning=preconditioning,
    )


def _initialise_zero_convolutions(controlnet: ControlNetModel) -> None:
    """Replace the ControlNet's zero convolutions by random ones: zeros only suit a UNet that is already trained."""
    for conv in (*controlnet.controlnet_down_blocks, controlnet.controlnet_mid_block):
        assert isinstance(conv, nn.Conv2d)
        nn.init.normal_(conv.weight, std=0.5 / conv.in_channels**0.5)
    last = controlnet.controlnet_cond_embedding.conv_out
    nn.init.normal_(last.weight, std=0.5 / (9 * last.in_channels) ** 0.5)
