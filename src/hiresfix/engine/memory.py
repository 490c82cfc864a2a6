"""Where and in which precision to compute, and what to do when memory runs out.

Guarantees: running out of memory never ends the process while a smaller tile is left to try; at the smallest,
it is an `EngineFailed` that says so. Knows no networks and no pixels.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence

import torch

from hiresfix.engine.tiling import Box
from hiresfix.errors import ConfigurationError, EngineFailed

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
    """The fastest precision that holds a picture: bfloat16 where the device computes in it, else float32.

    CUDA before Ampere has float16 instead. On CPUs bfloat16 pays only with its own instructions (AVX-512 BF16,
    AMX); elsewhere it would be emulated.
    """
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if device.type == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()):
        return torch.bfloat16
    return torch.float32


def work_through(boxes: Sequence[Box], work: Callable[[Box], None], *, align: int) -> int:
    """`work` on every box in order, all that remain cut in four whenever one does not fit.

    Returns the longest side of a box that was worked on. Corners stay multiples of `align` where they were.
    Raises EngineFailed if a box of `SMALLEST_TILE` does not fit.
    """
    pending, longest = list(reversed(boxes)), 0
    while pending:
        box = pending[-1]
        if _fits(work, box):
            longest = max(longest, box.height, box.width)
            pending.pop()
            continue
        if max(box.height, box.width) <= SMALLEST_TILE:
            raise EngineFailed(
                f"Out of memory with a tile of {SMALLEST_TILE} pixels. Free memory on this device or use another."
            )
        pending = [part for box in pending for part in reversed(box.quarters(align))]
    return longest


def _fits(work: Callable[[Box], None], box: Box) -> bool:
    try:
        work(box)
    except (MemoryError, torch.OutOfMemoryError):
        pass
    except RuntimeError as error:  # the CPU's and MPS's allocators have no class of their own
        if not any(words in str(error).lower() for words in _OUT_OF_MEMORY):
            raise
    else:
        return True
    # Outside the handlers, so that the failed attempt's tensors are no longer held by its traceback.
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return False
