"""Compiled networks: results, number of compilations, and failing compilers."""

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


class CountingCompiler:
    """A compiler that does everything except generating code."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: Sequence[Any]) -> Compiled:
        compiled: Compiled = torch._dynamo.lookup_backend("aot_eager")(graph, list(inputs))
        self.graphs += 1  # not reached by a request for another graph
        return compiled


@pytest.fixture
def networks() -> Networks:
    torch.manual_seed(0)
    unet: Any = UNet2DConditionModel(**SHAPE, up_block_types=("CrossAttnUpBlock2D",))
    controlnet: Any = ControlNetModel(**SHAPE, conditioning_embedding_out_channels=(4, 4))
    for network in (unet, controlnet):
        for parameter in network.eval().requires_grad_(False).parameters():
            parameter += 0.1 * torch.randn_like(parameter)  # some start as zeros
    return unet, controlnet


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[CountingCompiler]:
    compiler = CountingCompiler()
    monkeypatch.setattr(compiling, "_backend", compiling._Backend(compiler))
    torch._dynamo.reset()
    yield compiler
    torch._dynamo.reset()


@torch.inference_mode()
def evaluation(networks: Networks, height: int, width: int, tiles: int = 1, chunks: int = 1) -> Tensor:
    random = torch.Generator().manual_seed(height * width)
    text = torch.randn(1, 77, TEXT, generator=random)
    conditioning = Conditioning(cond=text.repeat(1, chunks, 1) + 1, uncond=text)
    control_image = torch.rand(1, 3, 2 * height, 2 * width * tiles, generator=random)
    denoise = guidance.guided_denoiser(
        *networks, conditioning, control_image, resemblance=0.6, dynamic=6.0, timestep=lambda sigma: 100.5, factor=2
    )  # fmt: skip
    positions = [Tile(top=0, left=width * number, height=height, width=width) for number in range(tiles)]
    return denoise(torch.randn(tiles, 4, height, width, generator=random), 0.6, positions)


def test_self_test_compilation_serves_all_later_jobs(networks: Networks, compiler: CountingCompiler) -> None:
    plain = copy.deepcopy(networks)
    # Only the middle blocks of both, because each kind takes seconds to compile.
    compiling.compile_blocks(*(network.get_submodule("mid_block") for network in networks))
    first = (self_test.DISTINCT_SIDES[0] * self_test.SCALE // 8, self_test.DISTINCT_SIDES[1] * self_test.SCALE // 8)
    torch.testing.assert_close(evaluation(networks, *first), evaluation(plain, *first))
    graphs = compiler.graphs
    assert graphs >= 2
    for height, width, tiles, chunks in ((16, 16, 3, 1), (40, 24, 2, 1), (24, 48, 2, 2), (24, 40, 1, 1)):
        job = (height, width, tiles, chunks)
        torch.testing.assert_close(evaluation(networks, *job), evaluation(plain, *job))
    before = evaluation(networks, *first)
    for unet, _ in (networks, plain):
        weight = unet.get_parameter("mid_block.resnets.0.conv1.weight")
        weight.mul_(2.0)  # like a merged LoRA
        weight = unet.get_parameter("mid_block.attentions.0.proj_in.weight")
        weight.data = (weight + 0.1).clone()  # like a moved network
    after = evaluation(networks, *first)
    torch.testing.assert_close(after, evaluation(plain, *first))
    assert (after - before).abs().max() > 1e-3
    assert compiler.graphs == graphs


def test_failing_compiler_warns_once_and_falls_back(
    networks: Networks, compiler: CountingCompiler, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    attempts = []

    def broken(graph: torch.fx.GraphModule, inputs: Sequence[Any]) -> Compiled:
        attempts.append(graph)
        raise RuntimeError("No working C++ compiler found\nand much more")

    plain = copy.deepcopy(networks)
    monkeypatch.setattr(compiling, "_backend", compiling._Backend(broken))
    with caplog.at_level(logging.WARNING, logger=compiling.__name__):
        compiling.compile_blocks(networks[0].get_submodule("mid_block"))
        torch.testing.assert_close(evaluation(networks, 8, 16), evaluation(plain, 8, 16))
    assert len(attempts) == 1
    (warning,) = caplog.messages
    assert "run uncompiled: No working C++ compiler found. Install" in warning


def test_compiled_block_passes_out_of_memory_error_on(
    networks: Networks, compiler: CountingCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    def out_of_memory(graph: torch.fx.GraphModule, inputs: Sequence[Any]) -> Compiled:
        def full(*args: Any) -> Any:
            raise torch.OutOfMemoryError("CUDA out of memory")

        return full

    monkeypatch.setattr(compiling, "_backend", compiling._Backend(out_of_memory))
    compiling.compile_blocks(networks[0].get_submodule("mid_block"))
    with pytest.raises(torch.OutOfMemoryError) as error_info:
        evaluation(networks, 8, 16)
    assert devices.is_out_of_memory(error_info.value)
