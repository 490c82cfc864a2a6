"""A fake device: its tensors have shapes but no values, and all operators and copies are recorded.

Guarantees: operators need all operands on one device or raise, as on a GPU. Requests for a value (`.item()`, `bool()`,
`.numpy()`) are recorded and get an answer without meaning. It knows no kernels: neither whether they exist for a
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

DEVICE_NAME = "phantom"


@functools.cache
def device() -> torch.device:
    _setup_privateuseone_for_python_backend(DEVICE_NAME)
    return torch.device(DEVICE_NAME, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """An operator call. arrives, leaves: bytes copied to or from the device. waits: the host waits for the copy."""

    stage: str
    name: str
    tensors: tuple[tuple[str, torch.dtype, tuple[int, ...]], ...]
    arrives: int = 0
    leaves: int = 0
    waits: bool = False


@dataclass(slots=True)
class Recording:
    """Recorded events in order; `stage` is copied into each event."""

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
def record() -> Iterator[Recording]:
    """Record everything in this context. New tensors have no values; existing tensors may be used."""
    device()
    recording = Recording()
    with (
        torch.inference_mode(),
        FakeTensorMode(allow_non_fake_inputs=True),
        _RecordOperators(recording),
        _HostFunctions(recording),
    ):
        yield recording


def move_to_phantom(network: nn.Module, dtype: torch.dtype) -> Any:
    """Replace parameters and buffers by tensors of `dtype` on the fake device, without values; return the network."""
    for module in network.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in list(tensors.items()):
                if tensor is None:
                    continue
                new_dtype = dtype if tensor.is_floating_point() else tensor.dtype
                layout = torch.channels_last if tensor.dim() == 4 else torch.contiguous_format
                empty = torch.empty(tensor.shape, dtype=new_dtype, device=device(), memory_format=layout)
                setattr(module, name, nn.Parameter(empty, False) if isinstance(tensor, nn.Parameter) else empty)
    return network.eval()


class _RecordOperators(TorchDispatchMode):  # type: ignore[no-untyped-call] # torch's own base, without annotations
    def __init__(self, recording: Recording) -> None:
        super().__init__()  # type: ignore[no-untyped-call] # as above
        self._recording = recording

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        operands = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        name = str(func).removeprefix("aten.").partition(".")[0]
        if name in ("_local_scalar_dense", "item", "is_nonzero", "equal"):
            self._note(name, operands, leaves=1 if _on_device(operands) else 0, waits=True)
            return True
        output = func(*args, **kwargs)
        results = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
        if name == "copy_":
            operands, results = operands[1:], operands[:1]
        size = sum(tensor.nbytes for tensor in results)
        arrives = size if _on_device(results) and not _on_device(operands) and operands else 0
        leaves = size if _on_device(operands) and not _on_device(results) and results else 0
        if arrives or leaves or name == "nonzero":
            queued = _argument(func, args, kwargs, "non_blocking") and any(
                x is pinned for x in operands for pinned in self._recording.pinned
            )
            self._note(name, [*operands, *results], arrives=arrives, leaves=leaves, waits=not queued)
        else:
            self._note(name, [*operands, *results])
        return output

    def _note(
        self, name: str, tensors: list[Tensor], *, arrives: int = 0, leaves: int = 0, waits: bool = False
    ) -> None:
        facts = tuple((tensor.device.type, tensor.dtype, tuple(tensor.shape)) for tensor in tensors)
        self._recording.events.append(
            Event(stage=self._recording.stage, name=name, tensors=facts, arrives=arrives, leaves=leaves, waits=waits)
        )


class _HostFunctions(TorchFunctionMode):
    """Replacements for functions that PyTorch offers only for tensors with values."""

    def __init__(self, recording: Recording) -> None:
        super().__init__()
        self._recording = recording

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is Tensor.pin_memory:
            pinned = args[0].clone()
            self._recording.pinned.append(pinned)
            return pinned
        if func is Tensor.numpy and args[0].device.type == "cpu":
            return np.zeros(args[0].shape, str(args[0].dtype).removeprefix("torch."))
        if func is torch.tensor and kwargs.get("device") is not None:
            return torch.tensor(*args, **{**kwargs, "device": "cpu"}).to(kwargs["device"])
        if func is Tensor.new_tensor:
            return torch.tensor(args[1], dtype=args[0].dtype).to(args[0].device)
        return func(*args, **kwargs)


def _on_device(tensors: list[Tensor]) -> bool:
    return any(tensor.device.type == DEVICE_NAME for tensor in tensors)


def _argument(func: Any, args: Any, kwargs: Any, name: str) -> Any:
    names = [argument.name for argument in func._schema.arguments]
    position = names.index(name) if name in names else len(args)
    return args[position] if position < len(args) else kwargs.get(name, False)
