"""Textual inversion: load files with vectors that replace a word of a prompt.

Guarantees:

- A file yields one complete embedding of the text encoder's width, or a `WeightsError` that says what to do.
- No file can run code: pickles are read with `weights_only`.

Independent of prompts and networks.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from hiresfix.engine.weights import superres_files
from hiresfix.errors import WeightsError

MAX_VECTORS = 75
"""The tokens of a prompt chunk; an embedding is never split."""

_SUFFIXES = (".pt", ".bin", ".safetensors")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Embedding:
    """`name` is the word in a prompt, in any case; `vectors` are (n, width) floats, 1 <= n <= 75."""

    name: str
    vectors: Tensor

    def __post_init__(self) -> None:
        if self.vectors.dim() != 2 or not 1 <= len(self.vectors) <= MAX_VECTORS:
            raise ValueError(f"an embedding is 1 to {MAX_VECTORS} vectors, got {tuple(self.vectors.shape)}")


def load(path: Path, *, width: int) -> Embedding:
    """Load the embedding in a `.pt`, `.bin` or `.safetensors` file; its name is that of the file.

    Reads the dictionaries that training tools write (`string_to_param`), and any dictionary with a single tensor
    (algorithm.md 7). The vectors are float32 on the CPU. `width` is that of the text encoder.

    Raises:
        WeightsError: The file is missing, damaged or not such an embedding.
    """
    tensors = [value for value in _read_dictionary(path).values() if isinstance(value, Tensor)]
    if len(tensors) != 1:
        raise WeightsError(
            f"{path.name} contains {len(tensors)} tensors, but an embedding has one. "
            "Use the file made for Stable Diffusion 1.5, not one for SDXL or a whole model."
        )
    vectors = tensors[0].detach()
    vectors = vectors.unsqueeze(0) if vectors.dim() == 1 else vectors
    if not (vectors.is_floating_point() and vectors.layout == torch.strided and vectors.device.type == "cpu"):
        raise WeightsError(f"{path.name} does not contain a plain floating-point tensor. Download the file again.")
    if vectors.dim() != 2 or vectors.shape[1] != width or not 1 <= len(vectors) <= MAX_VECTORS:
        raise WeightsError(
            f"{path.name} is {tuple(vectors.shape)}, but this model's text encoder takes 1 to {MAX_VECTORS} vectors "
            f"of {width}. Use an embedding that was trained for this kind of model."
        )
    vectors = vectors.float().contiguous()
    if not bool(vectors.isfinite().all()):
        raise WeightsError(f"{path.name} contains non-finite values. Download the file again.")
    return Embedding(name=path.stem, vectors=vectors)


def _read_dictionary(path: Path) -> Mapping[Any, object]:
    if path.suffix not in _SUFFIXES:
        raise WeightsError(
            f"{path.name} is not an embedding. Use a {', '.join(_SUFFIXES[:-1])} or {_SUFFIXES[-1]} file."
        )
    if not path.is_file():
        raise WeightsError(f"The embedding {path} does not exist. Check the name, or download the file.")
    try:
        content: object = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path.name} is damaged, or a pickle that contains code, which hiresfix never runs. "
            "Download it again, or convert it to .safetensors if you trust it."
        ) from error
    except superres_files.DAMAGED_FILE_ERRORS as error:
        raise WeightsError(f"{path.name} is damaged or cut off. Download the file again.") from error
    tensors = content.get("string_to_param", content) if isinstance(content, Mapping) else None
    if not isinstance(tensors, Mapping):
        raise WeightsError(
            f"{path.name} is not an embedding: it does not contain a dictionary of tensors. Use another file."
        )
    return tensors
