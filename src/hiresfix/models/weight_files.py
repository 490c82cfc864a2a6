"""Inspection of weight files and folders without loading tensors: names and shapes, kind, SHA-256.

Guarantees: the kind of a `.safetensors` file is read from its header alone, and a truncated file is detected. Needs no
torch, so the command line can list, fetch and check files where the engine is not installed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Mapping
from enum import StrEnum
from pathlib import Path

from hiresfix.errors import WeightsError

TensorShapes = Mapping[str, tuple[int, ...]]
OnBytesRead = Callable[[int], None]
"""Called with the number of bytes of each chunk; may raise to stop."""
OnTransfer = Callable[[int, int | None], None]
"""Called with the bytes that are on disk and, once known, the total; may raise to stop."""

_CHUNK_BYTES = 1 << 20
_MAX_HEADER_BYTES = 100_000_000
"""Limit of the safetensors format."""


class WeightKind(StrEnum):
    """Role of a weight file. The values are stored in records and lists."""

    CHECKPOINT = "checkpoint"
    VAE = "vae"
    CONTROLNET = "controlnet"
    LORA = "lora"
    EMBEDDING = "embedding"
    ENLARGER = "enlarger"


# The first pattern that matches the start of any tensor name decides, so specific patterns come before general ones.
_PATTERNS: tuple[tuple[str, WeightKind | None, str], ...] = (
    (r"lora_te[12]_", None, "an SDXL LoRA"),
    (r"lora_(unet|te)_|(unet|text_encoder)\..*lora", WeightKind.LORA, "a LoRA"),
    (r"conditioner\.embedders\.", None, "an SDXL checkpoint"),
    (r"(model\.diffusion_model\.)?joint_blocks\.", None, "a Stable Diffusion 3 model"),
    (r"(model\.diffusion_model\.)?double_blocks\.", None, "a Flux model"),
    (r"(control_model\.)?label_emb\.|add_embedding\.", None, "a network of SDXL"),
    (r"control_model\.|input_hint_block\.|controlnet_cond_embedding\.", WeightKind.CONTROLNET, "a ControlNet"),
    (r"cond_stage_model\.model\.", None, "a Stable Diffusion 2.x checkpoint"),
    (r"model\.diffusion_model\.input_blocks\.", WeightKind.CHECKPOINT, "a Stable Diffusion 1.x checkpoint"),
    (r"(first_stage_model\.)?decoder\.conv_in\.", WeightKind.VAE, "a VAE"),
    (r"string_to_param\b|emb_params$", WeightKind.EMBEDDING, "a textual inversion embedding"),
    (r"clip_[lg]$", None, "an SDXL embedding"),
    (r"input_blocks\.|down_blocks\.", None, "a UNet without its text encoder and VAE"),
    (r"(cond_stage_model\.transformer\.)?(text_model\.)?embeddings\.token", None, "a text encoder"),
    (
        r"conv_first\.weight|model\.0\.weight|body\.0\.weight",
        WeightKind.ENLARGER,
        "a super-resolution network of the ESRGAN family",
    ),
)
_EMBEDDING_WIDTHS = range(64, 4097)
"""Widths of text encoders."""
_MAX_EMBEDDING_VECTORS = 75
"""Tokens in one chunk of a prompt."""
_FIRST_CONVOLUTION = "model.diffusion_model.input_blocks.0.0.weight"


def describe(shapes: TensorShapes) -> tuple[WeightKind | None, str]:
    """Guess from names and shapes what a file is.

    Returns:
        The kind, or None for a file that cannot be used here, and words for people.
    """
    for pattern, kind, words in _PATTERNS:
        if any(re.match(pattern, name) for name in shapes):
            if kind is WeightKind.CHECKPOINT and (*shapes.get(_FIRST_CONVOLUTION, ()), 0, 0)[1] > 4:
                return None, "an inpainting or instruction checkpoint"
            return kind, words
    if len(shapes) == 1 and _looks_like_embedding(*shapes.values()):  # saved under the word it was trained for
        return WeightKind.EMBEDDING, "a textual inversion embedding"
    return None, "a file of an unknown kind"


def _looks_like_embedding(shape: tuple[int, ...]) -> bool:
    return len(shape) in (1, 2) and shape[-1] in _EMBEDDING_WIDTHS and math.prod(shape[:-1]) <= _MAX_EMBEDDING_VECTORS


def read_header(path: Path) -> TensorShapes:
    """Return the shapes of the tensors in a `.safetensors` file by name.

    Raises:
        WeightsError: the file is missing, damaged or truncated.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(size - 8, _MAX_HEADER_BYTES):
                raise ValueError("the header does not fit")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        ends = [_tensor_end(**tensor) for tensor in header.values()]
        if size != 8 + length + max(ends, default=0):
            raise ValueError("the tensors do not fit")
        return {name: tuple(tensor["shape"]) for name, tensor in header.items()}
    except FileNotFoundError as error:
        raise WeightsError(f"There is no weight file {path}. Check the name.") from error
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise WeightsError(f"{path.name} is damaged or cut off. Download the file again.") from error


def _tensor_end(*, dtype: str, shape: list[int], data_offsets: list[int]) -> int:
    """Return the end offset of a tensor; raise ValueError or TypeError if its header entry contradicts itself."""
    begin, end = data_offsets
    if not all(type(number) is int and number >= 0 for number in (begin, end, *shape)):
        raise ValueError("not all lengths are whole numbers")
    bits = re.fullmatch(r"[A-Z]+(\d+).*|BOOL", dtype)
    if bits is None or (end - begin) * 8 != math.prod(shape) * int(bits[1] or 8):
        raise ValueError("a tensor's shape and size do not agree")
    return end


_FOLDERS: Mapping[str, tuple[str, WeightKind]] = {
    "HiresfixCompact": ("model_index.json", WeightKind.CHECKPOINT),
    "StableDiffusionPipeline": ("model_index.json", WeightKind.CHECKPOINT),
    "AutoencoderKL": ("config.json", WeightKind.VAE),
    "ControlNetModel": ("config.json", WeightKind.CONTROLNET),
}
"""Index file and kind by the class that a folder in diffusers' layout names."""


def describe_folder(path: Path) -> tuple[WeightKind | None, str]:
    """Do the same as `describe` for a folder in diffusers' layout, by the class it names."""
    for index_file in ("model_index.json", "config.json"):
        with contextlib.suppress(OSError, ValueError, RecursionError):
            config = json.loads((path / index_file).read_text(encoding="utf-8"))
            name = config.get("_class_name") if isinstance(config, dict) else None
            expected_file, kind = _FOLDERS.get(str(name), ("", None))
            return (kind if expected_file == index_file else None), f"a folder with a {name}"
    return None, "a folder without a model_index.json or config.json"


def files_of(path: Path) -> list[Path]:
    """Return the file itself, or the files in a folder sorted by name, without hidden ones."""
    if not path.is_dir():
        return [path]
    inside = ((file, file.relative_to(path)) for file in path.rglob("*") if file.is_file())
    return sorted(file for file, name in inside if not any(part.startswith(".") for part in name.parts))


def total_size(path: Path) -> int:
    """Return the bytes of a file, or of all files in a folder."""
    return sum(file.stat().st_size for file in files_of(path))


def digest(path: Path, on_read: OnBytesRead = lambda _: None) -> str:
    """Return the SHA-256 of a file, or of the files in a folder and their names; reads every byte."""
    if path.is_dir():
        return _folder_digest(path, lambda file: digest(file, on_read))
    sha256 = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            sha256.update(chunk)
            on_read(len(chunk))
    return sha256.hexdigest()


def fingerprint(path: Path) -> str:
    """Return the same SHA-256 as `digest`, cached in a hidden file next to each file.

    A file with the size and modification time of its cache entry is not read again.

    Raises:
        OSError: the file cannot be read.
    """
    if path.is_dir():
        return _folder_digest(path, fingerprint)
    status = path.stat()
    current = {"size": status.st_size, "mtime_ns": status.st_mtime_ns}
    cache_file = path.with_name(f".{path.name}.sha256")
    with contextlib.suppress(OSError, ValueError):
        cached = json.loads(cache_file.read_text())
        if {key: cached[key] for key in current} == current:
            return str(cached["sha256"])
    return cache_digest(path, digest(path))


def _folder_digest(folder: Path, digest_of: Callable[[Path], str]) -> str:
    lines = "".join(f"{digest_of(file)}  {file.relative_to(folder).as_posix()}\n" for file in files_of(folder))
    return hashlib.sha256(lines.encode()).hexdigest()


def cache_digest(path: Path, sha256: str) -> str:
    """Cache the SHA-256 of the file as it is now, for `fingerprint`, and return it.

    Nothing is cached for a folder (its files have their own entries) or in a read-only folder.
    """
    if path.is_dir():
        return sha256
    status = path.stat()
    cache_file = path.with_name(f".{path.name}.sha256")
    with contextlib.suppress(OSError):
        write_json(cache_file, {"sha256": sha256, "size": status.st_size, "mtime_ns": status.st_mtime_ns})
    return sha256


def write_json(path: Path, values: Mapping[str, object]) -> None:
    """Replace `path` atomically and durably by these values as JSON."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with partial.open("w") as file:
            json.dump(values, file, indent=2)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
