"""Exact tiled inference: run a network with GroupNorms in tiles, with the result of the whole image.

Guarantees:

- The result equals that of the whole image, up to float rounding. Every norm uses the mean and variance of the whole
  image (law of total variance over the tiles), every tile has a halo as wide as its layers' receptive field, and
  attention spans the whole image.
- Memory stays within a given number of bytes.

Independent of the network and of pixels.

How it works: the network is a chain of layers, each starting with at most one norm. The chain is cut into sections,
and the whole feature map is stored between two sections. Within a section, every norm needs one pass over all tiles up
to that norm; a last pass computes the section's result. Many cuts recompute little but store wide maps, few cuts do
the opposite: `plan_sections` takes the cheapest cuts that fit. With 3 GiB and half precision, Stable Diffusion's
decoder computes 1, 2.4, 4.1 and 7.8 times its work without a limit for 1, 4, 16 and 64 megapixels.

Statistics are never estimated, because estimates are visible. With random weights and photographs, statistics from
half of the tiles moved the result by 2 to 6 % of its standard deviation, those of a latent downscaled to a quarter by
4 to 10 %, and those of each quarter of the image by itself by 15 to 27 %, with seams. The one exception is attention
above `MAX_KEYS` pixels (16.8 megapixels for Stable Diffusion), where its quadratic work exceeds that of all other
layers: there keys and values are every second (third, ...) pixel of each axis, the same for all tiles.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from hiresfix.engine import devices
from hiresfix.engine.pixels import tiling
from hiresfix.engine.pixels.tiling import Span, TilePart
from hiresfix.engine.progress import ProgressCallback
from hiresfix.errors import EngineFailed

ReadRegion = Callable[[Span, Span], Tensor]
"""(rows, columns) -> that region, (1, channels, rows, columns)."""
WriteRegion = Callable[[Span, Span, Tensor], None]
"""Stores (rows, columns, values)."""
NormStatistics: TypeAlias = dict[nn.GroupNorm, tuple[Tensor, Tensor]]
"""Mean and biased variance of each channel's group, one value per channel."""

MAX_KEYS = 1 << 18
"""Most pixels that attention uses as keys and values."""
_MAX_QUERIES = 1 << 14
"""Queries in one call of attention."""
_MIN_CORE = 4
"""Least side of a tile's core, in pixels of the coarsest level."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainLayer:
    """One step of a chain: x -> work(silu(norm(x)), skip), or x -> work(x, skip) without a norm.

    Args:
        work: (x, skip) -> output.
        channels: Channels of input and output.
        levels: How often the sides of the image are halved, for input and output.
        cost: Multiplications for each output pixel.
        norm: The norm before `work`.
        starts_block: The input becomes `skip`. False only for the second half of a residual block, whose `skip` is the
            input of the first half.
        radius: Receptive field to each side, in input pixels.
        attention: diffusers' attention module; `TiledRun` then does the layer's work.
    """

    work: Callable[[Tensor, Tensor], Tensor]
    channels: tuple[int, int]
    levels: tuple[int, int]
    cost: float
    norm: nn.GroupNorm | None = None
    starts_block: bool = True
    radius: int = 0
    attention: Any = None

    @property
    def values_per_pixel(self) -> float:
        """Values in memory per image pixel: input, its norm, the skip, and the output twice."""
        return 3 * self.channels[0] / 4.0 ** self.levels[0] + 2 * self.channels[1] / 4.0 ** self.levels[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainSection:
    """Layers start..end, computed in tiles.

    Args:
        start: First layer.
        end: Layer after the last.
        core: Largest side of a tile's core, in pixels of the coarsest level.
        halo: Width of the halo around it, in the same pixels.
        cost: Multiplications in total.
    """

    start: int
    end: int
    core: int
    halo: int
    cost: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFrame:
    """Size of the image and the memory for it.

    Args:
        height: Pixels, a multiple of a pixel of the coarsest level.
        width: As `height`.
        itemsize: Bytes per value.
        budget: Bytes that the run may use.
    """

    height: int
    width: int
    itemsize: int
    budget: int

    @property
    def pixels(self) -> int:
        return self.height * self.width


def plan_sections(layers: Sequence[ChainLayer], frame: ImageFrame) -> list[ChainSection]:
    """Return the sections with the least work that fit, by dynamic programming over the cuts.

    A section of one tile computes the whole image at once.

    Raises:
        EngineFailed: Nothing fits.
    """
    plans: list[list[ChainSection] | None] = [[]] + [None] * len(layers)
    costs = [0.0] + [math.inf] * len(layers)
    for end in range(1, len(layers) + 1):
        if end < len(layers) and not layers[end].starts_block:
            continue
        for start in range(end):
            plan = plans[start]
            section = None if plan is None else _section(layers, start, end, frame)
            if plan is not None and section is not None and costs[start] + section.cost < costs[end]:
                costs[end], plans[end] = costs[start] + section.cost, [*plan, section]
    best = plans[-1]
    if best is None:
        raise EngineFailed(
            f"{frame.width}x{frame.height} pixels do not fit into {frame.budget >> 20} MiB of the device's memory, "
            "not even in tiles. Give the autoencoder more memory or a smaller image."
        )
    return best


def total_cost(sections: Sequence[ChainSection]) -> float:
    """Return the multiplications of all sections."""
    return sum(section.cost for section in sections)


def _section(layers: Sequence[ChainLayer], start: int, end: int, frame: ImageFrame) -> ChainSection | None:
    """Return layers start..end as one section, or None if that is impossible or does not fit."""
    chain = layers[start:end]
    if len(chain) > 1 and any(layer.attention is not None for layer in chain):
        return None
    coarsest = max(level for layer in chain for level in layer.levels)
    sides = (frame.height >> coarsest, frame.width >> coarsest)
    each = max(layer.values_per_pixel for layer in chain) * frame.itemsize * 4.0**coarsest
    fits = max(0, int((frame.budget - _stored_bytes(layers, start, end, frame)) / each))
    halo = _halo(chain, coarsest)
    # As square as the image allows; along a narrow image, a tile may be longer.
    core = max(math.isqrt(fits), fits // min(sides)) - 2 * halo
    if core < _MIN_CORE and fits < math.prod(sides):
        return None
    core = max(core, _MIN_CORE)
    cuts = [1 if side <= core + 2 * halo else -(-side // core) for side in sides]
    twice = math.prod(min(side, core + 2 * halo) * cut / side for side, cut in zip(sides, cuts, strict=True))
    result = _multiplications(chain, frame)
    norms = [index for index, layer in enumerate(chain) if layer.norm is not None] if max(cuts) > 1 else []
    statistics = sum(_multiplications(chain[:index], frame) for index in norms)
    return ChainSection(start=start, end=end, core=core, halo=halo, cost=(result + statistics) * twice)


def _stored_bytes(layers: Sequence[ChainLayer], start: int, end: int, frame: ImageFrame) -> float:
    """Return the bytes of the whole maps that a section needs: input, output, and attention's keys and values."""
    first, last = layers[start], layers[end - 1]
    read = first.channels[0] * frame.pixels / 4.0 ** first.levels[0] if start > 0 else 0.0
    written = last.channels[1] * frame.pixels / 4.0 ** last.levels[1] if end < len(layers) else 0.0
    if first.attention is not None:
        pixels = frame.pixels / 4.0 ** first.levels[0]
        written = first.channels[0] * (3 * min(pixels, MAX_KEYS) + 4 * min(pixels, _MAX_QUERIES))
    return (read + written) * frame.itemsize


def _multiplications(chain: Sequence[ChainLayer], frame: ImageFrame) -> float:
    """Return the multiplications for the whole image."""
    work = 0.0
    for layer in chain:
        pixels = frame.pixels / 4.0 ** layer.levels[1]
        attention = 2 * layer.channels[0] * min(pixels, MAX_KEYS) if layer.attention is not None else 0
        work += (layer.cost + attention) * pixels
    return work


def _halo(chain: Sequence[ChainLayer], coarsest: int) -> int:
    """Return the receptive field beyond the output to each side, in pixels of the coarsest level."""
    margin = 0
    for layer in reversed(chain):
        before, after = layer.levels
        margin += layer.radius
        if before > after:
            margin = -(-margin // 2)
        elif before < after:
            margin = 2 * margin
    return -(-margin >> (coarsest - chain[0].levels[0]))


@dataclass(frozen=True, slots=True, kw_only=True)
class TiledRun:
    """One image on its way through all sections; `like` has the device and dtype to use."""

    layers: Sequence[ChainLayer]
    sections: Sequence[ChainSection]
    frame: ImageFrame
    like: Tensor

    @property
    def sides(self) -> tuple[int, int]:
        return self.frame.height, self.frame.width

    def run(self, read: ReadRegion, write: WriteRegion, report: ProgressCallback) -> None:
        total = total_cost(self.sections)
        done = 0.0
        for section in self.sections:

            def portion(fraction: float, done: float = done, cost: float = section.cost) -> None:
                report(min(1.0, (done + fraction * cost) / total))

            read = self._section(section, read, write, portion)
            done += section.cost
        report(1.0)

    def _section(
        self, section: ChainSection, read: ReadRegion, write: WriteRegion, report: ProgressCallback
    ) -> ReadRegion:
        """Compute a section and return a reader of its result."""
        chain = self.layers[section.start : section.end]
        tiles = self._tiles(section, chain)
        norms = [(index, layer.norm) for index, layer in enumerate(chain) if layer.norm is not None and len(tiles) > 1]
        total = len(tiles) * (
            sum(_multiplications(chain[:index], self.frame) for index, _ in norms) + _multiplications(chain, self.frame)
        )
        done = 0.0

        def tick(layers: Sequence[ChainLayer]) -> None:
            nonlocal done
            done += _multiplications(layers, self.frame)
            report(min(1.0, done / total))

        known: NormStatistics = {}
        for index, norm in norms:
            known[norm] = self._statistics(chain[:index], chain[index].levels[0], norm, tiles, read, known, tick)
        if chain[0].attention is not None:
            return self._attend(chain[0], read, known, report)
        if section.end < len(self.layers):
            output = self._map(chain[-1])
            write, read_output = _region_writer(output), region_reader(output)
        else:
            read_output = read
        for tile in tiles:
            y = _apply(chain, read(*tile.window(chain[0].levels[0])), known)
            write(*tile.core(chain[-1].levels[1]), tile.crop_to_core(y, chain[-1].levels[1]))
            tick(chain)
        return read_output

    def _tiles(self, section: ChainSection, chain: Sequence[ChainLayer]) -> list[_SectionTile]:
        level = max(level for layer in chain for level in layer.levels)
        rows, columns = (
            tiling.split_side(side >> level, max_length=section.core, halo=section.halo) for side in self.sides
        )
        return [_SectionTile(rows=row, columns=column, level=level) for row in rows for column in columns]

    def _map(self, layer: ChainLayer) -> Tensor:
        height, width = (side >> layer.levels[1] for side in self.sides)
        shape = (1, layer.channels[1], height, width)
        return torch.empty(shape, dtype=self.like.dtype, device=self.like.device, memory_format=torch.channels_last)

    def _statistics(
        self,
        chain: Sequence[ChainLayer],
        level: int,
        norm: nn.GroupNorm,
        tiles: Sequence[_SectionTile],
        read: ReadRegion,
        known: NormStatistics,
        tick: Callable[[Sequence[ChainLayer]], None],
    ) -> tuple[Tensor, Tensor]:
        """Return mean and variance of each channel's group in the input of `norm`, over the cores of all tiles."""
        moments = []
        for tile in tiles:
            x = tile.crop_to_core(
                _apply(chain, read(*tile.window(chain[0].levels[0] if chain else level)), known), level
            )
            moments.append((x[0, 0].numel(), *_moments(x, norm)))
            tick(chain)
        return _pool_moments(moments, norm, self.like)

    def _attend(
        self, layer: ChainLayer, read: ReadRegion, known: NormStatistics, report: ProgressCallback
    ) -> ReadRegion:
        """Apply self-attention to the whole map in place; splitting the queries does not change the result."""
        x = read(*(Span(start=0, end=side >> layer.levels[0]) for side in self.sides))
        if not known:
            known = {_norm(layer): _pool_moments([(x[0, 0].numel(), *_moments(x, _norm(layer)))], _norm(layer), x)}
        x = x.contiguous(memory_format=torch.channels_last)
        attention = layer.attention
        stride = math.ceil(math.sqrt(x[0, 0].numel() / MAX_KEYS))
        # Only Apple's kernel stores all products of queries and keys at once.
        length = (
            _MAX_QUERIES if x.device.type != "mps" else max(1, (_MAX_QUERIES << 12) // (x[0, 0].numel() // stride**2))
        )
        tokens = x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])
        lookup = x[:, :, ::stride, ::stride].permute(0, 2, 3, 1).reshape(-1, x.shape[1])
        lookup = _normalise(lookup, _norm(layer), known)
        keys, values = (_heads(to(lookup), attention.heads) for to in (attention.to_k, attention.to_v))
        for start in range(0, len(tokens), length):
            block = tokens[start : start + length]
            queries = _heads(attention.to_q(_normalise(block, _norm(layer), known)), attention.heads)
            attended = functional.scaled_dot_product_attention(queries, keys, values)
            block += attention.to_out[0](attended.transpose(1, 2).reshape(block.shape))
            report(min(1.0, (start + len(block)) / len(tokens)))
        return region_reader(tokens.view(1, *x.shape[2:], x.shape[1]).permute(0, 3, 1, 2))


@dataclass(frozen=True, slots=True, kw_only=True)
class _SectionTile:
    """One tile of a section: rows and columns at `level`, the coarsest level of the section."""

    rows: TilePart
    columns: TilePart
    level: int

    def window(self, level: int) -> tuple[Span, Span]:
        factor = 1 << (self.level - level)
        return self.rows.window.scaled(factor), self.columns.window.scaled(factor)

    def core(self, level: int) -> tuple[Span, Span]:
        factor = 1 << (self.level - level)
        return self.rows.core.scaled(factor), self.columns.core.scaled(factor)

    def crop_to_core(self, y: Tensor, level: int) -> Tensor:
        """Return the core of `y`, which contains the window at `level`."""
        (row, column), (rows, columns) = self.core(level), self.window(level)
        return y[:, :, row.within(rows).slice, column.within(columns).slice]


class NotFiniteError(Exception):
    """Non-finite values: too large for the precision, or caused by broken weights."""


def _apply(chain: Sequence[ChainLayer], x: Tensor, known: NormStatistics) -> Tensor:
    skip = x
    for layer in chain:
        if layer.starts_block:
            skip = x
        if layer.norm is not None:
            x = functional.silu(_normalise(x, layer.norm, known), inplace=True)
        x = layer.work(x, skip)
    return x


def _normalise(x: Tensor, norm: nn.GroupNorm, known: NormStatistics) -> Tensor:
    """Apply GroupNorm with the known statistics, or with those of `x` if it is the whole map."""
    if norm not in known:
        return norm(x)  # type: ignore[no-any-return]  # a Tensor
    mean, variance = known[norm]
    weight, bias = norm.weight.to(mean.dtype), norm.bias.to(mean.dtype)
    return functional.batch_norm(x, mean, variance, weight, bias, eps=norm.eps)


def _moments(x: Tensor, norm: nn.GroupNorm) -> tuple[Tensor, Tensor]:
    """Return the biased variance and the mean of each group."""
    groups = x.to(_statistics_dtype(x)).view(1, norm.num_groups, -1, *x.shape[2:])
    variance, mean = torch.var_mean(groups, dim=(0, 2, 3, 4), correction=0)
    return variance, mean


def _pool_moments(
    tiles: Sequence[tuple[int, Tensor, Tensor]], norm: nn.GroupNorm, like: Tensor
) -> tuple[Tensor, Tensor]:
    """Combine the moments of tiles by the law of total variance, weighted by pixels.

    Args:
        tiles: Pixels, variance and mean of each tile.
        norm: The norm that the statistics are for.
        like: Has the device and dtype to use.

    Raises:
        NotFiniteError: The statistics are not finite.
    """
    share = torch.tensor([pixels for pixels, _, _ in tiles], dtype=torch.float64)[:, None]
    share /= share.sum()
    # One copy for all tiles, because each copy waits for the device.
    moments = torch.stack([torch.stack((variance, mean)) for _, variance, mean in tiles]).cpu().double()
    variances, means = moments.unbind(1)
    mean = (share * means).sum(0)
    variance = (share * (variances + (means - mean) ** 2)).sum(0)
    if not bool((mean + variance).isfinite().all()):
        raise NotFiniteError
    channels_per_group = norm.num_channels // norm.num_groups
    statistics = devices.copy_to_device(
        torch.stack((mean, variance)).to(_statistics_dtype(like)), like.device
    ).repeat_interleave(channels_per_group, 1)
    return statistics[0], statistics[1]


def _statistics_dtype(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _norm(layer: ChainLayer) -> nn.GroupNorm:
    assert layer.norm is not None
    return layer.norm


def _heads(tokens: Tensor, heads: int) -> Tensor:
    return tokens.view(1, len(tokens), heads, -1).transpose(1, 2)


def region_reader(x: Tensor) -> ReadRegion:
    return lambda rows, columns: x[:, :, rows.slice, columns.slice]


def _region_writer(x: Tensor) -> WriteRegion:
    def put(rows: Span, columns: Span, y: Tensor) -> None:
        x[:, :, rows.slice, columns.slice] = y

    return put
