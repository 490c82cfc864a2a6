"""Offload: memory estimates against PyTorch's allocator, and plans that fit into free memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from benchmarks import engine
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile

from hiresfix.engine import devices as memory
from hiresfix.engine.diffusion import guidance, offload, peak_memory, pipeline
from hiresfix.engine.diffusion.guidance import Conditioning
from hiresfix.engine.diffusion.multidiffusion import Tile
from hiresfix.engine.diffusion.offload import MemoryNeed, NetworkGroups, OffloadPlan
from hiresfix.engine.diffusion.vae import Autoencoder
from hiresfix.errors import EngineFailed
from hiresfix.models.catalog import CLARITY
from tests.engine.weights.test_checkpoints import controlnet, unet

GIB = 1 << 30


def allocated(work: Callable[[], Any]) -> int:
    """Return the peak of bytes that PyTorch's allocator hands out during `work`."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    events = profiler.profiler.kineto_results.events()
    current = peak = 0
    for event in sorted((e for e in events if e.name() == "[memory]"), key=lambda e: e.start_ns()):
        current += event.nbytes()
        peak = max(peak, current)
    return peak


@pytest.mark.parametrize(("height", "width", "tiles"), [(16, 24, 1), (16, 24, 3), (32, 24, 1)])
@torch.inference_mode()
def test_evaluation_estimate_matches_pytorch_allocations(height: int, width: int, tiles: int) -> None:
    x, control_image, text = (
        torch.randn(tiles, 4, height, width),
        torch.rand(1, 3, 4 * height, 4 * width),
        torch.randn(1, 77, 64),
    )
    denoise = guidance.guided_denoiser(
        unet(), controlnet(), Conditioning(cond=text, uncond=text), control_image,
        resemblance=1.0, dynamic=2.0, timestep=lambda sigma: 1.0, factor=4, whole_control_image=True,
    )  # fmt: skip
    positions = [Tile(top=0, left=0, height=height, width=width)] * tiles
    denoise(x, 1.0, positions)  # encodes the control image and initialises the kernels
    allocated_bytes = allocated(lambda: denoise(x, 1.0, positions))
    estimate = tiles * peak_memory.evaluation_bytes(unet(), controlnet(), height=height, width=width, factor=4)
    assert estimate == pytest.approx(allocated_bytes, rel=0.03)


def test_freed_tensors_and_views_are_not_counted() -> None:
    def work() -> Tensor:
        x = torch.zeros(1000)
        for _ in range(5):
            x = (x + 1).view(10, 100).t().reshape(-1)
        return x.add_(1)

    assert peak_memory.peak_bytes(work) == 3 * 4000  # the sum, its input, and the reordered copy


def test_attention_matrix_is_not_counted() -> None:
    queries = torch.empty((1, 8, 4096, 40), device="meta")
    size = peak_memory.peak_bytes(lambda: functional.scaled_dot_product_attention(queries, queries, queries))
    assert size == queries.nbytes


@cache
def stable_diffusion() -> pipeline.DiffusionModel:
    return engine.stable_diffusion(CLARITY.presets["clarity"])


def need(side: int) -> MemoryNeed:
    """Return the need of Stable Diffusion 1.5 with its tile ControlNet, for a square result of `side` pixels."""
    return stable_diffusion().memory_need(CLARITY.presets["clarity"], side, side)


def test_64_megapixels_fit_into_8_gb() -> None:
    large = need(8192)
    assert large.denoising + large.autoencoder + large.text == pytest.approx(2.66 * GIB, rel=0.02)
    plan = offload.make_plan(int(7.5 * GIB), large)  # the driver reserves some memory
    assert plan.peak_bytes(large) < 7.5 * GIB
    assert plan.batch >= 2
    codec = stable_diffusion().codec
    assert isinstance(codec, Autoencoder)
    # Raises if the budget is too small.
    assert replace(codec, budget=plan.autoencoder_bytes).recompute_factor(1024, 1024) < 9
    assert large.tile == pytest.approx(0.65 * GIB, rel=0.05)


def test_model_device_ignores_offloaded_networks() -> None:
    waiting = stable_diffusion()
    assert waiting.network_groups is not None
    acting = replace(waiting.network_groups, device=torch.device("cuda", 1))
    assert replace(waiting, network_groups=acting).device == torch.device("cuda", 1)
    assert replace(waiting, network_groups=None).device == waiting.unet.device


def test_small_device_offloads_and_large_device_keeps_all() -> None:
    small, large = (offload.make_plan(free * GIB, need(4096)) for free in (5, 24))
    assert (small.all_on_device, large.all_on_device) == (False, True)
    assert small.batch < large.batch <= offload.MAX_BATCH
    assert offload.make_plan(80 * GIB, need(1024)).batch <= need(1024).tiles


sizes = st.integers(0, 4 * GIB)


@given(
    free=st.integers(0, 64 * GIB), text=sizes, denoising=sizes, autoencoder=sizes, canvas=sizes,
    autoencoder_bytes=sizes, tile=st.integers(1, 2 * GIB), tiles=st.integers(1, 300),
)  # fmt: skip
def test_plan_never_exceeds_free_memory(free: int, **rest: int) -> None:
    memory_need = MemoryNeed(**rest)
    try:
        plan = offload.make_plan(free, memory_need)
    except EngineFailed:
        assert (
            max(
                memory_need.denoising + memory_need.canvas + memory_need.tile, memory_need.text, memory_need.autoencoder
            )
            > free * offload.PLANNED_SHARE
        )
        return
    assert 1 <= plan.batch <= min(memory_need.tiles, offload.MAX_BATCH)
    assert plan.autoencoder_bytes >= 0
    assert plan.peak_bytes(memory_need) <= free
    if plan.all_on_device:
        assert plan.autoencoder_bytes >= memory_need.autoencoder_bytes


def test_too_small_device_error_says_what_to_do() -> None:
    with pytest.raises(
        EngineFailed, match=r"One tile with its networks takes 3\.\d GiB, but only 1\.0 GiB .* smaller tiles"
    ):
        offload.make_plan(GIB, need(2048))


def network_groups(*, on_device: int = 0) -> NetworkGroups:
    """Create four networks of 400 bytes, the first ones on the device; the meta device stands for a GPU."""
    devices = ["meta"] * on_device + ["cpu"] * (4 - on_device)
    text, *denoising, autoencoder = (nn.Linear(10, 10, bias=False, device=device) for device in devices)
    return NetworkGroups(
        device=torch.device("meta"), text=(text,), denoising=tuple(denoising), autoencoder=(autoencoder,), tile=400
    )


@pytest.mark.parametrize("together", [False, True])
def test_active_networks_are_on_device_others_offloaded(together: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    groups = network_groups()
    on_device: set[nn.Module] = set()
    moves = {"meta": on_device.add, "cpu": on_device.discard}
    monkeypatch.setattr(memory, "move_to_device", lambda network, device: moves[device.type](network))
    everything = {*groups.text, *groups.denoising, *groups.autoencoder}
    for part in (groups.text, groups.autoencoder, groups.denoising, groups.autoencoder):
        groups.activate(part, OffloadPlan(all_on_device=together, batch=1, autoencoder_bytes=0))
        assert on_device == (everything if together else set(part))


@pytest.mark.parametrize(("on_device", "together"), [(0, False), (3, True)])
def test_weights_on_device_count_as_free(on_device: int, together: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_bytes", lambda device: 1500)
    groups = network_groups(on_device=on_device)
    plan = groups.plan(groups.memory_need(canvas=0, autoencoder_bytes=100, tiles=9))
    assert plan is not None
    assert plan.all_on_device == together  # 1600 bytes of networks and 400 for a tile


@pytest.mark.gpu
def test_moving_network_keeps_parameter_objects() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    network = nn.Linear(3, 3)
    weight, values = network.weight, network.weight.clone()
    with torch.inference_mode():
        for device in ("cuda", "cpu"):
            memory.move_to_device(network, torch.device(device))
            assert weight is network.weight
            assert weight.device.type == device
    assert torch.equal(weight, values)


def test_cpu_has_no_plan() -> None:
    groups = NetworkGroups(device=torch.device("cpu"), text=(), denoising=(), autoencoder=(), tile=0)
    assert groups.plan(groups.memory_need(canvas=1, autoencoder_bytes=1, tiles=1)) is None
