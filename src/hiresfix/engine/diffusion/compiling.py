"""Compile UNet and ControlNet with torch.compile, block by block.

Guarantees:

- Compiled code reads the weights at each call, so merged LoRAs and moves between host and device take effect.
- One compilation of a block serves all batch sizes, tile sizes and prompt lengths.
- What cannot be compiled runs uncompiled, and that is logged once.

Blocks are compiled instead of whole networks for three reasons: blocks of one kind and width share a compilation, so
there are a tenth as many; a ControlNet used without its image encoder (`guidance`) has the same blocks; and there is
little work between blocks. To the compiler, a tile of 8 latent pixels is a separate size, because its side is 1 at the
UNet's coarsest level. Independent of recipes and images.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch._dynamo.exc import RestartAnalysis, SkipFrame

log = logging.getLogger(__name__)

BLOCKS = ("ResnetBlock2D", "Transformer2DModel")
"""Classes of diffusers with nearly all of the work: norms, activations and residual sums beside matrix products."""
MAX_COMPILATIONS = 64
"""Compilations of one class: widths times sizes. Further ones run uncompiled."""

Compiled = Callable[..., Any]


def compile_blocks(*networks: nn.Module) -> None:
    """Mark the blocks of these networks to be compiled at their first use. Earlier copies stay uncompiled."""
    for network in networks:
        for block in network.modules():
            if type(block).__name__ in BLOCKS:
                block.compile(backend=_backend, dynamic=True, recompile_limit=MAX_COMPILATIONS)


class _Backend:
    """Backend of torch.compile that stops after its first failure, because the next try would fail as slowly."""

    def __init__(self, compile_graph: Callable[[torch.fx.GraphModule, Sequence[Any]], Compiled]) -> None:
        self._compile = compile_graph
        self.failed = False

    def __call__(self, graph: torch.fx.GraphModule, inputs: Sequence[Any]) -> Compiled:
        if not self.failed:
            try:
                return self._compile(graph, inputs)
            except (RestartAnalysis, SkipFrame):
                raise  # not a failure: this asks for another graph
            except Exception as error:  # there are several compilers, each with its own errors
                self.failed = True
                log.warning(
                    "The networks could not be compiled and run uncompiled: %s. "
                    "Install a C++ compiler (on a CPU) or Triton (on a GPU), or unset HIRESFIX_COMPILE.",
                    str(error).partition("\n")[0] or type(error).__name__,
                )
        return graph.forward


def _inductor(graph: torch.fx.GraphModule, inputs: Sequence[Any]) -> Compiled:
    compiled: Compiled = torch._dynamo.lookup_backend("inductor")(graph, list(inputs))
    return compiled


_backend = _Backend(_inductor)
