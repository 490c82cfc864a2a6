"""Compiled networks: what they compute, how often they are compiled, and what becomes of a compiler that fails."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from diffusers.models.controlnets.controlnet import ControlNetModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor

from hiresfix.engine import devices
from hiresfix.engine.diffusion import compiling, guidance
from hiresfix.engine.diffusion.compiling import Compiled
from hiresfix.engine.diffusion.guidance import Conditioning
from hiresfix.engine.diffusion.multidiffusion import Tile
from hiresfix.server.worker import self_test

TEXT = 8
SHAPE: dict[str, Any] = {
    "block_out_channels": (8,), "down_block_types": ("CrossAttnDownBlock2D",), "layers_per_block": 1,
    "cross_attention_dim": TEXT, "attention_head_dim": 2, "norm_num_groups": 4,
}  # fmt: skip
Networks = tuple[UNet2DConditionModel, ControlNetModel]


class Counting:
    """A compiler that goes all the way but for writing and compiling code."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: Sequence[Any]) -> Compiled:
        made: Compiled = torch._dynamo.lookup_backend("aot_eager")(graph, list(inputs))
        self.graphs += 1  # those that ask for another graph do not come here
        return made


@pytest.fixture
def networks() -> Networks:
    torch.manual_seed(0)
    unet: Any = UNet2DConditionModel(**SHAPE, up_block_types=("CrossAttnUpBlock2D",))
    controlnet: Any = ControlNetModel(**SHAPE, conditioning_embedding_out_channels=(4, 4))
    for network in (unet, controlnet):
        for parameter in network.eval().requires_grad_(False).parameters():
            parameter += 0.1 * torch.randn_like(parameter)  # some begin as zeros
    return unet, controlnet


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counting]:
    counting = Counting()
    monkeypatch.setattr(compiling, "_backend", compiling._Backend(counting))
    torch._dynamo.reset()
    yield counting
    torch._dynamo.reset()


@torch.inference_mode()
def evaluation(networks: Networks, height: int, width: int, tiles: int = 1, chunks: int = 1) -> Tensor:
    made = torch.Generator().manual_seed(height * width)
    text = torch.randn(1, 77, TEXT, generator=made)
    conditioning = Conditioning(cond=text.repeat(1, chunks, 1) + 1, uncond=text)
    hint = torch.rand(1, 3, 2 * height, 2 * width * tiles, generator=made)
    denoise = guidance.guided(
        *networks, conditioning, hint, resemblance=0.6, dynamic=6.0, timestep=lambda sigma: 100.5, factor=2
    )  # fmt: skip
    places = [Tile(top=0, left=width * number, height=height, width=width) for number in range(tiles)]
    return denoise(torch.randn(tiles, 4, height, width, generator=made), 0.6, places)


def test_what_the_self_test_compiled_serves_every_picture_lora_and_move(networks: Networks, compiler: Counting) -> None:
    plain = copy.deepcopy(networks)
    # A part of both, with the same blocks: each kind takes seconds.
    compiling.prepare(*(network.get_submodule("mid_block") for network in networks))
    first = (self_test.GENERAL_SIDES[0] * self_test.SCALE // 8, self_test.GENERAL_SIDES[1] * self_test.SCALE // 8)
    torch.testing.assert_close(evaluation(networks, *first), evaluation(plain, *first))
    graphs = compiler.graphs
    assert graphs >= 2
    for height, width, tiles, chunks in ((16, 16, 3, 1), (40, 24, 2, 1), (24, 48, 2, 2), (24, 40, 1, 1)):
        job = (height, width, tiles, chunks)
        torch.testing.assert_close(evaluation(networks, *job), evaluation(plain, *job))
    before = evaluation(networks, *first)
    for unet, _ in (networks, plain):
        weight = unet.get_parameter("mid_block.resnets.0.conv1.weight")
        weight.mul_(2.0)  # as LoRAs are merged
        weight = unet.get_parameter("mid_block.attentions.0.proj_in.weight")
        weight.data = (weight + 0.1).clone()  # as networks are moved
    after = evaluation(networks, *first)
    torch.testing.assert_close(after, evaluation(plain, *first))
    assert (after - before).abs().max() > 1e-3
    assert compiler.graphs == graphs


def test_a_compiler_that_fails_is_told_of_once_and_the_picture_is_made_without_it(
    networks: Networks, compiler: Counting, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    attempts = []

    def broken(graph: torch.fx.GraphModule, inputs: Sequence[Any]) -> Compiled:
        attempts.append(graph)
        raise RuntimeError("No working C++ compiler found\nand much more")

    plain = copy.deepcopy(networks)
    monkeypatch.setattr(compiling, "_backend", compiling._Backend(broken))
    with caplog.at_level(logging.WARNING, logger=compiling.__name__):
        compiling.prepare(networks[0].get_submodule("mid_block"))
        torch.testing.assert_close(evaluation(networks, 8, 16), evaluation(plain, 8, 16))
    assert len(attempts) == 1
    (warning,) = caplog.messages
    assert "used as they stand: No working C++ compiler found. Install" in warning


def test_running_out_of_memory_in_a_compiled_block_is_still_running_out_of_memory(
    networks: Networks, compiler: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    def narrow(graph: torch.fx.GraphModule, inputs: Sequence[Any]) -> Compiled:
        def full(*given: Any) -> Any:
            raise torch.OutOfMemoryError("CUDA out of memory")

        return full

    monkeypatch.setattr(compiling, "_backend", compiling._Backend(narrow))
    compiling.prepare(networks[0].get_submodule("mid_block"))
    with pytest.raises(torch.OutOfMemoryError) as caught:
        evaluation(networks, 8, 16)
    assert devices.is_out_of_memory(caught.value)
