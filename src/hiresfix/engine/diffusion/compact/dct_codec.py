"""DCT codec: convert pixels to latents without a network; a block of 4 x 4 pixels becomes one 48-channel latent pixel.

The transform is fixed: opponent colours times a two-dimensional DCT-II. Both are orthonormal, so decoding an encoded
image returns it up to rounding. Each band is shifted by a mean and multiplied by a scale from the checkpoint.
Guarantees: memory beyond the latent is bounded, whatever the size of the image. Independent of recipes and files.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from hiresfix.engine.diffusion.vae import Pixels
from hiresfix.engine.pixels import resampling
from hiresfix.engine.pixels.arrays import ImageArray
from hiresfix.engine.progress import ProgressCallback

FACTOR = 4
CHANNELS = 3 * FACTOR**2
_BAND_ROWS = 64
"""Latent rows converted at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockTransform:
    """`vae.Codec` of the block DCT; `mean` and positive `scale` have `CHANNELS` numbers, luminance first."""

    mean: tuple[float, ...]
    scale: tuple[float, ...]
    device: torch.device

    def __post_init__(self) -> None:
        if len(self.mean) != CHANNELS or len(self.scale) != CHANNELS or min(self.scale) <= 0:
            raise ValueError(f"a block transform has {CHANNELS} means and {CHANNELS} scales above zero")

    @property
    def factor(self) -> int:
        return FACTOR

    @property
    def channels(self) -> int:
        return CHANNELS

    @torch.inference_mode()
    def encode(self, pixels: Pixels, report: ProgressCallback) -> Tensor:
        """Encode an image; sides that are not a multiple of 4 are extended by their mirror image."""
        height, width = pixels.shape[2:] if isinstance(pixels, Tensor) else pixels.shape[:2]
        rows = -(-height // FACTOR)
        latent = torch.empty((1, CHANNELS, rows, -(-width // FACTOR)), device=self.device)
        line_indices = resampling.mirrored_indices(height, rows * FACTOR)
        columns = resampling.mirrored_indices(width, latent.shape[3] * FACTOR)
        for top in range(0, rows, _BAND_ROWS):
            bottom = min(rows, top + _BAND_ROWS)
            indices = line_indices[top * FACTOR : bottom * FACTOR]
            low, high = int(indices.min()), int(indices.max()) + 1
            if isinstance(pixels, Tensor):
                x = pixels[:, :, low:high].float()
            else:
                x = resampling.to_tensor(pixels[low:high], torch.device("cpu"))
            x = x[:, :, indices.to(x.device) - low][..., columns.to(x.device)].to(self.device)
            latent[:, :, top:bottom] = self.forward(x)
            report(bottom / rows)
        return latent

    @torch.inference_mode()
    def decode(self, latent: Tensor, out: ImageArray, report: ProgressCallback, *, truncate: bool = False) -> None:
        """Decode a latent into `out`; see `Codec.decode`.

        Raises:
            ValueError: `out` is larger than the latent's image, or smaller by a whole latent pixel.
        """
        rows, columns = latent.shape[2:]
        if (-(-out.shape[0] // FACTOR), -(-out.shape[1] // FACTOR)) != (rows, columns):
            raise ValueError(f"{out.shape[1]}x{out.shape[0]} pixels cannot hold a latent of {columns}x{rows}")
        for top in range(0, rows, _BAND_ROWS):
            band = out[top * FACTOR : (top + _BAND_ROWS) * FACTOR]
            y = self.inverse(latent[:, :, top : top + _BAND_ROWS])[:, :, : band.shape[0], : band.shape[1]]
            if truncate:
                max_value = float(np.iinfo(out.dtype).max)
                y = (y * max_value).floor() / max_value
            band[...] = resampling.to_samples(y, out.dtype)
            report(min(1.0, (top + _BAND_ROWS) / rows))

    def forward(self, x: Tensor) -> Tensor:
        """Transform (n, 3, 4h, 4w) in 0..1 to (n, 48, h, w), float32."""
        bands = functional.conv2d(x.float() * 2 - 1, dct_basis().to(x.device), stride=FACTOR)
        return (bands - self._vector(self.mean, x.device)) * self._vector(self.scale, x.device)

    def inverse(self, z: Tensor) -> Tensor:
        """Transform (n, 48, h, w) to (n, 3, 4h, 4w), about 0..1 and not clamped."""
        bands = z.float() / self._vector(self.scale, z.device) + self._vector(self.mean, z.device)
        return (functional.conv_transpose2d(bands, dct_basis().to(z.device), stride=FACTOR) + 1) / 2

    def _vector(self, values: Sequence[float], device: torch.device) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=device).view(1, -1, 1, 1)


@functools.cache
def dct_basis() -> Tensor:
    """Return the orthonormal basis as convolution weights (48, 3, 4, 4): 16 luminance bands, then each colour's."""
    k, n = torch.arange(FACTOR, dtype=torch.float64).view(-1, 1), torch.arange(FACTOR, dtype=torch.float64)
    dct = torch.cos(math.pi * (2 * n + 1) * k / (2 * FACTOR)) * math.sqrt(2 / FACTOR)
    dct[0] /= math.sqrt(2)
    colours = torch.tensor([[1, 1, 1], [1, 0, -1], [1, -2, 1]], dtype=torch.float64)
    colours /= colours.norm(dim=1, keepdim=True)
    return torch.einsum("ca,ky,lx->cklayx", colours, dct, dct).reshape(CHANNELS, 3, FACTOR, FACTOR).float()
