"""MultiDiffusion: grids of overlapping tiles on a latent canvas, and one denoiser averaged over them.

Guarantees:

- The tiles of one evaluation have the same size, so they can be batched.
- They lie inside the canvas and cover all of it in every evaluation, by integer arithmetic alone.
- The averaged denoiser equals the untiled one wherever the tiles agree, and does not depend on the batches.

All lengths are in latent pixels. The denoised prediction of each evaluation is averaged; the sampler's history and
noise belong to the whole canvas. Independent of networks, guidance and samplers.

Sources: Bar-Tal et al., MultiDiffusion (2023); algorithm.md 5 for the grid of the classic preset.
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

MIN_OVERLAP = 1 / 4
"""Least overlap of neighbouring feathered tiles, as a share of the tile's side."""
MIN_SHIFT = 1 / 32
"""Least distance that an inner feathered tile can move to either side, as a share of its side.

For a tile of 112 this is 4, so its positions span 8: one cell of the UNet's coarsest level. Twice as much was measured
to hide seams no better and to cost a fifth more tiles.
"""
MIN_WEIGHT = 1e-3
"""Weight at the border of a feathered tile, relative to its middle. Squared in a corner, still far from underflow."""
_ALIGN = 8
_PLASTIC_NUMBER = 1.3247179572447460


@dataclass(frozen=True, slots=True, kw_only=True)
class Tile:
    """A rectangle on the canvas."""

    top: int
    left: int
    height: int
    width: int

    def crop(self, canvas: Tensor, factor: int = 1) -> Tensor:
        """Return a view of this tile in a tensor (..., height, width) with `factor` pixels per canvas pixel."""
        rows = slice(self.top * factor, (self.top + self.height) * factor)
        return canvas[..., rows, self.left * factor : (self.left + self.width) * factor]


TileDenoise = Callable[[Tensor, float, Sequence[Tile]], Tensor]
"""(n crops (n, C, height, width), sigma, their n tiles) -> x0 of each crop with guidance applied, float32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """Positions of tiles along one side of the canvas.

    The first and the last tile touch the ends and never move. The inner ones may move together.

    Args:
        tile: Length of a tile.
        origins: Start of each tile.
        max_shift: How far the inner tiles may move to either side.
        weights: A value above zero for each pixel of a tile.
    """

    tile: int
    origins: tuple[int, ...]
    max_shift: int
    weights: tuple[float, ...]

    def origins_at(self, phase: float) -> tuple[int, ...]:
        """Return the origins with inner tiles moved: phase 0 is furthest to the start, 0.5 unmoved, 1 to the end."""
        shift = round((2 * phase - 1) * self.max_shift)
        return (self.origins[0], *(origin + shift for origin in self.origins[1:-1]), *self.origins[1:][-1:])


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """Tiles on a canvas; their positions may depend on the number of the evaluation."""

    rows: Axis
    columns: Axis

    def tiles(self, evaluation: int) -> tuple[Tile, ...]:
        """Return the tiles of evaluation 0, 1, ..., row by row.

        They move by Roberts' additive recurrence in two dimensions, which starts in the middle and fills the square of
        all shifts evenly after any number of evaluations.
        """
        down = self.rows.origins_at((0.5 + evaluation / _PLASTIC_NUMBER) % 1)
        across = self.columns.origins_at((0.5 + evaluation / _PLASTIC_NUMBER**2) % 1)
        size = {"height": self.rows.tile, "width": self.columns.tile}
        return tuple(Tile(top=top, left=left, **size) for top in down for left in across)

    def weights(self, device: torch.device) -> Tensor:
        """Return the weights of a tile, (height, width), float32."""
        down, across = (torch.tensor(axis.weights, dtype=torch.float64) for axis in (self.rows, self.columns))
        return devices.copy_to_device(torch.outer(down, across).float(), device)


def classic_grid(height: int, width: int, *, tile_height: int, tile_width: int, overlap: int = 4) -> Grid:
    """Return the original's grid: few evenly spread tiles that never move, with equal weights.

    Origins are j * (side - tile) // (tiles - 1). The original's float arithmetic leaves the last row or column of some
    sizes uncovered.

    Args:
        height: Height of the canvas.
        width: Width of the canvas.
        tile_height: Height of a tile.
        tile_width: Width of a tile.
        overlap: Least overlap; tiles below 8 have less.

    Raises:
        ValueError: A size is too small.
    """
    _check_sizes(height, width, tile_height, tile_width, min_tile=1)
    overlap = max(0, min(overlap, min(tile_height, tile_width) - 4))

    def axis(side: int, tile: int) -> Axis:
        tile = min(tile, side)
        count = 1 if tile == side else math.ceil((side - overlap) / (tile - overlap))
        return Axis(tile=tile, origins=_even_origins(side, tile, count), max_shift=0, weights=(1.0,) * tile)

    return Grid(rows=axis(height, tile_height), columns=axis(width, tile_width))


def feathered_grid(height: int, width: int, *, tile_height: int, tile_width: int) -> Grid:
    """Return a grid of tiles that overlap by `MIN_OVERLAP`, fade out at the border and move with each evaluation.

    Uses as few tiles as their largest size allows, then makes them as small as their number allows, in steps of the
    UNet's 8, because recomputed pixels cost time. Two tiles along a side do not move.

    Args:
        height: Height of the canvas.
        width: Width of the canvas.
        tile_height: Largest height of a tile, at least 8.
        tile_width: Largest width of a tile, at least 8.

    Raises:
        ValueError: A size is too small.
    """
    _check_sizes(height, width, tile_height, tile_width, min_tile=_ALIGN)
    return Grid(rows=_feathered_axis(height, tile_height), columns=_feathered_axis(width, tile_width))


def raised_cosine(tile: int) -> tuple[float, ...]:
    """Return the weights of a feathered tile along one side.

    They are flat inside and fall to about `MIN_WEIGHT` over `MIN_OVERLAP` at both ends, so two tiles blend over their
    whole overlap. The usual choice, a Gaussian of a tenth of the tile's width, has fallen so far at the start of the
    least overlap that it blends within a few pixels: measured on tiles biased towards grey, the seam is three to four
    times as steep. A wider Gaussian ends abruptly at the border instead.
    """
    fall = tile * MIN_OVERLAP
    ends = (min(1.0, (k + 0.5) / fall, (tile - k - 0.5) / fall) for k in range(tile))
    return tuple(MIN_WEIGHT + (1 - MIN_WEIGHT) * math.sin(math.pi / 2 * end) ** 2 for end in ends)


def _feathered_axis(side: int, max_tile: int) -> Axis:
    if side <= max_tile:
        return Axis(tile=side, origins=(0,), max_shift=0, weights=(1.0,) * side)
    count = next(count for count in itertools.count(2) if _fits(side, max_tile, count))
    tile = next((tile for tile in range(_ALIGN, max_tile, _ALIGN) if _fits(side, tile, count)), max_tile)
    max_shift = min(_largest_shift(side, tile, count), side // count) if count > 2 else 0
    return Axis(tile=tile, origins=_even_origins(side, tile, count), max_shift=max_shift, weights=raised_cosine(tile))


def _fits(side: int, tile: int, count: int) -> bool:
    """Return True if `count` tiles overlap enough and the inner ones can move far enough."""
    return _largest_shift(side, tile, count) >= (math.ceil(tile * MIN_SHIFT) if count > 2 else 0)


def _largest_shift(side: int, tile: int, count: int) -> int:
    """Return how far the inner of `count` evenly spread tiles can move while all overlap by `MIN_OVERLAP`."""
    widest = -((tile - side) // (count - 1))
    return tile - widest - math.ceil(tile * MIN_OVERLAP)


def _even_origins(side: int, tile: int, count: int) -> tuple[int, ...]:
    return tuple(j * (side - tile) // max(1, count - 1) for j in range(count))


def _check_sizes(height: int, width: int, tile_height: int, tile_width: int, *, min_tile: int) -> None:
    if min(height, width) < 1 or min(tile_height, tile_width) < min_tile:
        raise ValueError(
            f"cannot tile {height} x {width} latent pixels with {tile_height} x {tile_width}; "
            f"use a canvas of at least 1 and tiles of at least {min_tile}"
        )


def tiled_denoiser(
    tile_denoise: TileDenoise, grid: Grid, *, batch: int, tick: Callable[[float], None] = lambda share: None
) -> Denoise:
    """Return one denoiser of the whole canvas (1, C, height, width), float32, from a denoiser of tiles.

    Sums weight * x0 and divides by the summed weights, in float32 on the canvas's device. A canvas of one tile is one
    call without weights. Create one for each run, because it counts its evaluations, which move the grid.

    Args:
        tile_denoise: Denoises a batch of tiles.
        grid: Positions and weights of the tiles.
        batch: Most tiles in one batch; halved for the rest of the run when memory runs out.
        tick: Called after each batch with its share of the evaluation; what it raises ends the run.

    Raises:
        EngineFailed: A single tile does not fit into memory.
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
                tile.crop(total).addcmul_(weight, crop)
                tile.crop(covered).add_(weight)
            tick(len(part) / len(tiles))
        return total / covered

    return denoise


class _Batches:
    """Denoise tiles in batches, as large as memory has been found to hold."""

    def __init__(self, denoise: TileDenoise, max_batch: int) -> None:
        if max_batch < 1:
            raise ValueError(f"cannot denoise {max_batch} tiles at once; use at least 1")
        self._denoise = denoise
        self._max_batch = max_batch

    def run(self, x: Tensor, sigma: float, tiles: Sequence[Tile]) -> Iterator[tuple[Sequence[Tile], Tensor]]:
        while tiles:
            # Batches of equal size: a small rest at the end would take as long as it saves.
            size = math.ceil(len(tiles) / math.ceil(len(tiles) / self._max_batch))
            denoised = self._attempt(x, sigma, tiles[:size])
            if denoised is None:
                self._halve(size, tiles[0])
                continue
            yield tiles[:size], denoised
            tiles = tiles[size:]

    def _attempt(self, x: Tensor, sigma: float, tiles: Sequence[Tile]) -> Tensor | None:
        """Return None if memory ran out; nothing holds the tensors of the failed attempt then."""
        try:
            return self._denoise(torch.cat([tile.crop(x) for tile in tiles]), sigma, tiles)
        except (MemoryError, RuntimeError) as error:
            if not devices.is_out_of_memory(error):
                raise
        return None

    def _halve(self, size: int, tile: Tile) -> None:
        devices.free_cached_memory()
        if size == 1:
            raise EngineFailed(
                f"Out of memory with one tile of {tile.width} x {tile.height} latent pixels. "
                "Use smaller tiles, free memory on this device or use another device."
            )
        self._max_batch = size // 2
