"""Resizing, back-projection and sharpening, against Pillow, arithmetic and the definitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFilter
from torch import Tensor

from hiresfix.engine.pixels import resampling
from tests.sample_images import photo

CPU = torch.device("cpu")


def tensor(width: int, height: int, *, seed: int = 0) -> Tensor:
    return resampling.to_tensor(photo(width, height, seed=seed), CPU)


@pytest.mark.parametrize(("width", "height"), [(48, 40), (96, 80), (24, 20), (31, 17)])
def test_resize_matches_pillow_bicubic(width: int, height: int) -> None:
    x = tensor(48, 40)
    ours = resampling.resize(x, height, width)[0].numpy()
    for channel in range(3):
        theirs = Image.fromarray(x[0, channel].numpy()).resize((width, height), Image.Resampling.BICUBIC)
        np.testing.assert_allclose(ours[channel], np.asarray(theirs), atol=2e-6)


@pytest.mark.parametrize(("width", "height", "ratio"), [(48, 40, 2), (4, 2, 2), (64, 96, 4)])
def test_resize_lanczos_matches_pillow(width: int, height: int, ratio: int) -> None:
    noise = np.random.default_rng(3).integers(0, 256, (height, width, 3), np.uint8)
    size = width // ratio, height // ratio
    theirs = np.asarray(Image.fromarray(noise).resize(size, Image.Resampling.LANCZOS)).astype(int)
    ours = resampling.to_samples(resampling.resize_lanczos(resampling.to_tensor(noise, CPU), *size[::-1]), noise.dtype)
    assert np.abs(ours - theirs).max() <= 1  # Pillow rounds between the axes


def test_lanczos_falls_back_to_resize() -> None:
    x = tensor(48, 42)
    for height, width in ((14, 16), (42, 48), (21, 48), (84, 96)):
        torch.testing.assert_close(resampling.resize_lanczos(x, height, width), resampling.resize(x, height, width))


@pytest.mark.parametrize("strength", [0.0, 1.0, 10.0])
def test_sharpen_channels_matches_pillow(strength: float) -> None:
    noise = np.random.default_rng(4).integers(0, 256, (12, 9, 3), np.uint8)
    kernel = [-strength / 10] * 9
    kernel[4] = 1 + 0.8 * strength
    theirs = Image.fromarray(noise).filter(ImageFilter.Kernel((3, 3), kernel, scale=1))
    ours = resampling.to_samples(resampling.sharpen_channels(resampling.to_tensor(noise, CPU), strength), noise.dtype)
    np.testing.assert_allclose(ours.astype(int), np.asarray(theirs).astype(int), atol=1)
    for tiny in (noise[:1], noise[:2, :2]):
        x = resampling.to_tensor(tiny, CPU)
        torch.testing.assert_close(resampling.sharpen_channels(x, strength), x)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_samples_survive_conversion_to_tensor(dtype: type[np.uint8] | type[np.uint16]) -> None:
    values = np.arange(np.iinfo(dtype).max + 1, dtype=dtype)
    rgb = np.repeat(values.reshape(1, -1, 1), 3, axis=2)
    x = resampling.to_tensor(rgb, CPU)
    assert (float(x.min()), float(x.max())) == (0.0, 1.0)
    np.testing.assert_array_equal(resampling.to_samples(x, rgb.dtype), rgb)


def test_samples_are_rounded_and_clipped() -> None:
    y = torch.tensor([-0.3, 99.4 / 255, 99.6 / 255, 1.7]).view(1, 1, 1, 4).expand(1, 3, 1, 4)
    assert resampling.to_samples(y, np.dtype(np.uint8))[0, :, 0].tolist() == [0, 99, 100, 255]


@given(st.floats(0, 3), st.floats(0, 3))
def test_more_resemblance_never_means_less_correction(one: float, other: float) -> None:
    low, high = sorted((one, other))
    assert all(0 < weight <= 1 for weight in resampling.back_projection_weights(high))
    assert sum(resampling.back_projection_weights(low)) <= sum(resampling.back_projection_weights(high)) + 1e-9


def test_resemblance_gives_zero_to_nine_rounds() -> None:
    assert resampling.back_projection_weights(0) == []
    assert resampling.back_projection_weights(0.6) == [0.6, 0.6, 0.6]
    assert resampling.back_projection_weights(3) == [1.0] * 9


def residual_rms(y: Tensor, x: Tensor) -> float:
    return float((resampling.resize(y, *x.shape[2:]) - x).square().mean().sqrt())


@pytest.mark.parametrize("scale", [2, 4])
def test_back_projection_pulls_towards_the_input(scale: int) -> None:
    truth = tensor(96, 64)
    x = resampling.resize(truth, 64 // scale, 96 // scale).clamp(0, 1)
    y = (resampling.resize(x, 64, 96) * 0.8 + 0.1).clamp(0, 1)
    residuals = [
        residual_rms(resampling.back_project(y, x, resampling.back_projection_weights(r)), x)
        for r in (0, 0.3, 0.6, 1, 2, 3)
    ]
    assert residuals == sorted(residuals, reverse=True)
    assert residuals[-1] < residuals[0] / 50


def test_back_projection_keeps_finer_detail() -> None:
    x = torch.full((1, 3, 16, 16), 0.5)
    checks = 0.2 * (torch.arange(64).view(1, -1) + torch.arange(64).view(-1, 1)).remainder(2) + 0.4
    y = checks.expand(1, 3, 64, 64)
    inner = (..., slice(8, -8), slice(8, -8))  # at the border the checks end in half pairs
    assert torch.allclose(
        resampling.back_project(y, x, resampling.back_projection_weights(3))[inner], y[inner], atol=1e-3
    )


def test_back_projection_at_equal_size_restores_colours() -> None:
    x = tensor(40, 40)
    checks = 0.02 * (torch.arange(40).view(1, -1) + torch.arange(40).view(-1, 1)).remainder(2)
    y = (x * 0.9 + checks).clamp(0, 1)
    projected = resampling.back_project(y, x, resampling.back_projection_weights(3))
    mean = projected.mean((2, 3)) - x.mean((2, 3))
    assert float(mean.abs().max()) < 1e-3
    assert float((projected - x).abs().mean()) > 0.005  # the checks are still there


def test_sharpen_zero_changes_nothing() -> None:
    x = tensor(20, 20)
    assert resampling.sharpen(x, 0) is x
    flat = torch.full((1, 3, 9, 9), 0.3)
    assert torch.allclose(resampling.sharpen(flat, 10), flat, atol=1e-6)


@pytest.mark.parametrize("strength", [0.5, 3, 10])
def test_sharpen_steepens_edges_without_halo(strength: float) -> None:
    ramp = torch.tensor([0.2, 0.2, 0.2, 0.3, 0.5, 0.7, 0.8, 0.8, 0.8]).view(1, 1, 1, 9).expand(1, 3, 9, 9)
    sharp = resampling.sharpen(ramp.contiguous(), strength)
    row = sharp[0, 0, 4]
    assert float(row[5] - row[3]) > 0.4 + 0.02
    assert float(row.min()) >= 0.2 - 1e-6
    assert float(row.max()) <= 0.8 + 1e-6


def test_sharpen_changes_luminance_only() -> None:
    x = tensor(24, 24)
    moved = resampling.sharpen(x, 2) - x
    assert float(moved.abs().max()) > 0.01
    assert torch.allclose(moved[:, 0], moved[:, 1], atol=1e-6)
    assert torch.allclose(moved[:, 1], moved[:, 2], atol=1e-6)
