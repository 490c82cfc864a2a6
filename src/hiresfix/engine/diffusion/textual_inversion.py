"""Textual inversion: files -> vectors that stand for a word of a prompt.

Guarantees: a file is one embedding of the width the text encoder wants, read whole, or a `WeightsError` says what is
wrong and what to do. No file can run code: pickles are read with `weights_only`. Knows no prompts and no networks.
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
"""What a chunk of a prompt has room for; an embedding is never cut."""

_SUFFIXES = (".pt", ".bin", ".safetensors")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Embedding:
    """`name` is the word that calls it, in any case; `vectors` are (n, width) floats, 1 <= n <= 75."""

    name: str
    vectors: Tensor

    def __post_init__(self) -> None:
        if self.vectors.dim() != 2 or not 1 <= len(self.vectors) <= MAX_VECTORS:
            raise ValueError(f"an embedding is 1 to {MAX_VECTORS} vectors, got {tuple(self.vectors.shape)}")


def load(path: Path, *, width: int) -> Embedding:
    """The embedding in a `.pt`, `.bin` or `.safetensors` file, named as the file; float32 on the CPU.

    Read are the dictionaries that training writes (`string_to_param`) and any with a single tensor in it
    (algorithm.md 7). `width` is the text encoder's. Raises WeightsError.
    """
    tensors = [value for value in _read(path).values() if isinstance(value, Tensor)]
    if len(tensors) != 1:
        raise WeightsError(
            f"{path.name} holds {len(tensors)} tensors where an embedding holds one. "
            "Use the file made for Stable Diffusion 1.5, not one for SDXL or a whole model."
        )
    vectors = tensors[0].detach()
    vectors = vectors.unsqueeze(0) if vectors.dim() == 1 else vectors
    if not (vectors.is_floating_point() and vectors.layout == torch.strided and vectors.device.type == "cpu"):
        raise WeightsError(f"{path.name} holds no plain floating-point tensor. Download the file again.")
    if vectors.dim() != 2 or vectors.shape[1] != width or not 1 <= len(vectors) <= MAX_VECTORS:
        raise WeightsError(
            f"{path.name} is {tuple(vectors.shape)}, but this model's text encoder takes 1 to {MAX_VECTORS} vectors "
            f"of {width}. Use an embedding that was trained for this kind of model."
        )
    vectors = vectors.float().contiguous()
    if not bool(vectors.isfinite().all()):
        raise WeightsError(f"{path.name} holds values that are no finite numbers. Download the file again.")
    return Embedding(name=path.stem, vectors=vectors)


def _read(path: Path) -> Mapping[Any, object]:
    if path.suffix not in _SUFFIXES:
        raise WeightsError(f"{path.name} is no embedding. Use a {', '.join(_SUFFIXES[:-1])} or {_SUFFIXES[-1]} file.")
    if not path.is_file():
        raise WeightsError(f"There is no embedding {path}. Check the name, or download the file.")
    try:
        read: object = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path.name} is damaged, or a pickle with code in it, which is never run. "
            "Download it again, or convert it to .safetensors where you trust it."
        ) from error
    except superres_files.DAMAGE as error:
        raise WeightsError(f"{path.name} is damaged or cut off. Download the file again.") from error
    trained = read.get("string_to_param", read) if isinstance(read, Mapping) else None
    if not isinstance(trained, Mapping):
        raise WeightsError(f"{path.name} is no embedding: it holds no dictionary of tensors. Use another file.")
    return trained
