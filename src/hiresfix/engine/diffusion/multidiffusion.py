"""Tiles over a latent canvas: where they lie, how much each of their pixels counts, and one denoiser made of many.

Guarantees: the tiles of one evaluation have one size, so that they batch; they lie inside the canvas and cover all
of it, in every evaluation, by integer arithmetic alone. The averaged denoiser equals the untiled one wherever
tiles agree, and does not depend on how they are batched. All lengths are latent pixels. Knows no networks, no
guidance and no samplers.

Sources: Bar-Tal et al., MultiDiffusion (2023); algorithm.md 5 for the grid of the classic preset. What is
averaged is the denoised prediction of each evaluation; the sampler's history and noise belong to the whole canvas.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hiresfix.engine import devices
from hiresfix.errors import EngineFailed

if TYPE_CHECKING:
    from hiresfix.engine.diffusion.sampling import Denoise

OVERLAP = 1 / 4
"""The part of a feathered tile's side that it shares with its neighbour at least."""
PLAY = 1 / 32
"""The part of its side by which an inner feathered tile can move at least, to either side.

Of a tile of 112 that is 4, so its moves span 8: one cell of the UNet's coarsest level. Twice as much was measured to
hide no more and to cost a fifth more tiles.
"""
FLOOR = 1e-3
"""The least weight of a feathered tile's border, of the most. Twice in a corner, still far from underflow."""
_ALIGN = 8
_PLASTIC = 1.3247179572447460


@dataclass(frozen=True, slots=True, kw_only=True)
class Tile:
    """A rectangle of the canvas."""

    top: int
    left: int
    height: int
    width: int

    def of(self, canvas: Tensor, factor: int = 1) -> Tensor:
        """A view of this place in a tensor (..., height, width) that has `factor` pixels for each of the canvas."""
        rows = slice(self.top * factor, (self.top + self.height) * factor)
        return canvas[..., rows, self.left * factor : (self.left + self.width) * factor]


TileDenoise = Callable[[Tensor, float, Sequence[Tile]], Tensor]
"""(crops (n, C, height, width) of one size, sigma, their n tiles) -> x0 of each crop, guidance applied; float32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """Where tiles lie along one side of the canvas.

    The first and the last touch its ends and never move; those between may move together by `play` to either
    side. `weights` has a value above zero for each pixel of a tile.
    """

    tile: int
    origins: tuple[int, ...]
    play: int
    weights: tuple[float, ...]

    def at(self, phase: float) -> tuple[int, ...]:
        """The origins with the inner tiles moved: phase 0 furthest to the start, 0.5 not, 1 furthest to the end."""
        move = round((2 * phase - 1) * self.play)
        return (self.origins[0], *(origin + move for origin in self.origins[1:-1]), *self.origins[1:][-1:])


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """Tiles over a canvas; where they lie may depend on the number of the evaluation."""

    rows: Axis
    columns: Axis

    def tiles(self, evaluation: int) -> tuple[Tile, ...]:
        """The tiles of evaluation 0, 1, ..., row by row.

        They move along Roberts' additive recurrence of two dimensions, which fills the square of all moves evenly
        from any first number of evaluations, and from the middle.
        """
        down = self.rows.at((0.5 + evaluation / _PLASTIC) % 1)
        across = self.columns.at((0.5 + evaluation / _PLASTIC**2) % 1)
        size = {"height": self.rows.tile, "width": self.columns.tile}
        return tuple(Tile(top=top, left=left, **size) for top in down for left in across)

    def weights(self, device: torch.device) -> Tensor:
        """(height, width) of a tile, float32."""
        down, across = (torch.tensor(axis.weights, dtype=torch.float64) for axis in (self.rows, self.columns))
        return devices.send(torch.outer(down, across).float(), device)


def classic_grid(height: int, width: int, *, tile_height: int, tile_width: int, overlap: int = 4) -> Grid:
    """The original's grid: few tiles, spread evenly, that never move; every pixel of a tile counts alike.

    `overlap` is the least; tiles below 8 have less. Origins are j * (side - tile) // (tiles - 1), where the
    original's float arithmetic leaves the last row or column of some sizes uncovered. Raises ValueError for sizes
    without meaning.
    """
    _check(height, width, tile_height, tile_width, least=1)
    overlap = max(0, min(overlap, min(tile_height, tile_width) - 4))

    def axis(side: int, tile: int) -> Axis:
        tile = min(tile, side)
        count = 1 if tile == side else math.ceil((side - overlap) / (tile - overlap))
        return Axis(tile=tile, origins=_spread(side, tile, count), play=0, weights=(1.0,) * tile)

    return Grid(rows=axis(height, tile_height), columns=axis(width, tile_width))


def feathered_grid(height: int, width: int, *, tile_height: int, tile_width: int) -> Grid:
    """Tiles that share `OVERLAP` of their side at least, fade out towards their border and move with the evaluation.

    `tile_height` and `tile_width` are the most, at least 8. As few tiles are taken as those allow, and then made as
    small as their number allows, in steps of the UNet's 8: what is computed twice is what costs. Two tiles along a
    side do not move. Raises ValueError for sizes without meaning.
    """
    _check(height, width, tile_height, tile_width, least=_ALIGN)
    return Grid(rows=_feathered(height, tile_height), columns=_feathered(width, tile_width))


def raised_cosine(tile: int) -> tuple[float, ...]:
    """Weights of a feathered tile along one side: flat inside, falling to about `FLOOR` over `OVERLAP` at both ends.

    Two tiles blend over all that they share. A Gaussian of a tenth of the tile's width, the usual choice, has fallen
    so far where the least overlap begins that it crosses over within a few pixels: measured on tiles that are biased
    towards grey, a seam three to four times as steep; a wide one breaks off at the border instead.
    """
    fall = tile * OVERLAP
    ends = (min(1.0, (k + 0.5) / fall, (tile - k - 0.5) / fall) for k in range(tile))
    return tuple(FLOOR + (1 - FLOOR) * math.sin(math.pi / 2 * end) ** 2 for end in ends)


def _feathered(side: int, most: int) -> Axis:
    if side <= most:
        return Axis(tile=side, origins=(0,), play=0, weights=(1.0,) * side)
    count = next(count for count in itertools.count(2) if _moves(side, most, count))
    tile = next((tile for tile in range(_ALIGN, most, _ALIGN) if _moves(side, tile, count)), most)
    play = min(_play(side, tile, count), side // count) if count > 2 else 0
    return Axis(tile=tile, origins=_spread(side, tile, count), play=play, weights=raised_cosine(tile))


def _moves(side: int, tile: int, count: int) -> bool:
    """Whether so many tiles overlap as they should, and those between the ends can move as they should."""
    return _play(side, tile, count) >= (math.ceil(tile * PLAY) if count > 2 else 0)


def _play(side: int, tile: int, count: int) -> int:
    """How far the inner of `count` evenly spread tiles can move before an overlap falls below `OVERLAP`."""
    widest = -((tile - side) // (count - 1))
    return tile - widest - math.ceil(tile * OVERLAP)


def _spread(side: int, tile: int, count: int) -> tuple[int, ...]:
    return tuple(j * (side - tile) // max(1, count - 1) for j in range(count))


def _check(height: int, width: int, tile_height: int, tile_width: int, *, least: int) -> None:
    if min(height, width) < 1 or min(tile_height, tile_width) < least:
        raise ValueError(
            f"cannot tile {height} x {width} latent pixels with {tile_height} x {tile_width}; "
            f"use a canvas of at least 1 and tiles of at least {least}"
        )


def tiled(
    tile_denoise: TileDenoise, grid: Grid, *, batch: int, tick: Callable[[float], None] = lambda share: None
) -> Denoise:
    """One denoiser of the whole canvas (1, C, height, width), float32, made of its tiles.

    Sums weight * x0 and divides by the summed weights, in float32 on the canvas's device. A canvas of one tile is
    one call without weights. At most `batch` tiles at once; when memory runs out half as many, from then on.
    `tick` is called after each batch with the share of the evaluation that it was; what it raises ends the run.
    Make one for each run: it counts its evaluations, by which the grid moves. Raises EngineFailed if a single tile
    does not fit into memory.
    """
    evaluations = itertools.count()
    batches = _Batches(tile_denoise, batch)
    weights = functools.cache(grid.weights)

    def denoise(x: Tensor, sigma: float) -> Tensor:
        tiles = grid.tiles(next(evaluations))
        total, covered = torch.zeros_like(x), torch.zeros_like(x[:, :1])
        for part, denoised in batches.run(x, sigma, tiles):
            if len(tiles) == 1:
                tick(1.0)
                return denoised
            weight = weights(x.device)
            for tile, crop in zip(part, denoised, strict=True):
                tile.of(total).addcmul_(weight, crop)
                tile.of(covered).add_(weight)
            tick(len(part) / len(tiles))
        return total / covered

    return denoise


class _Batches:
    """Tiles through a denoiser, as many at once as memory was found to hold."""

    def __init__(self, denoise: TileDenoise, most: int) -> None:
        if most < 1:
            raise ValueError(f"cannot denoise {most} tiles at once; use at least 1")
        self._denoise = denoise
        self._most = most

    def run(self, x: Tensor, sigma: float, tiles: Sequence[Tile]) -> Iterator[tuple[Sequence[Tile], Tensor]]:
        while tiles:
            # Of equal size: a sliver at the end would take as long as what it saves.
            size = math.ceil(len(tiles) / math.ceil(len(tiles) / self._most))
            denoised = self._attempt(x, sigma, tiles[:size])
            if denoised is None:
                self._halve(size, tiles[0])
                continue
            yield tiles[:size], denoised
            tiles = tiles[size:]

    def _attempt(self, x: Tensor, sigma: float, tiles: Sequence[Tile]) -> Tensor | None:
        """None if memory ran out; by then nothing holds the failed attempt's tensors any more."""
        try:
            return self._denoise(torch.cat([tile.of(x) for tile in tiles]), sigma, tiles)
        except (MemoryError, RuntimeError) as error:
            if not devices.is_out_of_memory(error):
                raise
        return None

    def _halve(self, size: int, tile: Tile) -> None:
        devices.release()
        if size == 1:
            raise EngineFailed(
                f"Out of memory with one tile of {tile.width} x {tile.height} latent pixels. "
                "Use smaller tiles, free memory on this device or use another."
            )
        self._most = size // 2
