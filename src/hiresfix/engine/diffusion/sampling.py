"""From a noisy latent to a clean one: noise levels, their schedules, the noise and the samplers.

The latent is in the variance-exploding form x = z0 + sigma * noise, whatever form the network was trained in.
Guarantees: all that is known before the first step (levels, coefficients) is computed in float64 on the CPU, and no
step waits for the device; the noise is a function of the seed and the step alone, with the same bits on every
device; a denoiser that always gives z0 makes every sampler return exactly z0. Knows no networks, no prompts and no
tiles: a sampler sees a `Denoise`.

Sources: algorithm.md 3 and 4; Karras et al. 2022 (arXiv 2206.00364); DPM-Solver++ (arXiv 2211.01095).
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from types import MappingProxyType
from typing import Self

import numpy as np
import torch
from torch import Tensor

from hiresfix.engine import devices
from hiresfix.engine.progress import Report

Denoise = Callable[[Tensor, float], Tensor]
"""(x, sigma) -> the clean latent it sees in x: a tensor of its own, never written to again, of x's shape and dtype."""
StepNoise = Callable[[int], Tensor]
"""Standard normal noise like x for the step after which this many steps, at least 1, are left."""
Solver = Callable[[Denoise, Tensor, Sequence[float], StepNoise], Tensor]
"""(denoise, x at sigmas[0], sigmas, noise) -> x at sigmas[-1]. The sigmas fall; only the last may be 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NoiseTable:
    """The noise levels a network was trained at: `sigmas[t]` belongs to timestep t.

    At least two, rising, above 0 and finite; raises ValueError otherwise.
    """

    sigmas: tuple[float, ...]

    def __post_init__(self) -> None:
        rising = all(below < above for below, above in pairwise(self.sigmas))
        if not (len(self.sigmas) > 1 and rising and self.sigmas[0] > 0 and math.isfinite(self.sigmas[-1])):
            raise ValueError("the noise levels of a model must be finite and rise from above 0; give its own alphas")

    @classmethod
    def from_alphas(cls, alphas: Tensor) -> Self:
        """From the share of the signal's variance that is left at each timestep, 1 falling towards 0.

        Computed in the precision of `alphas`, because how a program rounds them is visible in its pictures: float16
        makes the lowest level of Stable Diffusion 7 % higher.
        """
        ratios = (1 - alphas) / alphas
        return cls(sigmas=tuple(ratios.to(torch.promote_types(ratios.dtype, torch.float32)).sqrt().tolist()))

    @classmethod
    def scaled_linear(
        cls, *, start: float = 0.00085, end: float = 0.012, timesteps: int = 1000, half: bool = False
    ) -> Self:
        """The square roots of beta rise evenly from start's to end's; the defaults are Stable Diffusion's.

        half: rounded to float16, as A1111 up to 1.7 does by halving the whole model; else to the checkpoints' float32.
        """
        betas = torch.linspace(math.sqrt(start), math.sqrt(end), timesteps, dtype=torch.float64).square()
        alphas = (1 - betas).cumprod(0).float()
        return cls.from_alphas(alphas.half() if half else alphas)

    def timestep(self, sigma: float) -> float:
        """Where `sigma` lies in the table: fractional, even in log sigma between two levels, held at the ends."""
        sigma = min(max(sigma, self.sigmas[0]), self.sigmas[-1])
        low = min(bisect_right(self.sigmas, sigma), len(self.sigmas) - 1) - 1
        below, above = self.sigmas[low], self.sigmas[low + 1]
        return low + math.log(sigma / below) / math.log(above / below)

    def sigma(self, timestep: float) -> float:
        """The inverse of `timestep`; beyond the table, the level at its end."""
        timestep = min(max(timestep, 0.0), len(self.sigmas) - 1.0)
        low = min(int(timestep), len(self.sigmas) - 2)
        weight = timestep - low
        return math.pow(self.sigmas[low], 1 - weight) * math.pow(self.sigmas[low + 1], weight)


Spacing = Callable[[NoiseTable, int], list[float]]
"""(table, count) -> that many falling noise levels, all above 0."""


def karras(table: NoiseTable, count: int) -> list[float]:
    """Even in sigma^(1/7) from the highest level to the lowest: Karras et al. 2022, equation 5, rho = 7."""
    rho = 7.0
    high, low = table.sigmas[-1] ** (1 / rho), table.sigmas[0] ** (1 / rho)
    return [(high + part * (low - high)) ** rho for part in _ramp(count)]


def exponential(table: NoiseTable, count: int) -> list[float]:
    """Even in log sigma from the highest level to the lowest."""
    high, low = math.log(table.sigmas[-1]), math.log(table.sigmas[0])
    return [math.exp(high + part * (low - high)) for part in _ramp(count)]


def uniform(table: NoiseTable, count: int) -> list[float]:
    """Even in the timestep from the last to 0: the model's own schedule."""
    last = len(table.sigmas) - 1
    return [table.sigma(last * (1 - part)) for part in _ramp(count)]


def leading(table: NoiseTable, count: int) -> list[float]:
    """DDIM's: timestep 1 and every (timesteps // count)-th from there. Raises ValueError where the table is shorter.

    The original goes on to more than `count` timesteps when that division leaves a rest; here there are `count`.
    """
    if not 1 <= count < len(table.sigmas):
        raise ValueError(f"{count} steps do not fit into {len(table.sigmas)} timesteps; use from 1 to one less")
    stride = len(table.sigmas) // count
    return [table.sigmas[1 + number * stride] for number in reversed(range(count))]


def _ramp(count: int) -> list[float]:
    """0 to 1 evenly; 0 alone for a count of 1."""
    if count < 1:
        raise ValueError(f"a schedule needs at least 1 step, not {count}")
    return [number / max(1, count - 1) for number in range(count)]


def schedule(spacing: Spacing, table: NoiseTable, steps: int, *, drop: bool = False) -> tuple[float, ...]:
    """`steps` falling noise levels and a 0. `drop`: one more is made and the lowest, next to the 0, is left out."""
    levels = spacing(table, steps + 1)[:-1] if drop else spacing(table, steps)
    return (*levels, 0.0)


def tail(sigmas: Sequence[float], creativity: float) -> tuple[float, ...]:
    """The end of a whole schedule that is run on a picture; its first level is how much noise the picture gets.

    It has int(min(creativity, 0.999) * steps) + 1 steps: at least one, and all at 1 (algorithm.md 3.1).
    Raises ValueError for a negative creativity.
    """
    if creativity < 0:
        raise ValueError(f"creativity must not be negative, got {creativity!r}; 0 is the least")
    steps = len(sigmas) - 1
    return tuple(sigmas[steps - int(min(creativity, 0.999) * steps) - 1 :])


@dataclass(frozen=True, slots=True, kw_only=True)
class Noise:
    """All the standard normal noise of one run, in float32 on `device`: the same bits on every device.

    Each draw has its own stream, so none depends on what was drawn before it. Steps are numbered from the end of the
    schedule, so that a step gets the same noise wherever the run began: more creativity changes a picture gradually.
    """

    seed: int
    shape: tuple[int, ...]
    device: torch.device

    def start(self) -> Tensor:
        return self._draw(0)

    def step(self, left: int) -> Tensor:
        """For the step after which `left` steps are left, at least 1: the last step takes no noise."""
        return self._draw(left)

    def _draw(self, stream: int) -> Tensor:
        # torch's CPU generator looks at the low 32 bits of its seed only, and seeds may be larger.
        mixed = int(np.random.SeedSequence(self.seed, spawn_key=(stream,)).generate_state(1)[0])
        generator = torch.Generator().manual_seed(mixed)
        # In float64 and then rounded: torch has several float32 kernels, whose last bits depend on the kind of CPU.
        values = torch.randn(self.shape, generator=generator, dtype=torch.float64).float()
        return devices.send(values, self.device)


def noised(latent: Tensor, noise: Noise, sigma: float) -> Tensor:
    """The clean latent with noise up to the level `sigma`: where a sampler begins."""
    return torch.add(latent, noise.start().to(latent.dtype), alpha=sigma)


def euler(denoise: Denoise, x: Tensor, sigmas: Sequence[float], noise: StepNoise) -> Tensor:
    """Straight steps along the probability flow, without noise.

    DDIM (eta 0) in this form too: its x / sqrt(alpha) moves by exactly this step.
    """
    for sigma, below in pairwise(sigmas):
        x = torch.lerp(denoise(x, sigma), x, below / sigma)
    return x


def heun(denoise: Denoise, x: Tensor, sigmas: Sequence[float], noise: StepNoise) -> Tensor:
    """Euler's step, then again with the mean of the slopes at both ends: two evaluations a step, one for the last."""
    for sigma, below in pairwise(sigmas):
        denoised = denoise(x, sigma)
        x = torch.lerp(denoised, x, below / sigma)
        if below > 0:
            x = torch.add(x, denoise(x, below) - denoised, alpha=(sigma / below - 1) / 2)
    return x


def euler_ancestral(denoise: Denoise, x: Tensor, sigmas: Sequence[float], noise: StepNoise) -> Tensor:
    """Euler's step further down than wanted, and fresh noise back up to the level (eta 1)."""
    return _multistep(denoise, x, sigmas, noise, _first_order)


def dpmpp_2m(denoise: Denoise, x: Tensor, sigmas: Sequence[float], noise: StepNoise) -> Tensor:
    """DPM-Solver++(2M): the probability flow, with what denoising gave in the step before."""
    return _multistep(denoise, x, sigmas, None, _midpoint)


def dpmpp_2m_sde(denoise: Denoise, x: Tensor, sigmas: Sequence[float], noise: StepNoise) -> Tensor:
    """The same with fresh noise in each step (eta 1)."""
    return _multistep(denoise, x, sigmas, noise, _midpoint)


def dpmpp_2m_sde_heun(denoise: Denoise, x: Tensor, sigmas: Sequence[float], noise: StepNoise) -> Tensor:
    """The same with the slope's integral instead of its value halfway: k-diffusion's solver type "heun"."""
    return _multistep(denoise, x, sigmas, noise, _second_order)


def dpmpp_3m_sde(denoise: Denoise, x: Tensor, sigmas: Sequence[float], noise: StepNoise) -> Tensor:
    """k-diffusion's DPM++ 3M SDE (eta 1): with what denoising gave in two steps before (algorithm.md 4)."""
    return _multistep(denoise, x, sigmas, noise, _third_order)


Weigh = Callable[[float, Sequence[float]], Sequence[float]]
"""(span, ratios) -> weights of the latest changes of the denoised latent, newest first, in one step.

span: what the step decays the latent by, as -log. ratios: length of the steps in which those changes happened to
that of this one, in log sigma; empty in the first step.
"""


def _multistep(denoise: Denoise, x: Tensor, sigmas: Sequence[float], noise: StepNoise | None, weigh: Weigh) -> Tensor:
    """Exponential integrator in log sigma: x decays towards the denoised latent, whose trend `weigh` continues.

    With `noise` it decays twice as fast and gets fresh noise up to the level (eta 1). The last move, to 0, takes the
    denoised latent.
    """
    changes: list[tuple[Tensor, float]] = []  # of the denoised latent, newest first, and the step each took
    last: Tensor | None = None
    step = 0.0
    for left, sigma, below in _countdown(sigmas):
        denoised = denoise(x, sigma)
        if below == 0:
            return denoised
        if last is not None:
            changes = [(denoised - last, step), *changes[:1]]
        last, step = denoised, math.log(sigma / below)
        span = step if noise is None else 2 * step
        x = torch.lerp(denoised, x, math.exp(-span))
        weights = weigh(span, [before / step for _, before in changes])
        for weight, (change, _) in zip(weights, changes, strict=False):
            x.add_(change, alpha=weight)
        if noise is not None:
            x.add_(noise(left), alpha=below * math.sqrt(-math.expm1(-span)))
    return x


def _countdown(sigmas: Sequence[float]) -> Iterator[tuple[int, float, float]]:
    """Each step: how many are left after it, and the levels from which and to which it goes."""
    for number, (sigma, below) in enumerate(pairwise(sigmas)):
        yield len(sigmas) - 2 - number, sigma, below


def _first_order(span: float, ratios: Sequence[float]) -> Sequence[float]:
    return ()


def _midpoint(span: float, ratios: Sequence[float]) -> Sequence[float]:
    """The trend's value halfway through the step, held all through it."""
    return [-math.expm1(-span) / (2 * ratio) for ratio in ratios[:1]]


def _second_order(span: float, ratios: Sequence[float]) -> Sequence[float]:
    """The linear trend, integrated."""
    return [_phi2(span) / ratio for ratio in ratios[:1]]


def _third_order(span: float, ratios: Sequence[float]) -> Sequence[float]:
    """The quadratic trend, with half of its integral's weight on the bend as in k-diffusion; at first the linear."""
    if len(ratios) < 2:
        return _second_order(span, ratios)
    phi2 = _phi2(span)
    phi3 = phi2 / span - 0.5
    newer, older = ratios[:2]
    bend = (phi2 * newer - phi3) / (newer + older)
    return [(phi2 + bend) / newer, -bend / older]


def _phi2(span: float) -> float:
    return math.expm1(-span) / span + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampler:
    """A solver and the schedule it is offered with; `evaluations` of the denoiser a step, one in the last."""

    name: str
    solver: Solver
    spacing: Spacing
    drop: bool = False
    evaluations: int = 1

    def sigmas(self, table: NoiseTable, steps: int, creativity: float = 1.0) -> tuple[float, ...]:
        """The noise levels of a run, falling to 0. Raises ValueError for steps that the schedule does not have."""
        return tail(schedule(self.spacing, table, steps, drop=self.drop), creativity)

    def run(self, denoise: Denoise, x: Tensor, sigmas: Sequence[float], noise: StepNoise, report: Report) -> Tensor:
        """The clean latent, from x at the level sigmas[0] to sigmas[-1] = 0.

        `report` is called after each evaluation; what it raises ends the run there.
        """
        total = self.evaluations * (len(sigmas) - 2) + 1
        done = 0

        def reported(x: Tensor, sigma: float) -> Tensor:
            nonlocal done
            denoised = denoise(x, sigma)
            done += 1
            report(done / total)
            return denoised

        return self.solver(reported, x, sigmas, noise)


def _offered() -> Iterator[Sampler]:
    """The combinations that the original offers, of the solvers that are here (algorithm.md 4.2)."""
    suffixes: dict[Spacing, str] = {uniform: "", karras: "-karras", exponential: "-exponential"}
    for spacing, suffix in suffixes.items():
        yield Sampler(name=f"dpmpp-3m-sde{suffix}", solver=dpmpp_3m_sde, spacing=spacing, drop=True)
        yield Sampler(name=f"dpmpp-2m-sde{suffix}", solver=dpmpp_2m_sde, spacing=spacing)
        yield Sampler(name=f"dpmpp-2m-sde-heun{suffix}", solver=dpmpp_2m_sde_heun, spacing=spacing)
    yield Sampler(name="dpmpp-2m", solver=dpmpp_2m, spacing=uniform)
    yield Sampler(name="dpmpp-2m-karras", solver=dpmpp_2m, spacing=karras)
    yield Sampler(name="euler", solver=euler, spacing=uniform)
    yield Sampler(name="euler-ancestral", solver=euler_ancestral, spacing=uniform)
    yield Sampler(name="heun", solver=heun, spacing=uniform, evaluations=2)
    # The original's DDIM stops at the lowest level of the table, and leaves that much noise in the picture; ours is 0.
    yield Sampler(name="ddim", solver=euler, spacing=leading)


SAMPLERS: Mapping[str, Sampler] = MappingProxyType({sampler.name: sampler for sampler in _offered()})
"""By the name that a recipe gives."""
