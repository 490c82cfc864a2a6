"""Choose the device and the precision, move tensors there, and retry when memory runs out.

Guarantees: running out of memory never ends the process while a smaller tile is left to try; at the smallest tile it
raises an `EngineFailed` that says so. Knows no pixels.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from hiresfix.errors import ConfigurationError, EngineFailed

T = TypeVar("T")

ASYNC_COPY_DEVICES = ("cuda",)
"""Kinds of devices that copy from pinned memory asynchronously."""

MIN_TILE = 32
_OUT_OF_MEMORY = ("out of memory", "not enough memory", "can't allocate memory")


def choose_device(name: str) -> torch.device:
    """Return the device; "auto" is CUDA if there is one, else MPS, else the CPU.

    Raises:
        ConfigurationError: this machine has no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigurationError(f"This machine has no device {name!r}. Use auto, cpu, cuda or mps.") from error
    return device


def choose_dtype(device: torch.device) -> torch.dtype:
    """Return the fastest precision that is good enough for images.

    CUDA: float16, as fast as bfloat16 and eight times as exact; these networks stay far inside its range. CPUs with
    instructions for bfloat16 (AVX-512 BF16, AMX): bfloat16. Others, MPS included: float32.
    """
    if device.type == "cuda":
        return torch.float16
    if device.type == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()):
        return torch.bfloat16
    return torch.float32


def free_bytes(device: torch.device) -> int | None:
    """Return the device memory that this process can still allocate; None for the CPU, which shares its memory."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
    if device.type == "mps":
        return int(torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory())
    return None


def total_bytes(device: torch.device) -> int | None:
    """Return the device's whole memory; None for the CPU."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    if device.type == "mps":
        return int(torch.mps.recommended_max_memory())
    return None


def memory_usage(device: torch.device) -> dict[str, int]:
    """Return bytes of the device: total, free, and where known those this process uses now and used at its peak.

    Empty for the CPU: it shares its memory, and the size of the process is measured elsewhere.
    """
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        used, peak = torch.cuda.memory_reserved(device), torch.cuda.max_memory_reserved(device)
        return {"total": total, "free": free, "used": used, "peak": peak}
    if device.type == "mps":
        total, used = torch.mps.recommended_max_memory(), torch.mps.driver_allocated_memory()
        return {"total": total, "free": max(0, total - used), "used": used}
    return {}


def move_to_device(network: torch.nn.Module, device: torch.device) -> None:
    """Move the network in place, so that references to its parameters stay valid."""
    for tensor in (*network.parameters(), *network.buffers()):
        if tensor.device != device:
            tensor.data = tensor.data.to(device)


def copy_to_device(x: Tensor, device: torch.device) -> Tensor:
    """Return `x` on the device without waiting for a GPU: the copy joins its queue."""
    if device.type in ASYNC_COPY_DEVICES and x.device.type == "cpu":
        return x.pin_memory().to(device, non_blocking=True)
    return x.to(device)


def retry_with_smaller_tile(tile: int, work: Callable[[int], T]) -> tuple[T, int]:
    """Run `work(tile)`, halving the tile while memory runs out; return its result and the tile that fitted.

    Raises:
        EngineFailed: not even a tile of `MIN_TILE` fits.
    """
    while True:
        try:
            return work(tile), tile
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
        # Outside the handler, whose traceback would keep the tensors of the failed attempt alive.
        free_cached_memory()
        if tile <= MIN_TILE:
            raise EngineFailed(
                f"Out of memory with a tile of {tile} pixels. Free memory on this device or use another."
            )
        tile = max(MIN_TILE, tile // 2)


def free_cached_memory() -> None:
    """Free what a failed attempt left behind; call it where nothing references its tensors any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def is_out_of_memory(error: Exception) -> bool:
    """Return True if an allocator failed; those of CPU and MPS are recognised by their message."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return any(words in str(error).lower() for words in _OUT_OF_MEMORY)
