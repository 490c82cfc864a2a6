"""A network whose GroupNorms see the whole picture, run in tiles that give what the whole would give.

Guarantees: the result equals that of the whole picture to the rounding of its floats. Every norm uses the mean and
variance of the whole picture (law of total variance over the tiles), every tile carries a halo as wide as its layers
see, and attention is over the whole picture. Memory stays within a given number of bytes. Knows no particular network
and no pixels.

How. The network is a chain of layers, each beginning with at most one norm. The chain is cut into sections; between
two of them the whole map is kept. Within a section every norm needs a pass over all tiles up to that norm, then one
last pass gives the section's result. Many cuts compute little twice but keep wide maps, few cuts the reverse:
`plan` takes the cheapest cuts that fit. In 3 GiB and half precision Stable Diffusion's decoder computes 1, 2.4, 4.1
and 7.8 times what it would without any limit for 1, 4, 16 and 64 megapixels.

Nothing is estimated, because estimates show: with random weights and photographs, statistics from half of the tiles
moved the result by 2 to 6 % of its standard deviation, those of a latent scaled down to a quarter by 4 to 10 %, and
those of each quarter of the picture for itself by 15 to 27 %, with seams. The one exception is attention above
`MOST_KEYS` pixels (16.8 megapixels for Stable Diffusion), where its work, which grows with the square, passes that of
all other layers: there its keys and values are every second (third, ...) pixel of each axis, the same for all tiles.
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
from hiresfix.engine.pixels.tiling import Part, Span
from hiresfix.engine.progress import Report
from hiresfix.errors import EngineFailed

Read = Callable[[Span, Span], Tensor]
Write = Callable[[Span, Span, Tensor], None]
Statistics: TypeAlias = dict[nn.GroupNorm, tuple[Tensor, Tensor]]
"""Mean and biased variance of each channel's group, one value a channel."""

MOST_KEYS = 1 << 18
_QUERIES = 1 << 14
_SMALLEST_CORE = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One step of a chain: x -> work(silu(norm(x)), skip); without a norm x goes to `work` as it is.

    skip is the input of the last layer that `opens`, which all do but a residual block's second half. levels:
    halvings of the picture's sides, before and after. cost: multiplications for each pixel that comes out.
    """

    work: Callable[[Tensor, Tensor], Tensor]
    channels: tuple[int, int]
    levels: tuple[int, int]
    cost: float
    norm: nn.GroupNorm | None = None
    opens: bool = True
    reach: int = 0
    attention: Any = None

    @property
    def values(self) -> float:
        """Held at once for each pixel of the picture: what comes in, its norm, the skip, and twice what comes out."""
        return 3 * self.channels[0] / 4.0 ** self.levels[0] + 2 * self.channels[1] / 4.0 ** self.levels[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """Layers start..end, computed in cores of `core` pixels of the coarsest level with `halo` around them.

    cost: multiplications in all.
    """

    start: int
    end: int
    core: int
    halo: int
    cost: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """What a plan is made for: sides in pixels, multiples of the coarsest level's; bytes a value; bytes at hand."""

    height: int
    width: int
    itemsize: int
    budget: int

    @property
    def pixels(self) -> int:
        return self.height * self.width


def plan(layers: Sequence[Layer], frame: Frame) -> list[Section]:
    """The sections of least work that fit, found by dynamic programming over where the chain is cut.

    A section of one tile is the whole picture at once. Raises EngineFailed if nothing fits.
    """
    ways: list[list[Section] | None] = [[]] + [None] * len(layers)
    costs = [0.0] + [math.inf] * len(layers)
    for end in range(1, len(layers) + 1):
        if end < len(layers) and not layers[end].opens:
            continue
        for start in range(end):
            way = ways[start]
            section = None if way is None else _section(layers, start, end, frame)
            if way is not None and section is not None and costs[start] + section.cost < costs[end]:
                costs[end], ways[end] = costs[start] + section.cost, [*way, section]
    best = ways[-1]
    if best is None:
        raise EngineFailed(
            f"{frame.width}x{frame.height} pixels do not fit into {frame.budget >> 20} MiB of the device's memory, "
            "not even in tiles. Give the autoencoder more memory or a smaller picture."
        )
    return best


def cost(sections: Sequence[Section]) -> float:
    """Multiplications in all."""
    return sum(section.cost for section in sections)


def _section(layers: Sequence[Layer], start: int, end: int, frame: Frame) -> Section | None:
    """Layers start..end as one section, or None where that is impossible or does not fit."""
    chain = layers[start:end]
    if len(chain) > 1 and any(layer.attention is not None for layer in chain):
        return None
    coarsest = max(level for layer in chain for level in layer.levels)
    sides = (frame.height >> coarsest, frame.width >> coarsest)
    each = max(layer.values for layer in chain) * frame.itemsize * 4.0**coarsest
    fits = max(0, int((frame.budget - _kept(layers, start, end, frame)) / each))
    halo = _halo(chain, coarsest)
    # As square as the picture allows: across a narrow one, a tile may be longer.
    core = max(math.isqrt(fits), fits // min(sides)) - 2 * halo
    if core < _SMALLEST_CORE and fits < math.prod(sides):
        return None
    core = max(core, _SMALLEST_CORE)
    cuts = [1 if side <= core + 2 * halo else -(-side // core) for side in sides]
    twice = math.prod(min(side, core + 2 * halo) * cut / side for side, cut in zip(sides, cuts, strict=True))
    result = _work(chain, frame)
    norms = [k for k, layer in enumerate(chain) if layer.norm is not None] if max(cuts) > 1 else []
    statistics = sum(_work(chain[:k], frame) for k in norms)
    return Section(start=start, end=end, core=core, halo=halo, cost=(result + statistics) * twice)


def _kept(layers: Sequence[Layer], start: int, end: int, frame: Frame) -> float:
    """Bytes of the whole maps that a section needs: what it reads, what it writes, and what attention looks up."""
    first, last = layers[start], layers[end - 1]
    read = first.channels[0] * frame.pixels / 4.0 ** first.levels[0] if start > 0 else 0.0
    written = last.channels[1] * frame.pixels / 4.0 ** last.levels[1] if end < len(layers) else 0.0
    if first.attention is not None:
        pixels = frame.pixels / 4.0 ** first.levels[0]
        written = first.channels[0] * (3 * min(pixels, MOST_KEYS) + 4 * min(pixels, _QUERIES))
    return (read + written) * frame.itemsize


def _work(chain: Sequence[Layer], frame: Frame) -> float:
    """Multiplications for the whole picture."""
    work = 0.0
    for layer in chain:
        pixels = frame.pixels / 4.0 ** layer.levels[1]
        looked_up = 2 * layer.channels[0] * min(pixels, MOST_KEYS) if layer.attention is not None else 0
        work += (layer.cost + looked_up) * pixels
    return work


def _halo(chain: Sequence[Layer], coarsest: int) -> int:
    """Pixels of the coarsest level that the chain sees beyond what comes out of it."""
    margin = 0
    for layer in reversed(chain):
        before, after = layer.levels
        margin += layer.reach
        if before > after:
            margin = -(-margin // 2)
        elif before < after:
            margin = 2 * margin
    return -(-margin >> (coarsest - chain[0].levels[0]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """One picture on its way through all sections; `like` tells device and precision."""

    layers: Sequence[Layer]
    sections: Sequence[Section]
    frame: Frame
    like: Tensor

    @property
    def sides(self) -> tuple[int, int]:
        return self.frame.height, self.frame.width

    def run(self, read: Read, write: Write, report: Report) -> None:
        total = cost(self.sections)
        done = 0.0
        for section in self.sections:

            def portion(fraction: float, done: float = done, cost: float = section.cost) -> None:
                report(min(1.0, (done + fraction * cost) / total))

            read = self._section(section, read, write, portion)
            done += section.cost
        report(1.0)

    def _section(self, section: Section, read: Read, write: Write, report: Report) -> Read:
        """Computes a section and gives what reads its result."""
        chain = self.layers[section.start : section.end]
        tiles = self._tiles(section, chain)
        norms = [(k, layer.norm) for k, layer in enumerate(chain) if layer.norm is not None and len(tiles) > 1]
        total = len(tiles) * (sum(_work(chain[:k], self.frame) for k, _ in norms) + _work(chain, self.frame))
        done = 0.0

        def tick(layers: Sequence[Layer]) -> None:
            nonlocal done
            done += _work(layers, self.frame)
            report(min(1.0, done / total))

        known: Statistics = {}
        for k, norm in norms:
            known[norm] = self._statistics(chain[:k], chain[k].levels[0], norm, tiles, read, known, tick)
        if chain[0].attention is not None:
            return self._attend(chain[0], read, known, report)
        if section.end < len(self.layers):
            kept = self._map(chain[-1])
            write, following = _putter(kept), cropper(kept)
        else:
            following = read
        for tile in tiles:
            y = _run(chain, read(*tile.window(chain[0].levels[0])), known)
            write(*tile.core(chain[-1].levels[1]), tile.kept(y, chain[-1].levels[1]))
            tick(chain)
        return following

    def _tiles(self, section: Section, chain: Sequence[Layer]) -> list[_Tile]:
        level = max(level for layer in chain for level in layer.levels)
        rows, columns = (tiling.parts(side >> level, most=section.core, halo=section.halo) for side in self.sides)
        return [_Tile(rows=row, columns=column, level=level) for row in rows for column in columns]

    def _map(self, layer: Layer) -> Tensor:
        height, width = (side >> layer.levels[1] for side in self.sides)
        shape = (1, layer.channels[1], height, width)
        return torch.empty(shape, dtype=self.like.dtype, device=self.like.device, memory_format=torch.channels_last)

    def _statistics(
        self,
        chain: Sequence[Layer],
        level: int,
        norm: nn.GroupNorm,
        tiles: Sequence[_Tile],
        read: Read,
        known: Statistics,
        tick: Callable[[Sequence[Layer]], None],
    ) -> tuple[Tensor, Tensor]:
        """Mean and variance of each channel's group, over the cores of all tiles, of what comes to `norm`."""
        pieces = []
        for tile in tiles:
            x = tile.kept(_run(chain, read(*tile.window(chain[0].levels[0] if chain else level)), known), level)
            pieces.append((x[0, 0].numel(), *_moments(x, norm)))
            tick(chain)
        return _pooled(pieces, norm, self.like)

    def _attend(self, layer: Layer, read: Read, known: Statistics, report: Report) -> Read:
        """Self-attention over the whole map, which it overwrites; queries in portions, which changes nothing."""
        x = read(*(Span(start=0, end=side >> layer.levels[0]) for side in self.sides))
        if not known:
            known = {_norm(layer): _pooled([(x[0, 0].numel(), *_moments(x, _norm(layer)))], _norm(layer), x)}
        x = x.contiguous(memory_format=torch.channels_last)
        attention = layer.attention
        stride = math.ceil(math.sqrt(x[0, 0].numel() / MOST_KEYS))
        # Apple's kernel is the only one that holds all products of queries and keys at once.
        length = _QUERIES if x.device.type != "mps" else max(1, (_QUERIES << 12) // (x[0, 0].numel() // stride**2))
        tokens = x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])
        lookup = x[:, :, ::stride, ::stride].permute(0, 2, 3, 1).reshape(-1, x.shape[1])
        lookup = _normalised(lookup, _norm(layer), known)
        keys, values = (_heads(to(lookup), attention.heads) for to in (attention.to_k, attention.to_v))
        for start in range(0, len(tokens), length):
            portion = tokens[start : start + length]
            queries = _heads(attention.to_q(_normalised(portion, _norm(layer), known)), attention.heads)
            seen = functional.scaled_dot_product_attention(queries, keys, values)
            portion += attention.to_out[0](seen.transpose(1, 2).reshape(portion.shape))
            report(min(1.0, (start + len(portion)) / len(tokens)))
        return cropper(tokens.view(1, *x.shape[2:], x.shape[1]).permute(0, 3, 1, 2))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tile:
    """Rows and columns at `level`, the coarsest of its section."""

    rows: Part
    columns: Part
    level: int

    def window(self, level: int) -> tuple[Span, Span]:
        factor = 1 << (self.level - level)
        return self.rows.window.scaled(factor), self.columns.window.scaled(factor)

    def core(self, level: int) -> tuple[Span, Span]:
        factor = 1 << (self.level - level)
        return self.rows.core.scaled(factor), self.columns.core.scaled(factor)

    def kept(self, y: Tensor, level: int) -> Tensor:
        """The core of `y`, which holds the window at `level`."""
        (row, column), (rows, columns) = self.core(level), self.window(level)
        return y[:, :, row.within(rows).slice, column.within(columns).slice]


class NotFiniteError(Exception):
    """Values that are no numbers: too large for the precision, or weights that are."""


def _run(chain: Sequence[Layer], x: Tensor, known: Statistics) -> Tensor:
    skip = x
    for layer in chain:
        if layer.opens:
            skip = x
        if layer.norm is not None:
            x = functional.silu(_normalised(x, layer.norm, known), inplace=True)
        x = layer.work(x, skip)
    return x


def _normalised(x: Tensor, norm: nn.GroupNorm, known: Statistics) -> Tensor:
    """GroupNorm with the statistics that are known, else, where `x` is all there is, with its own."""
    if norm not in known:
        return norm(x)  # type: ignore[no-any-return]  # a Tensor
    mean, variance = known[norm]
    weight, bias = norm.weight.to(mean.dtype), norm.bias.to(mean.dtype)
    return functional.batch_norm(x, mean, variance, weight, bias, eps=norm.eps)


def _moments(x: Tensor, norm: nn.GroupNorm) -> tuple[Tensor, Tensor]:
    """Biased variance and mean of each group."""
    groups = x.to(_precise(x)).view(1, norm.num_groups, -1, *x.shape[2:])
    variance, mean = torch.var_mean(groups, dim=(0, 2, 3, 4), correction=0)
    return variance, mean


def _pooled(pieces: Sequence[tuple[int, Tensor, Tensor]], norm: nn.GroupNorm, like: Tensor) -> tuple[Tensor, Tensor]:
    """Law of total variance: the mean of the variances and the variance of the means, weighted by pixels."""
    share = torch.tensor([pixels for pixels, _, _ in pieces], dtype=torch.float64)[:, None]
    share /= share.sum()
    # One copy for all pieces, because each waits for the device.
    found = torch.stack([torch.stack((variance, mean)) for _, variance, mean in pieces]).cpu().double()
    variances, means = found.unbind(1)
    mean = (share * means).sum(0)
    variance = (share * (variances + (means - mean) ** 2)).sum(0)
    if not bool((mean + variance).isfinite().all()):
        raise NotFiniteError
    each = norm.num_channels // norm.num_groups
    known = devices.send(torch.stack((mean, variance)).to(_precise(like)), like.device).repeat_interleave(each, 1)
    return known[0], known[1]


def _precise(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _norm(layer: Layer) -> nn.GroupNorm:
    assert layer.norm is not None
    return layer.norm


def _heads(tokens: Tensor, heads: int) -> Tensor:
    return tokens.view(1, len(tokens), heads, -1).transpose(1, 2)


def cropper(x: Tensor) -> Read:
    return lambda rows, columns: x[:, :, rows.slice, columns.slice]


def _putter(x: Tensor) -> Write:
    def put(rows: Span, columns: Span, y: Tensor) -> None:
        x[:, :, rows.slice, columns.slice] = y

    return put
