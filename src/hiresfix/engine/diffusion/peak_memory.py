"""How many bytes a computation holds at once, found by going through it with tensors that have shapes and no values.

Guarantees: nothing is computed and no memory is taken, so networks of any size are measured anywhere, in seconds. What
is counted is what PyTorch allocates for tensors beyond those that were there before; the workspaces of a device's
kernels and what its allocator loses to fragments are not, and attention is taken for a kernel that keeps no matrix of
all pairs, as those of CUDA and of CPUs do. Knows no devices and no plans.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hiresfix.engine.diffusion import guidance
from hiresfix.engine.diffusion.guidance import Conditioning
from hiresfix.engine.diffusion.multidiffusion import Tile

if TYPE_CHECKING:
    from diffusers.models.controlnets.controlnet import ControlNetModel
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

_TOKENS = 77


def weights(networks: Iterable[torch.nn.Module | None]) -> int:
    """Bytes of all parameters and buffers; None counts as nothing."""
    there = [network for network in networks if network is not None]
    return sum(tensor.nbytes for network in there for tensor in (*network.parameters(), *network.buffers()))


def evaluation(
    unet: UNet2DConditionModel, controlnet: ControlNetModel | None, *, height: int, width: int, factor: int
) -> int:
    """Bytes beside the weights for one tile of height x width latent pixels, both halves of guidance.

    With its part of the hint. n tiles at once take n times as much. factor: pixels per latent pixel along one axis.
    """
    unet, controlnet = _shape_of(unet), None if controlnet is None else _shape_of(controlnet)
    x, hint, text = (
        torch.empty(shape, dtype=torch.float32, device="meta")
        for shape in (
            (1, unet.config["in_channels"], height, width),
            (1, 3, height * factor, width * factor),
            (1, _TOKENS, unet.config["cross_attention_dim"]),
        )
    )
    denoise = guidance.guided(
        unet, controlnet, Conditioning(cond=text, uncond=text), hint,
        resemblance=1.0, dynamic=2.0, timestep=lambda sigma: 1.0, factor=factor, whole_hint=True,
    )  # fmt: skip
    tiles = [Tile(top=0, left=0, height=height, width=width)]
    with torch.inference_mode():
        return peak(lambda: denoise(x, 1.0, tiles))


def peak(work: Callable[[], Any]) -> int:
    """The most bytes that tensors made during `work` hold at once."""
    live = _Live()
    with _NoPairs(), live:
        work()
    return live.most


def _shape_of(network: Any) -> Any:
    """The same network down to each setting, with parameters and buffers that have no values."""
    empty: dict[int, Tensor] = {}
    for tensor in (*network.parameters(), *network.buffers()):
        shape = torch.empty_like(tensor, device="meta")
        empty[id(tensor)] = torch.nn.Parameter(shape, False) if isinstance(tensor, torch.nn.Parameter) else shape
    return copy.deepcopy(network, empty)


class _Live(TorchDispatchMode):  # type: ignore[no-untyped-call] # torch's own base, without annotations
    """Counts storages from when an operator returns them to when nothing refers to them."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call] # as above
        self.most = 0
        self._now = 0
        self._seen: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        inputs = {id(leaf.untyped_storage()) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            # A view, or a result written to an input, is no new memory.
            if isinstance(leaf, Tensor) and id(leaf.untyped_storage()) not in inputs:
                self._note(leaf.untyped_storage())
        return result

    def _note(self, storage: torch.UntypedStorage) -> None:
        if storage in self._seen:
            return
        self._seen.add(storage)
        size = storage.nbytes()
        self._now += size
        self.most = max(self.most, self._now)
        weakref.finalize(storage, self._drop, size)

    def _drop(self, size: int) -> None:
        self._now -= size


class _NoPairs(TorchFunctionMode):
    """Attention as fused kernels compute it; PyTorch has none for tensors without values."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is functional.scaled_dot_product_attention:
            query = args[0] if args else kwargs["query"]
            return torch.empty_like(query)
        return func(*args, **(kwargs or {}))
