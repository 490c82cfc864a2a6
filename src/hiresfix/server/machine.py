"""What this machine has. Loads no torch, so that supervisors may ask. Knows no jobs."""

from __future__ import annotations

import os
from pathlib import Path

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
