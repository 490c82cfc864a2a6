"""How large a result a worker's memory holds.

Guarantees: nothing exact. What a picture takes was measured by `benchmarks/memory.py` and grows with its megapixels; a
worker that is given more than it holds fails the attempt, not the service. Numbers are rounded down to a few, so that
machines that differ little count as equal.

A GPU's own memory sets no bound: `residence` plans with what is there, whatever the picture.
"""

from __future__ import annotations

from hiresfix.modelstore import Store
from hiresfix.weightfiles import Kind

GIGABYTE = 1e9
RESIDENT = 1.0 * GIGABYTE
"""Of a worker with its networks loaded and a small picture done: 0.5 measured, and as much for what beside them."""
ENLARGING = 0.03 * GIGABYTE
"""For each megapixel of a result that is only enlarged: 0.013 measured, and as much for 16 bits and for encoding."""
DIFFUSING = 0.165 * GIGABYTE
"""For each megapixel of a result that the host diffuses, measured from 1 to 4 megapixels."""
LEAST = 1.0


def most_megapixels(host_bytes: float, *, diffusing: bool) -> float:
    """Of a result that fits into so many bytes of the host: 1, 1.5, 2, 3, 4, 6, 8, 12 and so on.

    diffusing: whether the worker may get such jobs. Never less than `LEAST`: who starts a worker means to use it.
    """
    wanted = (host_bytes - RESIDENT) / (DIFFUSING if diffusing else ENLARGING)
    most = LEAST
    while most * 2 <= wanted:
        most *= 2
    return most * 1.5 if most * 1.5 <= wanted else most


def diffuses(store: Store) -> bool:
    """Whether a checkpoint for it is installed here."""
    return any(entry.kind is Kind.CHECKPOINT for entry in store.installed().values())
