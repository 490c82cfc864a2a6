"""A device that is not there: tensors on it have shapes and no values, and whatever passes to and fro is written down.

Guarantees: operators find their operands on one device or raise, as a GPU's do; what asks for a value (`.item()`,
`bool()`, `.numpy()`) is noted and gets an answer without meaning. It knows no kernels: neither that they exist for a
precision nor how fast they are.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "phantom"


@functools.cache
def device() -> torch.device:
    _setup_privateuseone_for_python_backend(NAME)
    return torch.device(NAME, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """An operator. arrives, leaves: bytes that went to the device or from it. waits: the host stands still for them."""

    stage: str
    name: str
    tensors: tuple[tuple[str, torch.dtype, tuple[int, ...]], ...]
    arrives: int = 0
    leaves: int = 0
    waits: bool = False


@dataclass(slots=True)
class Walk:
    """What happened, in order; `stage` is written to each event."""

    stage: str = ""
    events: list[Event] = field(default_factory=list)
    pinned: list[Tensor] = field(default_factory=list)

    def of(self, *stages: str) -> list[Event]:
        return [event for event in self.events if event.stage in stages]

    @contextlib.contextmanager
    def at(self, stage: str) -> Iterator[None]:
        before, self.stage = self.stage, stage
        try:
            yield
        finally:
            self.stage = before


@contextlib.contextmanager
def walk() -> Iterator[Walk]:
    """Within it, tensors are made without values; those that were there before may be used."""
    device()
    watched = Walk()
    with torch.inference_mode(), FakeTensorMode(allow_non_fake_inputs=True), _Watch(watched), _Host(watched):
        yield watched


def onto(network: nn.Module, dtype: torch.dtype) -> Any:
    """The network itself, with parameters and buffers of `dtype` on the device, without values; within `walk`."""
    for module in network.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in list(tensors.items()):
                if tensor is None:
                    continue
                kept = dtype if tensor.is_floating_point() else tensor.dtype
                layout = torch.channels_last if tensor.dim() == 4 else torch.contiguous_format
                empty = torch.empty(tensor.shape, dtype=kept, device=device(), memory_format=layout)
                setattr(module, name, nn.Parameter(empty, False) if isinstance(tensor, nn.Parameter) else empty)
    return network.eval()


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call] # torch's own base, without annotations
    def __init__(self, watched: Walk) -> None:
        super().__init__()  # type: ignore[no-untyped-call] # as above
        self._watched = watched

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        name = str(func).removeprefix("aten.").partition(".")[0]
        if name in ("_local_scalar_dense", "item", "is_nonzero", "equal"):
            self._note(name, given, leaves=1 if _there(given) else 0, waits=True)
            return True
        made = func(*args, **kwargs)
        results = [leaf for leaf in tree_leaves(made) if isinstance(leaf, Tensor)]
        if name == "copy_":
            given, results = given[1:], given[:1]
        went = sum(tensor.nbytes for tensor in results)
        arrives = went if _there(results) and not _there(given) and given else 0
        leaves = went if _there(given) and not _there(results) and results else 0
        if arrives or leaves or name == "nonzero":
            queued = _argument(func, args, kwargs, "non_blocking") and any(
                x is pinned for x in given for pinned in self._watched.pinned
            )
            self._note(name, [*given, *results], arrives=arrives, leaves=leaves, waits=not queued)
        else:
            self._note(name, [*given, *results])
        return made

    def _note(
        self, name: str, tensors: list[Tensor], *, arrives: int = 0, leaves: int = 0, waits: bool = False
    ) -> None:
        facts = tuple((tensor.device.type, tensor.dtype, tuple(tensor.shape)) for tensor in tensors)
        self._watched.events.append(
            Event(stage=self._watched.stage, name=name, tensors=facts, arrives=arrives, leaves=leaves, waits=waits)
        )


class _Host(TorchFunctionMode):
    """What PyTorch offers for tensors with values only."""

    def __init__(self, watched: Walk) -> None:
        super().__init__()
        self._watched = watched

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is Tensor.pin_memory:
            pinned = args[0].clone()
            self._watched.pinned.append(pinned)
            return pinned
        if func is Tensor.numpy and args[0].device.type == "cpu":
            return np.zeros(args[0].shape, str(args[0].dtype).removeprefix("torch."))
        if func is torch.tensor and kwargs.get("device") is not None:
            return torch.tensor(*args, **{**kwargs, "device": "cpu"}).to(kwargs["device"])
        if func is Tensor.new_tensor:
            return torch.tensor(args[1], dtype=args[0].dtype).to(args[0].device)
        return func(*args, **kwargs)


def _there(tensors: list[Tensor]) -> bool:
    return any(tensor.device.type == NAME for tensor in tensors)


def _argument(func: Any, args: Any, kwargs: Any, name: str) -> Any:
    names = [argument.name for argument in func._schema.arguments]
    position = names.index(name) if name in names else len(args)
    return args[position] if position < len(args) else kwargs.get(name, False)
