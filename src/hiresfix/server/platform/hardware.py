"""Memory and devices of this machine. Does not load torch into this process, so that supervisors can use it."""

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
"""Memory limits of cgroups version 2 and 1, as seen in a container."""


def host_bytes() -> int:
    """Return the memory of the machine, or the container's limit if that is lower."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for file in CGROUP_LIMITS:
        try:
            limits.append(int(file.read_text()))
        except (OSError, ValueError):
            continue  # not this version of cgroups, or "max"
    return min(limits)


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A compute device, and the environment variables of a process that should see no other."""

    name: str
    environment: Mapping[str, str]


CPU = Device(name="cpu", environment={"HIRESFIX_DEVICE": "cpu"})


def devices(choice: str) -> list[Device]:
    """Return the devices of `choice`. Raises ConfigurationError for a device that does not exist.

    "auto": every GPU, or the best other device once; "cpu"; or numbers of GPUs, "0,2". Numbers count among the GPUs
    that CUDA_VISIBLE_DEVICES leaves visible.
    """
    if choice == "cpu":
        return [CPU]
    visible = _visible_gpus()
    if choice == "auto":
        return [_gpu(name) for name in visible] or [Device(name="auto", environment={})]
    numbers = [part.strip() for part in choice.split(",")]
    if not all(number.isdecimal() for number in numbers) or len(set(map(int, numbers))) < len(numbers):
        raise ConfigurationError(
            f"{choice!r} is not a list of devices. Use --devices auto, cpu, or numbers of GPUs: 0,1."
        )
    missing = [number for number in numbers if int(number) >= len(visible)]
    if missing:
        raise ConfigurationError(
            f"There is no GPU {missing[0]}: this machine has {len(visible)}. Check the driver, or use --devices auto."
        )
    return [_gpu(visible[int(number)]) for number in numbers]


def _gpu(name: str) -> Device:
    # "cuda" and not "auto": if the GPU fails, its worker must end and not continue slowly on the CPU.
    return Device(name=f"gpu-{name}", environment={VISIBLE: name, "HIRESFIX_DEVICE": "cuda"})


def _visible_gpus() -> list[str]:
    """Return the GPUs as named in CUDA_VISIBLE_DEVICES, or by number, as many as torch sees."""
    listed = [name.strip() for name in os.environ.get(VISIBLE, "").split(",") if name.strip()]
    count = _count_gpus()
    return listed[:count] if listed else [str(number) for number in range(count)]


def _count_gpus() -> int:
    """Count the GPUs in a child process, because torch would stay loaded in this one."""
    try:
        result = subprocess.run([sys.executable, "-c", _COUNT], capture_output=True, text=True, timeout=_COUNT_SECONDS)
        return int(result.stdout)
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        raise ConfigurationError(
            "The GPUs of this machine could not be counted. Install the engine part, or use --devices cpu."
        ) from error
