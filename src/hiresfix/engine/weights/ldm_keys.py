"""The names of tensors in Stable Diffusion 1.x's single files, what diffusers and transformers call them, and the
configuration that their shapes tell.

Guarantees: functions of names and shapes alone. A name that belongs to no known place is its own translation, so
nothing is lost on the way: whoever loads the tensors finds it left over. Networks of any depth and width, as long as
they are built like Stable Diffusion 1.x. Knows no tensors.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from hiresfix.models.weight_files import Shapes

Config = dict[str, Any]

UNET_PREFIX = "model.diffusion_model."
CONTROLNET_PREFIX = "control_model."
VAE_PREFIX = "first_stage_model."
TEXT_PREFIX = "cond_stage_model.transformer."

# What no shape tells, the same in every Stable Diffusion 1.x (its published configuration; algorithm.md 9).
HEADS = 8
TEXT_HEAD_WIDTH = 64
SCALING = 0.18215


@dataclass(frozen=True, slots=True, kw_only=True)
class Names:
    """`stems`: where a layer stands, LDM -> diffusers; `leaves`: what a part of such a layer is called."""

    stems: Mapping[str, str]
    leaves: Mapping[str, str]

    def translate(self, name: str) -> str:
        """Diffusers' name of an LDM tensor; the name itself if it has no place."""
        for stem, rest in _splits(name):
            if stem in self.stems:
                return ".".join(filter(None, (self.stems[stem], _part(rest, self.leaves))))
        return name

    def spellings(self, layer: str) -> Iterator[str]:
        """All LDM names that would be translated to this diffusers layer (a name without `.weight`)."""
        parts = {new: old for old, new in self.leaves.items()}
        for stem, rest in _splits(layer):
            for old, new in self.stems.items():
                if new == stem:
                    yield ".".join(filter(None, (old, parts.get(rest, rest))))


def _splits(name: str) -> Iterator[tuple[str, str]]:
    """The name cut in two at each dot, the longest first part first."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        yield ".".join(parts[:end]), ".".join(parts[end:])


def _part(rest: str, leaves: Mapping[str, str]) -> str:
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


def unet(levels: int, layers: int) -> Names:
    """Names in a UNet of so many resolutions with so many residual blocks each on the way down.

    LDM numbers all blocks through: each level takes `layers + 1` numbers, on the way down the last of them for
    halving. On the way up the doubling is one more part of the level's last block, after its attention if any.
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
    return Names(stems=stems, leaves=_RESNET)


def controlnet(levels: int, layers: int, hints: int) -> Names:
    """Names in a ControlNet: a UNet's way down, a convolution after each block, and `hints` before the picture enters.

    Between the convolutions of the hint stands a SiLU, so they have every second number.
    """
    stems = _way_down(levels, layers) | {"middle_block_out.0": "controlnet_mid_block"}
    stems |= {f"zero_convs.{block}.0": f"controlnet_down_blocks.{block}" for block in range(levels * (layers + 1))}
    stems |= {f"input_hint_block.{2 * n}": f"controlnet_cond_embedding.blocks.{n - 1}" for n in range(1, hints - 1)}
    stems["input_hint_block.0"] = "controlnet_cond_embedding.conv_in"
    stems[f"input_hint_block.{2 * (hints - 1)}"] = "controlnet_cond_embedding.conv_out"
    return Names(stems=stems, leaves=_RESNET)


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


def vae(levels: int, layers: int) -> Names:
    """Names in a VAE of so many resolutions, also diffusers' own of before 0.18 for the attention.

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
    return Names(stems=stems, leaves=_VAE_PARTS)


_VAE_PARTS = {
    "nin_shortcut": "conv_shortcut",
    "norm": "group_norm",
    **dict.fromkeys(("q", "query"), "to_q"),
    **dict.fromkeys(("k", "key"), "to_k"),
    **dict.fromkeys(("v", "value"), "to_v"),
    **dict.fromkeys(("proj_out", "proj_attn"), "to_out.0"),
}


def read_unet(keys: Iterable[str]) -> dict[str, str]:
    """LDM name -> diffusers' name of a UNet's tensors; keys without their prefix."""
    keys = list(keys)
    return _translated(keys, unet(*_depth(keys)))


def read_controlnet(keys: Iterable[str]) -> dict[str, str]:
    """As `read_unet`, for a ControlNet."""
    keys = list(keys)
    hints = _count(keys, r"input_hint_block\.(\d{1,3})\.weight") // 2 + 1
    return _translated(keys, controlnet(*_depth(keys), hints))


def read_vae(keys: Iterable[str]) -> dict[str, str]:
    """As `read_unet`, for a VAE."""
    keys = list(keys)
    layers = _count(keys, r"encoder\.down\.0\.block\.(\d{1,3})\.")
    return _translated(keys, vae(_count(keys, r"encoder\.down\.(\d{1,3})\."), layers))


def read_text(keys: Iterable[str]) -> dict[str, str]:
    """As `read_unet`, for CLIP's text model: transformers 5 has no `text_model` around it, some files neither."""
    return {key: key.removeprefix("text_model.") for key in keys}


def _translated(keys: list[str], names: Names) -> dict[str, str]:
    return {key: names.translate(key) for key in keys}


def _depth(keys: list[str]) -> tuple[int, int]:
    """Levels and layers of a UNet: its first halving ends the first level."""
    blocks = _count(keys, r"input_blocks\.(\d{1,3})\.")
    halvings = [int(match[1]) for key in keys if (match := re.match(r"input_blocks\.(\d{1,3})\.0\.op\.", key))]
    each = min(halvings, default=blocks)
    return (blocks // each, each - 1) if each else (0, 0)


def _count(keys: list[str], pattern: str) -> int:
    """One more than the highest number in the group of the pattern; 0 if no key begins with it.

    The patterns take three digits at most: a file cannot make us count to a billion.
    """
    return max((int(match[1]) + 1 for key in keys if (match := re.match(pattern, key))), default=0)


# From shapes under diffusers' names to the configuration of each network. Shapes that fit no such network raise
# LookupError or ValueError, or lead to a configuration whose network has other shapes.


def unet_config(shapes: Shapes) -> Config:
    return {
        **_down_config(shapes),
        "out_channels": shapes["conv_out.weight"][0],
        "up_block_types": ["CrossAttnUpBlock2D" if attends else "UpBlock2D" for attends in _attends(shapes)[::-1]],
    }


def controlnet_config(shapes: Shapes) -> Config:
    hint = "controlnet_cond_embedding"
    blocks = _number(shapes, hint + ".blocks.{}.weight")
    widths = [shapes[f"{hint}.blocks.{block}.weight"][0] for block in range(1, blocks, 2)]
    first, channels = shapes[f"{hint}.conv_in.weight"][:2]
    return {
        **_down_config(shapes),
        "conditioning_channels": channels,
        "conditioning_embedding_out_channels": [first, *widths],
    }


def _down_config(shapes: Shapes) -> Config:
    attends = _attends(shapes)
    return {
        "in_channels": shapes["conv_in.weight"][1],
        "block_out_channels": [
            shapes[f"down_blocks.{level}.resnets.0.conv1.weight"][0] for level in range(len(attends))
        ],
        "layers_per_block": _number(shapes, "down_blocks.0.resnets.{}.conv1.weight"),
        "down_block_types": ["CrossAttnDownBlock2D" if here else "DownBlock2D" for here in attends],
        "cross_attention_dim": shapes["mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight"][1],
        "attention_head_dim": HEADS,
    }


def _attends(shapes: Shapes) -> list[bool]:
    levels = _number(shapes, "down_blocks.{}.resnets.0.conv1.weight")
    return [f"down_blocks.{level}.attentions.0.norm.weight" in shapes for level in range(levels)]


def vae_config(shapes: Shapes) -> Config:
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


def text_config(shapes: Shapes) -> Config:
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


def _number(shapes: Shapes, name: str) -> int:
    """How many names of this form there are, counted from 0."""
    count = 0
    while name.format(count) in shapes:
        count += 1
    return count
