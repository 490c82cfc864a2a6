"""Samplers against a distribution whose denoiser is known exactly, at the number of evaluations a job has.

    python -m benchmarks.samplers [--write]

The coefficients of natural pictures have a power-law spectrum and heavy tails. Here each of 16 channels is a mixture of
two centred Gaussians, four fifths of it narrow and one fifth wide, with standard deviations that fall from 1 to 0.05
from channel to channel. Its denoiser is a formula, so that nothing but the sampler errs. As in a job, samples of it get
noise up to the schedule's first level and are brought back; a perfect sampler gives samples of the same distribution.

- lost: how much of the standard deviation is missing, in percent, mean over the channels: what shows as blur.
- W1: Wasserstein distance of each channel to the truth, in its standard deviations, mean over the channels, in percent.
- tails: how much of the fourth moment is missing, in percent, mean over the channels: texture that turned into haze.
- flow: distance from the exact probability flow, in percent of a standard deviation; only for samplers without noise.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor

from benchmarks import record
from hiresfix.engine.diffusion import sampling
from hiresfix.engine.diffusion.sampling import SAMPLERS, Noise, NoiseTable, Sampler

CHANNELS, SIDE = 16, 96
SPREAD = torch.logspace(0, math.log10(0.05), CHANNELS, dtype=torch.float64).view(1, -1, 1, 1)
PARTS = ((0.8, 0.5), (0.2, 2.0))
"""Weight of a part and its standard deviation, before it is multiplied with `SPREAD`; all in all of unit variance."""
SETTINGS = ((18, 0.2), (18, 0.35), (18, 0.6), (30, 0.35), (10, 0.35))
SEEDS = (1,)
CONCLUSION = """`start` is the noise a picture gets. Schedules differ in it and in where they end, so rows of another
start compare schedules as well as solvers. `*` marks solvers on the very levels of dpmpp-3m-sde-karras. There 3M loses
the least of all that add noise, and of all at the default: what looks better above it starts from less noise, which
less creativity gives too. So both presets of clarity take 3M."""
WITHOUT_NOISE = {"dpmpp-2m", "dpmpp-2m-karras", "euler", "heun", "ddim"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """See the module's docstring."""

    steps: int
    creativity: float
    sampler: str
    evaluations: int
    start: float
    lost: float
    w1: float
    tails: float
    flow: float | None


def truth(seed: int) -> Tensor:
    """(1, CHANNELS, SIDE, SIDE) float64."""
    generator = torch.Generator().manual_seed(seed)
    wide = torch.rand((1, CHANNELS, SIDE, SIDE), generator=generator, dtype=torch.float64) < PARTS[1][0]
    scale = torch.where(wide, PARTS[1][1], PARTS[0][1]) * SPREAD / _unit()
    return torch.randn(scale.shape, generator=generator, dtype=torch.float64) * scale


def denoise(x: Tensor, sigma: float) -> Tensor:
    """The mean of the truth that was seen through noise of `sigma` as x."""
    logs, means = [], []
    for weight, spread in PARTS:
        variance = (spread * SPREAD / _unit()) ** 2
        total = variance + sigma**2
        logs.append(math.log(weight) - total.log() / 2 - x.square() / (2 * total))
        means.append(x * variance / total)
    chances = torch.stack(logs).softmax(0)
    return (chances * torch.stack(means)).sum(0)


def _unit() -> float:
    return math.sqrt(sum(weight * spread**2 for weight, spread in PARTS))


def measure(sampler: Sampler, steps: int, creativity: float) -> Figure:
    sigmas = sampler.sigmas(NoiseTable.scaled_linear(), steps, creativity)
    found = torch.stack([_errors(sampler, sigmas, seed) for seed in SEEDS]).mean(0)
    lost, w1, tails, flow = (round(100 * float(value), 2) for value in found)
    return Figure(
        steps=steps,
        creativity=creativity,
        sampler=sampler.name,
        evaluations=sampler.evaluations * (len(sigmas) - 2) + 1,
        start=round(sigmas[0], 3),
        lost=lost,
        w1=w1,
        tails=tails,
        flow=flow if sampler.name in WITHOUT_NOISE else None,
    )


def _errors(sampler: Sampler, sigmas: tuple[float, ...], seed: int) -> Tensor:
    clean = truth(seed)
    noise = Noise(seed=seed, shape=tuple(clean.shape), device=clean.device)
    start = sampling.noised(clean, noise, sigmas[0])
    made = sampler.run(denoise, start, sigmas, lambda left: noise.step(left).double(), lambda fraction: None)
    flow = (made - exact_flow(start, sigmas[0])).abs() if sampler.name in WITHOUT_NOISE else torch.zeros(1)
    # The same sample is compared with what it was, so that its own chance cancels.
    spread = clean.std((0, 2, 3), correction=0)
    sorted_made, sorted_clean = (x.flatten(2).sort(2).values[0] for x in (made, clean))
    return torch.stack(
        [
            (1 - made.std((0, 2, 3), correction=0) / spread).mean(),
            ((sorted_made - sorted_clean).abs().mean(1) / spread).mean(),
            (1 - made.pow(4).mean((0, 2, 3)) / clean.pow(4).mean((0, 2, 3))).mean(),
            (flow / SPREAD).mean(),
        ]
    )


def exact_flow(start: Tensor, sigma: float) -> Tensor:
    """Where the probability flow leads, by so many steps of Heun's method that more change nothing that shows."""
    levels = [sigma * (1e-3 / sigma) ** (step / 64) for step in range(65)]
    return sampling.heun(denoise, start, (*levels, 0.0), lambda left: start)


def table(figures: list[Figure]) -> str:
    text = f"# Samplers against an exactly known distribution\n{(__doc__ or '').partition('[--write]')[2]}\n"
    text += f"\n{CONCLUSION}\n"
    for steps, creativity in SETTINGS:
        text += f"\n## {steps} steps, creativity {creativity}\n\n"
        text += "| sampler | evaluations | start | lost % | W1 % | tails % | flow % |\n"
        text += "| --- | --: | --: | --: | --: | --: | --: |\n"
        for f in figures:
            if (f.steps, f.creativity) == (steps, creativity):
                flow = "" if f.flow is None else f"{f.flow:.1f}"
                row = f"{f.evaluations} | {f.start:.3f} | {f.lost:.2f} | {f.w1:.2f} | {f.tails:.1f} | {flow}"
                text += f"| {f.sampler} | {row} |\n"
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the tables under benchmarks/results")
    arguments = parser.parse_args()
    names = [name for name in SAMPLERS if not name.endswith("-exponential")]
    samplers = [SAMPLERS[name] for name in names]
    second = [sampler for sampler in samplers if "2m" in sampler.name and sampler.name.endswith("-karras")]
    samplers += [replace(sampler, name=f"{sampler.name} *", drop=True) for sampler in second]
    figures = [measure(sampler, *setting) for setting in SETTINGS for sampler in samplers]
    record.tell("samplers", table(figures), [asdict(figure) for figure in figures], write=arguments.write)


if __name__ == "__main__":
    main()
