"""Resizing, following the input and sharpening, against Pillow, arithmetic and the definitions."""

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
def test_resizing_is_pillows_bicubic(width: int, height: int) -> None:
    x = tensor(48, 40)
    ours = resampling.resize(x, height, width)[0].numpy()
    for channel in range(3):
        theirs = Image.fromarray(x[0, channel].numpy()).resize((width, height), Image.Resampling.BICUBIC)
        np.testing.assert_allclose(ours[channel], np.asarray(theirs), atol=2e-6)


@pytest.mark.parametrize(("width", "height", "ratio"), [(48, 40, 2), (4, 2, 2), (64, 96, 4)])
def test_reducing_by_lanczos_is_pillows(width: int, height: int, ratio: int) -> None:
    noise = np.random.default_rng(3).integers(0, 256, (height, width, 3), np.uint8)
    wanted = width // ratio, height // ratio
    theirs = np.asarray(Image.fromarray(noise).resize(wanted, Image.Resampling.LANCZOS)).astype(int)
    ours = resampling.to_samples(resampling.lanczos(resampling.to_tensor(noise, CPU), *wanted[::-1]), noise.dtype)
    assert np.abs(ours - theirs).max() <= 1  # Pillow rounds between the axes


def test_sizes_that_lanczos_does_not_know_are_the_usual_ones() -> None:
    x = tensor(48, 42)
    for height, width in ((14, 16), (42, 48), (21, 48), (84, 96)):
        torch.testing.assert_close(resampling.lanczos(x, height, width), resampling.resize(x, height, width))


@pytest.mark.parametrize("strength", [0.0, 1.0, 10.0])
def test_sharpening_each_channel_is_pillows_kernel_with_its_border(strength: float) -> None:
    noise = np.random.default_rng(4).integers(0, 256, (12, 9, 3), np.uint8)
    kernel = [-strength / 10] * 9
    kernel[4] = 1 + 0.8 * strength
    theirs = Image.fromarray(noise).filter(ImageFilter.Kernel((3, 3), kernel, scale=1))
    ours = resampling.to_samples(resampling.sharpen_each(resampling.to_tensor(noise, CPU), strength), noise.dtype)
    np.testing.assert_allclose(ours.astype(int), np.asarray(theirs).astype(int), atol=1)
    for tiny in (noise[:1], noise[:2, :2]):
        x = resampling.to_tensor(tiny, CPU)
        torch.testing.assert_close(resampling.sharpen_each(x, strength), x)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_every_sample_value_survives_the_way_to_a_tensor_and_back(dtype: type[np.uint8] | type[np.uint16]) -> None:
    values = np.arange(np.iinfo(dtype).max + 1, dtype=dtype)
    rgb = np.repeat(values.reshape(1, -1, 1), 3, axis=2)
    x = resampling.to_tensor(rgb, CPU)
    assert (float(x.min()), float(x.max())) == (0.0, 1.0)
    np.testing.assert_array_equal(resampling.to_samples(x, rgb.dtype), rgb)


def test_samples_are_rounded_and_kept_in_range() -> None:
    y = torch.tensor([-0.3, 99.4 / 255, 99.6 / 255, 1.7]).view(1, 1, 1, 4).expand(1, 3, 1, 4)
    assert resampling.to_samples(y, np.dtype(np.uint8))[0, :, 0].tolist() == [0, 99, 100, 255]


@given(st.floats(0, 3), st.floats(0, 3))
def test_more_resemblance_never_means_less_correction(one: float, other: float) -> None:
    low, high = sorted((one, other))
    assert all(0 < weight <= 1 for weight in resampling.rounds(high))
    assert sum(resampling.rounds(low)) <= sum(resampling.rounds(high)) + 1e-9


def test_resemblance_runs_from_nothing_over_the_published_choice_to_nine_full_rounds() -> None:
    assert resampling.rounds(0) == []
    assert resampling.rounds(0.6) == [0.6, 0.6, 0.6]
    assert resampling.rounds(3) == [1.0] * 9


def missed(y: Tensor, x: Tensor) -> float:
    return float((resampling.resize(y, *x.shape[2:]) - x).square().mean().sqrt())


@pytest.mark.parametrize("scale", [2, 4])
def test_following_pulls_a_wrong_enlargement_back_to_its_input(scale: int) -> None:
    truth = tensor(96, 64)
    x = resampling.resize(truth, 64 // scale, 96 // scale).clamp(0, 1)
    y = (resampling.resize(x, 64, 96) * 0.8 + 0.1).clamp(0, 1)
    misses = [missed(resampling.follow(y, x, resampling.rounds(r)), x) for r in (0, 0.3, 0.6, 1, 2, 3)]
    assert misses == sorted(misses, reverse=True)
    assert misses[-1] < misses[0] / 50


def test_following_leaves_detail_alone_that_the_input_cannot_hold() -> None:
    x = torch.full((1, 3, 16, 16), 0.5)
    checks = 0.2 * (torch.arange(64).view(1, -1) + torch.arange(64).view(-1, 1)).remainder(2) + 0.4
    y = checks.expand(1, 3, 64, 64)
    inner = (..., slice(8, -8), slice(8, -8))  # at the border the checks do not end in whole pairs
    assert torch.allclose(resampling.follow(y, x, resampling.rounds(3))[inner], y[inner], atol=1e-3)


def test_following_at_equal_size_restores_colours_and_keeps_the_finest_detail() -> None:
    x = tensor(40, 40)
    checks = 0.02 * (torch.arange(40).view(1, -1) + torch.arange(40).view(-1, 1)).remainder(2)
    y = (x * 0.9 + checks).clamp(0, 1)
    followed = resampling.follow(y, x, resampling.rounds(3))
    mean = followed.mean((2, 3)) - x.mean((2, 3))
    assert float(mean.abs().max()) < 1e-3
    assert float((followed - x).abs().mean()) > 0.005  # the checks are still there


def test_no_sharpening_changes_nothing_and_a_flat_picture_stays_flat() -> None:
    x = tensor(20, 20)
    assert resampling.sharpen(x, 0) is x
    flat = torch.full((1, 3, 9, 9), 0.3)
    assert torch.allclose(resampling.sharpen(flat, 10), flat, atol=1e-6)


@pytest.mark.parametrize("strength", [0.5, 3, 10])
def test_sharpening_makes_an_edge_steeper_without_a_halo(strength: float) -> None:
    ramp = torch.tensor([0.2, 0.2, 0.2, 0.3, 0.5, 0.7, 0.8, 0.8, 0.8]).view(1, 1, 1, 9).expand(1, 3, 9, 9)
    sharp = resampling.sharpen(ramp.contiguous(), strength)
    row = sharp[0, 0, 4]
    assert float(row[5] - row[3]) > 0.4 + 0.02
    assert float(row.min()) >= 0.2 - 1e-6
    assert float(row.max()) <= 0.8 + 1e-6


def test_sharpening_moves_luminance_only() -> None:
    x = tensor(24, 24)
    moved = resampling.sharpen(x, 2) - x
    assert float(moved.abs().max()) > 0.01
    assert torch.allclose(moved[:, 0], moved[:, 1], atol=1e-6)
    assert torch.allclose(moved[:, 1], moved[:, 2], atol=1e-6)
