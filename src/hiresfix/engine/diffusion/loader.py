"""Load the weight files that a recipe names and build a `DiffusionModel` from them.

Guarantees: nothing is downloaded, and no input of a caller chooses a file. Independent of images and jobs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from hiresfix.engine.diffusion import compiling, guidance, peak_memory, textual_inversion
from hiresfix.engine.diffusion.compact import checkpoint as compact
from hiresfix.engine.diffusion.offload import NetworkGroups
from hiresfix.engine.diffusion.pipeline import DiffusionModel
from hiresfix.engine.diffusion.prompts import LoraTag, PromptEncoder
from hiresfix.engine.diffusion.vae import Autoencoder
from hiresfix.engine.weights import checkpoints, lora
from hiresfix.engine.weights.checkpoints import Checkpoint
from hiresfix.errors import ConfigurationError
from hiresfix.models.store import InstalledModel, ModelStore
from hiresfix.models.weight_files import WeightKind
from hiresfix.recipe import Recipe

if TYPE_CHECKING:
    from diffusers.models.controlnets.controlnet import ControlNetModel


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """A model and its weight files, which a job's metadata names."""

    model: DiffusionModel
    files: tuple[InstalledModel, ...]


def model_key(recipe: Recipe) -> tuple[object, ...]:
    """Return a key that is equal for recipes that can share one loaded model."""
    return recipe.checkpoint, recipe.vae, recipe.controlnet, recipe.embeddings, recipe.tile_height, recipe.tile_width


def load_model(
    recipe: Recipe, store: ModelStore, *, device: torch.device, dtype: torch.dtype, compiled: bool = False
) -> LoadedModel:
    """Load the model that a recipe names.

    Args:
        recipe: Names the checkpoint, VAE, ControlNet and embeddings.
        store: The installed weight files.
        device: Where the networks compute.
        dtype: Precision of the networks; the VAE on a CPU stays float32.
        compiled: Compile UNet and ControlNet at their first use (`compiling`).

    Raises:
        ConfigurationError: The recipe names no checkpoint.
        WeightsError: A file is missing or wrong.
    """
    loaded = _load(recipe, store, device=device, dtype=dtype)
    if compiled:
        networks = (loaded.model.unet, loaded.model.controlnet)
        compiling.compile_blocks(*(network for network in networks if network is not None))
    return loaded


def _load(recipe: Recipe, store: ModelStore, *, device: torch.device, dtype: torch.dtype) -> LoadedModel:
    if not recipe.checkpoint:
        raise ConfigurationError("The recipe names no checkpoint. Choose a preset with one, or add one to the preset.")
    checkpoint_file = store.locate(recipe.checkpoint, WeightKind.CHECKPOINT)
    if compact.is_compact(checkpoint_file.path):
        return _compact(checkpoint_file, store, device=device, dtype=dtype)
    vae_file = store.locate(recipe.vae, WeightKind.VAE) if recipe.vae else None
    control_file = store.locate(recipe.controlnet, WeightKind.CONTROLNET) if recipe.controlnet else None
    embedding_files = [store.locate(name, WeightKind.EMBEDDING) for name in recipe.embeddings]
    # The plan of the first image moves the networks to the device.
    host = torch.device("cpu")
    # On a CPU the autoencoder is the smaller part of the work, and half precision is visible in its images.
    vae_dtype = torch.float32 if device.type == "cpu" else dtype
    checkpoint = checkpoints.load_checkpoint(
        checkpoint_file.path, vae=vae_file.path if vae_file else None, device=host, dtype=dtype, vae_dtype=vae_dtype
    )
    controlnet = checkpoints.load_controlnet(control_file.path, device=host, dtype=dtype) if control_file else None
    width = checkpoint.text_encoder.config.hidden_size
    embeddings = [textual_inversion.load(file.path, width=width) for file in embedding_files]
    model = DiffusionModel(
        unet=checkpoint.unet,
        controlnet=controlnet,
        prompt_encoder=PromptEncoder(checkpoint.text_encoder, embeddings),
        codec=Autoencoder(network=checkpoint.vae),
        merge=_Loras(lora.LoraMerger(checkpoint.unet, checkpoint.text_encoder), store),
        prediction=guidance.find_prediction(checkpoint.prediction),
        network_groups=_network_groups(recipe, checkpoint, controlnet, device),
    )
    files = [checkpoint_file, vae_file, control_file, *embedding_files]
    return LoadedModel(model=model, files=tuple(file for file in files if file is not None))


def _compact(file: InstalledModel, store: ModelStore, *, device: torch.device, dtype: torch.dtype) -> LoadedModel:
    """Load a compact checkpoint, which contains its own ControlNet and codec."""
    networks = compact.load(file.path, device=device, dtype=dtype)
    model = DiffusionModel(
        unet=networks.unet,
        controlnet=networks.controlnet,
        prompt_encoder=PromptEncoder(networks.text_encoder),
        codec=networks.codec,
        merge=_Loras(lora.LoraMerger(networks.unet, networks.text_encoder), store),
        prediction=networks.prediction,
    )
    return LoadedModel(model=model, files=(file,))


def _network_groups(
    recipe: Recipe, checkpoint: Checkpoint, controlnet: ControlNetModel | None, device: torch.device
) -> NetworkGroups | None:
    if device.type == "cpu":
        return None
    tile = peak_memory.evaluation_bytes(
        checkpoint.unet,
        controlnet,
        height=recipe.tile_height,
        width=recipe.tile_width,
        factor=checkpoint.latent_factor,
    )
    return NetworkGroups(
        device=device,
        text=(checkpoint.text_encoder,),
        denoising=(checkpoint.unet, *([] if controlnet is None else [controlnet])),
        autoencoder=(checkpoint.vae,),
        tile=tile,
    )


class _Loras:
    """`pipeline.MergeLoras` that reads each LoRA file once."""

    def __init__(self, merger: lora.LoraMerger, store: ModelStore) -> None:
        self._merger = merger
        self._store = store
        self._read: dict[str, lora.Lora] = {}

    def __call__(self, tags: Sequence[LoraTag]) -> tuple[str, ...]:
        uses = [lora.LoraUse(lora=self._lora(tag.name), unet=tag.unet, text=tag.text_encoder) for tag in tags]
        unmatched = Counter(layer.partition(":")[0] for layer in self._merger.merge(uses))
        return tuple(
            f"{count} layers of the LoRA {name} fit nowhere in this model and were ignored."
            for name, count in unmatched.items()
        )

    def _lora(self, name: str) -> lora.Lora:
        if name not in self._read:
            self._read[name] = lora.load_lora(self._store.locate(name, WeightKind.LORA).path)
        return self._read[name]
