"""Where and in which precision to compute, and what to do when memory runs out.

Guarantees: running out of memory never ends the process while a smaller tile is left to try; at the smallest,
it is an `EngineFailed` that says so. Knows no pixels.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from hiresfix.errors import ConfigurationError, EngineFailed

T = TypeVar("T")

QUEUING = ("cuda",)
"""Kinds of devices that take a copy from pinned memory into their queue."""

SMALLEST_TILE = 32
_OUT_OF_MEMORY = ("out of memory", "not enough memory", "can't allocate memory")


def choose_device(wanted: str) -> torch.device:
    """ "auto": CUDA if there is one, else MPS, else the CPU. Raises ConfigurationError for one that is absent."""
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(wanted)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigurationError(f"There is no device {wanted!r} here. Use auto, cpu, cuda or mps.") from error
    return device


def choose_dtype(device: torch.device) -> torch.dtype:
    """The fastest precision that holds a picture.

    CUDA: float16, as fast as bfloat16 and eight times as exact, and these networks stay far inside its range. CPUs
    with their own instructions for it (AVX-512 BF16, AMX): bfloat16. Elsewhere, MPS included: float32.
    """
    if device.type == "cuda":
        return torch.float16
    if device.type == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()):
        return torch.bfloat16
    return torch.float32


def free_bytes(device: torch.device) -> int | None:
    """What this process can still take of a device of its own; None for the CPU, whose memory is everybody's."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
    if device.type == "mps":
        return int(torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory())
    return None


def total_bytes(device: torch.device) -> int | None:
    """All memory of a device of its own; None for the CPU."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    if device.type == "mps":
        return int(torch.mps.recommended_max_memory())
    return None


def usage(device: torch.device) -> dict[str, int]:
    """Bytes of the device: total, free, and, where that is known, used by this process now and at its peak.

    For the CPU nothing: its memory is everybody's, and the process's own size is told elsewhere.
    """
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        used, peak = torch.cuda.memory_reserved(device), torch.cuda.max_memory_reserved(device)
        return {"total": total, "free": free, "used": used, "peak": peak}
    if device.type == "mps":
        total, used = torch.mps.recommended_max_memory(), torch.mps.driver_allocated_memory()
        return {"total": total, "free": max(0, total - used), "used": used}
    return {}


def move(network: torch.nn.Module, device: torch.device) -> None:
    """In place: whoever holds a parameter of the network holds it still."""
    for tensor in (*network.parameters(), *network.buffers()):
        if tensor.device != device:
            tensor.data = tensor.data.to(device)


def send(x: Tensor, device: torch.device) -> Tensor:
    """`x` on the device. No GPU is waited for: what it has still to do goes on while the copy stands in its queue."""
    if device.type in QUEUING and x.device.type == "cpu":
        return x.pin_memory().to(device, non_blocking=True)
    return x.to(device)


def with_room(tile: int, work: Callable[[int], T]) -> tuple[T, int]:
    """What `work(tile)` returns, and the tile: the given one, halved and tried again while memory runs out.

    Raises EngineFailed if a tile of `SMALLEST_TILE` does not fit either.
    """
    while True:
        try:
            return work(tile), tile
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
        # Outside the handler, so that the failed attempt's tensors are no longer held by its traceback.
        release()
        if tile <= SMALLEST_TILE:
            raise EngineFailed(
                f"Out of memory with a tile of {tile} pixels. Free memory on this device or use another."
            )
        tile = max(SMALLEST_TILE, tile // 2)


def release() -> None:
    """Give back what a failed attempt left behind; call it where nothing holds that attempt's tensors any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def is_out_of_memory(error: Exception) -> bool:
    """The allocators of CPU and MPS have no class of their own, only words."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return any(words in str(error).lower() for words in _OUT_OF_MEMORY)
