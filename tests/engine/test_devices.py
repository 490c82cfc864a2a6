"""Running out of memory, and the precision of each device."""

from __future__ import annotations

import pytest
import torch

from hiresfix.engine import devices
from hiresfix.errors import ConfigurationError, EngineFailed

OUT_OF_MEMORY = [
    MemoryError(),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory"),
    RuntimeError("MPS backend out of memory (MPS allocated: 17 GB)"),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda error: f"{type(error).__name__}: {str(error)[:20]}")
def test_tile_is_halved_until_it_fits(error: Exception) -> None:
    tried = []

    def work(tile: int) -> str:
        tried.append(tile)
        if tile > 70:
            raise error
        return "done"

    assert devices.retry_with_smaller_tile(256, work) == ("done", 64)
    assert tried == [256, 128, 64]


def test_error_when_smallest_tile_does_not_fit() -> None:
    def work(tile: int) -> None:
        raise MemoryError

    with pytest.raises(EngineFailed, match=r"Out of memory with a tile of 32 pixels\. Free memory"):
        devices.retry_with_smaller_tile(100, work)


def test_other_errors_are_not_retried() -> None:
    def work(tile: int) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1"):
        devices.retry_with_smaller_tile(256, work)


def test_missing_device_is_a_configuration_error() -> None:
    absent = "mps" if torch.cuda.is_available() else "cuda"
    for wanted in (absent, "abacus"):
        with pytest.raises(ConfigurationError, match="Use auto, cpu, cuda or mps"):
            devices.choose_device(wanted)


def test_auto_chooses_a_working_device_and_dtype() -> None:
    device = devices.choose_device("auto")
    dtype = devices.choose_dtype(device)
    conv = torch.nn.Conv2d(3, 3, 3).to(device, dtype)
    assert conv(torch.ones(1, 3, 8, 8, device=device, dtype=dtype)).dtype == dtype
