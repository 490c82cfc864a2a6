"""Degrade images as photos on the web are degraded, for a whole batch on the device.

All functions take and return (n, 3, H, W), float32, in 0..1. Random numbers are drawn from the generator, on the CPU.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Generator, Tensor
from torch.nn import functional

# Annex K of ITU-T T.81.
_LUMINANCE = """16 11 10 16 24 40 51 61 12 12 14 19 26 58 60 55 14 13 16 24 40 57 69 56 14 17 22 29 51 87 80 62
 18 22 37 56 68 109 103 77 24 35 55 64 81 104 113 92 49 64 78 87 103 121 120 101 72 92 95 98 112 100 103 99"""
_CHROMINANCE = """17 18 24 47 99 99 99 99 18 21 26 66 99 99 99 99 24 26 56 99 99 99 99 99 47 66 99 99 99 99 99 99
 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99"""
_TO_YCC = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))


def blur(x: Tensor, sigma: float) -> Tensor:
    """Blur by a Gaussian with this standard deviation in pixels."""
    radius = max(1, math.ceil(3 * sigma))
    taps = torch.exp(-torch.arange(-radius, radius + 1, dtype=torch.float32, device=x.device).square() / (2 * sigma**2))
    taps = (taps / taps.sum()).expand(3, 1, -1)
    x = functional.pad(x, (radius,) * 4, mode="reflect")
    return functional.conv2d(functional.conv2d(x, taps[:, :, None], groups=3), taps[..., None], groups=3)


def rescale(x: Tensor, factor: float, mode: str) -> Tensor:
    """Reduce by `factor` with this filter (area, bilinear, bicubic), and resize back with a bicubic one."""
    height, width = x.shape[-2:]
    size = (max(8, round(height / factor)), max(8, round(width / factor)))
    small = functional.interpolate(x, size, mode=mode, antialias=mode in ("bilinear", "bicubic"))
    return functional.interpolate(small, (height, width), mode="bicubic", antialias=True).clamp(0, 1)


def add_noise(x: Tensor, levels: float, generator: Generator) -> Tensor:
    """Add Gaussian noise with a standard deviation of `levels` / 255."""
    noise = torch.randn(x.shape, generator=generator).to(x.device)
    return (x + noise * levels / 255).clamp(0, 1)


def jpeg(x: Tensor, quality: int) -> Tensor:
    """Compress as a JPEG of this quality (1..100, libjpeg's scale), without chroma subsampling."""
    scale = 5000 / quality if quality < 50 else 200 - 2 * quality
    tables = ((_quantisation_tables() * scale + 50) / 100).floor().clamp(1, 255).to(x.device)[:, None, :, None, :]
    height, width = x.shape[-2:]
    padded = functional.pad(x, (0, -width % 8, 0, -height % 8), mode="replicate") * 255
    to_ycc, dct = torch.tensor(_TO_YCC, device=x.device), _dct_basis().to(x.device)
    offset = torch.tensor([128.0, 0.0, 0.0], device=x.device).view(3, 1, 1)
    ycc = torch.einsum("ij,njhw->nihw", to_ycc, padded) - offset
    n, _, h, w = ycc.shape
    bands = torch.einsum("ky,ncayxz,lz->ncakxl", dct, ycc.view(n, 3, h // 8, 8, w // 8, 8), dct)
    quantised = (bands / tables).round() * tables
    ycc = torch.einsum("ky,ncakxl,lz->ncayxz", dct, quantised, dct).reshape(n, 3, h, w) + offset
    rgb = torch.einsum("ij,njhw->nihw", torch.linalg.inv(to_ycc), ycc)
    return (rgb[..., :height, :width].round() / 255).clamp(0, 1)


def degrade(x: Tensor, generator: Generator) -> Tensor:
    """Degrade like an image from the web: always rescaling, and at random blur, noise and JPEG."""

    def between(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=generator))

    if between(0, 1) < 0.45:
        x = blur(x, between(0.3, 1.4))
    x = rescale(x, between(1.6, 4.2), ("bilinear", "bicubic", "area")[int(between(0, 3))])
    if between(0, 1) < 0.35:
        x = add_noise(x, between(1, 9), generator)
    if between(0, 1) < 0.5:
        x = jpeg(x, int(between(45, 95)))
    return x


@functools.cache
def _quantisation_tables() -> Tensor:
    """Return the tables (3, 8, 8): luminance, then the same table for both colours."""
    luminance, chrominance = (
        torch.tensor([float(value) for value in table.split()]).view(8, 8) for table in (_LUMINANCE, _CHROMINANCE)
    )
    return torch.stack([luminance, chrominance, chrominance])


@functools.cache
def _dct_basis() -> Tensor:
    k, n = torch.arange(8.0).view(-1, 1), torch.arange(8.0)
    basis = torch.cos(math.pi * (2 * n + 1) * k / 16) / 2
    basis[0] /= math.sqrt(2)
    return basis
