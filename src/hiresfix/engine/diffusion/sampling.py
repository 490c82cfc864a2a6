"""Samplers: noise schedules, reproducible noise, and the solvers that turn a noisy latent into a clean one.

The latent is in the variance-exploding form x = z0 + sigma * noise, whatever form the network was trained in.
Guarantees:

- What is known before the first step (levels, coefficients) is computed in float64 on the CPU. No step waits for the
  device.
- The noise depends only on the seed and the step, and has the same bits on every machine and device. Noise tables have
  the same bits everywhere, and schedules the same float32 values.
- With a denoiser that always returns z0, every sampler returns exactly z0.

Independent of networks, prompts and tiles: a sampler calls a `Denoise`.

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
from hiresfix.engine.progress import ProgressCallback

Denoise = Callable[[Tensor, float], Tensor]
"""(x, sigma) -> the predicted clean latent: a new tensor of x's shape and dtype that nobody writes to later."""
StepNoise = Callable[[int], Tensor]
"""Number of steps left after the current one, at least 1 -> standard normal noise like x for the current step."""
Solver = Callable[[Denoise, Tensor, Sequence[float], StepNoise], Tensor]
"""(denoise, x at sigmas[0], sigmas, noise) -> x at sigmas[-1]. The sigmas fall; only the last may be 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NoiseTable:
    """The noise levels a network was trained with: `sigmas[t]` belongs to timestep t.

    Raises:
        ValueError: There are fewer than two, or they are not finite and rising from above 0.
    """

    sigmas: tuple[float, ...]

    def __post_init__(self) -> None:
        rising = all(below < above for below, above in pairwise(self.sigmas))
        if not (len(self.sigmas) > 1 and rising and self.sigmas[0] > 0 and math.isfinite(self.sigmas[-1])):
            raise ValueError("the noise levels of a model must be finite and rise from above 0; give its own alphas")

    @classmethod
    def from_alphas(cls, alphas: Tensor) -> Self:
        """Create the table from the remaining share of the signal's variance at each timestep, from 1 towards 0.

        Computed in the precision of `alphas`, because their rounding is visible in the images: float16 raises the
        lowest level of Stable Diffusion by 7 %.
        """
        ratios = (1 - alphas) / alphas
        ratios = ratios.to(torch.promote_types(ratios.dtype, torch.float32))
        # NumPy's square root is correctly rounded; torch's depends on the kind of CPU.
        return cls(sigmas=tuple(np.sqrt(ratios.numpy(force=True)).tolist()))

    @classmethod
    def scaled_linear(
        cls, *, start: float = 0.00085, end: float = 0.012, timesteps: int = 1000, half: bool = False
    ) -> Self:
        """Create a table whose square roots of beta rise evenly; the defaults are those of Stable Diffusion.

        Args:
            start: First beta.
            end: Last beta.
            timesteps: Number of levels.
            half: Round to float16, as A1111 up to 1.7 does when it halves the whole model; otherwise to the float32 of
                the checkpoints.
        """
        betas = np.square(np.linspace(math.sqrt(start), math.sqrt(end), timesteps))
        alphas = torch.from_numpy(np.cumprod(1 - betas).astype(np.float32))
        return cls.from_alphas(alphas.half() if half else alphas)

    def timestep(self, sigma: float) -> float:
        """Return the fractional timestep of `sigma`, linear in log sigma between levels, clamped to the table."""
        sigma = min(max(sigma, self.sigmas[0]), self.sigmas[-1])
        low = min(bisect_right(self.sigmas, sigma), len(self.sigmas) - 1) - 1
        below, above = self.sigmas[low], self.sigmas[low + 1]
        return low + math.log(sigma / below) / math.log(above / below)

    def sigma(self, timestep: float) -> float:
        """Return the noise level of a timestep, the inverse of `timestep`, clamped to the table."""
        timestep = min(max(timestep, 0.0), len(self.sigmas) - 1.0)
        low = min(int(timestep), len(self.sigmas) - 2)
        weight = timestep - low
        return math.pow(self.sigmas[low], 1 - weight) * math.pow(self.sigmas[low + 1], weight)


Spacing = Callable[[NoiseTable, int], list[float]]
"""(table, count) -> that many falling noise levels, all above 0."""


def karras(table: NoiseTable, count: int) -> list[float]:
    """Return levels even in sigma^(1/7), from the highest to the lowest (Karras et al. 2022, equation 5, rho = 7)."""
    rho = 7.0
    high, low = table.sigmas[-1] ** (1 / rho), table.sigmas[0] ** (1 / rho)
    return [(high + part * (low - high)) ** rho for part in _even_fractions(count)]


def exponential(table: NoiseTable, count: int) -> list[float]:
    """Return levels even in log sigma, from the highest to the lowest."""
    high, low = math.log(table.sigmas[-1]), math.log(table.sigmas[0])
    return [math.exp(high + part * (low - high)) for part in _even_fractions(count)]


def uniform(table: NoiseTable, count: int) -> list[float]:
    """Return levels even in the timestep, from the last to 0: the model's own schedule."""
    last = len(table.sigmas) - 1
    return [table.sigma(last * (1 - part)) for part in _even_fractions(count)]


def leading(table: NoiseTable, count: int) -> list[float]:
    """Return the levels of DDIM: timestep 1 and every (timesteps // count)-th after it.

    If that division leaves a remainder, the original uses more than `count` timesteps; this uses exactly `count`.

    Raises:
        ValueError: The table is too short.
    """
    if not 1 <= count < len(table.sigmas):
        max_steps = len(table.sigmas) - 1
        raise ValueError(f"{count} steps do not fit into {len(table.sigmas)} timesteps; use 1 to {max_steps}")
    stride = len(table.sigmas) // count
    return [table.sigmas[1 + number * stride] for number in reversed(range(count))]


def _even_fractions(count: int) -> list[float]:
    """Return `count` even fractions from 0 to 1; only 0 for a count of 1."""
    if count < 1:
        raise ValueError(f"a schedule needs at least 1 step, not {count}")
    return [number / max(1, count - 1) for number in range(count)]


def schedule(spacing: Spacing, table: NoiseTable, steps: int, *, drop_lowest: bool = False) -> tuple[float, ...]:
    """Return `steps` falling noise levels and a 0.

    `drop_lowest` computes one level more and leaves out the lowest, the one before the 0.
    """
    levels = spacing(table, steps + 1)[:-1] if drop_lowest else spacing(table, steps)
    return (*levels, 0.0)


def schedule_tail(sigmas: Sequence[float], creativity: float) -> tuple[float, ...]:
    """Return the end of a schedule that img2img runs; its first level is the noise that the image gets.

    It has int(min(creativity, 0.999) * steps) + 1 steps: at least one, and all for a creativity of 1
    (algorithm.md 3.1).

    Raises:
        ValueError: The creativity is negative.
    """
    if creativity < 0:
        raise ValueError(f"creativity must not be negative, got {creativity!r}; use 0 or more")
    steps = len(sigmas) - 1
    return tuple(sigmas[steps - int(min(creativity, 0.999) * steps) - 1 :])


@dataclass(frozen=True, slots=True, kw_only=True)
class Noise:
    """The standard normal noise of one run, in float32 on `device`, with the same bits on every device.

    Each draw has its own stream, so it does not depend on earlier draws. Steps are numbered from the end of the
    schedule, so a step gets the same noise wherever the run begins, and more creativity changes an image gradually.
    """

    seed: int
    shape: tuple[int, ...]
    device: torch.device

    def start(self) -> Tensor:
        return self._draw(0)

    def step(self, steps_left: int) -> Tensor:
        """Return the noise of the step that `steps_left` steps follow, at least 1: the last step takes no noise."""
        return self._draw(steps_left)

    def _draw(self, stream: int) -> Tensor:
        # Hash the seed, because torch's CPU generator uses only the low 32 bits of its seed.
        stream_seed = int(np.random.SeedSequence(self.seed, spawn_key=(stream,)).generate_state(1)[0])
        generator = torch.Generator().manual_seed(stream_seed)
        # Draw in float64 and round: torch has several float32 kernels, whose last bits depend on the kind of CPU.
        values = torch.randn(self.shape, generator=generator, dtype=torch.float64).float()
        return devices.copy_to_device(values, self.device)


def add_noise(latent: Tensor, noise: Noise, sigma: float) -> Tensor:
    """Return the clean latent with noise of level `sigma`, the starting point of a sampler."""
    return torch.add(latent, noise.start().to(latent.dtype), alpha=sigma)


def euler(denoise: Denoise, x: Tensor, sigmas: Sequence[float], noise: StepNoise) -> Tensor:
    """Take Euler steps along the probability flow, without noise.

    In this form DDIM (eta 0) is the same: its x / sqrt(alpha) moves by exactly this step.
    """
    for sigma, below in pairwise(sigmas):
        x = torch.lerp(denoise(x, sigma), x, below / sigma)
    return x


def heun(denoise: Denoise, x: Tensor, sigmas: Sequence[float], noise: StepNoise) -> Tensor:
    """Take Heun steps: Euler, corrected by the slope at the end; two evaluations a step, one for the last."""
    for sigma, below in pairwise(sigmas):
        denoised = denoise(x, sigma)
        x = torch.lerp(denoised, x, below / sigma)
        if below > 0:
            x = torch.add(x, denoise(x, below) - denoised, alpha=(sigma / below - 1) / 2)
    return x


def euler_ancestral(denoise: Denoise, x: Tensor, sigmas: Sequence[float], noise: StepNoise) -> Tensor:
    """Take Euler steps below the next level, and add fresh noise up to it (eta 1)."""
    return _integrate(denoise, x, sigmas, noise, _first_order)


def dpmpp_2m(denoise: Denoise, x: Tensor, sigmas: Sequence[float], noise: StepNoise) -> Tensor:
    """Run DPM-Solver++(2M): the probability flow, with the denoised latent of the previous step."""
    return _integrate(denoise, x, sigmas, None, _midpoint)


def dpmpp_2m_sde(denoise: Denoise, x: Tensor, sigmas: Sequence[float], noise: StepNoise) -> Tensor:
    """Run DPM-Solver++(2M) with fresh noise in each step (eta 1)."""
    return _integrate(denoise, x, sigmas, noise, _midpoint)


def dpmpp_2m_sde_heun(denoise: Denoise, x: Tensor, sigmas: Sequence[float], noise: StepNoise) -> Tensor:
    """Run DPM-Solver++(2M) SDE with the integral of the slope, k-diffusion's solver type "heun"."""
    return _integrate(denoise, x, sigmas, noise, _second_order)


def dpmpp_3m_sde(denoise: Denoise, x: Tensor, sigmas: Sequence[float], noise: StepNoise) -> Tensor:
    """Run k-diffusion's DPM++ 3M SDE (eta 1), with the denoised latents of the two previous steps (algorithm.md 4)."""
    return _integrate(denoise, x, sigmas, noise, _third_order)


TrendWeights = Callable[[float, Sequence[float]], Sequence[float]]
"""(span, ratios) -> weights of the latest changes of the denoised latent, newest first, for one step.

`span` is the decay of the latent in this step, as -log. `ratios` are the lengths of the earlier steps relative to this
one, in log sigma; empty in the first step.
"""


def _integrate(
    denoise: Denoise, x: Tensor, sigmas: Sequence[float], noise: StepNoise | None, weigh: TrendWeights
) -> Tensor:
    """Integrate exponentially in log sigma: x decays towards the denoised latent, whose trend `weigh` extrapolates.

    With `noise` it decays twice as fast and gets fresh noise up to the next level (eta 1). The last step, to 0,
    returns the denoised latent.
    """
    changes: list[tuple[Tensor, float]] = []  # changes of the denoised latent, newest first, with their step lengths
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
    """Yield each step: the number of steps left after it, its level and the next level."""
    for number, (sigma, below) in enumerate(pairwise(sigmas)):
        yield len(sigmas) - 2 - number, sigma, below


def _first_order(span: float, ratios: Sequence[float]) -> Sequence[float]:
    return ()


def _midpoint(span: float, ratios: Sequence[float]) -> Sequence[float]:
    """Hold the value of the trend at the middle of the step."""
    return [-math.expm1(-span) / (2 * ratio) for ratio in ratios[:1]]


def _second_order(span: float, ratios: Sequence[float]) -> Sequence[float]:
    """Integrate the linear trend."""
    return [_phi2(span) / ratio for ratio in ratios[:1]]


def _third_order(span: float, ratios: Sequence[float]) -> Sequence[float]:
    """Integrate the quadratic trend, its curvature at half weight as in k-diffusion; linear in the second step."""
    if len(ratios) < 2:
        return _second_order(span, ratios)
    phi2 = _phi2(span)
    phi3 = phi2 / span - 0.5
    newer, older = ratios[:2]
    curvature = (phi2 * newer - phi3) / (newer + older)
    return [(phi2 + curvature) / newer, -curvature / older]


def _phi2(span: float) -> float:
    return math.expm1(-span) / span + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampler:
    """A solver with its schedule.

    Args:
        name: Name in a recipe.
        solver: Takes the steps.
        spacing: Spaces the noise levels.
        drop_lowest: Leave out the lowest level of the schedule; see `schedule`.
        evaluations: Calls of the denoiser in each step but the last, which has one.
    """

    name: str
    solver: Solver
    spacing: Spacing
    drop_lowest: bool = False
    evaluations: int = 1

    def sigmas(self, table: NoiseTable, steps: int, creativity: float = 1.0) -> tuple[float, ...]:
        """Return the noise levels of a run, falling to 0. Raises ValueError if the schedule cannot have that many."""
        return schedule_tail(schedule(self.spacing, table, steps, drop_lowest=self.drop_lowest), creativity)

    def run(
        self, denoise: Denoise, x: Tensor, sigmas: Sequence[float], noise: StepNoise, report: ProgressCallback
    ) -> Tensor:
        """Return the clean latent.

        Args:
            denoise: Predicts the clean latent.
            x: Latent at the noise level sigmas[0].
            sigmas: Falling noise levels; the last is 0.
            noise: Fresh noise for a step.
            report: Called after each evaluation; what it raises ends the run.
        """
        total = self.evaluations * (len(sigmas) - 2) + 1
        done = 0

        def denoise_and_report(x: Tensor, sigma: float) -> Tensor:
            nonlocal done
            denoised = denoise(x, sigma)
            done += 1
            report(done / total)
            return denoised

        return self.solver(denoise_and_report, x, sigmas, noise)


def _samplers() -> Iterator[Sampler]:
    """Yield the original's combinations of solver and schedule that are supported (algorithm.md 4.2)."""
    suffixes: dict[Spacing, str] = {uniform: "", karras: "-karras", exponential: "-exponential"}
    for spacing, suffix in suffixes.items():
        yield Sampler(name=f"dpmpp-3m-sde{suffix}", solver=dpmpp_3m_sde, spacing=spacing, drop_lowest=True)
        yield Sampler(name=f"dpmpp-2m-sde{suffix}", solver=dpmpp_2m_sde, spacing=spacing)
        yield Sampler(name=f"dpmpp-2m-sde-heun{suffix}", solver=dpmpp_2m_sde_heun, spacing=spacing)
    yield Sampler(name="dpmpp-2m", solver=dpmpp_2m, spacing=uniform)
    yield Sampler(name="dpmpp-2m-karras", solver=dpmpp_2m, spacing=karras)
    yield Sampler(name="euler", solver=euler, spacing=uniform)
    yield Sampler(name="euler-ancestral", solver=euler_ancestral, spacing=uniform)
    yield Sampler(name="heun", solver=heun, spacing=uniform, evaluations=2)
    # The original's DDIM stops at the lowest level of the table and leaves that much noise; this one ends at 0.
    yield Sampler(name="ddim", solver=euler, spacing=leading)


SAMPLERS: Mapping[str, Sampler] = MappingProxyType({sampler.name: sampler for sampler in _samplers()})
"""Samplers by their name in a recipe."""
