"""Which networks are on the device while one of them acts, and how much memory each may take there.

Guarantees: no plan needs more than the bytes that are free, by the sums of `footprint` and `chain`; a device too small
for all networks at once holds only those that act, and the others wait in the host's memory. That a plan errs is no
harm: whoever runs out of memory halves what it does at once. Knows no pictures.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from hiresfix.engine import devices
from hiresfix.engine.diffusion import peak_memory
from hiresfix.errors import EngineFailed

SHARE = 0.85
"""Of the free memory that is planned with: kernels' workspaces, fragments and the latents' copies take the rest."""
MOST_TILES = 16
"""At once. More do not make a large GPU faster."""
_CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """Bytes. text, diffusing, coding: weights of the networks that act together.

    tile: beside them for each tile at once. canvas: what an evaluation keeps for the whole picture. section: with which
    the autoencoder works without computing much twice. tiles: of one evaluation, a number.
    """

    text: int
    diffusing: int
    coding: int
    tile: int
    canvas: int
    section: int
    tiles: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """together: all networks stay on the device. batch: tiles at once. section: bytes for the autoencoder's work."""

    together: bool
    batch: int
    section: int

    def most(self, need: Need) -> int:
        """The bytes that are taken at the worst moment."""
        everything = need.text + need.diffusing + need.coding
        diffusing = need.canvas + self.batch * need.tile
        if self.together:
            return everything + max(diffusing, self.section)
        return max(need.text, need.diffusing + diffusing, need.coding + self.section)


def plan(free: int, need: Need) -> Plan:
    """What to do with so many free bytes, of which the networks themselves are to be paid too.

    Raises EngineFailed if a single tile does not fit beside the networks that denoise it.
    """
    room = int(SHARE * free)
    everything = need.text + need.diffusing + need.coding
    if need.diffusing + need.canvas + need.tile > room:
        room = free  # the last reserve
    together = everything + max(need.canvas + need.tile, need.section) <= room
    left = room - (everything if together else need.diffusing) - need.canvas
    if left < need.tile or max(need.text, need.coding) > room:
        raise EngineFailed(
            f"A tile with its networks takes {(room - left + need.tile) / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB "
            "of the device are free. Use smaller tiles, free memory on this device or use another."
        )
    section = room - (everything if together else need.coding)
    batch = min(left // need.tile, need.tiles, MOST_TILES)
    return Plan(together=together, batch=max(1, batch), section=section)


@dataclass(frozen=True, slots=True, kw_only=True)
class Residents:
    """The networks of one model and the device they act on. tile: bytes for each tile at once."""

    device: torch.device
    text: tuple[nn.Module, ...]
    diffusing: tuple[nn.Module, ...]
    coding: tuple[nn.Module, ...]
    tile: int

    def need(self, *, canvas: int, section: int, tiles: int) -> Need:
        """Of these networks for a picture; see `Need`."""
        return Need(
            text=peak_memory.weights(self.text),
            diffusing=peak_memory.weights(self.diffusing),
            coding=peak_memory.weights(self.coding),
            tile=self.tile,
            canvas=canvas,
            section=section,
            tiles=tiles,
        )

    def plan(self, need: Need) -> Plan | None:
        """For what is free now. None where the device is the host: there, nothing is moved or limited."""
        free = devices.free_bytes(self.device)
        if free is None:
            return None
        there = [network for network in self._all if next(network.parameters()).device.type == self.device.type]
        return plan(free + peak_memory.weights(there), need)

    def bring(self, acting: tuple[nn.Module, ...], made: Plan) -> None:
        """These networks to the device; the others away from it, unless all stay there together."""
        if not made.together:
            waiting = [network for network in self._all if network not in acting]
            for network in waiting:
                devices.move(network, _CPU)
            devices.release()
        for network in self._all if made.together else acting:
            devices.move(network, self.device)

    @property
    def _all(self) -> tuple[nn.Module, ...]:
        return (*self.text, *self.diffusing, *self.coding)
