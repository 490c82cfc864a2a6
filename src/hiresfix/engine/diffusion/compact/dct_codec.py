"""Pixels and latents without a network: each block of 4 x 4 pixels becomes the 48 channels of one latent pixel.

The transform is fixed: opponent colours times a two-dimensional DCT-II, both orthonormal, so that decoding what was
encoded gives the picture back to rounding. Each band is shifted by a mean and multiplied by a scale that a checkpoint
states. Guarantees: bounded memory beyond the latent, whatever the picture's size. Knows no recipes and no files.
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
from hiresfix.engine.pixels.resampling import Samples
from hiresfix.engine.progress import Report

FACTOR = 4
CHANNELS = 3 * FACTOR**2
_ROWS = 64
"""Latent rows at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockTransform:
    """A `vae.Codec`. `mean` and `scale` have `CHANNELS` numbers, bands of luminance first; scales are above zero."""

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
    def encode(self, pixels: Pixels, report: Report) -> Tensor:
        """Sides that are no multiple of 4 are continued by their mirror image at the right and the bottom."""
        height, width = pixels.shape[2:] if isinstance(pixels, Tensor) else pixels.shape[:2]
        rows = -(-height // FACTOR)
        latent = torch.empty((1, CHANNELS, rows, -(-width // FACTOR)), device=self.device)
        lines = resampling.mirrored(height, rows * FACTOR)
        columns = resampling.mirrored(width, latent.shape[3] * FACTOR)
        for top in range(0, rows, _ROWS):
            bottom = min(rows, top + _ROWS)
            taken = lines[top * FACTOR : bottom * FACTOR]
            low, high = int(taken.min()), int(taken.max()) + 1
            if isinstance(pixels, Tensor):
                x = pixels[:, :, low:high].float()
            else:
                x = resampling.to_tensor(pixels[low:high], torch.device("cpu"))
            x = x[:, :, taken.to(x.device) - low][..., columns.to(x.device)].to(self.device)
            latent[:, :, top:bottom] = self.forward(x)
            report(bottom / rows)
        return latent

    @torch.inference_mode()
    def decode(self, latent: Tensor, out: Samples, report: Report, *, truncate: bool = False) -> None:
        """Raises ValueError if `out` is larger than the latent's picture, or smaller by a whole latent pixel."""
        rows, columns = latent.shape[2:]
        if (-(-out.shape[0] // FACTOR), -(-out.shape[1] // FACTOR)) != (rows, columns):
            raise ValueError(f"{out.shape[1]}x{out.shape[0]} pixels cannot hold a latent of {columns}x{rows}")
        for top in range(0, rows, _ROWS):
            band = out[top * FACTOR : (top + _ROWS) * FACTOR]
            y = self.inverse(latent[:, :, top : top + _ROWS])[:, :, : band.shape[0], : band.shape[1]]
            if truncate:
                most = float(np.iinfo(out.dtype).max)
                y = (y * most).floor() / most
            band[...] = resampling.to_samples(y, out.dtype)
            report(min(1.0, (top + _ROWS) / rows))

    def forward(self, x: Tensor) -> Tensor:
        """(n, 3, 4h, 4w) in 0..1 -> (n, 48, h, w) float32."""
        bands = functional.conv2d(x.float() * 2 - 1, transform().to(x.device), stride=FACTOR)
        return (bands - self._vector(self.mean, x.device)) * self._vector(self.scale, x.device)

    def inverse(self, z: Tensor) -> Tensor:
        """(n, 48, h, w) -> (n, 3, 4h, 4w), about 0..1 and not clamped."""
        bands = z.float() / self._vector(self.scale, z.device) + self._vector(self.mean, z.device)
        return (functional.conv_transpose2d(bands, transform().to(z.device), stride=FACTOR) + 1) / 2

    def _vector(self, values: Sequence[float], device: torch.device) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=device).view(1, -1, 1, 1)


@functools.cache
def transform() -> Tensor:
    """The orthonormal basis as a convolution's weights, (48, 3, 4, 4): 16 bands of luminance, then of each colour."""
    k, n = torch.arange(FACTOR, dtype=torch.float64).view(-1, 1), torch.arange(FACTOR, dtype=torch.float64)
    dct = torch.cos(math.pi * (2 * n + 1) * k / (2 * FACTOR)) * math.sqrt(2 / FACTOR)
    dct[0] /= math.sqrt(2)
    colours = torch.tensor([[1, 1, 1], [1, 0, -1], [1, -2, 1]], dtype=torch.float64)
    colours /= colours.norm(dim=1, keepdim=True)
    return torch.einsum("ca,ky,lx->cklayx", colours, dct, dct).reshape(CHANNELS, 3, FACTOR, FACTOR).float()
