"""Detect the degradation of an image before it is upscaled, and choose the network that suits it.

Guarantees: looks at a bounded number of pixels however large the image, at its own resolution, so that neither grain
nor blocks are averaged away; accepts any image of at least one pixel, and one that is too small to tell counts as
undamaged. Equal pixels give equal results. All figures are in 8-bit levels, whatever the depth. Knows no files, no
recipes and no networks beyond their names. Limits: it cannot see blocks that were resized after compression, grain
that compression smeared, or what an image shows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hiresfix.engine.pixels import arrays
from hiresfix.engine.pixels.arrays import Float32Array, ImageArray

QuantisationTables = Sequence[Sequence[int]]
"""The quantisation tables of a JPEG, 64 steps each, the luminance's first."""

CLEAN_NETWORK, DAMAGED_NETWORK, LINE_ART_NETWORK = "realsr-df2k", "realesrgan-x4plus", "realesrgan-x4plus-anime"

_WINDOW = 256
"""A multiple of 8, so that all windows of an image see a grid of blocks in the same phase."""
_MAX_WINDOWS = 16
_GRID = 8
_LUMA = np.array(arrays.LUMA_WEIGHTS, np.float32)
_MEDIAN_OF_NORMAL = 0.6745
"""Median of the absolute value of a normal variable with standard deviation 1."""
_MIN_COLOUR = 3.0
"""Mean range of the channels of a block, in levels, below which an image has no colours to compare."""
_QUARTILE_OF_BLOCKS = 0.93
"""Lower quartile, over blocks of normal noise with standard deviation 1, of the result of `_grain`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Degradation:
    """Degradation of an image.

    Attributes:
        jpeg_quality: 1..100 on libjpeg's scale, from the file's tables; None if it was not a JPEG.
        blockiness: levels by which steps across the lines of an 8x8 grid exceed those beside them; 0 without a grid.
            Also seen in a JPEG that was saved again in another format.
        noise: standard deviation of the finest grain in plain areas, in levels.
        blur: standard deviation in pixels of the Gaussian that turns steps into the sharpest edges of the image; about
            0.5 in a sharp image, 0 without edges.
        line_art: 0..1, confidence that the image is drawn in plain colours.
    """

    jpeg_quality: float | None
    blockiness: float
    noise: float
    blur: float
    line_art: float

    def to_dict(self) -> dict[str, float | None]:
        """Return plain JSON values, rounded to their useful precision."""
        return {name: None if value is None else round(value, 2) for name, value in asdict(self).items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkChoice:
    """Name of the upscaling network in `hiresfix.models.catalog` that suits an image, and the reason as a clause."""

    network: str
    reason: str


def detect(
    rgb: ImageArray, *, alpha: ImageArray | None = None, quantisation: QuantisationTables | None = None
) -> Degradation:
    """Return the degradation of an image.

    Args:
        rgb: (H, W, 3) uint8 or uint16 over the full range.
        alpha: (H, W), 0 where the colours were made up; such pixels count neither as grain nor as plain.
        quantisation: the tables of the JPEG it came from.
    """
    windows = _windows(rgb, alpha)
    noise = _noise(windows)
    lumas = [window.luma for window in windows]
    return Degradation(
        jpeg_quality=None if not quantisation else jpeg_quality(quantisation),
        blockiness=_blockiness(lumas),
        noise=noise,
        blur=_blur(lumas, noise),
        line_art=_line_art(windows, noise),
    )


# From `benchmarks.degradation`: where the results of the two networks are equally far from the originals.
MAX_NOISE = 2.3
MAX_BLOCKINESS = 0.06
MIN_JPEG_QUALITY = 97
"""RealSR turns the traces of even a JPEG of quality 95 into ripples in sky and walls."""
MIN_LINE_ART, MIN_POSSIBLE_LINE_ART = 0.5, 0.3


def describe_damage(degradation: Degradation) -> str | None:
    """Return as a clause what should be repaired in an image; None if it is undamaged."""
    if degradation.noise > MAX_NOISE:
        return f"it has noise of {degradation.noise:.1f} levels"
    if degradation.jpeg_quality is not None and degradation.jpeg_quality < MIN_JPEG_QUALITY:
        return f"it is a JPEG of quality {degradation.jpeg_quality:.0f}"
    if degradation.blockiness > MAX_BLOCKINESS:
        return "it has the blocks of a JPEG"
    return None


def severity(degradation: Degradation) -> float:
    """Return how much following the image pixel by pixel would restore damage: 0 for none, 1 for severe damage.

    1 is reached at noise of 6 levels, a JPEG quality of 50, or the blocks of such a JPEG.
    """
    quality = 100.0 if degradation.jpeg_quality is None else degradation.jpeg_quality
    return max(
        float(np.interp(degradation.noise, (MAX_NOISE, 6.0), (0, 1))),
        float(np.interp(-quality, (-90.0, -50.0), (0, 1))),
        float(np.interp(degradation.blockiness, (0.15, 0.6), (0, 1))),
    )


def choose_network(degradation: Degradation) -> NetworkChoice:
    """Choose Real-ESRGAN for damaged images, its anime network for line art, RealSR for the rest.

    Images that may be drawn get Real-ESRGAN too: it draws lines as well as the anime network, and photos better.
    """
    if degradation.line_art >= MIN_LINE_ART:
        return NetworkChoice(network=LINE_ART_NETWORK, reason="it looks drawn")
    if (clause := describe_damage(degradation)) is not None:
        return NetworkChoice(network=DAMAGED_NETWORK, reason=clause)
    if degradation.line_art >= MIN_POSSIBLE_LINE_ART:
        return NetworkChoice(network=DAMAGED_NETWORK, reason="it may be drawn")
    return NetworkChoice(network=CLEAN_NETWORK, reason="it looks undamaged")


# Mean step of the standard's example table (ITU-T T.81, K.1), which libjpeg scales by its quality.
_MEAN_STEP_AT_50 = 57.625


def jpeg_quality(quantisation: QuantisationTables) -> float:
    """Return the quality 1..100 at which libjpeg's luminance table has the same mean step, for any encoder."""
    mean = float(np.mean(quantisation[0]))
    percent = 100 * mean / _MEAN_STEP_AT_50
    return min(100.0, max(1.0, 5000 / percent if percent > 100 else 100 - percent / 2))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Window:
    """levels: (h, w, 3), 0..255; luma: (h, w); visible: (h, w), 0 where the image is transparent."""

    levels: Float32Array
    luma: Float32Array
    visible: ImageArray


def _windows(rgb: ImageArray, alpha: ImageArray | None) -> list[_Window]:
    """Return at most `_MAX_WINDOWS` parts of the image, evenly spread."""
    height, width = rgb.shape[:2]
    down, across = -(-height // _WINDOW), -(-width // _WINDOW)
    while down * across > _MAX_WINDOWS:
        down, across = (down - 1, across) if down > across else (down, across - 1)
    visible = np.broadcast_to(np.uint8(1), (height, width)) if alpha is None else alpha
    windows = []
    for top in _starts(height, down):
        for left in _starts(width, across):
            part = slice(top, top + _WINDOW), slice(left, left + _WINDOW)
            levels = rgb[part].astype(np.float32) * np.float32(255 / np.iinfo(rgb.dtype).max)
            windows.append(_Window(levels=levels, luma=np.asarray(levels @ _LUMA, np.float32), visible=visible[part]))
    return windows


def _starts(side: int, count: int) -> list[int]:
    """Return where `count` windows begin: multiples of the grid, as far apart as possible."""
    last = max(0, side - _WINDOW)
    return sorted({round(last * number / max(1, count - 1)) // _GRID * _GRID for number in range(count)})


def _noise(windows: Sequence[_Window]) -> float:
    """Estimate the noise: lower quartile over plain blocks of the median absolute second difference along both axes.

    The mask is Immerkær's (Fast Noise Variance Estimation, 1996), blind to planes and to straight edges along the
    axes; the median is Donoho's (Ideal spatial adaptation by wavelet shrinkage, 1994). Blocks have 8x8 pixels. Plain
    is the quarter of blocks that change least when smoothed, which grain does not decide, without those near black or
    white, where samples are clipped. Noise is everywhere, texture is not: hence the lower quartile, with its bias
    corrected. In a coloured image only grain that differs between the channels counts: what the three channels share
    belongs to the image, fur and gravel above all.
    """
    measured = [_grain(window) for window in windows if min(window.luma.shape) >= _GRID + 6]
    if not measured:
        return 0.0
    grain, colour_grain, activity, colour = (np.concatenate(parts) for parts in zip(*measured, strict=True))
    if not grain.size:
        return 0.0
    plain = np.argsort(activity, kind="stable")[: max(4, grain.size // 4)]
    noise = grain if float(colour.mean()) < _MIN_COLOUR else np.minimum(grain, colour_grain)
    return float(np.quantile(noise[plain], 0.25)) / _QUARTILE_OF_BLOCKS


def _grain(window: _Window) -> tuple[Float32Array, Float32Array, Float32Array, Float32Array]:
    """Measure each block that is fully visible and neither near black nor near white.

    Returns:
        For each block: the grain, the grain that differs between the channels, the activity, and the distance to grey.
    """
    mask = np.float32(6 * _MEDIAN_OF_NORMAL)
    second = np.diff(np.diff(window.levels, 2, axis=0), 2, axis=1)[2:-2, 2:-2] / mask
    between_channels = (second - np.roll(second, 1, axis=2)) / np.float32(math.sqrt(2))
    smooth = _convolve(window.luma, np.full(5, 0.2, np.float32))
    activity = np.abs(smooth[1:-1, 2:] - smooth[1:-1, :-2]) + np.abs(smooth[2:, 1:-1] - smooth[:-2, 1:-1])
    level = _blocks(window.luma[3:-3, 3:-3], _GRID).mean(1)
    whole = (level > _GRID) & (level < 255 - _GRID) & (_blocks(window.visible[3:-3, 3:-3], _GRID) > 0).all(1)
    colour = np.ptp(_blocks(window.levels[3:-3, 3:-3], _GRID).mean(1), axis=1)
    return (
        _spread(second)[whole],
        _spread(between_channels)[whole],
        _blocks(activity, _GRID).mean(1)[whole],
        colour[whole],
    )


def _spread(values: Float32Array) -> Float32Array:
    """Return for each block the root mean square over the channels of the median absolute value."""
    spread: Float32Array = np.sqrt(np.square(np.median(_blocks(np.abs(values), _GRID), axis=1)).mean(1))
    return spread


def _blockiness(lumas: Sequence[Float32Array]) -> float:
    """Return by how much the strongest of the eight phases exceeds the next, averaged over both axes.

    The value that chance gives in so few pixels is subtracted. A step across a line counts by how much it exceeds the
    mean of the steps on either side. This, and the interquartile mean of the lines, keeps edges of the image that
    happen to lie on the grid from deciding.
    """
    excess = [_phase_excess(lumas), _phase_excess([luma.T for luma in lumas])]
    chance = _CHANCE / math.sqrt(sum(luma.size for luma in lumas))
    return max(0.0, sum(excess) / 2 - chance)


def _phase_excess(lumas: Sequence[Float32Array]) -> float:
    """Return it for the vertical lines; 0 if there are too few to tell."""
    lines: list[list[float]] = [[] for _ in range(_GRID)]
    for luma in lumas:
        steps = np.abs(np.diff(luma, axis=1))
        sudden = np.clip(steps[:, 1:-1] - (steps[:, :-2] + steps[:, 2:]) / 2, -_MAX_STEP, _MAX_STEP).mean(0)
        for phase in range(_GRID):
            lines[(phase + 2) % _GRID] += sudden[phase::_GRID].tolist()
    if min(map(len, lines)) < _MIN_LINES:
        return 0.0
    second, first = sorted(_interquartile_mean(values) for values in lines)[-2:]
    return first - second


def _interquartile_mean(values: Sequence[float]) -> float:
    """Return the mean without the lowest and the highest quarter."""
    cut = len(values) // 4
    return float(np.mean(sorted(values)[cut : len(values) - cut]))


_MAX_STEP = 4.0
_MIN_LINES = 6
_CHANCE = 12.0
"""19 of 20 undamaged photos stay below it; in levels times the root of the number of pixels."""


def _blur(lumas: Sequence[Float32Array], noise: float) -> float:
    """Estimate the blur: how much steeper the strongest edges are than after a further Gaussian of 1 pixel.

    An edge of deviation s becomes one of sqrt(s^2 + 1) (Zhuo and Sim, Defocus map estimation from a single image,
    2011). The upper quartile is used, because parts that are out of focus on purpose say nothing about the image.
    """
    ratios: list[NDArray[Any]] = []
    slopes: list[NDArray[Any]] = []
    for luma in lumas:
        if min(luma.shape) < 2 * _GRID:
            continue
        slope, blurred_slope = _slope(luma[3:-3, 3:-3]), _slope(_convolve(luma, _GAUSSIAN))
        ratios.append((slope / np.maximum(blurred_slope, 1e-3)).ravel())
        slopes.append(blurred_slope.ravel())
    if not slopes:
        return 0.0
    ratio, strength = np.concatenate(ratios), np.concatenate(slopes)
    strong = strength > max(_MIN_EDGE + 2 * noise, float(np.quantile(strength, 0.97)))
    if not strong.any():
        return 0.0
    steeper = float(np.quantile(ratio[strong], 0.75))
    return _MAX_BLUR if steeper**2 <= 1 + _MAX_BLUR**-2 else 1 / math.sqrt(steeper**2 - 1)


_GAUSSIAN = np.exp(-np.square(np.arange(-3, 4, dtype=np.float32)) / 2)
_GAUSSIAN /= _GAUSSIAN.sum()
_MIN_EDGE = 4.0
_MAX_BLUR = 10.0


def _line_art(windows: Sequence[_Window], noise: float) -> float:
    """Score how plain the image is beside strong edges, how rare medium steps are there, and its grain."""
    plain: list[NDArray[Any]] = [np.zeros(0)]
    medium = strong = 0
    plain_step = 3 + 3 * min(noise, 2.0)
    for window in windows:
        if min(window.luma.shape) <= _CELL:
            continue
        across, down = (np.abs(np.diff(window.levels, axis=axis)).max(2) for axis in (1, 0))
        cells: Float32Array = _blocks(np.maximum(across[:-1], down[:, :-1]), _CELL)
        visible = (_blocks(window.visible[1:, 1:], _CELL) > 0).all(1)
        cells = cells[(cells.max(1) > 2 * _STRONG) & visible]
        plain.append((cells <= plain_step).mean(1))
        medium += int(((cells > plain_step) & (cells <= _STRONG)).sum())
        strong += int((cells > _STRONG).sum())
    beside = np.concatenate(plain)
    if beside.size < 4:
        return 0.0
    between = math.log(0.1 + medium / max(1, strong))
    evidence = np.dot(_LINE_ART, (1.0, float(np.median(beside)), between, noise))
    return float(1 / (1 + np.exp(-evidence)))


_CELL = 12
_STRONG = 24.0
_LINE_ART = (-1.9, 5.8, -2.45, -1.36)
"""Logistic regression over 480 photos and 440 pieces of clip art, undamaged and damaged; it expects one image in five
to be drawn."""


def _slope(luma: Float32Array) -> Float32Array:
    slope: Float32Array = np.hypot(luma[1:-1, 2:] - luma[1:-1, :-2], luma[2:, 1:-1] - luma[:-2, 1:-1]) / np.float32(2)
    return slope


def _convolve(luma: Float32Array, taps: Float32Array) -> Float32Array:
    """Convolve with the taps along both axes, without the border that lacks neighbours."""
    down = np.lib.stride_tricks.sliding_window_view(luma, len(taps), 0) @ taps
    smoothed: Float32Array = np.lib.stride_tricks.sliding_window_view(down, len(taps), 1) @ taps
    return smoothed


def _blocks(values: ImageArray, side: int) -> ImageArray:
    """Cut (H, W, ...) into whole blocks: (blocks, side * side, ...)."""
    height, width = (length // side * side for length in values.shape[:2])
    cut = values[:height, :width].reshape(height // side, side, width // side, side, *values.shape[2:])
    return cut.swapaxes(1, 2).reshape(-1, side * side, *values.shape[2:])
