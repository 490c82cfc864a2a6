"""Peak memory of a forward pass, measured on meta tensors (tensors with shapes but without values).

Guarantees: nothing is computed and no memory is allocated, so networks of any size are measured on any machine, in
seconds.

Counted are the bytes that PyTorch allocates for new tensors. Not counted are the workspaces of a device's kernels and
what its allocator loses to fragmentation. Attention counts as a fused kernel that never stores the matrix of all
pairs, as on CUDA and on CPUs. Independent of devices and plans.
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


def weight_bytes(networks: Iterable[torch.nn.Module | None]) -> int:
    """Return the bytes of all parameters and buffers; None counts as 0."""
    present = [network for network in networks if network is not None]
    return sum(tensor.nbytes for network in present for tensor in (*network.parameters(), *network.buffers()))


def evaluation_bytes(
    unet: UNet2DConditionModel, controlnet: ControlNetModel | None, *, height: int, width: int, factor: int
) -> int:
    """Return the working memory of one evaluation of one tile, in bytes, without the weights.

    Includes both halves of guidance and the tile's part of the control image. A batch of n tiles takes n times as much.

    Args:
        unet: The UNet.
        controlnet: The ControlNet, if there is one.
        height: Height of the tile in latent pixels.
        width: Width of the tile in latent pixels.
        factor: Pixels per latent pixel along one axis.
    """
    unet, controlnet = _without_values(unet), None if controlnet is None else _without_values(controlnet)
    x, control_image, text = (
        torch.empty(shape, dtype=torch.float32, device="meta")
        for shape in (
            (1, unet.config["in_channels"], height, width),
            (1, 3, height * factor, width * factor),
            (1, _TOKENS, unet.config["cross_attention_dim"]),
        )
    )
    denoise = guidance.guided_denoiser(
        unet, controlnet, Conditioning(cond=text, uncond=text), control_image,
        resemblance=1.0, dynamic=2.0, timestep=lambda sigma: 1.0, factor=factor, whole_control_image=True,
    )  # fmt: skip
    tiles = [Tile(top=0, left=0, height=height, width=width)]
    with torch.inference_mode():
        return peak_bytes(lambda: denoise(x, 1.0, tiles))


def peak_bytes(work: Callable[[], Any]) -> int:
    """Return the most bytes that tensors created during `work` hold at the same time."""
    live = _LiveBytes()
    with _FusedAttention(), live:
        work()
    return live.peak


def _without_values(network: Any) -> Any:
    """Copy a network with its configuration, with meta tensors as parameters and buffers."""
    empty: dict[int, Tensor] = {}
    for tensor in (*network.parameters(), *network.buffers()):
        shape = torch.empty_like(tensor, device="meta")
        empty[id(tensor)] = torch.nn.Parameter(shape, False) if isinstance(tensor, torch.nn.Parameter) else shape
    return copy.deepcopy(network, empty)


class _LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call] # torch's own base, without annotations
    """Count the bytes of storages, from the operator that returns them until nothing refers to them."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call] # as above
        self.peak = 0
        self._current = 0
        self._seen: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        inputs = {id(leaf.untyped_storage()) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            # A view, or a result written into an input, takes no new memory.
            if isinstance(leaf, Tensor) and id(leaf.untyped_storage()) not in inputs:
                self._add(leaf.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        if storage in self._seen:
            return
        self._seen.add(storage)
        size = storage.nbytes()
        self._current += size
        self.peak = max(self.peak, self._current)
        weakref.finalize(storage, self._remove, size)

    def _remove(self, size: int) -> None:
        self._current -= size


class _FusedAttention(TorchFunctionMode):
    """Replace attention by a stand-in with a fused kernel's memory use; PyTorch has none for meta tensors."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is functional.scaled_dot_product_attention:
            query = args[0] if args else kwargs["query"]
            return torch.empty_like(query)
        return func(*args, **(kwargs or {}))
