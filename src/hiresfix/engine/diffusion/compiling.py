"""UNet and ControlNet through torch.compile, block by block.

Guarantees: what is compiled reads weights where they are at each call, so LoRAs and moves between host and device are
seen; one compilation of a block serves every number of tiles, every size of tile and every length of prompt; where
something cannot be compiled, it is computed as it stands, and that is logged once. Knows no recipes and no pictures.

Blocks and not whole networks: those of one kind and width share a compilation, so there are a tenth as many, a network
that is used without its hint's encoder (`guidance`) has the same blocks, and what lies between them is little. A side
of one at the UNet's coarsest level, a tile of 8 latent pixels, is a size of its own to the compiler.
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
"""Classes of diffusers in which nearly all is computed: norms, activations and residual sums beside matrices."""
MOST = 64
"""Compilations of one class: kinds of widths times the sizes of one. What comes after that is computed as it stands."""

Compiled = Callable[..., Any]


def prepare(*networks: nn.Module) -> None:
    """Their blocks are compiled when they are first used. What is copied of a network is as it was before."""
    for network in networks:
        for block in network.modules():
            if type(block).__name__ in BLOCKS:
                block.compile(backend=_backend, dynamic=True, recompile_limit=MOST)


class _Backend:
    """A backend of torch.compile that gives up after its first failure: another would take as long and fail, too."""

    def __init__(self, compile_graph: Callable[[torch.fx.GraphModule, Sequence[Any]], Compiled]) -> None:
        self._compile = compile_graph
        self.failed = False

    def __call__(self, graph: torch.fx.GraphModule, inputs: Sequence[Any]) -> Compiled:
        if not self.failed:
            try:
                return self._compile(graph, inputs)
            except (RestartAnalysis, SkipFrame):
                raise  # no failure, but how a backend asks for another graph
            except Exception as error:  # of any compiler, of which there are several
                self.failed = True
                log.warning(
                    "The networks could not be compiled and are used as they stand: %s. "
                    "Install a C++ compiler (on a CPU) or Triton (on a GPU), or unset HIRESFIX_COMPILE.",
                    str(error).partition("\n")[0] or type(error).__name__,
                )
        return graph.forward


def _inductor(graph: torch.fx.GraphModule, inputs: Sequence[Any]) -> Compiled:
    compiled: Compiled = torch._dynamo.lookup_backend("inductor")(graph, list(inputs))
    return compiled


_backend = _Backend(_inductor)
