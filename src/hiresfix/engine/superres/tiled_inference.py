"""A picture through a network, a bounded number of pixels at a time.

Guarantees: memory beside the result depends on the tile and on the network, not on the picture: no float copy of
a picture ever exists. A picture is cut into upright strips with a halo only when it is wider than four tiles;
each strip flows through the network in bands of rows, which need no halo (see `esrgan`), and then through the
reduction to the wanted size and the finish. Knows no recipes and no files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from hiresfix.engine.pixels import resampling, tiling
from hiresfix.engine.pixels.resampling import Samples
from hiresfix.engine.pixels.tiling import Part, Span
from hiresfix.engine.progress import Report
from hiresfix.engine.superres import networks
from hiresfix.engine.superres.networks import Network
from hiresfix.errors import BadResult

Finish = Callable[[Tensor, Tensor], Tensor]
"""(enlarged, input) -> enlarged, float32; may look `resampling.REACH` input pixels around each."""
Resize = Callable[[Tensor, int, int], Tensor]
"""(what the network gave, height, width) -> the same in that size; reaches as far as `resampling.resize`, or less."""
Extra = Callable[[Span, Span], Tensor]
"""(rows, columns) of the picture -> what the network sees there beside it, float32 (1, 1 or 3, rows, columns), to add.

They may lie up to `FRAME` beyond the picture. Where strips overlap it must say the same twice.
"""


STRIP_TILES = 4
FRAME = 8
"""Input pixels by which a picture is continued beyond its sides, mirrored, and its result cut again.

The networks pad with black, and draw a rim of up to 8 levels and 5 pixels round a flat picture when they see it.
"""
_ALIGN = 4


def enlarge(
    network: Network,
    rgb: Samples,
    tile: int,
    *,
    factor: int,
    finish: Finish,
    report: Report,
    extra: Extra | None = None,
    resize: Resize = resampling.resize,
) -> Samples:
    """The picture at `factor` times its size, as `flow` gives it; the dtype is kept."""
    height, width = rgb.shape[:2]
    result = np.empty((height * factor, width * factor, 3), rgb.dtype)
    pieces = flow(network, rgb, tile, factor=factor, finish=finish, report=report, extra=extra, resize=resize)
    for rows, columns, y in pieces:
        result[rows.slice, columns.slice] = resampling.to_samples(y, rgb.dtype)
    return result


def flow(
    network: Network,
    rgb: Samples,
    tile: int,
    *,
    factor: int,
    finish: Finish,
    report: Report,
    extra: Extra | None = None,
    resize: Resize = resampling.resize,
) -> Iterator[tuple[Span, Span, Tensor]]:
    """The pieces of the picture at `factor` times its size: rows, columns and (1, 3, rows, columns) float32.

    rgb: (H, W, 3) uint8 or uint16; factor: at most the network's. About `tile` x `tile` input pixels are in work at
    once. `report` is called many times a tile. Raises BadResult for values that are no numbers.
    """
    height, width = rgb.shape[:2]
    tile += -tile % _ALIGN
    strips = _strips(network, width, tile)
    total = network.work * (height + 2 * FRAME) * sum(strip.window.length for strip in strips)
    done = 0

    def tick(work: int) -> None:
        nonlocal done
        done += work
        report(min(1.0, done / total))

    for strip in strips:
        framed, kept = _framed(rgb, strip)
        left = strip.core.start - kept.start
        columns = Span(start=left, end=left + framed.shape[1])
        bands = _bands(network, framed, tile, extra and partial(_beside, extra, columns))
        for place, y in _finished(networks.stream(network, bands, tick), network, framed, factor, finish, resize):
            rows = place.overlap(Span(start=FRAME, end=FRAME + height).scaled(factor))
            seen = y[..., rows.within(place).slice, kept.scaled(factor).slice]
            start = rows.start - FRAME * factor
            yield Span(start=start, end=start + rows.length), strip.core.scaled(factor), seen


def _beside(extra: Extra, columns: Span, rows: Span) -> Tensor:
    """`extra` for rows counted from the frame's."""
    return extra(Span(start=rows.start - FRAME, end=rows.end - FRAME), columns)


def borders(network: Network, height: int, width: int, tile: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The rows and columns of a picture behind which `enlarge` takes up the next band or strip."""
    tile += -tile % _ALIGN
    strips = _strips(network, width, tile)
    framed = strips[0].window.length + FRAME * (1 + (len(strips) == 1))
    rows = [part.core.start - FRAME for part in _cut(height + 2 * FRAME, framed, tile)]
    columns = [strip.core.start for strip in strips]
    return tuple(row for row in rows if 0 < row < height), tuple(columns[1:])


def _strips(network: Network, width: int, tile: int) -> list[Part]:
    return tiling.parts(width, most=STRIP_TILES * tile, halo=network.halo + resampling.REACH, align=_ALIGN)


def _cut(height: int, width: int, tile: int) -> list[Part]:
    """A framed strip's bands of rows, of a tile's worth of pixels each."""
    # The frame counts as nothing, so that a picture of one tile is not cut for its sake.
    rows = max(_ALIGN, (tile + 2 * FRAME) ** 2 // width // _ALIGN * _ALIGN)
    return tiling.parts(height, most=rows, align=_ALIGN)


def _framed(rgb: Samples, strip: Part) -> tuple[Samples, Span]:
    """The strip with the picture's frame where it touches a side, and where in it the columns to keep are."""
    left = FRAME if strip.window.start == 0 else 0
    right = FRAME if strip.window.end == rgb.shape[1] else 0
    framed = np.pad(rgb[:, strip.window.slice], ((FRAME, FRAME), (left, right), (0, 0)), mode="reflect")
    kept = strip.core.within(strip.window)
    return framed, Span(start=kept.start + left, end=kept.end + left)


def _finished(
    pieces: Iterable[Tensor], network: Network, strip: Samples, factor: int, finish: Finish, resize: Resize
) -> Iterator[tuple[Span, Tensor]]:
    """The finished rows of a strip from top to bottom: where in the result, and (1, 3, rows, W * factor)."""
    height, width = strip.shape[:2]
    held = torch.empty(0)
    first = done = 0  # the input rows with which `held` begins, and before which all is finished
    for piece in pieces:
        if not bool(piece.isfinite().all()):
            raise BadResult("The enlarger gave values that are no numbers. Check its weights, or use the CPU.")
        held = torch.cat((held, piece), 2) if held.numel() else piece
        ready = min(height, first + held.shape[2] // network.scale)
        core = Span(start=done, end=ready if ready == height else ready - resampling.REACH)
        if core.length <= 0:
            continue
        seen = core.grown(resampling.REACH, height)
        y = held[:, :, seen.within(Span(start=first, end=ready)).scaled(network.scale).slice, : width * network.scale]
        y = resize(y.contiguous(), seen.length * factor, width * factor)
        y = finish(y, resampling.to_tensor(strip[seen.slice], y.device))
        yield core.scaled(factor), y[:, :, core.within(seen).scaled(factor).slice]
        done = core.end
        rest = max(0, done - resampling.REACH)
        held, first = held[:, :, (rest - first) * network.scale :].clone(), rest


def _bands(
    network: Network, strip: Samples, tile: int, extra: Callable[[Span], Tensor] | None
) -> Iterator[tuple[Tensor, bool]]:
    """The strip's rows as tensors, with what is added to them, and whether these are the last."""
    height, width = strip.shape[:2]
    device = next(network.parameters()).device
    for part in _cut(height, width, tile):
        last = part.core.end == height
        x = resampling.to_tensor(strip[part.core.slice], device)
        if extra is not None:
            x = x + extra(part.core).to(device)
        # A picture whose sides are no multiples of what the network folds together is continued by its border.
        missing = (0, -width % network.unshuffle, 0, -part.core.length % network.unshuffle)
        yield functional.pad(x, missing, mode="replicate"), last
