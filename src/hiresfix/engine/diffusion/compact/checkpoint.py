"""Load and save the compact checkpoint: our own small diffusion model, in diffusers' folder layout.

    model_index.json                  {"_class_name": "HiresfixCompact"}
    unet/ controlnet/ text_encoder/   networks of Stable Diffusion 1.x's classes, but smaller
    text_encoder/words.json           token ids of CLIP's tokeniser with their own row in the table, in order
    vae/config.json                   mean and scale of each band of `dct_codec`
    scheduler/scheduler_config.json   prediction_type "mmse", and the three vectors of `preconditioning`

Guarantees: files are checked as strictly as those of any checkpoint, and no code in them is run; `load` returns what
`save` wrote. Tokens without their own row share `SHARED_ROWS` rows. Independent of recipes, the model store and
training.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from hiresfix.engine.diffusion import clip_tokenizer
from hiresfix.engine.diffusion.compact.dct_codec import BlockTransform
from hiresfix.engine.diffusion.compact.preconditioning import Preconditioning
from hiresfix.engine.diffusion.guidance import Prediction
from hiresfix.engine.weights import checkpoints
from hiresfix.errors import WeightsError

if TYPE_CHECKING:
    from diffusers.models.controlnets.controlnet import ControlNetModel
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from transformers import CLIPTextModel

CLASS_NAME = "HiresfixCompact"
SHARED_ROWS = 64
"""Rows for all ids without their own row."""
GUIDANCE_STEP = 0.25
"""Guidance is 1 + (dynamic - 1) * this, because a small network needs less (1..3.5 was found useful)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CompactModel:
    """The networks and statistics of a compact checkpoint.

    Args:
        unet: The UNet.
        controlnet: The ControlNet.
        text_encoder: A small CLIP text encoder.
        word_ids: Token ids with their own row in the text encoder's table.
        codec: Converts between pixels and latents.
        preconditioning: Statistics of the latents.
    """

    unet: UNet2DConditionModel
    controlnet: ControlNetModel
    text_encoder: CLIPTextModel
    word_ids: tuple[int, ...]
    codec: BlockTransform
    preconditioning: Preconditioning

    @property
    def prediction(self) -> Prediction:
        """Rule that turns the UNet's output into the denoised latent."""
        return Prediction(
            scaling=lambda sigma, resemblance: self.preconditioning.scaling(sigma, resemblance, self.codec.device),
            guidance=lambda dynamic: 1 + (dynamic - 1) * GUIDANCE_STEP,
            anchored=True,
        )


class WordEmbedding(nn.Module):
    """Embedding table with a row for each of `words`, for START and for END, and `SHARED_ROWS` for all other ids.

    Takes the ids of CLIP's tokeniser and replaces CLIP's own table of 49,408 rows.
    """

    rows: Tensor

    def __init__(self, words: Sequence[int], width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(row_count(words), width) * 0.02)
        row_of = torch.arange(clip_tokenizer.END + 1) % SHARED_ROWS + 2 + len(words)
        row_of[clip_tokenizer.START], row_of[clip_tokenizer.END] = 0, 1
        row_of[torch.tensor(words, dtype=torch.long)] = torch.arange(len(words)) + 2
        self.register_buffer("row_of", row_of, persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        return nn.functional.embedding(self.get_buffer("row_of")[ids], self.weight)


def set_word_embedding(text_encoder: CLIPTextModel, embedding: WordEmbedding) -> None:
    """Replace the table of a text encoder by `embedding`."""
    setattr(text_encoder.embeddings, "token_embedding", embedding)  # noqa: B010  # declared as CLIP's own class


def row_count(words: Sequence[int]) -> int:
    """Return the number of rows of the table for these words."""
    return 2 + len(words) + SHARED_ROWS


def is_compact(path: Path) -> bool:
    """Return True if the folder's index names this format."""
    try:
        index = json.loads((path / "model_index.json").read_text())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(index, dict) and index.get("_class_name") == CLASS_NAME


def load(path: Path, *, device: torch.device, dtype: torch.dtype) -> CompactModel:
    """Load a folder that `save` wrote.

    Raises:
        WeightsError: The folder is not a compact checkpoint, or it is damaged.
    """
    if not is_compact(path):
        raise WeightsError(f"{path} is not a compact checkpoint. Name a folder that the training wrote.")
    unet, controlnet, text_encoder = checkpoints.load_parts(path, device=device, dtype=dtype)
    bands, scheduler, words = (
        checkpoints.read_json(path / name)
        for name in ("vae/config.json", "scheduler/scheduler_config.json", "text_encoder/words.json")
    )
    try:
        table = text_encoder.embeddings.token_embedding.weight
        embedding = WordEmbedding(words["ids"], table.shape[1])
        if embedding.weight.shape != table.shape:
            raise ValueError("the table has the wrong number of rows")
        embedding.weight = nn.Parameter(table, requires_grad=False)
        set_word_embedding(text_encoder, embedding.to(device))
        return CompactModel(
            unet=unet,
            controlnet=controlnet,
            text_encoder=text_encoder,
            word_ids=tuple(words["ids"]),
            codec=BlockTransform(mean=tuple(bands["mean"]), scale=tuple(bands["scale"]), device=device),
            preconditioning=Preconditioning(
                **{name: tuple(scheduler[name]) for name in ("variance", "regression", "residual")}
            ),
        )
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise WeightsError(f"The files in {path} do not match: {error}. Copy the whole folder here again.") from error


def save(model: CompactModel, path: Path, *, dtype: torch.dtype = torch.float16) -> None:
    """Write a model to a folder, with the networks' tensors in `dtype`."""
    from safetensors.torch import save_file

    parts: dict[str, Any] = {"unet": model.unet, "controlnet": model.controlnet, "text_encoder": model.text_encoder}
    for folder, network in parts.items():
        (path / folder).mkdir(parents=True, exist_ok=True)
        config = network.config.to_dict() if hasattr(network.config, "to_dict") else dict(network.config)
        config = {"_class_name": type(network).__name__, **config}
        _write(path / folder / "config.json", json.loads(json.dumps(config, default=str)))
        state = {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in network.state_dict().items()}
        save_file(state, path / folder / "model.safetensors")
    _write(path / "text_encoder" / "words.json", {"ids": model.word_ids})
    _write(path / "vae" / "config.json", {"mean": model.codec.mean, "scale": model.codec.scale})
    _write(path / "scheduler" / "scheduler_config.json", {"prediction_type": "mmse", **asdict(model.preconditioning)})
    _write(path / "model_index.json", {"_class_name": CLASS_NAME})  # last: without it, the folder is not a checkpoint


def _write(path: Path, values: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values, indent=1) + "\n")
