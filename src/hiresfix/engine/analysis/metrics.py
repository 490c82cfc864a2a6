"""Measure how faithful a result is to its source: drift, colour difference, shift and seams.

Guarantees: there is never a float copy of a whole image, both are read in bands of rows; a bounded number of pixels is
measured, however large the image. Results are (H * scale, W * scale, 3), sources (H, W, 3), uint8, uint16 or float in
0..1, scale a whole number. Samples are taken as sRGB with white D65: profiles are ignored, so colour differences come
out too small in a wider space. Knows no networks, no tiles and no recipes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from hiresfix.engine.analysis import seams
from hiresfix.engine.pixels import resampling
from hiresfix.engine.pixels.arrays import Float64Array, ImageArray

MAX_DRIFT_DB = 100.0
_BAND_ROWS = 128
_ROWS = 32
_MARGIN = 6
_LOW_PASS_BORDER = 6
_SLOPE_FLOOR = 0.15 / 255
"""Slope for each input pixel at which a shift counts half: smaller slopes are the steps of 8-bit levels."""
_RIDGE = 1e-12
_MAX_PIXELS = 1 << 22
_MAX_COLOURS = 1 << 16
_CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """Fidelity of a result to its source.

    Attributes:
        drift_db: PSNR of the result scaled down; should be at least 34.
        ciede2000_mean: colour difference of the result scaled down; should be at most 1.
        ciede2000_p95: its 95th percentile; should be at most 3.
        shift_px: how far the image moved, in input pixels; should be below 0.1, and is reliable up to 1.
        seam_ratio: steps across the tile borders relative to those beside them; should be at most 1.1, and is 1 if
            chance explains them. None without borders that can be judged.
        seam_ratio_stretched: the same after a fourfold contrast stretch.
        alive: all values are finite, and the image is neither black nor of one colour.
    """

    drift_db: float
    ciede2000_mean: float
    ciede2000_p95: float
    shift_px: float
    seam_ratio: float | None = None
    seam_ratio_stretched: float | None = None
    alive: bool = True

    def to_dict(self) -> dict[str, float | bool | None]:
        """Return plain JSON values, rounded to their useful precision."""
        return {name: round(value, 3) if isinstance(value, float) else value for name, value in asdict(self).items()}


def measure(
    result: ImageArray,
    source: ImageArray,
    *,
    rows: Sequence[int] = (),
    columns: Sequence[int] = (),
    device: torch.device = _CPU,
) -> Quality:
    """Measure the fidelity of a result to its source.

    Args:
        result: the upscaled image.
        source: the input.
        rows: the first row of the result behind each tile border.
        columns: the first column of the result behind each tile border.
        device: where to compute.
    """
    sums = _compare(result, source, device)
    colours = np.concatenate(sums.colours)
    plain, stretched = seams.seam_ratios(result, source, rows=rows, columns=columns, stretches=(1.0, 4.0))
    return Quality(
        drift_db=sums.drift_db,
        ciede2000_mean=float(np.mean(colours)),
        ciede2000_p95=float(np.percentile(colours, 95)),
        shift_px=math.hypot(*sums.shift),
        seam_ratio=plain,
        seam_ratio_stretched=stretched,
        alive=is_finite_and_alive(result, source),
    )


def is_finite_and_alive(result: ImageArray, source: ImageArray) -> bool:
    """Return False for non-finite values, and for a single colour where the source has more than one."""
    if result.dtype.kind == "f" and not all(np.isfinite(band).all() for band in _bands(result)):
        return False
    return not _constant(result) or _constant(source)


def measure_shift(result: ImageArray, source: ImageArray) -> tuple[float, float]:
    """Return (right, down) by which the result moved against the source, in input pixels; good up to about 1.

    Least squares over the difference and the slopes of both images (Lucas and Kanade, 1981, made symmetric), jointly
    with a change of brightness and of contrast: on a plain gradient a brighter image and one that moved are the same,
    and then it counts as unmoved.
    """
    return _compare(result, source, _CPU).shift


def ciede2000(one: Float64Array, other: Float64Array) -> Float64Array:
    """Return the CIEDE2000 colour difference between Lab colours (..., 3), with all weighting factors 1.

    Source: Sharma, Wu and Dalal, The CIEDE2000 Color-Difference Formula: Implementation Notes (2005).
    """
    (l1, a1, b1), (l2, a2, b2) = (np.moveaxis(lab, -1, 0) for lab in (one, other))
    stretch = 1.5 - 0.5 * _saturation((np.hypot(a1, b1) + np.hypot(a2, b2)) / 2)
    c1, c2 = np.hypot(a1 * stretch, b1), np.hypot(a2 * stretch, b2)
    h1, h2 = (np.degrees(np.arctan2(b, a * stretch)) % 360 for a, b in ((a1, b1), (a2, b2)))
    grey = c1 * c2 == 0
    turn = h2 - h1
    turn = np.where(grey, 0, turn - 360 * (turn > 180) + 360 * (turn < -180))
    hue = np.where(grey, h1 + h2, _mean_hue(h1, h2))
    chroma, light = (c1 + c2) / 2, ((l1 + l2) / 2 - 50) ** 2
    t = 1 - 0.17 * _cos(hue - 30) + 0.24 * _cos(2 * hue) + 0.32 * _cos(3 * hue + 6) - 0.20 * _cos(4 * hue - 63)
    by_light = (l2 - l1) / (1 + 0.015 * light / np.sqrt(20 + light))
    by_chroma = (c2 - c1) / (1 + 0.045 * chroma)
    by_hue = 2 * np.sqrt(c1 * c2) * np.sin(np.radians(turn / 2)) / (1 + 0.015 * chroma * t)
    blue = np.sin(np.radians(60 * np.exp(-(((hue - 275) / 25) ** 2)))) * 2 * _saturation(chroma)
    squares = by_light**2 + by_chroma**2 + by_hue**2 - blue * by_chroma * by_hue
    difference: Float64Array = np.sqrt(np.maximum(squares, 0))
    return difference


def _saturation(chroma: Float64Array) -> Float64Array:
    return np.sqrt(chroma**7 / (chroma**7 + 25.0**7))


def _mean_hue(h1: Float64Array, h2: Float64Array) -> Float64Array:
    """Return the hue halfway along the shorter arc between two."""
    total = h1 + h2
    return np.where(np.abs(h1 - h2) <= 180, total, np.where(total < 360, total + 360, total - 360)) / 2


def _cos(degrees: Float64Array) -> Float64Array:
    return np.cos(np.radians(degrees))


def lab(rgb: Float64Array) -> Float64Array:
    """Convert sRGB in 0..1, (..., 3), to CIE Lab under D65 (IEC 61966-2-1, CIE 15)."""
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    xyz = linear @ _TO_XYZ.T / _TO_XYZ.sum(1)
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz * (29 / 6) ** 2 / 3 + 4 / 29)
    x, y, z = np.moveaxis(f, -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], -1)


_TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


@dataclass(slots=True, kw_only=True)
class _RunningSums:
    """Sums over bands of rows. Colours are compared at every `stride`-th pixel of each axis."""

    stride: int
    squares: float = 0.0
    values: int = 0
    slopes: Float64Array = field(default_factory=lambda: np.zeros((4, 4)))
    along: Float64Array = field(default_factory=lambda: np.zeros(4))
    colours: list[Float64Array] = field(default_factory=list)

    def add(self, shrunk: Tensor, original: Tensor) -> None:
        self.squares += float((shrunk - original).square().sum(dtype=torch.float64))
        self.values += original.numel()
        one, other = (
            lab(x[0, :, :: self.stride, :: self.stride].clamp(0, 1).permute(1, 2, 0).double().numpy())
            for x in (shrunk, original)
        )
        self.colours.append(ciede2000(one, other).ravel())

    def add_slopes(self, shrunk: Tensor, original: Tensor) -> None:
        """Add luminances (1, 1, h, w); their two outermost pixels serve only as neighbours."""
        mean = (shrunk + original) / 2
        taps = torch.tensor([1.0, -8.0, 0.0, 8.0, -1.0]) / 12
        across = functional.conv2d(mean[:, :, 2:-2], taps.view(1, 1, 1, -1)).double()
        down = functional.conv2d(mean[:, :, :, 2:-2], taps.view(1, 1, -1, 1)).double()
        difference = (original - shrunk)[:, :, 2:-2, 2:-2].double()
        light = mean[:, :, 2:-2, 2:-2].double() - 0.5
        slopes = torch.stack([each.flatten() for each in (across, down, torch.ones_like(light), light)])
        self.slopes += (slopes @ slopes.T).numpy()
        self.along += (slopes @ difference.flatten()).numpy()

    @property
    def drift_db(self) -> float:
        mean = self.squares / self.values
        return min(MAX_DRIFT_DB, -10 * math.log10(mean)) if mean > 0 else MAX_DRIFT_DB

    @property
    def shift(self) -> tuple[float, float]:
        # Slopes that hardly vary say nothing: brightness explains them as well, and nothing has moved.
        flat = np.diag([_SLOPE_FLOOR**2, _SLOPE_FLOOR**2, _RIDGE, _RIDGE]) * self.values
        right, down, *_ = np.linalg.solve(self.slopes + flat, self.along)
        return float(right), float(down)


def _compare(result: ImageArray, source: ImageArray, device: torch.device) -> _RunningSums:
    """Compare bands of the result, scaled down, with the source: all, or as many as `_MAX_PIXELS` allow."""
    scale = resampling.scale_between(result, source)
    height, width = source.shape[:2]
    count = -(-height // _ROWS)
    allowed = max(1, _MAX_PIXELS // (_ROWS * width * scale**2))
    tops = [_ROWS * band for band in seams.evenly_spaced(range(count), limit=allowed)]
    sums = _RunningSums(stride=math.ceil(math.sqrt(len(tops) * _ROWS * width / _MAX_COLOURS)))
    for top in tops:
        end = min(height, top + _ROWS)
        low, high = max(0, top - _MARGIN), min(height, end + _MARGIN)
        original = resampling.to_tensor(source[low:high], device)
        shrunk = resampling.resize(resampling.to_tensor(result[low * scale : high * scale], device), high - low, width)
        core = (..., slice(top - low, end - low), slice(None))
        sums.add(*(x[core].cpu() for x in (shrunk, original)))
        if min(high - low, width) > 2 * _LOW_PASS_BORDER:
            sums.add_slopes(*(resampling.low_pass(resampling.luminance(x)).cpu() for x in (shrunk, original)))
    return sums


def _bands(image: ImageArray) -> Iterator[ImageArray]:
    return (image[top : top + _BAND_ROWS] for top in range(0, image.shape[0], _BAND_ROWS))


def _constant(image: ImageArray) -> bool:
    return all(bool((band == image[0, 0]).all()) for band in _bands(image))
