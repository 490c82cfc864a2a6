"""Metrics of an upscaled image against its original. All images are (H, W, 3) uint8.

Full-reference metrics count texture that is as natural as that of the original, but not the same, as an error.
`gradients` and `high_frequencies` do not, but ignore positions. No single metric is quality.
"""

from __future__ import annotations

import io
import math
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.source_images import Pixels
from hiresfix.engine.analysis import metrics

Floats = NDArray[np.float64]

_LUMA = np.array((0.299, 0.587, 0.114))
_BLOCK = 8
_FLAT = 2.0
"""Standard deviation in levels below which a block of the original counts as flat."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """Metrics of one result.

    Attributes:
        psnr_db: higher is better.
        ssimulacra2: higher is better; 90: no visible difference, 70: high, 50: medium quality.
        gradients: half the L1 distance between the histograms of vertical luminance steps; ideal 0.
        high_frequencies: spectral energy above 0.25 cycles per pixel, relative to the original; ideal 1.
        grain: growth of the standard deviation in blocks that are flat in the original, in levels; ideal 0, NaN without
            such blocks.
        drift_db: PSNR of the result scaled down against the input; higher is better.
        ciede_mean: colour difference of the same; ideal 0.
        ciede_p95: its 95th percentile.
    """

    psnr_db: float
    ssimulacra2: float
    gradients: float
    high_frequencies: float
    grain: float
    drift_db: float
    ciede_mean: float
    ciede_p95: float

    def to_dict(self) -> dict[str, float]:
        return asdict(self)


def score(result: Pixels, original: Pixels, reduced: Pixels) -> Score:
    quality = metrics.measure(result, reduced)
    return Score(
        psnr_db=psnr(result, original),
        ssimulacra2=ssimulacra2(result, original),
        gradients=gradients(result, original),
        high_frequencies=high_frequencies(result) / max(high_frequencies(original), 1e-9),
        grain=grain(result, original),
        drift_db=quality.drift_db,
        ciede_mean=quality.ciede2000_mean,
        ciede_p95=quality.ciede2000_p95,
    )


def psnr(one: Pixels, other: Pixels) -> float:
    error = float(np.mean((one.astype(np.float64) - other) ** 2))
    return 10 * math.log10(255**2 / max(error, 1e-3))


def ssimulacra2(result: Pixels, original: Pixels) -> float:
    """Return SSIMULACRA 2 (Sneyers, Cloudinary, 2022), computed by the Python package of that name.

    It is fitted to human judgements of compressed images, not to texture that a GAN adds. It needs no weights.
    """
    from ssimulacra2 import compute_ssimulacra2  # here: training uses the other metrics without this package

    files = [io.BytesIO(), io.BytesIO()]
    for file, pixels in zip(files, (original, result), strict=True):
        Image.fromarray(pixels).save(file, "PNG")
        file.seek(0)
    return float(compute_ssimulacra2(*files))


def gradients(result: Pixels, original: Pixels) -> float:
    bins = np.arange(-255.5, 256.5)
    one, other = (np.histogram(np.diff(luma(pixels), axis=0), bins)[0] for pixels in (result, original))
    return float(np.abs(one / one.sum() - other / other.sum()).sum() / 2)


def high_frequencies(pixels: Pixels) -> float:
    """Return the energy of the luminance without its mean, under a Hann window."""
    y = luma(pixels)
    window = np.outer(*(np.hanning(side) for side in y.shape))
    energy = np.abs(np.fft.fft2((y - y.mean()) * window)) ** 2
    down, across = (np.fft.fftfreq(side) for side in y.shape)
    return float(energy[np.hypot(down[:, None], across[None]) > 0.25].sum())


def grain(result: Pixels, original: Pixels) -> float:
    deviations = [_blocks(luma(pixels)).std(1) for pixels in (result, original)]
    flat = deviations[1] < _FLAT
    if flat.sum() < 4:
        return math.nan
    result_grain, original_grain = (math.sqrt(float(np.mean(deviation[flat] ** 2))) for deviation in deviations)
    return result_grain - original_grain


def luma(pixels: Pixels) -> Floats:
    y: Floats = pixels @ _LUMA
    return y


def _blocks(values: Floats) -> Floats:
    height, width = (side // _BLOCK for side in values.shape)
    cut = values[: height * _BLOCK, : width * _BLOCK].reshape(height, _BLOCK, width, _BLOCK)
    return cut.swapaxes(1, 2).reshape(-1, _BLOCK**2)
