"""Translate tensor names of Stable Diffusion 1.x files to those of diffusers, and derive configurations from shapes.

Guarantees: functions of names and shapes only. A name without a known place is returned unchanged, so that nothing is
lost: loading finds it left over. Networks may have any depth and width, as long as they are built like Stable
Diffusion 1.x. Knows no tensors.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from hiresfix.models.weight_files import TensorShapes

NetworkConfig = dict[str, Any]

UNET_PREFIX = "model.diffusion_model."
CONTROLNET_PREFIX = "control_model."
VAE_PREFIX = "first_stage_model."
TEXT_PREFIX = "cond_stage_model.transformer."

# Not derivable from shapes; the same in every Stable Diffusion 1.x (its published configuration; algorithm.md 9).
HEADS = 8
TEXT_HEAD_WIDTH = 64
SCALING = 0.18215


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyNames:
    """Names of one network, LDM -> diffusers. `stems`: places of layers; `leaves`: parts of such a layer."""

    stems: Mapping[str, str]
    leaves: Mapping[str, str]

    def translate(self, name: str) -> str:
        """Return diffusers' name of an LDM tensor; the name itself if its place is unknown."""
        for stem, rest in _splits(name):
            if stem in self.stems:
                return ".".join(filter(None, (self.stems[stem], _translate_part(rest, self.leaves))))
        return name

    def spellings(self, layer: str) -> Iterator[str]:
        """Yield all LDM names that translate to this diffusers layer (a name without `.weight`)."""
        parts = {new: old for old, new in self.leaves.items()}
        for stem, rest in _splits(layer):
            for old, new in self.stems.items():
                if new == stem:
                    yield ".".join(filter(None, (old, parts.get(rest, rest))))


def _splits(name: str) -> Iterator[tuple[str, str]]:
    """Yield the name cut in two at each dot, the longest first part first."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        yield ".".join(parts[:end]), ".".join(parts[end:])


def _translate_part(rest: str, leaves: Mapping[str, str]) -> str:
    part, dot, parameter = rest.rpartition(".")
    return leaves.get(part, part) + dot + parameter


_RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
_TIME = {"time_embed.0": "time_embedding.linear_1", "time_embed.2": "time_embedding.linear_2"}
_MIDDLE = {
    "middle_block.0": "mid_block.resnets.0",
    "middle_block.1": "mid_block.attentions.0",
    "middle_block.2": "mid_block.resnets.1",
}


def unet(levels: int, layers: int) -> KeyNames:
    """Return the names of a UNet with `levels` resolutions and `layers` residual blocks each on the way down.

    LDM numbers all blocks consecutively: each level takes `layers + 1` numbers, the last of them on the way down for
    downsampling. On the way up the upsampling is one more part of the level's last block, after its attention if any.
    """
    each = layers + 1
    stems = _way_down(levels, layers) | {"out.0": "conv_norm_out", "out.2": "conv_out"}
    for level in range(levels):
        for layer in range(each):
            block = f"output_blocks.{level * each + layer}"
            stems[f"{block}.0"] = f"up_blocks.{level}.resnets.{layer}"
            stems[f"{block}.1"] = f"up_blocks.{level}.attentions.{layer}"
        for part in (1, 2):
            stems[f"output_blocks.{level * each + layers}.{part}.conv"] = f"up_blocks.{level}.upsamplers.0.conv"
    return KeyNames(stems=stems, leaves=_RESNET)


def controlnet(levels: int, layers: int, hints: int) -> KeyNames:
    """Return the names of a ControlNet: a UNet's way down, a convolution after each block, and the hint encoder.

    `hints` is the number of the encoder's convolutions. A SiLU follows each, so they have every second number.
    """
    stems = _way_down(levels, layers) | {"middle_block_out.0": "controlnet_mid_block"}
    stems |= {f"zero_convs.{block}.0": f"controlnet_down_blocks.{block}" for block in range(levels * (layers + 1))}
    stems |= {f"input_hint_block.{2 * n}": f"controlnet_cond_embedding.blocks.{n - 1}" for n in range(1, hints - 1)}
    stems["input_hint_block.0"] = "controlnet_cond_embedding.conv_in"
    stems[f"input_hint_block.{2 * (hints - 1)}"] = "controlnet_cond_embedding.conv_out"
    return KeyNames(stems=stems, leaves=_RESNET)


def _way_down(levels: int, layers: int) -> dict[str, str]:
    each = layers + 1
    stems = {**_TIME, **_MIDDLE, "input_blocks.0.0": "conv_in"}
    for level in range(levels):
        for layer in range(layers):
            block = f"input_blocks.{1 + level * each + layer}"
            stems[f"{block}.0"] = f"down_blocks.{level}.resnets.{layer}"
            stems[f"{block}.1"] = f"down_blocks.{level}.attentions.{layer}"
        stems[f"input_blocks.{(level + 1) * each}.0.op"] = f"down_blocks.{level}.downsamplers.0.conv"
    return stems


def vae(levels: int, layers: int) -> KeyNames:
    """Return the names of a VAE with `levels` resolutions, including the attention names of diffusers before 0.18.

    LDM counts resolutions from the finest on both ways, diffusers in the order in which they are computed.
    """
    stems = {}
    for side in ("encoder", "decoder"):
        stems[f"{side}.norm_out"] = f"{side}.conv_norm_out"
        stems[f"{side}.mid.block_1"] = f"{side}.mid_block.resnets.0"
        stems[f"{side}.mid.block_2"] = f"{side}.mid_block.resnets.1"
        stems[f"{side}.mid.attn_1"] = stems[f"{side}.mid_block.attentions.0"] = f"{side}.mid_block.attentions.0"
    for level in range(levels):
        down, up = f"encoder.down_blocks.{level}", f"decoder.up_blocks.{levels - 1 - level}"
        stems[f"encoder.down.{level}.downsample.conv"] = f"{down}.downsamplers.0.conv"
        stems[f"decoder.up.{level}.upsample.conv"] = f"{up}.upsamplers.0.conv"
        for layer in range(layers + 1):
            stems[f"encoder.down.{level}.block.{layer}"] = f"{down}.resnets.{layer}"
            stems[f"decoder.up.{level}.block.{layer}"] = f"{up}.resnets.{layer}"
    return KeyNames(stems=stems, leaves=_VAE_PARTS)


_VAE_PARTS = {
    "nin_shortcut": "conv_shortcut",
    "norm": "group_norm",
    **dict.fromkeys(("q", "query"), "to_q"),
    **dict.fromkeys(("k", "key"), "to_k"),
    **dict.fromkeys(("v", "value"), "to_v"),
    **dict.fromkeys(("proj_out", "proj_attn"), "to_out.0"),
}


def read_unet(keys: Iterable[str]) -> dict[str, str]:
    """Return LDM name -> diffusers' name of a UNet's tensors; keys without their prefix."""
    keys = list(keys)
    return _translated(keys, unet(*_depth(keys)))


def read_controlnet(keys: Iterable[str]) -> dict[str, str]:
    """Return the same for a ControlNet."""
    keys = list(keys)
    hints = _count(keys, r"input_hint_block\.(\d{1,3})\.weight") // 2 + 1
    return _translated(keys, controlnet(*_depth(keys), hints))


def read_vae(keys: Iterable[str]) -> dict[str, str]:
    """Return the same for a VAE."""
    keys = list(keys)
    layers = _count(keys, r"encoder\.down\.0\.block\.(\d{1,3})\.")
    return _translated(keys, vae(_count(keys, r"encoder\.down\.(\d{1,3})\."), layers))


def read_text(keys: Iterable[str]) -> dict[str, str]:
    """Return the same for CLIP's text model; neither transformers 5 nor some files have `text_model` around it."""
    return {key: key.removeprefix("text_model.") for key in keys}


def _translated(keys: list[str], names: KeyNames) -> dict[str, str]:
    return {key: names.translate(key) for key in keys}


def _depth(keys: list[str]) -> tuple[int, int]:
    """Return levels and layers of a UNet: its first downsampling ends the first level."""
    blocks = _count(keys, r"input_blocks\.(\d{1,3})\.")
    downsamplings = [int(match[1]) for key in keys if (match := re.match(r"input_blocks\.(\d{1,3})\.0\.op\.", key))]
    each = min(downsamplings, default=blocks)
    return (blocks // each, each - 1) if each else (0, 0)


def _count(keys: list[str], pattern: str) -> int:
    """Return one more than the highest number in the group of the pattern; 0 if no key begins with it.

    The patterns take three digits at most, so that a file cannot make this a huge number.
    """
    return max((int(match[1]) + 1 for key in keys if (match := re.match(pattern, key))), default=0)


# Shapes under diffusers' names -> configuration of each network. Shapes that fit no such network raise LookupError or
# ValueError, or give a configuration whose network has other shapes.


def unet_config(shapes: TensorShapes) -> NetworkConfig:
    return {
        **_down_config(shapes),
        "out_channels": shapes["conv_out.weight"][0],
        "up_block_types": [
            "CrossAttnUpBlock2D" if attention else "UpBlock2D" for attention in _attention_levels(shapes)[::-1]
        ],
    }


def controlnet_config(shapes: TensorShapes) -> NetworkConfig:
    hint = "controlnet_cond_embedding"
    blocks = _number(shapes, hint + ".blocks.{}.weight")
    widths = [shapes[f"{hint}.blocks.{block}.weight"][0] for block in range(1, blocks, 2)]
    first, channels = shapes[f"{hint}.conv_in.weight"][:2]
    return {
        **_down_config(shapes),
        "conditioning_channels": channels,
        "conditioning_embedding_out_channels": [first, *widths],
    }


def _down_config(shapes: TensorShapes) -> NetworkConfig:
    has_attention = _attention_levels(shapes)
    return {
        "in_channels": shapes["conv_in.weight"][1],
        "block_out_channels": [
            shapes[f"down_blocks.{level}.resnets.0.conv1.weight"][0] for level in range(len(has_attention))
        ],
        "layers_per_block": _number(shapes, "down_blocks.0.resnets.{}.conv1.weight"),
        "down_block_types": ["CrossAttnDownBlock2D" if attention else "DownBlock2D" for attention in has_attention],
        "cross_attention_dim": shapes["mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight"][1],
        "attention_head_dim": HEADS,
    }


def _attention_levels(shapes: TensorShapes) -> list[bool]:
    levels = _number(shapes, "down_blocks.{}.resnets.0.conv1.weight")
    return [f"down_blocks.{level}.attentions.0.norm.weight" in shapes for level in range(levels)]


def vae_config(shapes: TensorShapes) -> NetworkConfig:
    levels = _number(shapes, "encoder.down_blocks.{}.resnets.0.conv1.weight")
    return {
        "in_channels": shapes["encoder.conv_in.weight"][1],
        "out_channels": shapes["decoder.conv_out.weight"][0],
        "latent_channels": shapes["decoder.conv_in.weight"][1],
        "block_out_channels": [
            shapes[f"encoder.down_blocks.{level}.resnets.0.conv1.weight"][0] for level in range(levels)
        ],
        "layers_per_block": _number(shapes, "encoder.down_blocks.0.resnets.{}.conv1.weight"),
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "scaling_factor": SCALING,
    }


def text_config(shapes: TensorShapes) -> NetworkConfig:
    words, width = shapes["embeddings.token_embedding.weight"]
    return {
        "vocab_size": words,
        "hidden_size": width,
        "intermediate_size": shapes["encoder.layers.0.mlp.fc1.weight"][0],
        "num_hidden_layers": _number(shapes, "encoder.layers.{}.mlp.fc1.weight"),
        "num_attention_heads": max(1, width // TEXT_HEAD_WIDTH),
        "max_position_embeddings": shapes["embeddings.position_embedding.weight"][0],
        "bos_token_id": words - 2,
        "eos_token_id": words - 1,
        "pad_token_id": words - 1,
    }


def _number(shapes: TensorShapes, name: str) -> int:
    """Count the names of this form, numbered from 0."""
    count = 0
    while name.format(count) in shapes:
        count += 1
    return count
