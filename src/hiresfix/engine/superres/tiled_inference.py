"""Run an image through a network with a bounded number of pixels in memory at once.

Guarantees: memory beside the result depends on the tile and on the network, not on the image: there is never a float
copy of the whole image. An image is cut into vertical strips with a halo only if it is wider than four tiles. Each
strip flows through the network in bands of rows, which need no halo (see `networks`), then through the resize to the
wanted size and the post-processing. Knows no recipes and no files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from hiresfix.engine.pixels import resampling, tiling
from hiresfix.engine.pixels.arrays import ImageArray
from hiresfix.engine.pixels.tiling import Span, TilePart
from hiresfix.engine.progress import ProgressCallback
from hiresfix.engine.superres import networks
from hiresfix.engine.superres.networks import Network
from hiresfix.errors import BadResult

PostProcess = Callable[[Tensor, Tensor], Tensor]
"""(upscaled, input) -> upscaled, float32; may see `resampling.REACH` input pixels around each."""
Resize = Callable[[Tensor, int, int], Tensor]
"""(output of the network, height, width) -> the same in that size; its reach is that of `resampling.resize` or less."""
ExtraInput = Callable[[Span, Span], Tensor]
"""(rows, columns) of the image -> what to add to the network's input there, float32 (1, 1 or 3, rows, columns).

They may lie up to `FRAME` beyond the image. Where strips overlap, both calls must return the same values.
"""


STRIP_TILES = 4
FRAME = 8
"""Input pixels by which an image is mirrored beyond its sides before the network, and cropped after it.

The networks pad with black, and draw a rim of up to 8 levels and 5 pixels around a flat image when they see it.
"""
_ALIGN = 4


def upscale(
    network: Network,
    rgb: ImageArray,
    tile: int,
    *,
    factor: int,
    postprocess: PostProcess,
    report: ProgressCallback,
    extra_input: ExtraInput | None = None,
    resize: Resize = resampling.resize,
) -> ImageArray:
    """Return the image at `factor` times its size, made of the pieces of `upscale_pieces`; the dtype is kept."""
    height, width = rgb.shape[:2]
    result = np.empty((height * factor, width * factor, 3), rgb.dtype)
    pieces = upscale_pieces(
        network,
        rgb,
        tile,
        factor=factor,
        postprocess=postprocess,
        report=report,
        extra_input=extra_input,
        resize=resize,
    )
    for rows, columns, y in pieces:
        result[rows.slice, columns.slice] = resampling.to_samples(y, rgb.dtype)
    return result


def upscale_pieces(
    network: Network,
    rgb: ImageArray,
    tile: int,
    *,
    factor: int,
    postprocess: PostProcess,
    report: ProgressCallback,
    extra_input: ExtraInput | None = None,
    resize: Resize = resampling.resize,
) -> Iterator[tuple[Span, Span, Tensor]]:
    """Yield the pieces of the image at `factor` times its size: rows, columns and (1, 3, rows, columns) float32.

    Args:
        network: on the device where it computes.
        rgb: (H, W, 3) uint8 or uint16.
        tile: about `tile` x `tile` input pixels are processed at once.
        factor: at most the network's scale.
        postprocess: applied to each piece at its final size.
        report: called many times a tile.
        extra_input: added to the network's input.
        resize: from the network's scale to `factor`.

    Raises:
        BadResult: the network returned non-finite values.
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
        framed, core = _frame(rgb, strip)
        left = strip.core.start - core.start
        columns = Span(start=left, end=left + framed.shape[1])
        bands = _bands(network, framed, tile, extra_input and partial(_extra_rows, extra_input, columns))
        pieces = networks.stream(network, bands, tick)
        for place, y in _finished_rows(pieces, network, framed, factor, postprocess, resize):
            rows = place.overlap(Span(start=FRAME, end=FRAME + height).scaled(factor))
            piece = y[..., rows.within(place).slice, core.scaled(factor).slice]
            start = rows.start - FRAME * factor
            yield Span(start=start, end=start + rows.length), strip.core.scaled(factor), piece


def _extra_rows(extra_input: ExtraInput, columns: Span, rows: Span) -> Tensor:
    """Call `extra_input` for rows counted from the top of the frame."""
    return extra_input(Span(start=rows.start - FRAME, end=rows.end - FRAME), columns)


def tile_borders(network: Network, height: int, width: int, tile: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the first rows and columns of an image behind the borders of bands and strips of `upscale`."""
    tile += -tile % _ALIGN
    strips = _strips(network, width, tile)
    framed = strips[0].window.length + FRAME * (1 + (len(strips) == 1))
    rows = [part.core.start - FRAME for part in _split_rows(height + 2 * FRAME, framed, tile)]
    columns = [strip.core.start for strip in strips]
    return tuple(row for row in rows if 0 < row < height), tuple(columns[1:])


def _strips(network: Network, width: int, tile: int) -> list[TilePart]:
    halo = network.halo + resampling.REACH
    return tiling.split_side(width, max_length=STRIP_TILES * tile, halo=halo, align=_ALIGN)


def _split_rows(height: int, width: int, tile: int) -> list[TilePart]:
    """Cut a framed strip into bands of rows with about the pixels of one tile each."""
    # The frame does not count, so that an image of one tile is not cut because of it.
    rows = max(_ALIGN, (tile + 2 * FRAME) ** 2 // width // _ALIGN * _ALIGN)
    return tiling.split_side(height, max_length=rows, align=_ALIGN)


def _frame(rgb: ImageArray, strip: TilePart) -> tuple[ImageArray, Span]:
    """Return the strip with the frame where it touches a side of the image, and its core's columns in there."""
    height, width = rgb.shape[:2]
    left = FRAME if strip.window.start == 0 else 0
    right = FRAME if strip.window.end == width else 0
    rows, columns = Span(start=-FRAME, end=height + FRAME), Span(start=-left, end=strip.window.length + right)
    framed = tiling.cut_mirrored(rgb[:, strip.window.slice], rows, columns)
    core = strip.core.within(strip.window)
    return framed, Span(start=core.start + left, end=core.end + left)


def _finished_rows(
    pieces: Iterable[Tensor],
    network: Network,
    strip: ImageArray,
    factor: int,
    postprocess: PostProcess,
    resize: Resize,
) -> Iterator[tuple[Span, Tensor]]:
    """Yield the finished rows of a strip from top to bottom: their place, and (1, 3, rows, W * factor)."""
    height, width = strip.shape[:2]
    buffer = torch.empty(0)
    first = done = 0  # the input rows with which `buffer` begins, and before which all is finished
    for piece in pieces:
        if not bool(piece.isfinite().all()):
            raise BadResult("The upscaling network returned non-finite values. Check its weights, or use the CPU.")
        buffer = torch.cat((buffer, piece), 2) if buffer.numel() else piece
        ready = min(height, first + buffer.shape[2] // network.scale)
        core = Span(start=done, end=ready if ready == height else ready - resampling.REACH)
        if core.length <= 0:
            continue
        window = core.grown(resampling.REACH, height)
        place = window.within(Span(start=first, end=ready)).scaled(network.scale)
        y = buffer[:, :, place.slice, : width * network.scale]
        y = resize(y.contiguous(), window.length * factor, width * factor)
        y = postprocess(y, resampling.to_tensor(strip[window.slice], y.device))
        yield core.scaled(factor), y[:, :, core.within(window).scaled(factor).slice]
        done = core.end
        keep_from = max(0, done - resampling.REACH)
        buffer, first = buffer[:, :, (keep_from - first) * network.scale :].clone(), keep_from


def _bands(
    network: Network, strip: ImageArray, tile: int, extra_rows: Callable[[Span], Tensor] | None
) -> Iterator[tuple[Tensor, bool]]:
    """Yield the network's input for the next rows of the strip, and whether these are the last."""
    height, width = strip.shape[:2]
    device = next(network.parameters()).device
    for part in _split_rows(height, width, tile):
        last = part.core.end == height
        x = resampling.to_tensor(strip[part.core.slice], device)
        if extra_rows is not None:
            x = x + extra_rows(part.core).to(device)
        # Repeat the border of an image whose sides are not multiples of what the network folds together.
        missing = (0, -width % network.unshuffle, 0, -part.core.length % network.unshuffle)
        yield functional.pad(x, missing, mode="replicate"), last
