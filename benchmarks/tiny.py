"""Networks of the real classes, tiny and with random weights, where what surrounds them is to be measured.

They show geometry, colour, seams and memory of everything around the networks. They know nothing of pictures: what the
published weights add to one, and what those would cost, they cannot show.
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
from hiresfix.engine.diffusion.loader import Assembled
from hiresfix.engine.diffusion.pipeline import Model
from hiresfix.engine.diffusion.prompts import Conditioner
from hiresfix.engine.diffusion.vae import Autoencoder
from hiresfix.engine.superres import networks
from hiresfix.engine.superres.networks import SRVGGNetCompact
from hiresfix.engine.upscaler import Upscaler
from hiresfix.recipe import Engine, Recipe

ENLARGER = "tiny"
_WIDTHS = (16, 32)
_TEXT = 64


def upscaler(recipe: Recipe) -> tuple[Upscaler, Recipe]:
    """An upscaler whose networks are tiny, and the recipe without what only published networks can take.

    The recipe's enlarger may be `ENLARGER`.
    """
    made = Upscaler("cpu")
    torch.manual_seed(0)
    network = networks.place(SRVGGNetCompact(convs=1, features=8).eval(), made.device, torch.float32)
    made._networks[ENLARGER] = {"name": ENLARGER, "sha256": ""}, network
    recipe = replace(recipe, loras=(), embeddings=())
    if recipe.engine is Engine.DIFFUSION:
        made._assembled = loader.key(recipe), Assembled(model=model(), files=())
    return made, recipe


def model() -> Model:
    """A latent pixel covers eight by eight, as Stable Diffusion's does."""
    torch.manual_seed(0)
    options: dict[str, Any] = {
        "block_out_channels": _WIDTHS, "layers_per_block": 1, "cross_attention_dim": _TEXT, "attention_head_dim": 2,
        "norm_num_groups": 8, "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    }  # fmt: skip
    unet = UNet2DConditionModel(**options, up_block_types=("CrossAttnUpBlock2D", "UpBlock2D")).eval()
    controlnet = ControlNetModel(**options, conditioning_embedding_out_channels=(8, 16, 16, 16)).eval()
    for parameter in controlnet.parameters():  # its outgoing convolutions are born as zeros
        nn.init.normal_(parameter, std=0.1)
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 16, 16),
        layers_per_block=1,
        norm_num_groups=4,
        mid_block_add_attention=False,  # its work grows with the square of the picture, its memory does not
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
    ).eval()
    config = CLIPTextConfig(
        vocab_size=49408, hidden_size=_TEXT, intermediate_size=64, num_hidden_layers=1, num_attention_heads=1
    )
    text: Any = CLIPTextModel(config)
    return Model(unet=unet, controlnet=controlnet, conditioner=Conditioner(text.eval()), codec=Autoencoder(network=vae))
