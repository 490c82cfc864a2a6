"""What a weight file or folder is, without reading its numbers: its tensors, what they seem to be, its SHA-256.

Guarantees: a `.safetensors` file is told by its header alone, and one that is cut off is told too. Needs no
torch, so that the command line can list, fetch and check files where the engine is not installed.
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

Shapes = Mapping[str, tuple[int, ...]]
Read = Callable[[int], None]
"""Told how many more bytes were read; may raise to stop."""

_CHUNK = 1 << 20
_LONGEST_HEADER = 100_000_000
"""The format's own limit, in bytes."""


class Kind(StrEnum):
    CHECKPOINT = "checkpoint"
    VAE = "vae"
    CONTROLNET = "controlnet"
    LORA = "lora"
    EMBEDDING = "embedding"
    ENLARGER = "enlarger"


# The first pattern that a name begins with decides, so the particular stand before the general.
_SIGNS: tuple[tuple[str, Kind | None, str], ...] = (
    (r"lora_te[12]_", None, "an SDXL LoRA"),
    (r"lora_(unet|te)_|(unet|text_encoder)\..*lora", Kind.LORA, "a LoRA"),
    (r"conditioner\.embedders\.", None, "an SDXL checkpoint"),
    (r"(model\.diffusion_model\.)?joint_blocks\.", None, "a Stable Diffusion 3 model"),
    (r"(model\.diffusion_model\.)?double_blocks\.", None, "a Flux model"),
    (r"(control_model\.)?label_emb\.|add_embedding\.", None, "a network of SDXL"),
    (r"control_model\.|input_hint_block\.|controlnet_cond_embedding\.", Kind.CONTROLNET, "a ControlNet"),
    (r"cond_stage_model\.model\.", None, "a Stable Diffusion 2.x checkpoint"),
    (r"model\.diffusion_model\.input_blocks\.", Kind.CHECKPOINT, "a Stable Diffusion 1.x checkpoint"),
    (r"(first_stage_model\.)?decoder\.conv_in\.", Kind.VAE, "a VAE"),
    (r"string_to_param\b|emb_params$", Kind.EMBEDDING, "a textual inversion embedding"),
    (r"clip_[lg]$", None, "an SDXL embedding"),
    (r"input_blocks\.|down_blocks\.", None, "a UNet without its text encoder and VAE"),
    (r"(cond_stage_model\.transformer\.)?(text_model\.)?embeddings\.token", None, "a text encoder"),
    (r"conv_first\.weight|model\.0\.weight|body\.0\.weight", Kind.ENLARGER, "an enlarger of the ESRGAN family"),
)
_WIDTHS, _MOST_VECTORS = range(64, 4097), 75
"""Of an embedding: as wide as any text encoder is, and as many as a chunk of a prompt has room for."""
_FIRST_CONVOLUTION = "model.diffusion_model.input_blocks.0.0.weight"


def describe(shapes: Shapes) -> tuple[Kind | None, str]:
    """What the names and shapes seem to be: a kind that can be used, or None, and words for people."""
    for pattern, kind, words in _SIGNS:
        if any(re.match(pattern, name) for name in shapes):
            if kind is Kind.CHECKPOINT and (*shapes.get(_FIRST_CONVOLUTION, ()), 0, 0)[1] > 4:
                return None, "an inpainting or instruction checkpoint"
            return kind, words
    if len(shapes) == 1 and _is_vectors(*shapes.values()):  # under the word that it was trained for
        return Kind.EMBEDDING, "a textual inversion embedding"
    return None, "nothing that is known here"


def _is_vectors(shape: tuple[int, ...]) -> bool:
    """Whether these may be the few wide vectors of an embedding."""
    return len(shape) in (1, 2) and shape[-1] in _WIDTHS and math.prod(shape[:-1]) <= _MOST_VECTORS


def read_header(path: Path) -> Shapes:
    """The shapes of the tensors in a `.safetensors` file, by name. Raises WeightsError if it is damaged or cut off."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(size - 8, _LONGEST_HEADER):
                raise ValueError("the header does not fit")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        ends = [_check_tensor(**tensor) for tensor in header.values()]
        if size != 8 + length + max(ends, default=0):
            raise ValueError("the tensors do not fit")
        return {name: tuple(tensor["shape"]) for name, tensor in header.items()}
    except FileNotFoundError as error:
        raise WeightsError(f"There is no weight file {path}. Check the name.") from error
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise WeightsError(f"{path.name} is damaged or cut off. Download the file again.") from error


def _check_tensor(*, dtype: str, shape: list[int], data_offsets: list[int]) -> int:
    """Where a tensor of a header ends. Raises ValueError or TypeError if what is said of it cannot be true."""
    begin, end = data_offsets
    if not all(type(number) is int and number >= 0 for number in (begin, end, *shape)):
        raise ValueError("not all lengths are whole numbers")
    bits = re.fullmatch(r"[A-Z]+(\d+).*|BOOL", dtype)
    if bits is None or (end - begin) * 8 != math.prod(shape) * int(bits[1] or 8):
        raise ValueError("a tensor's shape and size do not agree")
    return end


_FOLDERS: Mapping[str, tuple[str, Kind]] = {
    "HiresfixCompact": ("model_index.json", Kind.CHECKPOINT),
    "StableDiffusionPipeline": ("model_index.json", Kind.CHECKPOINT),
    "AutoencoderKL": ("config.json", Kind.VAE),
    "ControlNetModel": ("config.json", Kind.CONTROLNET),
}


def describe_folder(path: Path) -> tuple[Kind | None, str]:
    """As `describe`, for a folder as diffusers lays it out: by the class that it names."""
    for index in ("model_index.json", "config.json"):
        with contextlib.suppress(OSError, ValueError, RecursionError):
            read = json.loads((path / index).read_text(encoding="utf-8"))
            name = read.get("_class_name") if isinstance(read, dict) else None
            file, kind = _FOLDERS.get(str(name), ("", None))
            return (kind if file == index else None), f"a folder with a {name}"
    return None, "a folder without a model_index.json or config.json"


def files_of(path: Path) -> list[Path]:
    """The file itself, or the files in a folder, in the order of their names; hidden ones are nobody's business."""
    if not path.is_dir():
        return [path]
    inside = ((file, file.relative_to(path)) for file in path.rglob("*") if file.is_file())
    return sorted(file for file, name in inside if not any(part.startswith(".") for part in name.parts))


def size(path: Path) -> int:
    """Of a file, or of a folder's files, in bytes."""
    return sum(file.stat().st_size for file in files_of(path))


def digest(path: Path, read: Read = lambda _: None) -> str:
    """The SHA-256 of a file's bytes, or of a folder's files and their names; all read now."""
    if path.is_dir():
        return _together(path, lambda file: digest(file, read))
    sha256 = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            sha256.update(chunk)
            read(len(chunk))
    return sha256.hexdigest()


def fingerprint(path: Path) -> str:
    """The SHA-256 of a file, or of a folder's files and their names; computed once and remembered beside them.

    A file whose size and time of change are still those remembered is not read again. Raises OSError.
    """
    if path.is_dir():
        return _together(path, fingerprint)
    state = path.stat()
    now = {"size": state.st_size, "mtime_ns": state.st_mtime_ns}
    note = path.with_name(f".{path.name}.sha256")
    with contextlib.suppress(OSError, ValueError):
        remembered = json.loads(note.read_text())
        if {key: remembered[key] for key in now} == now:
            return str(remembered["sha256"])
    return remember(path, digest(path))


def _together(folder: Path, one: Callable[[Path], str]) -> str:
    lines = "".join(f"{one(file)}  {file.relative_to(folder).as_posix()}\n" for file in files_of(folder))
    return hashlib.sha256(lines.encode()).hexdigest()


def remember(path: Path, sha256: str) -> str:
    """Note beside the file `path` that this is its SHA-256 as it is now; returns it.

    A folder that is read-only stays so. Of a folder's own SHA-256 there is no note: its files have theirs.
    """
    if path.is_dir():
        return sha256
    state = path.stat()
    note = path.with_name(f".{path.name}.sha256")
    with contextlib.suppress(OSError):
        write(note, {"sha256": sha256, "size": state.st_size, "mtime_ns": state.st_mtime_ns})
    return sha256


def write(path: Path, values: Mapping[str, object]) -> None:
    """Replace `path` by these values as JSON, in one step and for good."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with partial.open("w") as file:
            json.dump(values, file, indent=2)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
