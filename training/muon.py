"""Muon optimiser: orthogonalised momentum for all matrices (Jordan et al., 2024).

torch's version only supports two dimensions. Most weights of a UNet are convolutions, which are matrices from all
inputs of the kernel to the output channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

# Odd polynomial of the Newton-Schulz iteration, steep at 0: after five iterations all singular values are near 1.
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5
_ADAM_NAMES = ("conv_in", "conv_out", "embedding")


class Muon(torch.optim.Optimizer):
    """Muon with decoupled weight decay, lr * decay * weight; `lr` scales an orthogonal update."""

    def __init__(
        self, params: Iterable[nn.Parameter], *, lr: float = 0.02, momentum: float = 0.95, weight_decay: float = 0.05
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]  # no closures here
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is None:
                    continue
                momentum = self.state[param].setdefault("momentum", torch.zeros_like(param))
                momentum.lerp_(param.grad, 1 - group["momentum"])
                update = orthogonalise(param.grad.lerp(momentum, group["momentum"]).flatten(1))
                # The size of Adam's update for a matrix of this shape.
                size = 0.2 * max(update.shape) ** 0.5
                param.mul_(1 - group["lr"] * group["weight_decay"])
                param.add_(update.view_as(param), alpha=-group["lr"] * size)


def orthogonalise(matrix: Tensor) -> Tensor:
    """Return the matrix with its singular values moved near 1; bfloat16 is precise enough."""
    x = matrix.bfloat16()
    transposed = x.shape[0] > x.shape[1]
    x = x.T if transposed else x
    x = x / (x.norm() + 1e-7)
    a, b, c = _COEFFICIENTS
    for _ in range(_ITERATIONS):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    result: Tensor = x.T if transposed else x
    return result.to(matrix.dtype)


def optimisers(network: nn.Module, *, lr: float, fine_lr: float) -> list[torch.optim.Optimizer]:
    """Return Muon for inner matrices and convolutions, and AdamW for first and last layers, embeddings and vectors."""
    inner: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, param in network.named_parameters():
        (inner if param.dim() > 1 and not any(word in name for word in _ADAM_NAMES) else rest).append(param)
    return [Muon(inner, lr=lr), torch.optim.AdamW(rest, lr=fine_lr, betas=(0.9, 0.99), weight_decay=0.0)]
