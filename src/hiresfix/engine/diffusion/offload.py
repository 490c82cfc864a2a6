"""CPU offload: plan which networks stay on the device and how much memory each step may use there.

Guarantees:

- No plan needs more than the free bytes, as estimated by `peak_memory` and `exact_tiling`.
- A device too small for all networks holds only the active ones. The others wait in the host's memory.

A wrong estimate does no harm: a step that runs out of memory halves its batch or tile and tries again.
Independent of images.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from hiresfix.engine import devices
from hiresfix.engine.diffusion import peak_memory
from hiresfix.errors import EngineFailed

PLANNED_SHARE = 0.85
"""Share of the free memory to plan with. Kernel workspaces, fragmentation and copies of the latent take the rest."""
MAX_BATCH = 16
"""Most tiles in one batch. More do not make a large GPU faster."""
_CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryNeed:
    """Memory that one image needs, in bytes.

    Args:
        text: Weights of the text encoder.
        denoising: Weights of the UNet and the ControlNet.
        autoencoder: Weights of the autoencoder.
        tile: Working memory for each tile of a batch.
        canvas: What one evaluation keeps for the whole image.
        autoencoder_bytes: Working memory with which the autoencoder recomputes little.
        tiles: Number of tiles in one evaluation (not bytes).
    """

    text: int
    denoising: int
    autoencoder: int
    tile: int
    canvas: int
    autoencoder_bytes: int
    tiles: int


@dataclass(frozen=True, slots=True, kw_only=True)
class OffloadPlan:
    """Plan to run one image within the device's memory.

    Args:
        all_on_device: All networks stay on the device.
        batch: Tiles in one batch.
        autoencoder_bytes: Working memory of the autoencoder.
    """

    all_on_device: bool
    batch: int
    autoencoder_bytes: int

    def peak_bytes(self, need: MemoryNeed) -> int:
        """Return the bytes in use at the worst moment."""
        all_weights = need.text + need.denoising + need.autoencoder
        evaluation = need.canvas + self.batch * need.tile
        if self.all_on_device:
            return all_weights + max(evaluation, self.autoencoder_bytes)
        return max(need.text, need.denoising + evaluation, need.autoencoder + self.autoencoder_bytes)


def make_plan(free: int, need: MemoryNeed) -> OffloadPlan:
    """Plan an image for `free` bytes, which must also hold the networks.

    Raises:
        EngineFailed: A single tile does not fit beside the networks that denoise it.
    """
    usable = int(PLANNED_SHARE * free)
    all_weights = need.text + need.denoising + need.autoencoder
    if need.denoising + need.canvas + need.tile > usable:
        usable = free  # without the reserve it may still fit
    all_on_device = all_weights + max(need.canvas + need.tile, need.autoencoder_bytes) <= usable
    left = usable - (all_weights if all_on_device else need.denoising) - need.canvas
    if left < need.tile or max(need.text, need.autoencoder) > usable:
        raise EngineFailed(
            f"One tile with its networks takes {(usable - left + need.tile) / 2**30:.1f} GiB, but only "
            f"{free / 2**30:.1f} GiB of the device are free. Use smaller tiles, free memory on this device or use "
            "another device."
        )
    autoencoder_bytes = usable - (all_weights if all_on_device else need.autoencoder)
    batch = min(left // need.tile, need.tiles, MAX_BATCH)
    return OffloadPlan(all_on_device=all_on_device, batch=max(1, batch), autoencoder_bytes=autoencoder_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkGroups:
    """The networks of one model in groups that act together, and the device they act on.

    `tile` is the working memory for each tile of a batch, in bytes.
    """

    device: torch.device
    text: tuple[nn.Module, ...]
    denoising: tuple[nn.Module, ...]
    autoencoder: tuple[nn.Module, ...]
    tile: int

    def memory_need(self, *, canvas: int, autoencoder_bytes: int, tiles: int) -> MemoryNeed:
        """Return the memory need of an image with these networks; see `MemoryNeed` for the arguments."""
        return MemoryNeed(
            text=peak_memory.weight_bytes(self.text),
            denoising=peak_memory.weight_bytes(self.denoising),
            autoencoder=peak_memory.weight_bytes(self.autoencoder),
            tile=self.tile,
            canvas=canvas,
            autoencoder_bytes=autoencoder_bytes,
            tiles=tiles,
        )

    def plan(self, need: MemoryNeed) -> OffloadPlan | None:
        """Plan for the memory that is free now; None on the CPU, where nothing is moved or limited."""
        free = devices.free_bytes(self.device)
        if free is None:
            return None
        # The weights that are on the device already count as free: the plan may move them away.
        on_device = [network for network in self._all if next(network.parameters()).device.type == self.device.type]
        return make_plan(free + peak_memory.weight_bytes(on_device), need)

    def activate(self, active: tuple[nn.Module, ...], plan: OffloadPlan) -> None:
        """Move these networks to the device, and the others to the host unless the plan keeps all on the device."""
        if not plan.all_on_device:
            for network in self._all:
                if network not in active:
                    devices.move_to_device(network, _CPU)
            devices.free_cached_memory()
        for network in self._all if plan.all_on_device else active:
            devices.move_to_device(network, self.device)

    @property
    def _all(self) -> tuple[nn.Module, ...]:
        return (*self.text, *self.denoising, *self.autoencoder)
