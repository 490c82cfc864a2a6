"""The compact checkpoint: our own small diffusion model, in a folder as diffusers lays it out.

    model_index.json   {"_class_name": "HiresfixCompact"}
    unet/ controlnet/ text_encoder/   networks of the classes that Stable Diffusion 1.x has, smaller
    text_encoder/words.json           the ids of CLIP's tokeniser that have a row of their own, in order
    vae/config.json                   mean and scale of each band of `blocks`
    scheduler/scheduler_config.json   prediction_type "mmse", and the three vectors of `preconditioning`

Guarantees: reads it as strictly as any checkpoint and runs nothing it holds; what `save` wrote, `load` gives back.
Tokens without a row of their own share `BUCKETS` rows. Knows no recipes, no store and no training.
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

NAME = "HiresfixCompact"
BUCKETS = 64
GUIDANCE_STEP = 0.25
"""Guidance is 1 + (dynamic - 1) * this: a small network takes less of it (mini-model study: 1..3.5 is useful)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Compact:
    """`words` are the token ids that `text_encoder` has rows for."""

    unet: UNet2DConditionModel
    controlnet: ControlNetModel
    text_encoder: CLIPTextModel
    words: tuple[int, ...]
    codec: BlockTransform
    preconditioning: Preconditioning

    @property
    def prediction(self) -> Prediction:
        return prediction(self.preconditioning, self.codec.device)


def prediction(known: Preconditioning, device: torch.device) -> Prediction:
    """As the engine takes it."""
    return Prediction(
        scaling=lambda sigma, resemblance: known.scaling(sigma, resemblance, device),
        guidance=lambda dynamic: 1 + (dynamic - 1) * GUIDANCE_STEP,
        anchored=True,
    )


class WordEmbedding(nn.Module):
    """A table with a row for each of `words`, `BUCKETS` that all other ids share, and rows for START and END.

    Takes the ids of CLIP's tokeniser, in place of CLIP's own table of 49,408 rows.
    """

    rows: Tensor

    def __init__(self, words: Sequence[int], width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(rows(words), width) * 0.02)
        row_of = torch.arange(clip_tokenizer.END + 1) % BUCKETS + 2 + len(words)
        row_of[clip_tokenizer.START], row_of[clip_tokenizer.END] = 0, 1
        row_of[torch.tensor(words, dtype=torch.long)] = torch.arange(len(words)) + 2
        self.register_buffer("row_of", row_of, persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        return nn.functional.embedding(self.get_buffer("row_of")[ids], self.weight)


def give_words(text_encoder: CLIPTextModel, embedding: WordEmbedding) -> None:
    """Makes `embedding` the encoder's table."""
    setattr(text_encoder.embeddings, "token_embedding", embedding)  # noqa: B010  # declared as CLIP's own class


def rows(words: Sequence[int]) -> int:
    """How many rows the table for these words has."""
    return 2 + len(words) + BUCKETS


def is_compact(path: Path) -> bool:
    """Whether the folder says so of itself."""
    try:
        index = json.loads((path / "model_index.json").read_text())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(index, dict) and index.get("_class_name") == NAME


def load(path: Path, *, device: torch.device, dtype: torch.dtype) -> Compact:
    """Raises WeightsError for a folder that is not one, or damaged."""
    if not is_compact(path):
        raise WeightsError(f"{path} is no compact checkpoint. Name a folder that training wrote.")
    unet, controlnet, text_encoder = checkpoints.load_parts(path, device=device, dtype=dtype)
    bands, scheduler, words = (
        checkpoints.read_json(path / name)
        for name in ("vae/config.json", "scheduler/scheduler_config.json", "text_encoder/words.json")
    )
    try:
        table = text_encoder.embeddings.token_embedding.weight
        embedding = WordEmbedding(words["ids"], table.shape[1])
        if embedding.weight.shape != table.shape:
            raise ValueError("the table has another number of rows")
        embedding.weight = nn.Parameter(table, requires_grad=False)
        give_words(text_encoder, embedding.to(device))
        return Compact(
            unet=unet,
            controlnet=controlnet,
            text_encoder=text_encoder,
            words=tuple(words["ids"]),
            codec=BlockTransform(mean=tuple(bands["mean"]), scale=tuple(bands["scale"]), device=device),
            preconditioning=Preconditioning(
                **{name: tuple(scheduler[name]) for name in ("variance", "regression", "residual")}
            ),
        )
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise WeightsError(f"{path} does not fit together: {error}. Copy the whole folder again.") from error


def save(model: Compact, path: Path, *, dtype: torch.dtype = torch.float16) -> None:
    """Writes the folder; the networks' tensors in `dtype`."""
    from safetensors.torch import save_file

    parts: dict[str, Any] = {"unet": model.unet, "controlnet": model.controlnet, "text_encoder": model.text_encoder}
    for folder, network in parts.items():
        (path / folder).mkdir(parents=True, exist_ok=True)
        config = network.config.to_dict() if hasattr(network.config, "to_dict") else dict(network.config)
        config = {"_class_name": type(network).__name__, **config}
        _write(path / folder / "config.json", json.loads(json.dumps(config, default=str)))
        state = {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in network.state_dict().items()}
        save_file(state, path / folder / "model.safetensors")
    _write(path / "text_encoder" / "words.json", {"ids": model.words})
    _write(path / "vae" / "config.json", {"mean": model.codec.mean, "scale": model.codec.scale})
    _write(path / "scheduler" / "scheduler_config.json", {"prediction_type": "mmse", **asdict(model.preconditioning)})
    _write(path / "model_index.json", {"_class_name": NAME})  # last: without it the folder is none


def _write(path: Path, values: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values, indent=1) + "\n")
