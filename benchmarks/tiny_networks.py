"""Tiny networks of the real classes with random weights, to measure what surrounds the networks.

They show geometry, colour, seams and memory of everything around the networks. They show neither what published weights
would add to an image nor what those would cost.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.controlnets.controlnet import ControlNetModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from hiresfix.engine.diffusion import loader
from hiresfix.engine.diffusion.loader import LoadedModel
from hiresfix.engine.diffusion.pipeline import DiffusionModel
from hiresfix.engine.diffusion.prompts import PromptEncoder
from hiresfix.engine.diffusion.vae import Autoencoder
from hiresfix.engine.superres import networks
from hiresfix.engine.superres.networks import SRVGGNetCompact
from hiresfix.engine.upscaler import Upscaler
from hiresfix.recipe import Engine, Recipe

NETWORK = "tiny"
_WIDTHS = (16, 32)
_TEXT = 64


def upscaler(recipe: Recipe) -> tuple[Upscaler, Recipe]:
    """Return an upscaler with tiny networks, and the recipe without what needs published weights.

    The super-resolution network of the recipe may be `NETWORK`.
    """
    engine = Upscaler("cpu")
    torch.manual_seed(0)
    network = networks.place(SRVGGNetCompact(convs=1, features=8).eval(), engine.device, torch.float32)
    engine._networks[NETWORK] = {"name": NETWORK, "sha256": ""}, network
    recipe = replace(recipe, loras=(), embeddings=())
    if recipe.engine is Engine.DIFFUSION:
        engine._loaded = loader.model_key(recipe), LoadedModel(model=model(), files=())
    return engine, recipe


def model() -> DiffusionModel:
    """Return a model whose latent pixel covers 8x8 pixels, as in Stable Diffusion."""
    torch.manual_seed(0)
    options: dict[str, Any] = {
        "block_out_channels": _WIDTHS, "layers_per_block": 1, "cross_attention_dim": _TEXT, "attention_head_dim": 2,
        "norm_num_groups": 8, "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    }  # fmt: skip
    unet = UNet2DConditionModel(**options, up_block_types=("CrossAttnUpBlock2D", "UpBlock2D")).eval()
    controlnet = ControlNetModel(**options, conditioning_embedding_out_channels=(8, 16, 16, 16)).eval()
    for parameter in controlnet.parameters():  # its output convolutions are initialised with zeros
        nn.init.normal_(parameter, std=0.1)
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 16, 16),
        layers_per_block=1,
        norm_num_groups=4,
        mid_block_add_attention=False,  # its work grows with the square of the image, its memory does not
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
    ).eval()
    config = CLIPTextConfig(
        vocab_size=49408, hidden_size=_TEXT, intermediate_size=64, num_hidden_layers=1, num_attention_heads=1
    )
    text: Any = CLIPTextModel(config)
    return DiffusionModel(
        unet=unet, controlnet=controlnet, prompt_encoder=PromptEncoder(text.eval()), codec=Autoencoder(network=vae)
    )
