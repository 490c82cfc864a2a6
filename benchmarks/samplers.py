"""Samplers against a distribution with an exactly known denoiser, at the number of evaluations of a job.

    python -m benchmarks.samplers [--write]

The coefficients of natural images have a power-law spectrum and heavy tails. Here each of 16 channels is a mixture of
two centred Gaussians, four fifths of it narrow and one fifth wide, with standard deviations that fall from 1 to 0.05
from channel to channel. Its denoiser is a formula, so only the sampler makes errors. As in a job, samples get noise up
to the first level of the schedule and are denoised; a perfect sampler gives samples of the same distribution.

- lost: missing part of the standard deviation, in percent, mean over the channels; visible as blur.
- W1: Wasserstein distance of each channel to the truth, in its standard deviations, mean over the channels, in percent.
- tails: missing part of the fourth moment, in percent, mean over the channels; texture that became haze.
- flow: distance from the exact probability flow, in percent of a standard deviation; only for samplers without noise.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor

from benchmarks import tables
from hiresfix.engine.diffusion import sampling
from hiresfix.engine.diffusion.sampling import SAMPLERS, Noise, NoiseTable, Sampler

CHANNELS, SIDE = 16, 96
SPREAD = torch.logspace(0, math.log10(0.05), CHANNELS, dtype=torch.float64).view(1, -1, 1, 1)
PARTS = ((0.8, 0.5), (0.2, 2.0))
"""Weight and standard deviation of each part, before multiplication with `SPREAD`; unit variance in total."""
SETTINGS = ((18, 0.2), (18, 0.35), (18, 0.6), (30, 0.35), (10, 0.35))
SEEDS = (1,)
CONCLUSION = """`start` is the noise an image gets. Schedules differ in their start and end, so rows with another start
compare schedules as well as solvers. `*` marks solvers on the same levels as dpmpp-3m-sde-karras. There 3M loses least
of all samplers that add noise, and least of all at the default: samplers that look better start from less noise, which
less creativity gives too. So both clarity presets use 3M."""
WITHOUT_NOISE = {"dpmpp-2m", "dpmpp-2m-karras", "euler", "heun", "ddim"}


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplerErrors:
    """Errors of one sampler; the docstring of the module explains them."""

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
    """Return samples (1, CHANNELS, SIDE, SIDE) float64."""
    generator = torch.Generator().manual_seed(seed)
    wide = torch.rand((1, CHANNELS, SIDE, SIDE), generator=generator, dtype=torch.float64) < PARTS[1][0]
    scale = torch.where(wide, PARTS[1][1], PARTS[0][1]) * SPREAD / _unit()
    return torch.randn(scale.shape, generator=generator, dtype=torch.float64) * scale


def denoise(x: Tensor, sigma: float) -> Tensor:
    """Return the mean of the truth given x, its observation with noise of `sigma`."""
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


def measure(sampler: Sampler, steps: int, creativity: float) -> SamplerErrors:
    sigmas = sampler.sigmas(NoiseTable.scaled_linear(), steps, creativity)
    errors = torch.stack([_errors(sampler, sigmas, seed) for seed in SEEDS]).mean(0)
    lost, w1, tails, flow = (round(100 * float(value), 2) for value in errors)
    return SamplerErrors(
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
    start = sampling.add_noise(clean, noise, sigmas[0])
    result = sampler.run(denoise, start, sigmas, lambda left: noise.step(left).double(), lambda fraction: None)
    flow = (result - exact_flow(start, sigmas[0])).abs() if sampler.name in WITHOUT_NOISE else torch.zeros(1)
    # Each sample is compared with itself, so that its randomness cancels.
    spread = clean.std((0, 2, 3), correction=0)
    sorted_made, sorted_clean = (x.flatten(2).sort(2).values[0] for x in (result, clean))
    return torch.stack(
        [
            (1 - result.std((0, 2, 3), correction=0) / spread).mean(),
            ((sorted_made - sorted_clean).abs().mean(1) / spread).mean(),
            (1 - result.pow(4).mean((0, 2, 3)) / clean.pow(4).mean((0, 2, 3))).mean(),
            (flow / SPREAD).mean(),
        ]
    )


def exact_flow(start: Tensor, sigma: float) -> Tensor:
    """Return the end of the probability flow, by enough steps of Heun's method."""
    levels = [sigma * (1e-3 / sigma) ** (step / 64) for step in range(65)]
    return sampling.heun(denoise, start, (*levels, 0.0), lambda left: start)


def table(results: list[SamplerErrors]) -> str:
    text = f"# Samplers against an exactly known distribution\n{(__doc__ or '').partition('[--write]')[2]}\n"
    text += f"\n{CONCLUSION}\n"
    for steps, creativity in SETTINGS:
        text += f"\n## {steps} steps, creativity {creativity}\n\n"
        text += "| sampler | evaluations | start | lost % | W1 % | tails % | flow % |\n"
        text += "| --- | --: | --: | --: | --: | --: | --: |\n"
        for f in results:
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
    samplers += [replace(sampler, name=f"{sampler.name} *", drop_lowest=True) for sampler in second]
    results = [measure(sampler, *setting) for setting in SETTINGS for sampler in samplers]
    tables.publish("samplers", table(results), [asdict(result) for result in results], write=arguments.write)


if __name__ == "__main__":
    main()
