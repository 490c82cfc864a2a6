"""Precondition on the optimal linear (Wiener) estimate; the network predicts the residual.

For each channel of the latent, three numbers are measured on training data: the variance d2 of a clean latent, the
regression m of the clean latent on the control latent, and the residual variance q2 of this regression. For a noisy
latent x = z + sigma * n and a control latent c with weight w, the precisions add up:

    h = 1/d2 + w (1/q2 - 1/d2)      P = 1 / (h + 1/sigma^2)      mean = P (min(w/q2, h) m c + x / sigma^2)

and x0 = mean + sqrt(P) * network(x / sqrt(d2 + sigma^2)). At w = 1 an untrained network gives the best linear
estimate. A smaller w uses less of c, and a larger w trusts m c more, so a larger w always means closer to it. Channels
are assumed to be independent.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from hiresfix.engine.diffusion.guidance import Scaling


@dataclass(frozen=True, slots=True, kw_only=True)
class Preconditioning:
    """Statistics of each channel: `variance` d2, `regression` m and `residual` variance q2.

    Raises:
        ValueError: Not 0 < q2 <= d2.
    """

    variance: tuple[float, ...]
    regression: tuple[float, ...]
    residual: tuple[float, ...]

    def __post_init__(self) -> None:
        pairs = list(zip(self.variance, self.residual, self.regression, strict=True))
        if not pairs or any(not 0 < q2 <= d2 for d2, q2, _ in pairs):
            raise ValueError("each channel needs a variance above zero and a residual variance between zero and it")

    def scaling(self, sigma: float | Tensor, weight: float | Tensor, device: torch.device) -> Scaling:
        """Return the scaling for sigma > 0 and weight >= 0: numbers, or tensors (n, 1, 1, 1), one per sample."""
        d2, m, q2 = _on_device(self, device)
        h = 1 / d2 + weight * (1 / q2 - 1 / d2)
        p = 1 / (h + 1 / sigma**2)
        control = p * torch.minimum(weight / q2, h) * m
        return Scaling(input=(d2 + sigma**2).rsqrt(), skip=p / sigma**2, output=p.sqrt(), control=control)


def measure(clean: Tensor, control: Tensor) -> Preconditioning:
    """Measure the statistics on pairs of latents (n, C, h, w)."""
    x, c = (z.double().transpose(0, 1).flatten(1) for z in (clean, control))
    d2, power = x.square().mean(1).clamp(min=1e-8), c.square().mean(1).clamp(min=1e-8)
    m = (x * c).mean(1) / power
    q2 = (x - m.view(-1, 1) * c).square().mean(1).clamp(min=1e-8)
    rows = (d2, m, torch.minimum(q2, d2))
    variance, regression, residual = (tuple(float(value) for value in row) for row in rows)
    return Preconditioning(variance=variance, regression=regression, residual=residual)


@functools.lru_cache(maxsize=8)
def _on_device(statistics: Preconditioning, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Copy the statistics to the device; cached, because every evaluation needs them."""
    with torch.inference_mode(False):  # training uses them too
        d2, m, q2 = (
            torch.tensor(values, dtype=torch.float32).view(1, -1, 1, 1).to(device)
            for values in (statistics.variance, statistics.regression, statistics.residual)
        )
    return d2, m, q2
