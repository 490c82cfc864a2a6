"""From the names in a recipe to a `clarity.Model`: installed weight files, loaded and put together.

Guarantees: nothing is downloaded, and nothing a caller sent chooses a file. Knows no pictures and no jobs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from hiresfix.engine.diffusion import compiling, guidance, peak_memory, textual_inversion
from hiresfix.engine.diffusion.compact import checkpoint as compact
from hiresfix.engine.diffusion.offload import Residents
from hiresfix.engine.diffusion.pipeline import Model
from hiresfix.engine.diffusion.prompts import Conditioner, LoraTag
from hiresfix.engine.diffusion.vae import Autoencoder
from hiresfix.engine.weights import checkpoints, lora
from hiresfix.engine.weights.checkpoints import Checkpoint
from hiresfix.errors import ConfigurationError
from hiresfix.models.store import Installed, Store
from hiresfix.models.weight_files import Kind
from hiresfix.recipe import Recipe

if TYPE_CHECKING:
    from diffusers.models.controlnets.controlnet import ControlNetModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Assembled:
    """A model and the files it is made of, for a job's metadata."""

    model: Model
    files: tuple[Installed, ...]


def key(recipe: Recipe) -> tuple[object, ...]:
    """Recipes of one key share an assembled model."""
    return recipe.checkpoint, recipe.vae, recipe.controlnet, recipe.embeddings, recipe.tile_height, recipe.tile_width


def assemble(
    recipe: Recipe, store: Store, *, device: torch.device, dtype: torch.dtype, compiled: bool = False
) -> Assembled:
    """compiled: UNet and ControlNet are compiled at their first use (`compiling`).

    Raises ConfigurationError for a recipe without a checkpoint, WeightsError for files that are missing or wrong.
    """
    assembled = _assemble(recipe, store, device=device, dtype=dtype)
    if compiled:
        networks = (assembled.model.unet, assembled.model.controlnet)
        compiling.prepare(*(network for network in networks if network is not None))
    return assembled


def _assemble(recipe: Recipe, store: Store, *, device: torch.device, dtype: torch.dtype) -> Assembled:
    if not recipe.checkpoint:
        raise ConfigurationError("The recipe names no checkpoint. Choose a preset that does, or add one to it.")
    checkpoint_file = store.locate(recipe.checkpoint, Kind.CHECKPOINT)
    if compact.is_compact(checkpoint_file.path):
        return _compact(checkpoint_file, store, device=device, dtype=dtype)
    vae_file = store.locate(recipe.vae, Kind.VAE) if recipe.vae else None
    control_file = store.locate(recipe.controlnet, Kind.CONTROLNET) if recipe.controlnet else None
    embedding_files = [store.locate(name, Kind.EMBEDDING) for name in recipe.embeddings]
    # The first picture's plan says which of the networks find room on the device.
    place = torch.device("cpu")
    # On a CPU the autoencoder is the smaller part, and half precision shows in its pictures.
    vae_dtype = torch.float32 if device.type == "cpu" else dtype
    checkpoint = checkpoints.load_checkpoint(
        checkpoint_file.path, vae=vae_file.path if vae_file else None, device=place, dtype=dtype, vae_dtype=vae_dtype
    )
    controlnet = checkpoints.load_controlnet(control_file.path, device=place, dtype=dtype) if control_file else None
    width = checkpoint.text_encoder.config.hidden_size
    words = [textual_inversion.load(file.path, width=width) for file in embedding_files]
    model = Model(
        unet=checkpoint.unet,
        controlnet=controlnet,
        conditioner=Conditioner(checkpoint.text_encoder, words),
        codec=Autoencoder(network=checkpoint.vae),
        merge=_Loras(lora.Merger(checkpoint.unet, checkpoint.text_encoder), store),
        prediction=guidance.prediction(checkpoint.prediction),
        residents=_residents(recipe, checkpoint, controlnet, device),
    )
    files = [checkpoint_file, vae_file, control_file, *embedding_files]
    return Assembled(model=model, files=tuple(file for file in files if file is not None))


def _compact(file: Installed, store: Store, *, device: torch.device, dtype: torch.dtype) -> Assembled:
    """The compact checkpoint brings its own ControlNet and codec."""
    made = compact.load(file.path, device=device, dtype=dtype)
    model = Model(
        unet=made.unet,
        controlnet=made.controlnet,
        conditioner=Conditioner(made.text_encoder),
        codec=made.codec,
        merge=_Loras(lora.Merger(made.unet, made.text_encoder), store),
        prediction=made.prediction,
    )
    return Assembled(model=model, files=(file,))


def _residents(
    recipe: Recipe, checkpoint: Checkpoint, controlnet: ControlNetModel | None, device: torch.device
) -> Residents | None:
    if device.type == "cpu":
        return None
    tile = peak_memory.evaluation(
        checkpoint.unet,
        controlnet,
        height=recipe.tile_height,
        width=recipe.tile_width,
        factor=checkpoint.latent_factor,
    )
    return Residents(
        device=device,
        text=(checkpoint.text_encoder,),
        diffusing=(checkpoint.unet, *([] if controlnet is None else [controlnet])),
        coding=(checkpoint.vae,),
        tile=tile,
    )


class _Loras:
    """LoRA files by name, read once; `clarity.Merge`."""

    def __init__(self, merger: lora.Merger, store: Store) -> None:
        self._merger = merger
        self._store = store
        self._read: dict[str, lora.Lora] = {}

    def __call__(self, tags: Sequence[LoraTag]) -> tuple[str, ...]:
        uses = [lora.Use(lora=self._lora(tag.name), unet=tag.unet, text=tag.text_encoder) for tag in tags]
        homeless = Counter(layer.partition(":")[0] for layer in self._merger.merge(uses))
        return tuple(
            f"{count} layers of the LoRA {name} fit nowhere and were left out." for name, count in homeless.items()
        )

    def _lora(self, name: str) -> lora.Lora:
        if name not in self._read:
            self._read[name] = lora.load_lora(self._store.locate(name, Kind.LORA).path)
        return self._read[name]
