"""Estimate the largest result that a worker's memory holds.

Estimates, rounded down: a wrong one fails an attempt, not the service. The memory per image was measured by
`benchmarks/memory.py` (its results are beside it), and weights count as the size of their files. Results are rounded
down to a few values, so that machines that differ little count as equal.

A GPU's own memory sets no limit: `diffusion.offload` plans with what there is, whatever the image.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from hiresfix.engine.diffusion.compact import checkpoint as compact
from hiresfix.engine.diffusion.vae import DEFAULT_BUDGET
from hiresfix.models.store import InstalledModel
from hiresfix.models.weight_files import WeightKind

GIGABYTE = 1e9
BASE_BYTES = 1.0 * GIGABYTE
"""Of a worker with its networks loaded and a small image done: 0.5 measured, and as much in reserve."""
BYTES_PER_MEGAPIXEL = 0.03 * GIGABYTE
"""For each megapixel of a result: 0.015 measured, and as much for 16 bits and for encoding."""
COMPACT_BYTES_PER_MEGAPIXEL = 0.17 * GIGABYTE
"""The same where the host runs diffusion with a compact checkpoint. Its latents are as large as the pixels: 12 copies
of them, and the control image."""
MIN_MEGAPIXELS = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryDemand:
    """Bytes of host memory: a fixed part, and a part for each megapixel of a result."""

    fixed: float = BASE_BYTES
    per_megapixel: float = BYTES_PER_MEGAPIXEL


def memory_demands(installed: Collection[InstalledModel], *, on_host: bool) -> list[MemoryDemand]:
    """Return the demand of super-resolution, and of each checkpoint that jobs may use.

    on_host: networks run in host memory, not on a device with its own.
    """
    checkpoints = [model for model in installed if model.kind is WeightKind.CHECKPOINT]
    return [MemoryDemand(), *(_checkpoint_demand(model, installed, on_host) for model in checkpoints)]


def max_megapixels(host_bytes: float, demands: Collection[MemoryDemand]) -> float:
    """Return the largest result that fits with every model: 1, 1.5, 2, 3, 4, 6, 8, 12 and so on.

    Never less than `MIN_MEGAPIXELS`: a worker is started to be used.
    """
    limit = min((host_bytes - demand.fixed) / demand.per_megapixel for demand in demands)
    megapixels = MIN_MEGAPIXELS
    while megapixels * 2 <= limit:
        megapixels *= 2
    return megapixels * 1.5 if megapixels * 1.5 <= limit else megapixels


def _checkpoint_demand(
    checkpoint: InstalledModel, installed: Collection[InstalledModel], on_host: bool
) -> MemoryDemand:
    if compact.is_compact(checkpoint.path):
        per_megapixel = COMPACT_BYTES_PER_MEGAPIXEL if on_host else BYTES_PER_MEGAPIXEL
        return MemoryDemand(fixed=BASE_BYTES + checkpoint.bytes, per_megapixel=per_megapixel)
    companions = [
        [model.bytes for model in installed if model.kind is kind] for kind in (WeightKind.CONTROLNET, WeightKind.VAE)
    ]
    # With a device of its own, networks still wait in host memory while others run.
    weights = checkpoint.bytes + sum(max(sizes, default=0) for sizes in companions)
    return MemoryDemand(fixed=BASE_BYTES + weights + (DEFAULT_BUDGET if on_host else 0))
