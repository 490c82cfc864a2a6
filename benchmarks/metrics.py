"""How good an enlargement is, beside the original it should have become. All pictures are (H, W, 3) uint8.

Full references: they count a texture that is as natural as the original's, but not the same, as an error; `gradients`
and `high_frequencies` do not, and see no place. No one of them alone is quality.
"""

from __future__ import annotations

import io
import math
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hiresfix.engine.analysis import metrics

from .pictures import Pixels

Floats = NDArray[np.float64]

_LUMA = np.array((0.299, 0.587, 0.114))
_BLOCK = 8
_FLAT = 2.0
"""Standard deviation in levels below which a block of the original counts as flat."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """Figures of one result; what is ideal is said beside each.

    psnr_db, ssimulacra2 (90 and more: no difference seen; 70 high, 50 medium quality): the more the better.
    gradients: half the L1 distance between the histograms of vertical luminance steps; 0. high_frequencies: spectral
    energy above 0.25 cycles a pixel, relative to the original's; 1. grain: what the standard deviation has grown by in
    blocks that are flat in the original, in levels; 0, or NaN without such blocks. drift_db: PSNR of the result scaled
    down against the input; the more the better. ciede_mean, ciede_p95: colour difference of the same; 0.
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


def score(result: Pixels, original: Pixels, lowered: Pixels) -> Score:
    quality = metrics.measure(result, lowered)
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
    """SSIMULACRA 2 (Sneyers, Cloudinary, 2022), fitted to people's judgements of compressed pictures, by the Python
    package of that name. It needs no weights to be fetched; it was not made for what a GAN invents."""
    from ssimulacra2 import compute_ssimulacra2  # here: training, which uses the others, runs without it

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
    """Of the luminance without its mean, under a Hann window."""
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
    now, before = (math.sqrt(float(np.mean(deviation[flat] ** 2))) for deviation in deviations)
    return now - before


def luma(pixels: Pixels) -> Floats:
    y: Floats = pixels @ _LUMA
    return y


def _blocks(values: Floats) -> Floats:
    height, width = (side // _BLOCK for side in values.shape)
    cut = values[: height * _BLOCK, : width * _BLOCK].reshape(height, _BLOCK, width, _BLOCK)
    return cut.swapaxes(1, 2).reshape(-1, _BLOCK**2)
