"""Muon: momentum, made orthogonal, for everything that is a matrix (Jordan et al., 2024).

torch has it for two dimensions only; most of what a UNet learns are convolutions, which are matrices from all that
goes in to what comes out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

# Of the odd polynomial of Newton and Schulz's iteration, steep at 0: after five rounds all singular values are near 1.
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ROUNDS = 5
_OUTER = ("conv_in", "conv_out", "embedding")


class Muon(torch.optim.Optimizer):
    """lr: the size of an update relative to an orthogonal matrix. Weight decay is decoupled: lr * decay * weight."""

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
                update = orthogonal(param.grad.lerp(momentum, group["momentum"]).flatten(1))
                # As large as an update of Adam would be for a matrix of this shape.
                size = 0.2 * max(update.shape) ** 0.5
                param.mul_(1 - group["lr"] * group["weight_decay"])
                param.add_(update.view_as(param), alpha=-group["lr"] * size)


def orthogonal(matrix: Tensor) -> Tensor:
    """The matrix with its singular values brought near 1; bfloat16 is exact enough for that."""
    x = matrix.bfloat16()
    turned = x.shape[0] > x.shape[1]
    x = x.T if turned else x
    x = x / (x.norm() + 1e-7)
    a, b, c = _COEFFICIENTS
    for _ in range(_ROUNDS):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    result: Tensor = x.T if turned else x
    return result.to(matrix.dtype)


def optimisers(network: nn.Module, *, lr: float, fine_lr: float) -> list[torch.optim.Optimizer]:
    """Muon for inner matrices and convolutions; AdamW for what goes in and out, embeddings, norms and biases."""
    inner: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, param in network.named_parameters():
        (inner if param.dim() > 1 and not any(word in name for word in _OUTER) else rest).append(param)
    return [Muon(inner, lr=lr), torch.optim.AdamW(rest, lr=fine_lr, betas=(0.9, 0.99), weight_decay=0.0)]
