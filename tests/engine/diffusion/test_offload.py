"""What a computation holds, against PyTorch's own account of it, and plans that keep within what is free."""

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
from hiresfix.engine.diffusion.offload import Need, Plan, Residents
from hiresfix.engine.diffusion.vae import Autoencoder
from hiresfix.errors import EngineFailed
from hiresfix.models.catalog import CLARITY
from tests.engine.weights.test_checkpoints import controlnet, unet

GIB = 1 << 30


def allocated(work: Callable[[], Any]) -> int:
    """The most bytes at once that PyTorch's allocator hands out during `work`."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    events = profiler.profiler.kineto_results.events()
    now = most = 0
    for event in sorted((e for e in events if e.name() == "[memory]"), key=lambda e: e.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


@pytest.mark.parametrize(("height", "width", "tiles"), [(16, 24, 1), (16, 24, 3), (32, 24, 1)])
@torch.inference_mode()
def test_an_evaluation_holds_what_pytorch_allocates_for_it(height: int, width: int, tiles: int) -> None:
    x, hint, text = (
        torch.randn(tiles, 4, height, width),
        torch.rand(1, 3, 4 * height, 4 * width),
        torch.randn(1, 77, 64),
    )
    denoise = guidance.guided(
        unet(), controlnet(), Conditioning(cond=text, uncond=text), hint,
        resemblance=1.0, dynamic=2.0, timestep=lambda sigma: 1.0, factor=4, whole_hint=True,
    )  # fmt: skip
    places = [Tile(top=0, left=0, height=height, width=width)] * tiles
    denoise(x, 1.0, places)  # encodes the hint and lets the kernels prepare themselves
    measured = allocated(lambda: denoise(x, 1.0, places))
    said = tiles * peak_memory.evaluation(unet(), controlnet(), height=height, width=width, factor=4)
    assert said == pytest.approx(measured, rel=0.03)


def test_what_is_freed_on_the_way_does_not_add_up_and_a_view_is_nothing_new() -> None:
    def work() -> Tensor:
        x = torch.zeros(1000)
        for _ in range(5):
            x = (x + 1).view(10, 100).t().reshape(-1)
        return x.add_(1)

    assert peak_memory.peak(work) == 3 * 4000  # the sum, what it came from, and the copy in another order


def test_attention_is_counted_without_the_matrix_of_all_pairs() -> None:
    queries = torch.empty((1, 8, 4096, 40), device="meta")
    size = peak_memory.peak(lambda: functional.scaled_dot_product_attention(queries, queries, queries))
    assert size == queries.nbytes


@cache
def stable_diffusion() -> pipeline.Model:
    return engine.stable_diffusion(CLARITY.presets["clarity"])


def need(side: int) -> Need:
    """Of Stable Diffusion 1.5 with its tile ControlNet, for a square result of so many pixels a side."""
    return stable_diffusion().need(CLARITY.presets["clarity"], side, side)


def test_64_megapixels_of_stable_diffusion_fit_into_eight_gigabytes_of_a_device() -> None:
    large = need(8192)
    assert large.diffusing + large.coding + large.text == pytest.approx(2.66 * GIB, rel=0.02)
    made = offload.plan(int(7.5 * GIB), large)  # a driver keeps something for itself
    assert made.most(large) < 7.5 * GIB
    assert made.batch >= 2
    codec = stable_diffusion().codec
    assert isinstance(codec, Autoencoder)
    # Raises if the section were too small for it.
    assert replace(codec, budget=made.section).repetition(1024, 1024) < 9
    assert large.tile == pytest.approx(0.65 * GIB, rel=0.05)


def test_a_model_acts_on_its_device_also_while_its_networks_wait_elsewhere() -> None:
    waiting = stable_diffusion()
    assert waiting.residents is not None
    acting = replace(waiting.residents, device=torch.device("cuda", 1))
    assert replace(waiting, residents=acting).device == torch.device("cuda", 1)
    assert replace(waiting, residents=None).device == waiting.unet.device


def test_a_small_device_holds_only_the_networks_that_act_and_a_large_one_all_of_them() -> None:
    small, large = (offload.plan(free * GIB, need(4096)) for free in (5, 24))
    assert (small.together, large.together) == (False, True)
    assert small.batch < large.batch <= offload.MOST_TILES
    assert offload.plan(80 * GIB, need(1024)).batch <= need(1024).tiles


sizes = st.integers(0, 4 * GIB)


@given(
    free=st.integers(0, 64 * GIB), text=sizes, diffusing=sizes, coding=sizes, canvas=sizes, section=sizes,
    tile=st.integers(1, 2 * GIB), tiles=st.integers(1, 300),
)  # fmt: skip
def test_no_plan_takes_more_than_is_free(free: int, **rest: int) -> None:
    wanted = Need(**rest)
    try:
        made = offload.plan(free, wanted)
    except EngineFailed:
        assert max(wanted.diffusing + wanted.canvas + wanted.tile, wanted.text, wanted.coding) > free * offload.SHARE
        return
    assert 1 <= made.batch <= min(wanted.tiles, offload.MOST_TILES)
    assert made.section >= 0
    assert made.most(wanted) <= free
    if made.together:
        assert made.section >= wanted.section


def test_a_device_too_small_for_one_tile_is_told_with_what_to_do() -> None:
    with pytest.raises(EngineFailed, match=r"A tile with its networks takes 3\.\d GiB, and 1\.0 GiB .* smaller tiles"):
        offload.plan(GIB, need(2048))


def residents(*, there: int = 0) -> Residents:
    """Four networks of 400 bytes, the first of them on the device; one without values stands for a GPU."""
    devices = ["meta"] * there + ["cpu"] * (4 - there)
    text, *diffusing, coding = (nn.Linear(10, 10, bias=False, device=device) for device in devices)
    return Residents(device=torch.device("meta"), text=(text,), diffusing=tuple(diffusing), coding=(coding,), tile=400)


@pytest.mark.parametrize("together", [False, True])
def test_networks_are_on_the_device_while_they_act_and_alone_where_it_is_small(
    together: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    those = residents()
    on_device: set[nn.Module] = set()
    moves = {"meta": on_device.add, "cpu": on_device.discard}
    monkeypatch.setattr(memory, "move", lambda network, device: moves[device.type](network))
    everything = {*those.text, *those.diffusing, *those.coding}
    for part in (those.text, those.coding, those.diffusing, those.coding):
        those.bring(part, Plan(together=together, batch=1, section=0))
        assert on_device == (everything if together else set(part))


@pytest.mark.parametrize(("there", "together"), [(0, False), (3, True)])
def test_what_is_on_the_device_already_counts_as_free(
    there: int, together: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "free_bytes", lambda device: 1500)
    those = residents(there=there)
    made = those.plan(those.need(canvas=0, section=100, tiles=9))
    assert made is not None
    assert made.together == together  # 1600 bytes of networks and 400 of a tile


@pytest.mark.gpu
def test_who_holds_a_parameter_holds_it_still_after_a_move() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    network = nn.Linear(3, 3)
    held, values = network.weight, network.weight.clone()
    with torch.inference_mode():
        for device in ("cuda", "cpu"):
            memory.move(network, torch.device(device))
            assert held is network.weight
            assert held.device.type == device
    assert torch.equal(held, values)


def test_the_host_needs_no_plan() -> None:
    there = Residents(device=torch.device("cpu"), text=(), diffusing=(), coding=(), tile=0)
    assert there.plan(there.need(canvas=1, section=1, tiles=1)) is None
