"""What this machine has: memory and devices. Loads no torch into this process, so that supervisors may ask.

Knows no jobs.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hiresfix.errors import ConfigurationError

VISIBLE = "CUDA_VISIBLE_DEVICES"
_COUNT = "import torch; print(torch.cuda.device_count())"
_COUNT_SECONDS = 120

CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
"""Of version 2 and 1, as a container sees its own."""


def host_bytes() -> int:
    """The memory that this process and those beside it may take: the machine's, or less where a container has less."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for file in CGROUP_LIMITS:
        try:
            limits.append(int(file.read_text()))
        except (OSError, ValueError):
            continue  # not this version of cgroups, or "max"
    return min(limits)


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """Something to compute on, and the variables of a process that is to see nothing else."""

    name: str
    environment: Mapping[str, str]


CPU = Device(name="cpu", environment={"HIRESFIX_DEVICE": "cpu"})


def devices(wanted: str) -> list[Device]:
    """ "auto": every GPU, or where there is none the best there is, once; "cpu"; or numbers of GPUs, "0,2".

    Numbers count among what CUDA_VISIBLE_DEVICES leaves. Raises ConfigurationError for what is not there.
    """
    if wanted == "cpu":
        return [CPU]
    visible = _visible_gpus()
    if wanted == "auto":
        return [_gpu(name) for name in visible] or [Device(name="auto", environment={})]
    numbers = [part.strip() for part in wanted.split(",")]
    if not all(number.isdecimal() for number in numbers) or len(set(map(int, numbers))) < len(numbers):
        raise ConfigurationError(f"{wanted!r} names no devices. Use --devices auto, cpu, or numbers of GPUs: 0,1.")
    missing = [number for number in numbers if int(number) >= len(visible)]
    if missing:
        raise ConfigurationError(
            f"There is no GPU {missing[0]} here: {len(visible)} were found. Check the driver, or use --devices auto."
        )
    return [_gpu(visible[int(number)]) for number in numbers]


def _gpu(name: str) -> Device:
    # "cuda" and not "auto": a GPU that goes away must end its worker, not turn it into a slow one.
    return Device(name=f"gpu-{name}", environment={VISIBLE: name, "HIRESFIX_DEVICE": "cuda"})


def _visible_gpus() -> list[str]:
    """As CUDA_VISIBLE_DEVICES has them, or by number, as many as torch sees."""
    listed = [name.strip() for name in os.environ.get(VISIBLE, "").split(",") if name.strip()]
    count = _count_gpus()
    return listed[:count] if listed else [str(number) for number in range(count)]


def _count_gpus() -> int:
    """Asked of a process that ends, as torch would stay in this one."""
    try:
        asked = subprocess.run([sys.executable, "-c", _COUNT], capture_output=True, text=True, timeout=_COUNT_SECONDS)
        return int(asked.stdout)
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        raise ConfigurationError(
            "The GPUs of this machine could not be counted. Install the engine part, or use --devices cpu."
        ) from error
