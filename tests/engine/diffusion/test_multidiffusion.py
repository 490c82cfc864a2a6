"""MultiDiffusion: positions of tiles, coverage of the canvas, and averaging."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hiresfix.engine.diffusion import multidiffusion
from hiresfix.engine.diffusion.multidiffusion import (
    Axis,
    Grid,
    Tile,
    TileDenoise,
    classic_grid,
    feathered_grid,
    tiled_denoiser,
)
from hiresfix.errors import Cancelled, EngineFailed

# The sizes that callers of the original can choose.
TILE_SIZES = range(16, 257, 16)
SIGMAS = (0.645, 0.4469, 0.3034, 0.2014, 0.1303, 0.0819, 0.0498, 0.0)

sides = st.integers(1, 700)
tile_sizes = st.sampled_from(TILE_SIZES)
MakeGrid = Callable[..., Grid]
both_grids = pytest.mark.parametrize("make_grid", [classic_grid, feathered_grid])


def default_grid(make_grid: MakeGrid, height: int, width: int) -> Grid:
    return make_grid(height, width, tile_height=144, tile_width=112)


def canvas(height: int, width: int, *, seed: int = 0) -> Tensor:
    return torch.randn(1, 4, height, width, generator=torch.Generator().manual_seed(seed))


def coverage(tiles: Sequence[Tile], height: int, width: int) -> Tensor:
    """Return the number of tiles over each pixel, counted per side because tiles are all pairs of origins."""
    across, down = origins(tiles)
    assert sorted((tile.top, tile.left) for tile in tiles) == [(top, left) for top in down for left in across]
    rows, columns = torch.zeros(height), torch.zeros(width)
    for top in down:
        rows[top : top + tiles[0].height] += 1
    for left in across:
        columns[left : left + tiles[0].width] += 1
    return torch.outer(rows, columns)


def origins(tiles: Sequence[Tile]) -> tuple[list[int], list[int]]:
    return sorted({tile.left for tile in tiles}), sorted({tile.top for tile in tiles})


@pytest.mark.parametrize(
    ("pixels", "across", "down", "size"),
    [
        (1024, [0, 16], [0], (128, 112)),
        (1536, [0, 80], [0, 48], (144, 112)),
        (2048, [0, 72, 144], [0, 112], (144, 112)),
        (3072, [0, 90, 181, 272], [0, 120, 240], (144, 112)),
        (4096, [0, 100, 200, 300, 400], [0, 122, 245, 368], (144, 112)),
    ],
)
def test_classic_grid_equals_original(pixels: int, across: list[int], down: list[int], size: tuple[int, int]) -> None:
    tiles = default_grid(classic_grid, pixels // 8, pixels // 8).tiles(0)
    assert origins(tiles) == (across, down)
    assert {(tile.height, tile.width) for tile in tiles} == {size}
    assert [(tile.top, tile.left) for tile in tiles] == [(top, left) for top in down for left in across]


def test_classic_grid_tile_counts() -> None:
    across, down = origins(default_grid(classic_grid, 1024, 1024).tiles(0))
    assert (len(across), len(down)) == (10, 8)
    assert len(default_grid(classic_grid, 144, 112).tiles(0)) == 1


@pytest.mark.parametrize(("tile", "each"), [(64, 5), (16, 21)])
def test_small_classic_tiles_overlap_by_four_pixels(tile: int, each: int) -> None:
    assert len(classic_grid(256, 256, tile_height=tile, tile_width=tile).tiles(0)) == each**2


def test_classic_grid_reaches_end_where_floats_fail() -> None:
    short = 0
    for tile in TILE_SIZES:
        for side in range(tile + 1, 1100, 7):
            starts, _ = origins(classic_grid(8, side, tile_height=tile, tile_width=tile).tiles(0))
            step = (side - tile) / (len(starts) - 1)
            as_floats = [min(int(number * step), side - tile) for number in range(len(starts))]
            assert starts[-1] == side - tile
            if as_floats[-1] == starts[-1]:
                assert all(ours - theirs in (0, 1) for ours, theirs in zip(starts, as_floats, strict=True))
            else:
                short += 1
    assert short > 0


@settings(deadline=None)
@given(sides, sides, tile_sizes, tile_sizes)
def test_classic_tiles_cover_canvas_and_overlap(height: int, width: int, tile_height: int, tile_width: int) -> None:
    tiles = classic_grid(height, width, tile_height=tile_height, tile_width=tile_width).tiles(0)
    count = coverage(tiles, height, width)
    size = (min(tile_height, height), min(tile_width, width))
    assert count.min() >= 1
    assert count.sum() == len(tiles) * size[0] * size[1]
    assert {(tile.height, tile.width) for tile in tiles} == {size}
    for places, length in zip(origins(tiles), (size[1], size[0]), strict=True):
        assert all(left + length - right >= 4 for left, right in pairwise(places))


@settings(deadline=None)
@given(sides, sides, st.integers(8, 257), st.integers(8, 257), st.integers(0, 10_000))
def test_feathered_tiles_cover_canvas_and_overlap_a_quarter(
    height: int, width: int, tile_height: int, tile_width: int, evaluation: int
) -> None:
    grid = feathered_grid(height, width, tile_height=tile_height, tile_width=tile_width)
    tiles = grid.tiles(evaluation)
    assert coverage(tiles, height, width).min() >= 1
    ((tall, wide),) = {(tile.height, tile.width) for tile in tiles}
    assert tall <= tile_height
    assert wide <= tile_width
    assert all(0 <= tile.top <= height - tall and 0 <= tile.left <= width - wide for tile in tiles)
    for places, length in zip(origins(tiles), (wide, tall), strict=True):
        assert all(left + length - right >= length / 4 for left, right in pairwise(places))
    assert len(tiles) == len(grid.tiles(0))


@settings(deadline=None)
@given(sides.filter(lambda side: side > 256), tile_sizes)
def test_feathered_tiles_are_smallest_multiple_of_8(side: int, most: int) -> None:
    axis = feathered_grid(8, side, tile_height=8, tile_width=most).columns
    assert axis.tile % 8 == 0
    smaller = axis.tile - 8
    widest = -(-(side - smaller) // (len(axis.origins) - 1))
    needed = -(-smaller // 4) + (-(-smaller // 32) if len(axis.origins) > 2 else 0)
    assert smaller - widest < needed


def test_feathered_grid_moves_reproducibly_to_both_sides() -> None:
    grids = [default_grid(feathered_grid, 512, 512).tiles(evaluation) for evaluation in range(20)]
    assert grids == [default_grid(feathered_grid, 512, 512).tiles(evaluation) for evaluation in range(20)]
    assert len(set(grids)) == 20
    for axis in (0, 1):
        seconds = [origins(tiles)[axis][1] for tiles in grids]
        assert min(seconds) < seconds[0] < max(seconds)
        assert max(seconds) - min(seconds) >= 6


@pytest.mark.parametrize("tile", [8, 13, 112, 256])
def test_feathered_weights_are_positive_symmetric_and_blend(tile: int) -> None:
    weights = torch.tensor(multidiffusion.raised_cosine(tile), dtype=torch.float64)
    assert weights.min() >= multidiffusion.MIN_WEIGHT
    assert weights.max() <= 1
    assert torch.allclose(weights, weights.flip(0))
    if tile % 4 == 0:
        together = weights[: tile // 4] + weights[-tile // 4 :]
        assert torch.allclose(together, torch.full_like(together, 1 + multidiffusion.MIN_WEIGHT))


def pixelwise_denoise(x: Tensor, sigma: float, tiles: Sequence[Tile]) -> Tensor:
    return torch.sin(3 * x) / (1 + sigma) + 0.1 * x


@both_grids
@settings(deadline=None, max_examples=40)
@given(
    height=st.integers(1, 220),
    width=st.integers(1, 220),
    tile_height=tile_sizes,
    tile_width=tile_sizes,
    batch=st.integers(1, 9),
)
def test_pixelwise_denoiser_gives_same_result_tiled(
    make_grid: MakeGrid, height: int, width: int, tile_height: int, tile_width: int, batch: int
) -> None:
    x = canvas(height, width)[:, :1]
    denoise = tiled_denoiser(
        pixelwise_denoise, make_grid(height, width, tile_height=tile_height, tile_width=tile_width), batch=batch
    )
    expected = pixelwise_denoise(x, 0.5, ())
    for _ in range(2):
        assert torch.allclose(denoise(x, 0.5), expected, rtol=5e-7, atol=1e-6)


@both_grids
def test_tiles_are_averaged_by_weight(make_grid: MakeGrid) -> None:
    grid = default_grid(make_grid, 200, 300)
    tiles = grid.tiles(0)
    number = {tile: float(index) for index, tile in enumerate(tiles)}

    def tile_number(x: Tensor, sigma: float, tiles: Sequence[Tile]) -> Tensor:
        return torch.stack([torch.full_like(crop, number[tile]) for crop, tile in zip(x, tiles, strict=True)])

    down, across = (torch.tensor(axis.weights, dtype=torch.float64) for axis in (grid.rows, grid.columns))
    total, weight = torch.zeros(2, 200, 300, dtype=torch.float64)
    for tile in tiles:
        tile.crop(total).add_(number[tile] * down[:, None] * across)
        tile.crop(weight).add_(down[:, None] * across)
    result = tiled_denoiser(tile_number, grid, batch=3)(canvas(200, 300), 1.0)
    assert torch.allclose(result.double(), (total / weight).expand(1, 4, -1, -1), rtol=1e-5)


def tile_mean(x: Tensor, sigma: float, tiles: Sequence[Tile]) -> Tensor:
    return 0.7 * x - sigma * x.mean((2, 3), keepdim=True) + x.std((2, 3), keepdim=True)


class Shuffled(Grid):
    """A grid with its tiles in another order."""

    __slots__ = ()

    def tiles(self, evaluation: int) -> tuple[Tile, ...]:
        tiles = Grid.tiles(self, evaluation)
        return tiles[::-2] + tiles[-2::-2]


@both_grids
def test_batch_and_tile_order_do_not_matter(make_grid: MakeGrid) -> None:
    grid = default_grid(make_grid, 260, 330)
    x = canvas(260, 330)
    expected = tiled_denoiser(tile_mean, grid, batch=1)(x, 0.3)
    for batch in (2, 3, 7, 64):
        assert (tiled_denoiser(tile_mean, grid, batch=batch)(x, 0.3) - expected).abs().max() < 1e-6
    shuffled = Shuffled(rows=grid.rows, columns=grid.columns)
    assert set(shuffled.tiles(0)) == set(grid.tiles(0))
    assert shuffled.tiles(0) != grid.tiles(0)
    assert (tiled_denoiser(tile_mean, shuffled, batch=4)(x, 0.3) - expected).abs().max() < 1e-6


@both_grids
def test_guidance_commutes_with_averaging(make_grid: MakeGrid) -> None:
    grid, x = default_grid(make_grid, 256, 256), canvas(256, 256)

    def uncond(x: Tensor, sigma: float, tiles: Sequence[Tile]) -> Tensor:
        return torch.tanh(tile_mean(x, sigma, tiles))

    def before(x: Tensor, sigma: float, tiles: Sequence[Tile]) -> Tensor:
        return uncond(x, sigma, tiles) + 6 * (tile_mean(x, sigma, tiles) - uncond(x, sigma, tiles))

    averages = [tiled_denoiser(denoise, grid, batch=8)(x, 0.2) for denoise in (tile_mean, uncond)]
    after = averages[1] + 6 * (averages[0] - averages[1])
    assert torch.allclose(tiled_denoiser(before, grid, batch=8)(x, 0.2), after, atol=2e-5)


@both_grids
@pytest.mark.parametrize("side", [1, 5, 100, 112])
def test_canvas_of_one_tile_is_one_call(make_grid: MakeGrid, side: int) -> None:
    x = canvas(side, side)
    calls: list[tuple[Tensor, Sequence[Tile]]] = []

    def denoise(crops: Tensor, sigma: float, tiles: Sequence[Tile]) -> Tensor:
        calls.append((crops, tiles))
        return crops * 0.1

    assert torch.equal(tiled_denoiser(denoise, default_grid(make_grid, side, side), batch=8)(x, 1.0), x * 0.1)
    ((crops, tiles),) = calls
    assert torch.equal(crops, x)
    assert tiles == (Tile(top=0, left=0, height=side, width=side),)


def test_grid_moves_between_evaluations() -> None:
    grid, seen = default_grid(feathered_grid, 300, 400), list[tuple[Tile, ...]]()

    def recording_denoise(x: Tensor, sigma: float, tiles: Sequence[Tile]) -> Tensor:
        seen.append(tuple(tiles))
        return x

    denoise = tiled_denoiser(recording_denoise, grid, batch=100)
    for sigma in SIGMAS[:3]:
        denoise(canvas(300, 400), sigma)
    assert seen == [grid.tiles(evaluation) for evaluation in range(3)]
    assert len(set(seen)) == 3


def out_of_memory_above(most: int, error: Exception, tried: list[int]) -> TileDenoise:
    def denoise(x: Tensor, sigma: float, tiles: Sequence[Tile]) -> Tensor:
        tried.append(len(tiles))
        if len(tiles) > most:
            raise error
        return tile_mean(x, sigma, tiles)

    return denoise


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory")], ids=type)
def test_out_of_memory_halves_batch_for_good(error: Exception) -> None:
    grid, x = default_grid(classic_grid, 384, 384), canvas(384, 384)
    tried: list[int] = []
    denoise = tiled_denoiser(out_of_memory_above(3, error, tried), grid, batch=12)
    expected = tiled_denoiser(tile_mean, grid, batch=12)(x, 0.3)
    assert torch.allclose(denoise(x, 0.3), expected, atol=1e-6)
    assert tried == [12, 6, 3, 3, 3, 3]
    denoise(x, 0.3)
    assert tried[6:] == [3, 3, 3, 3]


def test_single_tile_out_of_memory_error() -> None:
    denoise = tiled_denoiser(out_of_memory_above(0, MemoryError(), []), default_grid(classic_grid, 256, 256), batch=8)
    with pytest.raises(EngineFailed, match=r"one tile of 112 x 144 latent pixels\. Use smaller tiles"):
        denoise(canvas(256, 256), 0.3)


def test_other_errors_are_not_out_of_memory() -> None:
    tried: list[int] = []
    denoise = tiled_denoiser(
        out_of_memory_above(0, RuntimeError("shapes differ"), tried), default_grid(classic_grid, 256, 256), batch=8
    )
    with pytest.raises(RuntimeError, match="shapes differ"):
        denoise(canvas(256, 256), 0.3)
    assert tried == [6]


def test_progress_follows_each_batch_and_can_stop() -> None:
    tried: list[int] = []
    shares: list[float] = []

    def stop_at_half(share: float) -> None:
        shares.append(share)
        if sum(shares) >= 0.5:
            raise Cancelled

    grid, x = default_grid(classic_grid, 384, 384), canvas(384, 384)
    denoise = tiled_denoiser(out_of_memory_above(99, MemoryError(), tried), grid, batch=3, tick=stop_at_half)
    with pytest.raises(Cancelled):
        denoise(x, 0.3)
    assert tried == [3, 3]
    shares.clear()
    tiled_denoiser(tile_mean, grid, batch=5, tick=shares.append)(x, 0.3)
    assert sum(shares) == pytest.approx(1)
    assert len(shares) == 3


def seam_strength(make_grid: MakeGrid, height: int, width: int) -> float:
    """Return the slope across the borders of tiles relative to elsewhere, if tiles disagree.

    Each tile pulls its own mean towards grey, and the image has a gradient under fine texture.
    """
    across, down = torch.linspace(-2, 2, width), torch.linspace(-1, 1, height)[:, None]
    clean = (across + down + 0.02 * canvas(height, width))[:, :1]

    def biased_to_grey(x: Tensor, sigma: float, tiles: Sequence[Tile]) -> Tensor:
        seen = torch.cat([tile.crop(clean) for tile in tiles]) + 0.2 * sigma * x
        return seen - 0.3 * seen.mean((2, 3), keepdim=True)

    grid = default_grid(make_grid, height, width)
    denoise, x = tiled_denoiser(biased_to_grey, grid, batch=8), canvas(height, width, seed=1)[:, :1]
    for sigma, following in pairwise(SIGMAS):
        denoised = denoise(x, sigma)
        x = denoised + (x - denoised) * (following / sigma)
    tiles = [tile for evaluation in range(len(SIGMAS) - 1) for tile in grid.tiles(evaluation)]
    borders = {edge - 1 for tile in tiles for edge in (tile.left, tile.left + tile.width) if 0 < edge < width}
    slope = x.diff(dim=3).abs().mean((0, 1, 2))
    elsewhere = [column for column in range(width - 1) if column not in borders]
    return float(slope[sorted(borders)].mean() / slope[elsewhere].mean())


@pytest.mark.parametrize(("height", "width"), [(256, 256), (192, 192), (128, 512)])
def test_feathered_tiles_have_no_seam(height: int, width: int) -> None:
    assert seam_strength(classic_grid, height, width) > 2
    assert seam_strength(feathered_grid, height, width) < 1.1


@pytest.mark.parametrize(
    ("make_grid", "sizes"),
    [(classic_grid, (0, 8, 16, 16)), (classic_grid, (8, 8, 0, 16)), (feathered_grid, (8, 8, 7, 16))],
)
def test_invalid_sizes_are_rejected(make_grid: MakeGrid, sizes: tuple[int, int, int, int]) -> None:
    height, width, tile_height, tile_width = sizes
    with pytest.raises(ValueError, match=r"cannot tile .*; use a canvas of at least 1 and tiles of at least [18]"):
        make_grid(height, width, tile_height=tile_height, tile_width=tile_width)
    with pytest.raises(ValueError, match="use at least 1"):
        tiled_denoiser(pixelwise_denoise, default_grid(classic_grid, 8, 8), batch=0)


def test_axis_moves_only_inner_tiles() -> None:
    axis = Axis(tile=10, origins=(0, 7, 14, 20), max_shift=2, weights=(1.0,) * 10)
    assert [axis.origins_at(phase) for phase in (0, 0.5, 1)] == [(0, 5, 12, 20), (0, 7, 14, 20), (0, 9, 16, 20)]
    assert Axis(tile=10, origins=(0,), max_shift=0, weights=(1.0,) * 10).origins_at(1) == (0,)
    assert Axis(tile=10, origins=(0, 5), max_shift=0, weights=(1.0,) * 10).origins_at(1) == (0, 5)
