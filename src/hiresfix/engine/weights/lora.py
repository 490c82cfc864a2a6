"""Merge LoRA and LoCon files into the weights of a UNet and a text encoder, and take them out again.

Guarantees: merging adds m·(alpha/r)·up·down of every LoRA to the weights as they were loaded, in float32, and rounds
once. The order of the LoRAs does not matter, and taking them out restores every bit. Layers of a file that the networks
do not have are reported; a file without any matching layer, or with wrong shapes, is a `WeightsError` and changes
nothing. VAE and ControlNet are not touched. Source: algorithm.md 8. Knows no prompts and no store.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from hiresfix.engine.weights import ldm_keys, superres_files
from hiresfix.errors import WeightsError
from hiresfix.models import weight_files

if TYPE_CHECKING:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from transformers import CLIPTextModel

# Names of a layer's tensors in kohya's scripts, and in peft's as diffusers' training writes them.
_PARTS = {
    "lora_down.weight": "down",
    "lora_up.weight": "up",
    "lora_mid.weight": "mid",
    "lora_A.weight": "down",
    "lora_B.weight": "up",
    "alpha": "alpha",
    "scale": "scale",
}
_PART = re.compile(rf"(?P<layer>.+)\.(?P<part>{'|'.join(map(re.escape, _PARTS))})")


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraFactors:
    """Low-rank factors of the change of one layer.

    Attributes:
        up: (out, r, 1, 1) or a matrix.
        down: (r, in, kh, kw) or a matrix.
        mid: (r, r, kh, kw) of a LoCon in Tucker form.
        scale: alpha/r, or what the file says instead.
    """

    up: Tensor
    down: Tensor
    mid: Tensor | None = None
    scale: float = 1.0

    def delta(self, shape: torch.Size, device: torch.device) -> Tensor:
        """Return scale·up·down in float32 for a weight of `shape`; raise ValueError if it has another shape."""
        up, down = (factor.to(device, torch.float32).flatten(1) for factor in (self.up, self.down))
        if self.mid is None:
            product = up @ down
        else:
            mid = self.mid.to(device, torch.float32)
            product = torch.einsum("or,rskl,si->oikl", up, mid, down)
        if product.numel() != shape.numel() or product.shape[0] != shape[0]:
            raise ValueError(f"{tuple(product.shape)} does not fit {tuple(shape)}")
        return (product * self.scale).reshape(shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lora:
    """One file. `layers` by name: `unet_` or `te_`, then the name of the layer with underscores for dots."""

    name: str
    sha256: str
    layers: Mapping[str, LoraFactors]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraUse:
    """A LoRA and its multiplier for each network: 0 leaves a network unchanged, negative values subtract."""

    lora: Lora
    unet: float
    text: float


def load_lora(path: Path) -> Lora:
    """Load a file with the names of kohya (for layers of diffusers or LDM) or of peft. Raises WeightsError."""
    if not path.is_file():
        raise WeightsError(f"There is no LoRA file {path}. `hiresfix models list` shows the installed ones.")
    state = superres_files.read_state(path)
    layers: dict[str, dict[str, Tensor]] = {}
    for key, tensor in state.items():
        match = _PART.fullmatch(key)
        if match is None:
            _, words = weight_files.describe({name: tuple(value.shape) for name, value in state.items()})
            raise WeightsError(
                f"{path.name} seems to be {words}, and {key} is not a part of a LoRA or LoCon that can be merged. "
                "Convert it to a plain LoRA, or choose another file."
            )
        layers.setdefault(_layer_name(match["layer"]), {})[_PARTS[match["part"]]] = tensor
    return Lora(
        name=path.stem,
        sha256=weight_files.fingerprint(path),
        layers={name: _factors(parts, name, path.name) for name, parts in layers.items()},
    )


def _layer_name(spelled: str) -> str:
    name = spelled.replace(".", "_").removeprefix("lora_")
    if name.startswith("text_encoder_"):
        name = name.replace("text_encoder_", "te_", 1)
    return name.replace("te_text_model_", "te_", 1)  # transformers 5 dropped `text_model`


def _factors(parts: Mapping[str, Tensor], layer: str, file: str) -> LoraFactors:
    up, down, mid = parts.get("up"), parts.get("down"), parts.get("mid")
    if up is None or down is None:
        raise WeightsError(f"{file} is incomplete: {layer} lacks one of its factors. Download the file again.")
    rank = len(down) if down.dim() else 0
    fit = rank and min(up.dim(), down.dim()) >= 2 and up.flatten(1).shape[1] == rank
    if mid is not None:
        fit = fit and mid.dim() == 4 and mid.shape[:2] == (rank, rank)
    numbers = {name: parts[name].flatten().tolist() for name in ("alpha", "scale") if name in parts}
    if not fit or not all(len(number) == 1 for number in numbers.values()):
        raise WeightsError(f"{file} is damaged: the factors of {layer} do not fit each other. Download it again.")
    scale = numbers["alpha"][0] / rank if "alpha" in numbers else 1.0
    return LoraFactors(up=up, down=down, mid=mid, scale=numbers["scale"][0] if "scale" in numbers else scale)


class LoraMerger:
    """Merges LoRAs into one UNet and one text encoder. Not for several threads at once.

    The weights change in place, so every user of the networks sees the change at the next call.
    """

    def __init__(self, unet: UNet2DConditionModel, text_encoder: CLIPTextModel) -> None:
        self._weights: dict[str, Tensor] = {}
        self._spellings: dict[str, str] = {}
        self._pristine: dict[str, Tensor] = {}
        self._merged: tuple[tuple[str, float, float], ...] = ()
        names = ldm_keys.unet(len(unet.config["block_out_channels"]), unet.config["layers_per_block"])
        for network, prefix in ((unet, "unet"), (text_encoder, "te")):
            for name, module in network.named_modules():
                if isinstance(module, nn.Linear | nn.Conv2d):
                    self._weights[f"{prefix}.{name}"] = module.weight
                    old = names.spellings(name) if prefix == "unet" else ()
                    for spelling in (name, *old):
                        self._spellings[_layer_name(f"{prefix}.{spelling}")] = f"{prefix}.{name}"

    @torch.inference_mode()
    def merge(self, uses: Sequence[LoraUse]) -> tuple[str, ...]:
        """Merge exactly these LoRAs, and return `file: layer` of each layer that the networks do not have.

        LoRAs that are merged already are left as they are.

        Raises:
            WeightsError: a LoRA matches nothing or is for other sizes; the networks are as they were loaded.
        """
        # Sorted, so that sums of float32 do not depend on the order of the argument.
        uses = sorted(uses, key=_identity)
        identities = tuple(map(_identity, uses))
        if identities != self._merged:
            self.restore()
            try:
                for weight, changes in self._changes(uses).items():
                    self._change(weight, changes)
            except BaseException:
                self.restore()
                raise
            self._merged = identities
        return tuple(
            f"{use.lora.name}: {layer}" for use in uses for layer in use.lora.layers if layer not in self._spellings
        )

    @torch.inference_mode()
    def restore(self) -> None:
        """Take all LoRAs out: every weight is bit for bit as it was loaded."""
        for name, pristine in self._pristine.items():
            self._weights[name].copy_(pristine)
        self._pristine.clear()
        self._merged = ()

    def _changes(self, uses: Sequence[LoraUse]) -> dict[str, list[tuple[LoraUse, float, LoraFactors]]]:
        """Return for each weight the factors to add to it, and their multipliers."""
        changes: dict[str, list[tuple[LoraUse, float, LoraFactors]]] = {}
        for use in uses:
            matched = {self._spellings[name]: name for name in use.lora.layers if name in self._spellings}
            if not matched:
                raise WeightsError(
                    f"The LoRA {use.lora.name} changes no layer of this checkpoint. "
                    "Choose one for Stable Diffusion 1.x."
                )
            for weight, layer in matched.items():
                multiplier = use.text if weight.startswith("te.") else use.unet
                if multiplier:
                    changes.setdefault(weight, []).append((use, multiplier, use.lora.layers[layer]))
        return changes

    def _change(self, name: str, changes: Sequence[tuple[LoraUse, float, LoraFactors]]) -> None:
        weight = self._weights[name]
        total = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device)
        for use, multiplier, factors in changes:
            try:
                total += multiplier * factors.delta(weight.shape, weight.device)
            except (ValueError, RuntimeError) as error:
                raise WeightsError(
                    f"The LoRA {use.lora.name} is for another size of model: {name} is {tuple(weight.shape)} here. "
                    "Choose one for Stable Diffusion 1.x."
                ) from error
        merged = (weight.float() + total).to(weight.dtype)
        if not bool(merged.isfinite().all()):
            culprits = ", ".join(sorted({use.lora.name for use, _, _ in changes}))
            raise WeightsError(f"{name} overflows with {culprits}. Use smaller multipliers or other LoRAs.")
        # The backup is kept on the CPU: on a GPU it would need as much memory as the weights.
        self._pristine[name] = weight.detach().to("cpu", copy=True)
        weight.copy_(merged)


def _identity(use: LoraUse) -> tuple[str, float, float]:
    return use.lora.sha256, use.unet, use.text
