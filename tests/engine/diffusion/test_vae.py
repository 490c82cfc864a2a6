"""Tiled autoencoder compared with diffusers' own encoding and decoding, with tiny random networks."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hiresfix.engine.diffusion import exact_tiling, vae
from hiresfix.engine.diffusion.exact_tiling import ImageFrame
from hiresfix.engine.diffusion.vae import Autoencoder
from hiresfix.engine.pixels import resampling
from hiresfix.errors import BadResult, Cancelled, EngineFailed, WeightsError
from tests import ROOT
from tests.sample_images import photo

MIB = 1 << 20
SCALING = 0.18215


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Use one thread: tensors this small finish before a second one starts."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def ignore(_: float) -> None:
    pass


def build(widths: tuple[int, ...] = (8, 16, 16), **given: Any) -> Any:
    from diffusers import AutoencoderKL

    levels = len(widths)
    settings = {
        "block_out_channels": widths,
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "norm_num_groups": 4,
        "layers_per_block": 1,
        "latent_channels": 4,
        "scaling_factor": SCALING,
    }
    make: Any = AutoencoderKL
    return make(**settings | given).eval()


@cache
def network() -> Any:
    """Create a network with three levels (factor 4) and random norms."""
    torch.manual_seed(0)
    net = build()
    for module in net.modules():
        if isinstance(module, nn.GroupNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
    return net


def latent(height: int, width: int, *, seed: int = 0) -> Tensor:
    """Create a latent that rises to the right, so that no tile has the statistics of the whole."""
    torch.manual_seed(seed)
    return torch.randn(1, 4, height, width) + torch.linspace(-2, 2, width)


@torch.no_grad()
def decode_with_diffusers(net: Any, z: Tensor) -> Tensor:
    """Decode with diffusers, (H, W, 3) in 0..1."""
    y: Tensor = net.decode(z / net.config["scaling_factor"]).sample
    return (y[0] / 2 + 0.5).clamp(0, 1).permute(1, 2, 0)


def decode_in_tiles(net: Any, z: Tensor, *, budget: int) -> Tensor:
    out = np.full((z.shape[2] * 4, z.shape[3] * 4, 3), np.nan, np.float32)
    Autoencoder(network=net, budget=budget).decode(z, out, ignore)
    return torch.from_numpy(out)


def tiles(net: Any, z: Tensor, budget: int) -> int:
    """Return the number of tiles of the section with the most tiles."""
    layers = vae._decoder(net)
    frame = ImageFrame(height=z.shape[2] * 4, width=z.shape[3] * 4, itemsize=4, budget=budget)
    sections = exact_tiling.plan_sections(layers, frame)
    stream = exact_tiling.TiledRun(layers=layers, sections=sections, frame=frame, like=z)
    return max(len(stream._tiles(s, layers[s.start : s.end])) for s in sections)


def test_whole_decode_equals_diffusers() -> None:
    z = latent(13, 18)
    assert tiles(network(), z, 100 * MIB) == 1
    torch.testing.assert_close(
        decode_in_tiles(network(), z, budget=100 * MIB), decode_with_diffusers(network(), z), atol=2e-5, rtol=0
    )


@pytest.mark.parametrize(
    ("height", "width", "budget"),
    [(37, 29, 2 * MIB), (37, 29, MIB), (64, 41, 2 * MIB), (6, 150, MIB), (150, 6, MIB), (1, 200, MIB // 2)],
)
def test_tiled_decode_equals_whole_decode(height: int, width: int, budget: int) -> None:
    z = latent(height, width)
    assert tiles(network(), z, budget) >= 4
    torch.testing.assert_close(
        decode_in_tiles(network(), z, budget=budget), decode_with_diffusers(network(), z), atol=2e-5, rtol=0
    )


def test_per_tile_statistics_would_be_wrong() -> None:
    """Decode two halves with their own statistics, which exact statistics avoid."""
    z = latent(32, 32)
    halves = torch.cat(
        [decode_with_diffusers(network(), z[..., :16]), decode_with_diffusers(network(), z[..., 16:])], 1
    )
    assert float((halves - decode_with_diffusers(network(), z)).abs().mean()) > 0.02


@torch.no_grad()
@pytest.mark.parametrize("budget", [100 * MIB, 2 * MIB, MIB // 2])
@pytest.mark.parametrize(("height", "width"), [(96, 120), (101, 83), (13, 300), (3, 5)])
def test_encode_is_posterior_mean_of_reflected_image(height: int, width: int, budget: int) -> None:
    rgb = photo(width, height)
    padded = np.pad(rgb, ((0, -height % 4), (0, -width % 4), (0, 0)), mode="reflect")
    x = resampling.to_tensor(padded, torch.device("cpu"))
    expected = network().encode(x * 2 - 1).latent_dist.mode() * SCALING
    codec = Autoencoder(network=network(), budget=budget)
    z = codec.encode(rgb, ignore)
    assert z.dtype == torch.float32
    torch.testing.assert_close(z, expected, atol=2e-5, rtol=0)
    torch.testing.assert_close(codec.encode(x[..., :height, :width], ignore), z, atol=1e-6, rtol=0)
    torch.testing.assert_close(codec.encode((rgb / 255).astype(np.float32), ignore), z, atol=1e-5, rtol=0)


def test_latent_follows_configuration() -> None:
    torch.manual_seed(0)
    net = build((8, 8), latent_channels=6, scaling_factor=0.5, shift_factor=0.25, use_quant_conv=False)
    codec = Autoencoder(network=net)
    assert (codec.factor, codec.channels) == (2, 6)
    rgb = photo(20, 14)
    z = codec.encode(rgb, ignore)
    x = resampling.to_tensor(rgb, torch.device("cpu"))
    with torch.no_grad():
        mean = net.encode(x * 2 - 1).latent_dist.mode()
        expected = net.decode(mean).sample[0].permute(1, 2, 0) / 2 + 0.5
    torch.testing.assert_close(z, (mean - 0.25) * 0.5, atol=1e-6, rtol=0)
    out = np.empty((14, 20, 3), np.float32)
    codec.decode(z, out, ignore)
    torch.testing.assert_close(torch.from_numpy(out), expected.clamp(0, 1), atol=1e-5, rtol=0)


def test_flat_latent_has_no_tile_borders() -> None:
    z = torch.full((1, 4, 56, 56), 0.7)
    assert tiles(network(), z, 3 * MIB) >= 4
    y = decode_in_tiles(network(), z, budget=3 * MIB)[
        56:168, 56:168
    ]  # beyond the receptive field of the image's border
    grid = y.reshape(28, 4, 28, 4, 3)  # every latent pixel gives the same 4 x 4 pattern
    assert float((grid - grid[:1, :, :1]).abs().max()) < 1e-5


def test_tiles_without_attention_are_exact() -> None:
    torch.manual_seed(1)
    net = build(mid_block_add_attention=False)
    z = latent(33, 40)
    torch.testing.assert_close(decode_in_tiles(net, z, budget=MIB), decode_with_diffusers(net, z), atol=2e-5, rtol=0)


def test_pooled_moments_of_unequal_tiles_are_exact() -> None:
    norm = nn.GroupNorm(2, 6)
    x = torch.randn(1, 6, 12, 9) * torch.linspace(1, 5, 9) + torch.linspace(-4, 4, 12)[:, None]
    pieces = [x[:, :, :3], x[:, :, 3:, :2], x[:, :, 3:, 2:]]
    mean, variance = exact_tiling._pool_moments(
        [(p[0, 0].numel(), *exact_tiling._moments(p, norm)) for p in pieces], norm, x
    )
    groups = x.view(2, 3, 12, 9)
    torch.testing.assert_close(mean, groups.mean((1, 2, 3)).repeat_interleave(3))
    torch.testing.assert_close(variance, groups.var((1, 2, 3), correction=0).repeat_interleave(3))


def test_attention_uses_every_second_key_above_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    z = latent(40, 40)
    monkeypatch.setattr(exact_tiling, "MAX_KEYS", 400)
    monkeypatch.setattr(exact_tiling, "_MAX_QUERIES", 300)
    miss = (decode_in_tiles(network(), z, budget=2 * MIB) - decode_with_diffusers(network(), z)).abs()
    assert 1e-6 < float(miss.max()) < 0.02


@pytest.mark.parametrize(("dtype", "most"), [(np.uint8, 255), (np.uint16, 65535)])
def test_samples_are_rounded_or_truncated(dtype: type[np.uint8], most: int) -> None:
    z = latent(9, 9)
    exact = decode_with_diffusers(network(), z).numpy() * most
    codec = Autoencoder(network=network())
    near, below = np.empty((36, 36, 3), dtype), np.empty((36, 36, 3), dtype)
    codec.decode(z, near, ignore)
    codec.decode(z, below, ignore, truncate=True)
    slack = 1e-5 * most
    assert np.all(np.abs(near - exact) <= 0.5 + slack)
    assert np.all((exact - below > -slack) & (exact - below < 1 + slack))


def test_decode_crops_to_the_image() -> None:
    z = latent(9, 10)
    out = np.empty((34, 37, 3), np.float32)
    Autoencoder(network=network(), budget=MIB).decode(z, out, ignore)
    torch.testing.assert_close(torch.from_numpy(out), decode_with_diffusers(network(), z)[:34, :37], atol=2e-5, rtol=0)
    for shape in ((32, 37, 3), (34, 41, 3)):
        with pytest.raises(ValueError, match="cannot hold a latent of 10x9"):
            Autoencoder(network=network()).decode(z, np.empty(shape, np.uint8), ignore)


def overflowing() -> Any:
    """Create a network whose values exceed float16 in the first block and are normalised after it."""
    torch.manual_seed(0)
    net = build()
    with torch.no_grad():
        net.decoder.mid_block.resnets[0].conv1.weight *= 1e5
    return net


@pytest.mark.parametrize("budget", [100 * MIB, MIB])
def test_half_precision_overflow_falls_back_to_float32(budget: int) -> None:
    net = overflowing()
    z = latent(20, 20)
    expected = decode_with_diffusers(net, z)
    actual = decode_in_tiles(net.half(), z, budget=budget)
    assert net.dtype == torch.float16
    torch.testing.assert_close(actual, expected, atol=0.02, rtol=0)  # the weights were rounded to half


def test_non_finite_weights_are_an_error() -> None:
    net = build()
    with torch.no_grad():
        net.decoder.conv_out.weight[0] = torch.nan
        net.encoder.conv_in.weight[0] = torch.nan
    codec = Autoencoder(network=net)
    with pytest.raises(BadResult, match="Check its weights"):
        codec.decode(latent(8, 8), np.empty((32, 32, 3), np.uint8), ignore)
    with pytest.raises(BadResult, match="Check its weights"):
        codec.encode(photo(32, 32), ignore)


def test_progress_rises_to_one_and_can_stop() -> None:
    seen: list[float] = []
    codec = Autoencoder(network=network(), budget=MIB)
    out = np.empty((160, 160, 3), np.uint8)
    codec.decode(latent(40, 40), out, seen.append)
    assert seen == sorted(seen)
    assert seen[-1] == 1
    assert len(seen) > 20

    def stop(fraction: float) -> None:
        if fraction > 0.3:
            raise Cancelled

    with pytest.raises(Cancelled):
        codec.decode(latent(40, 40), out, stop)


def test_out_of_memory_leads_to_smaller_tiles() -> None:
    reports: list[float] = []

    def report(fraction: float) -> None:
        reports.append(fraction)
        if len(reports) == 1:
            raise MemoryError

    z = latent(40, 40)
    out = np.empty((160, 160, 3), np.float32)
    assert tiles(network(), z, 8 * MIB) == 1
    Autoencoder(network=network(), budget=8 * MIB).decode(z, out, report)
    assert len(reports) > 50
    torch.testing.assert_close(torch.from_numpy(out), decode_with_diffusers(network(), z), atol=2e-5, rtol=0)


def test_too_small_budget_error_says_what_to_do() -> None:
    with pytest.raises(EngineFailed, match=r"1600x1600 pixels do not fit .* more memory or a smaller image"):
        decode_in_tiles(network(), latent(400, 400), budget=MIB)


def test_autoencoder_of_other_blocks_is_rejected() -> None:
    net = build(down_block_types=("AttnDownEncoderBlock2D",) * 3)
    with pytest.raises(WeightsError, match="AttnDownEncoderBlock2D"):
        Autoencoder(network=net).encode(photo(16, 16), ignore)


def test_decoder_fits_3_gib_up_to_64_megapixels() -> None:
    with torch.device("meta"):
        net = build((128, 256, 512, 512), norm_num_groups=32, layers_per_block=2)
    layers = vae._decoder(net)
    extra = []
    for side in (1024, 2048, 4096, 8192):
        frame = ImageFrame(height=side, width=side, itemsize=2, budget=vae.DEFAULT_BUDGET)
        sections = exact_tiling.plan_sections(layers, frame)
        assert [0, *(s.end for s in sections)] == [*(s.start for s in sections), len(layers)]
        assert max(exact_tiling._stored_bytes(layers, s.start, s.end, frame) for s in sections) < frame.budget
        extra.append(sum(section.cost for section in sections) / exact_tiling._multiplications(layers, frame))
    assert extra == pytest.approx([1, 2.4, 4.1, 7.8], abs=0.1)


PEAK = """
import sys, tempfile
from pathlib import Path
import numpy as np, torch
from hiresfix.engine.diffusion.vae import Autoencoder
from tests.engine.diffusion.test_vae import build, ignore
torch.set_num_threads(1)
torch.manual_seed(0)
net = build((32, 32, 32))
side, budget = int(sys.argv[1]), int(sys.argv[2])
codec = Autoencoder(network=net, budget=budget)
def decode(side):
    with tempfile.TemporaryFile() as file:
        out = np.memmap(file, np.uint8, "w+", shape=(4 * side, 4 * side, 3))
        codec.decode(torch.zeros(1, 4, side, side), out, ignore)
decode(8)
def kilobytes(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))
Path("/proc/self/clear_refs").write_text("5")  # reset the peak
before = kilobytes("VmRSS")
decode(side)
print(kilobytes("VmHWM") - before)
"""


def peak(side: int, budget: int) -> int:
    """Return the peak growth of resident memory in bytes."""
    command = [sys.executable, "-c", PEAK, str(side), str(budget)]
    run = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    return int(run.stdout) * 1024


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux' account of resident memory")
def test_memory_follows_budget_not_image_size() -> None:
    free, bound = peak(160, 2000 * MIB), peak(160, 24 * MIB)
    assert free > 150 * MIB  # several copies of 640 x 640 pixels with 32 channels
    assert bound < 0.6 * free
