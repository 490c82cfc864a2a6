"""Looking at a picture before it is enlarged: what has been done to it, and which enlarger suits it.

Guarantees: looks at a bounded number of pixels however large the picture, at its own resolution, so that neither grain
nor blocks are averaged away; any picture of at least one pixel is answered, and what is too small to tell counts as
undamaged. Equal pixels give equal findings. All figures are in 8-bit levels, whatever the depth. Knows no files, no
recipes and no networks beyond their names. It cannot see blocks that were resized after compression, grain that was
smeared by it, or what a picture shows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Samples = NDArray[Any]
Floats = NDArray[np.float32]
Tables = Sequence[Sequence[int]]
"""A JPEG's quantisation tables of 64 steps each, the luminance's first."""

CLEAN, DAMAGED, LINE_ART = "realsr-df2k", "realesrgan-x4plus", "realesrgan-x4plus-anime"

_WINDOW = 256
"""A multiple of 8, so that all windows of a picture see a grid of blocks in the same phase."""
_MOST_WINDOWS = 16
_GRID = 8
_LUMA = np.array((0.299, 0.587, 0.114), np.float32)
_MEDIAN_OF_NORMAL = 0.6745
"""Median of the absolute value of a normal variable of standard deviation 1."""
_GREY = 3.0
"""Mean range of the channels of a block, in levels, below which a picture has no colours to compare."""
_QUARTILE_OF_BLOCKS = 0.93
"""Lower quartile, over blocks of normal noise of standard deviation 1, of what `_grain` gives for each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """What a picture looks like.

    jpeg_quality: 1..100 on libjpeg's scale, by the file's own tables; None when it was no JPEG. blockiness: by how
    many levels the steps across the lines of an 8x8 grid exceed those beside them, 0 without one; seen also in a JPEG
    that was saved again as something else. noise: standard deviation of the finest grain where the picture is plain.
    blur: standard deviation in pixels of the Gaussian that would make its sharpest edges from steps; about 0.5 in a
    sharp picture, 0 where there are no edges. line_art: 0..1, how surely it is drawn in plain colours.
    """

    jpeg_quality: float | None
    blockiness: float
    noise: float
    blur: float
    line_art: float

    def to_dict(self) -> dict[str, float | None]:
        """Plain JSON values, rounded to what they are good for."""
        return {name: None if value is None else round(value, 2) for name, value in asdict(self).items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The name of the enlarger in `hiresfix.models.catalog` that suits a picture, and why, as a part of a sentence."""

    enlarger: str
    because: str


def inspect(rgb: Samples, *, alpha: Samples | None = None, quantisation: Tables | None = None) -> Findings:
    """rgb: (H, W, 3) uint8 or uint16 over the full range. alpha: (H, W), 0 where the colours were made up; what lies
    there is neither grain nor plain. quantisation: the tables of the JPEG it came from.
    """
    windows = _windows(rgb, alpha)
    noise = _noise(windows)
    lumas = [window.luma for window in windows]
    return Findings(
        jpeg_quality=None if not quantisation else jpeg_quality(quantisation),
        blockiness=_blockiness(lumas),
        noise=noise,
        blur=_blur(lumas, noise),
        line_art=_line_art(windows, noise),
    )


# From `benchmarks.inspection`: where the two networks' results are equally far from the originals.
MOST_NOISE = 2.3
MOST_BLOCKINESS = 0.06
LEAST_JPEG_QUALITY = 97
"""RealSR turns what even a JPEG of quality 95 leaves in sky and walls into ripples."""
LEAST_LINE_ART, LEAST_DOUBT = 0.5, 0.3


def damage(findings: Findings) -> str | None:
    """What is wrong with a picture beyond its size, as a part of a sentence; None for nothing worth repairing."""
    if findings.noise > MOST_NOISE:
        return f"it has noise of {findings.noise:.1f} levels"
    if findings.jpeg_quality is not None and findings.jpeg_quality < LEAST_JPEG_QUALITY:
        return f"it is a JPEG of quality {findings.jpeg_quality:.0f}"
    if findings.blockiness > MOST_BLOCKINESS:
        return "it has the blocks of a JPEG"
    return None


def severity(findings: Findings) -> float:
    """How far a picture is beyond following pixel by pixel: 0 for none of the above, 1 from noise of 6 levels, a JPEG
    of quality 50, or the blocks that such a one has.
    """
    quality = 100.0 if findings.jpeg_quality is None else findings.jpeg_quality
    return max(
        float(np.interp(findings.noise, (MOST_NOISE, 6.0), (0, 1))),
        float(np.interp(-quality, (-90.0, -50.0), (0, 1))),
        float(np.interp(findings.blockiness, (0.15, 0.6), (0, 1))),
    )


def choose(findings: Findings) -> Choice:
    """Real-ESRGAN for what is damaged, its anime network for line art, RealSR for the rest.

    What may be drawn goes to Real-ESRGAN too: it draws lines as well as the anime network, and photographs better.
    """
    if findings.line_art >= LEAST_LINE_ART:
        return Choice(enlarger=LINE_ART, because="it looks drawn")
    if (wrong := damage(findings)) is not None:
        return Choice(enlarger=DAMAGED, because=wrong)
    if findings.line_art >= LEAST_DOUBT:
        return Choice(enlarger=DAMAGED, because="it may be drawn")
    return Choice(enlarger=CLEAN, because="it looks undamaged")


# The standard's example table (ITU-T T.81, K.1), which libjpeg scales by its quality, is known by its mean.
_MEAN_STEP_AT_50 = 57.625


def jpeg_quality(quantisation: Tables) -> float:
    """Libjpeg's quality 1..100 whose luminance table has this one's mean step, whoever made it."""
    mean = float(np.mean(quantisation[0]))
    percent = 100 * mean / _MEAN_STEP_AT_50
    return min(100.0, max(1.0, 5000 / percent if percent > 100 else 100 - percent / 2))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Window:
    """levels: (h, w, 3), 0..255; luma, shown: (h, w), the latter 0 where nothing of it is seen."""

    levels: Floats
    luma: Floats
    shown: Samples


def _windows(rgb: Samples, alpha: Samples | None) -> list[_Window]:
    """At most `_MOST_WINDOWS` parts of the picture, evenly spread."""
    height, width = rgb.shape[:2]
    down, across = -(-height // _WINDOW), -(-width // _WINDOW)
    while down * across > _MOST_WINDOWS:
        down, across = (down - 1, across) if down > across else (down, across - 1)
    shown = np.broadcast_to(np.uint8(1), (height, width)) if alpha is None else alpha
    windows = []
    for top in _starts(height, down):
        for left in _starts(width, across):
            part = slice(top, top + _WINDOW), slice(left, left + _WINDOW)
            levels = rgb[part].astype(np.float32) * np.float32(255 / np.iinfo(rgb.dtype).max)
            windows.append(_Window(levels=levels, luma=np.asarray(levels @ _LUMA, np.float32), shown=shown[part]))
    return windows


def _starts(side: int, count: int) -> list[int]:
    """Where `count` windows begin, multiples of the grid, the first and the last as far apart as they can be."""
    last = max(0, side - _WINDOW)
    return sorted({round(last * number / max(1, count - 1)) // _GRID * _GRID for number in range(count)})


def _noise(windows: Sequence[_Window]) -> float:
    """The lower quartile, over plain blocks of 8x8 pixels, of the median absolute second difference along both axes.

    The mask is Immerkær's (Fast Noise Variance Estimation, 1996), blind to planes and to straight edges along the
    axes; the median Donoho's (Ideal spatial adaptation by wavelet shrinkage, 1994). Plain are the quarter of blocks
    that change least when smoothed, which grain does not decide, without those near black or white, where samples
    are cut off. Noise is everywhere, texture is not: hence the lower quartile, corrected for being one.
    Where there are colours, only grain that differs between them counts: what the three channels share is what the
    picture shows, fur and gravel above all.
    """
    found = [_grain(window) for window in windows if min(window.luma.shape) >= _GRID + 6]
    if not found:
        return 0.0
    grain, coloured, activity, colour = (np.concatenate(parts) for parts in zip(*found, strict=True))
    if not grain.size:
        return 0.0
    plain = np.argsort(activity, kind="stable")[: max(4, grain.size // 4)]
    found_in = grain if float(colour.mean()) < _GREY else np.minimum(grain, coloured)
    return float(np.quantile(found_in[plain], 0.25)) / _QUARTILE_OF_BLOCKS


def _grain(window: _Window) -> tuple[Floats, Floats, Floats, Floats]:
    """Of each block that is all shown, and neither near black nor near white: the grain, the grain in which the
    colours differ, the activity, and how far it is from grey.
    """
    mask = np.float32(6 * _MEDIAN_OF_NORMAL)
    second = np.diff(np.diff(window.levels, 2, axis=0), 2, axis=1)[2:-2, 2:-2] / mask
    apart = (second - np.roll(second, 1, axis=2)) / np.float32(math.sqrt(2))
    smooth = _smooth(window.luma, np.full(5, 0.2, np.float32))
    activity = np.abs(smooth[1:-1, 2:] - smooth[1:-1, :-2]) + np.abs(smooth[2:, 1:-1] - smooth[:-2, 1:-1])
    level = _blocks(window.luma[3:-3, 3:-3], _GRID).mean(1)
    whole = (level > _GRID) & (level < 255 - _GRID) & (_blocks(window.shown[3:-3, 3:-3], _GRID) > 0).all(1)
    colour = np.ptp(_blocks(window.levels[3:-3, 3:-3], _GRID).mean(1), axis=1)
    return _spread(second)[whole], _spread(apart)[whole], _blocks(activity, _GRID).mean(1)[whole], colour[whole]


def _spread(values: Floats) -> Floats:
    """Of each block, the root mean square over the channels of the median absolute value."""
    spread: Floats = np.sqrt(np.square(np.median(_blocks(np.abs(values), _GRID), axis=1)).mean(1))
    return spread


def _blockiness(lumas: Sequence[Floats]) -> float:
    """By how much the most distinct of the eight phases exceeds the next, averaged over both axes, less what chance
    gives in so few pixels.

    A step across a line counts by what it exceeds the mean of the steps on either side. Both that, and taking the
    interquartile mean of the lines, keeps edges in the picture that happen to lie on the grid from deciding.
    """
    excess = [_excess(lumas), _excess([luma.T for luma in lumas])]
    chance = _CHANCE / math.sqrt(sum(luma.size for luma in lumas))
    return max(0.0, sum(excess) / 2 - chance)


def _excess(lumas: Sequence[Floats]) -> float:
    """Of the upright lines; 0 where there are too few to tell."""
    lines: list[list[float]] = [[] for _ in range(_GRID)]
    for luma in lumas:
        steps = np.abs(np.diff(luma, axis=1))
        sudden = np.clip(steps[:, 1:-1] - (steps[:, :-2] + steps[:, 2:]) / 2, -_MOST_STEP, _MOST_STEP).mean(0)
        for phase in range(_GRID):
            lines[(phase + 2) % _GRID] += sudden[phase::_GRID].tolist()
    if min(map(len, lines)) < _LEAST_LINES:
        return 0.0
    second, first = sorted(_middle(values) for values in lines)[-2:]
    return first - second


def _middle(values: Sequence[float]) -> float:
    """The mean without the lowest and the highest quarter."""
    cut = len(values) // 4
    return float(np.mean(sorted(values)[cut : len(values) - cut]))


_MOST_STEP = 4.0
_LEAST_LINES = 6
_CHANCE = 12.0
"""What 19 of 20 undamaged photographs stay below, in levels times the root of the number of pixels."""


def _blur(lumas: Sequence[Floats], noise: float) -> float:
    """The upper quartile of how much steeper the strongest edges are than after a further Gaussian of 1 pixel.

    An edge of deviation s becomes one of sqrt(s^2 + 1) (Zhuo and Sim, Defocus map estimation from a single image,
    2011). The quartile, since what is out of focus on purpose says nothing of the picture.
    """
    ratios: list[NDArray[Any]] = []
    slopes: list[NDArray[Any]] = []
    for luma in lumas:
        if min(luma.shape) < 2 * _GRID:
            continue
        slope, smoother = _slope(luma[3:-3, 3:-3]), _slope(_smooth(luma, _GAUSSIAN))
        ratios.append((slope / np.maximum(smoother, 1e-3)).ravel())
        slopes.append(smoother.ravel())
    if not slopes:
        return 0.0
    ratio, strength = np.concatenate(ratios), np.concatenate(slopes)
    strong = strength > max(_LEAST_EDGE + 2 * noise, float(np.quantile(strength, 0.97)))
    if not strong.any():
        return 0.0
    steeper = float(np.quantile(ratio[strong], 0.75))
    return _MOST_BLUR if steeper**2 <= 1 + _MOST_BLUR**-2 else 1 / math.sqrt(steeper**2 - 1)


_GAUSSIAN = np.exp(-np.square(np.arange(-3, 4, dtype=np.float32)) / 2)
_GAUSSIAN /= _GAUSSIAN.sum()
_LEAST_EDGE = 4.0
_MOST_BLUR = 10.0


def _line_art(windows: Sequence[_Window], noise: float) -> float:
    """From how plain it is beside strong edges, how rare steps between plain and strong are there, and the grain."""
    plain: list[NDArray[Any]] = [np.zeros(0)]
    some = strong = 0
    least = 3 + 3 * min(noise, 2.0)
    for window in windows:
        if min(window.luma.shape) <= _CELL:
            continue
        across, down = (np.abs(np.diff(window.levels, axis=axis)).max(2) for axis in (1, 0))
        cells: Floats = _blocks(np.maximum(across[:-1], down[:, :-1]), _CELL)
        shown = (_blocks(window.shown[1:, 1:], _CELL) > 0).all(1)
        cells = cells[(cells.max(1) > 2 * _STRONG) & shown]
        plain.append((cells <= least).mean(1))
        some += int(((cells > least) & (cells <= _STRONG)).sum())
        strong += int((cells > _STRONG).sum())
    beside = np.concatenate(plain)
    if beside.size < 4:
        return 0.0
    between = math.log(0.1 + some / max(1, strong))
    evidence = np.dot(_LINE_ART, (1.0, float(np.median(beside)), between, noise))
    return float(1 / (1 + np.exp(-evidence)))


_CELL = 12
_STRONG = 24.0
_LINE_ART = (-1.9, 5.8, -2.45, -1.36)
"""Logistic regression of 480 photographs and 440 pieces of clip art, as they were and damaged, with one picture in
five expected to be drawn."""


def _slope(luma: Floats) -> Floats:
    slope: Floats = np.hypot(luma[1:-1, 2:] - luma[1:-1, :-2], luma[2:, 1:-1] - luma[:-2, 1:-1]) / np.float32(2)
    return slope


def _smooth(luma: Floats, taps: Floats) -> Floats:
    """Convolved with the taps along both axes, without the border that they cannot reach."""
    down = np.lib.stride_tricks.sliding_window_view(luma, len(taps), 0) @ taps
    smooth: Floats = np.lib.stride_tricks.sliding_window_view(down, len(taps), 1) @ taps
    return smooth


def _blocks(values: Samples, side: int) -> Samples:
    """(H, W, ...) cut into whole blocks: (blocks, side * side, ...)."""
    height, width = (length // side * side for length in values.shape[:2])
    cut = values[:height, :width].reshape(height // side, side, width // side, side, *values.shape[2:])
    return cut.swapaxes(1, 2).reshape(-1, side * side, *values.shape[2:])
