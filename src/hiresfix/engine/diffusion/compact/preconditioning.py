"""What the best linear estimate already knows, so that a network has only the rest to say.

For each channel of the latent, three numbers are measured on training data: the variance d2 of a clean latent, the
regression m of the clean on the control latent, and the variance q2 that this regression leaves. Given a noisy latent
x = z + sigma * n and a control latent c that counts with weight w, the precisions add up:

    h = 1/d2 + w (1/q2 - 1/d2)      P = 1 / (h + 1/sigma^2)      mean = P (min(w/q2, h) m c + x / sigma^2)

and x0 = mean + sqrt(P) * network(x / sqrt(d2 + sigma^2)). At w = 1 an untrained network gives the best linear
estimate; less is less of c, and more is m c with more certainty, so that more always means closer to it. Channels are
taken for independent.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from hiresfix.engine.diffusion.guidance import Scaling


@dataclass(frozen=True, slots=True, kw_only=True)
class Preconditioning:
    """`variance` d2, `regression` m and `residual` q2 of each channel; 0 < q2 <= d2. Raises ValueError otherwise."""

    variance: tuple[float, ...]
    regression: tuple[float, ...]
    residual: tuple[float, ...]

    def __post_init__(self) -> None:
        pairs = list(zip(self.variance, self.residual, self.regression, strict=True))
        if not pairs or any(not 0 < q2 <= d2 for d2, q2, _ in pairs):
            raise ValueError("each channel needs a variance and a residual variance above zero and no greater")

    def scaling(self, sigma: float | Tensor, weight: float | Tensor, device: torch.device) -> Scaling:
        """Sigma > 0 and weight >= 0: numbers, or tensors (n, 1, 1, 1) of one for each sample."""
        d2, m, q2 = _vectors(self, device)
        known = 1 / d2 + weight * (1 / q2 - 1 / d2)
        p = 1 / (known + 1 / sigma**2)
        control = p * torch.minimum(weight / q2, known) * m
        return Scaling(input=(d2 + sigma**2).rsqrt(), skip=p / sigma**2, output=p.sqrt(), control=control)


def measured(clean: Tensor, control: Tensor) -> Preconditioning:
    """From pairs of latents (n, C, h, w)."""
    x, c = (z.double().transpose(0, 1).flatten(1) for z in (clean, control))
    d2, power = x.square().mean(1).clamp(min=1e-8), c.square().mean(1).clamp(min=1e-8)
    m = (x * c).mean(1) / power
    q2 = (x - m.view(-1, 1) * c).square().mean(1).clamp(min=1e-8)
    rows = (d2, m, torch.minimum(q2, d2))
    variance, regression, residual = (tuple(float(value) for value in row) for row in rows)
    return Preconditioning(variance=variance, regression=regression, residual=residual)


@functools.lru_cache(maxsize=8)
def _vectors(known: Preconditioning, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """On the device once, because every evaluation asks for them."""
    with torch.inference_mode(False):  # training uses them, too
        d2, m, q2 = (
            torch.tensor(values, dtype=torch.float32).view(1, -1, 1, 1).to(device)
            for values in (known.variance, known.regression, known.residual)
        )
    return d2, m, q2
