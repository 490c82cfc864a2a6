"""How large a result a worker's memory holds.

Guarantees: nothing exact. What a picture takes was measured by `benchmarks/memory.py` (its results are beside it), and
weights are taken for what their files hold; a worker that is given more than it holds fails the attempt, not the
service. Numbers are rounded down to a few, so that machines that differ little count as equal.

A GPU's own memory sets no bound: `residence` plans with what is there, whatever the picture.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from hiresfix.engine.diffusion.compact import checkpoint as compact
from hiresfix.engine.diffusion.vae import BUDGET
from hiresfix.models.store import Installed
from hiresfix.models.weight_files import Kind

GIGABYTE = 1e9
RESIDENT = 1.0 * GIGABYTE
"""Of a worker with its networks loaded and a small picture done: 0.5 measured, and as much for what beside them."""
EACH = 0.03 * GIGABYTE
"""For each megapixel of a result: 0.015 measured, and as much for 16 bits and for encoding."""
EACH_COMPACT = 0.17 * GIGABYTE
"""The same where the host diffuses with a compact checkpoint, whose latents hold as much as pixels: 12 copies of them,
and its hint."""
LEAST = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """Bytes of the host: fixed, and for each megapixel of a result."""

    fixed: float = RESIDENT
    each: float = EACH


def demands(installed: Collection[Installed], *, on_host: bool) -> list[Demand]:
    """Of enlarging, and of each checkpoint that jobs may diffuse with; on_host: not on a device of its own."""
    return [Demand(), *(_of(entry, installed, on_host) for entry in installed if entry.kind is Kind.CHECKPOINT)]


def most_megapixels(host_bytes: float, demands: Collection[Demand]) -> float:
    """Of a result that fits into so many bytes, whatever it is made with: 1, 1.5, 2, 3, 4, 6, 8, 12 and so on.

    Never less than `LEAST`: who starts a worker means to use it.
    """
    wanted = min((host_bytes - demand.fixed) / demand.each for demand in demands)
    most = LEAST
    while most * 2 <= wanted:
        most *= 2
    return most * 1.5 if most * 1.5 <= wanted else most


def _of(checkpoint: Installed, installed: Collection[Installed], on_host: bool) -> Demand:
    if compact.is_compact(checkpoint.path):
        return Demand(fixed=RESIDENT + checkpoint.bytes, each=EACH_COMPACT if on_host else EACH)
    beside = [[entry.bytes for entry in installed if entry.kind is kind] for kind in (Kind.CONTROLNET, Kind.VAE)]
    # On a device of its own networks wait in the host's memory while others act.
    weights = checkpoint.bytes + sum(max(sizes, default=0) for sizes in beside)
    return Demand(fixed=RESIDENT + weights + (BUDGET if on_host else 0))
