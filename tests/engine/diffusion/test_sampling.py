"""Schedules, noise and samplers: compared with published numbers, formulas and another implementation.

The reference denoiser is that of data N(0, 0.9²): D(x, sigma) = x · 0.81 / (0.81 + sigma²).
"""

from __future__ import annotations

import hashlib
import math
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hiresfix.engine.diffusion import sampling
from hiresfix.engine.diffusion.sampling import SAMPLERS, Noise, NoiseTable, Sampler, Solver, StepNoise, schedule_tail
from hiresfix.errors import Cancelled

CPU = torch.device("cpu")
VARIANCE = 0.81
KARRAS_3M = SAMPLERS["dpmpp-3m-sde-karras"]
# Ends of the table with float32 alphas as the reference rounded them, one ulp from ours.
EXACT = NoiseTable(sigmas=(0.02916753478348255, 14.614642143249512))
SD = NoiseTable.scaled_linear()
SD_HALF = NoiseTable.scaled_linear(half=True)

every_sampler = pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS.keys())


def gaussian(x: Tensor, sigma: float) -> Tensor:
    return x * (VARIANCE / (VARIANCE + sigma**2))


def float64_tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def noise_in_order(values: Sequence[float], sigmas: Sequence[float]) -> StepNoise:
    """Return noise that is values[i] in the i-th step."""
    return lambda left: float64_tensor(values[len(sigmas) - 2 - left])


def no_report(fraction: float) -> None:
    pass


def exact_deviation(solver: Solver, sigmas: Sequence[float], start: float) -> float:
    """Return the exact standard deviation of the result for a start with standard deviation `start`.

    With a linear denoiser the result is linear in the start and in each step's noise, one row for each.
    """
    rows = torch.eye(len(sigmas), dtype=torch.float64)
    result = solver(gaussian, rows[0] * start, sigmas, lambda left: rows[left])
    return result.square().sum().sqrt().item()


# Tables


def test_table_ends_match_specification() -> None:
    assert (SD.sigmas[0], SD.sigmas[-1]) == pytest.approx((0.02916753, 14.614642), rel=1e-6)
    assert (SD_HALF.sigmas[0], SD_HALF.sigmas[-1]) == (0.0312652550637722, 14.611639022827148)
    assert len(SD.sigmas) == len(SD_HALF.sigmas) == 1000


def test_table_uses_precision_of_alphas() -> None:
    alphas = (1 - torch.linspace(0.01, 0.05, 20, dtype=torch.float64)).cumprod(0)
    exact = [math.sqrt((1 - alpha) / alpha) for alpha in alphas.tolist()]
    assert NoiseTable.from_alphas(alphas).sigmas == pytest.approx(exact, rel=1e-14)
    rounded = [np.sqrt(np.float32((np.float16(1) - alpha) / alpha)) for alpha in alphas.half().numpy()]
    assert NoiseTable.from_alphas(alphas.half()).sigmas == tuple(float(sigma) for sigma in rounded)


def digest(values: Tensor) -> str:
    """Return the SHA-256 of the values' bytes."""
    return hashlib.sha256(values.numpy().tobytes()).hexdigest()


def test_tables_are_equal_on_every_machine() -> None:
    tables = [torch.tensor(table.sigmas, dtype=torch.float64) for table in (SD, SD_HALF)]
    assert [torch.equal(table, table.float().double()) for table in tables] == [True, True]
    assert [digest(table.float()) for table in tables] == [
        "b444c22c12c5d82a1ca61f1cd6033b42d2501cebae9de6e72db01377168545c2",
        "48b8e1556f9427a9c9e061c5389450830e235778138a9e784b7b212ededa0977",
    ]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "dpmpp-3m-sde-karras",
            (0.6450233, 0.4469208, 0.30343768, 0.20139983, 0.13030872, 0.08191105, 0.04981755, 0.0),
        ),
        (
            "dpmpp-3m-sde-exponential",
            (0.32723242, 0.23166612, 0.16400939, 0.11611141, 0.08220176, 0.05819522, 0.041199647, 0.0),
        ),
        (
            "dpmpp-3m-sde",
            (1.1212473, 0.93235797, 0.76925886, 0.62497693, 0.49355173, 0.36865777, 0.23952408, 0.0),
        ),
        ("ddim", (0.9260792, 0.7651406, 0.6225125, 0.49240923, 0.36865777, 0.24077857, 0.04131448, 0.0)),
    ],
)
def test_schedules_are_equal_on_every_machine(name: str, expected: tuple[float, ...]) -> None:
    """Levels are float64, but tensors are float32: as float32 they are equal to the last bit."""
    levels = np.array(SAMPLERS[name].sigmas(SD, 18, 0.35), np.float32)
    assert levels.tolist() == np.array(expected, np.float32).tolist()


def test_table_with_other_range_and_length() -> None:
    table = NoiseTable.scaled_linear(start=0.0001, end=0.02, timesteps=50)
    assert len(table.sigmas) == 50
    assert table.sigmas[0] == pytest.approx(math.sqrt(0.0001 / 0.9999), rel=1e-3)
    assert table.sigma(49) == table.sigmas[-1]


@pytest.mark.parametrize("table", [SD, SD_HALF], ids=["float32", "float16"])
def test_timestep_of_table_level_is_its_index(table: NoiseTable) -> None:
    assert [table.timestep(sigma) for sigma in table.sigmas] == pytest.approx(range(1000), abs=1e-9)
    assert [table.sigma(timestep) for timestep in range(1000)] == list(table.sigmas)


@given(st.floats(0, 999))
def test_timestep_and_sigma_are_inverse(timestep: float) -> None:
    assert SD.timestep(SD.sigma(timestep)) == pytest.approx(timestep, abs=1e-8)


def test_levels_interpolate_geometrically() -> None:
    assert SD.sigma(100.5) == pytest.approx(math.sqrt(SD.sigmas[100] * SD.sigmas[101]), rel=1e-12)


def test_values_beyond_table_are_clamped() -> None:
    assert SD.timestep(1e-9) == SD.timestep(0.0) == 0
    assert SD.timestep(1e9) == 999
    assert SD.sigma(-3) == SD.sigmas[0]
    assert SD.sigma(2000) == SD.sigmas[-1]


@pytest.mark.parametrize("sigmas", [(), (1.0,), (0.0, 1.0), (1.0, 1.0), (2.0, 1.0), (1.0, math.inf), (1.0, math.nan)])
def test_invalid_noise_levels_are_rejected(sigmas: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="noise levels"):
        NoiseTable(sigmas=sigmas)


# Schedules


@pytest.mark.parametrize(
    ("table", "sigmas", "timesteps"),
    [
        (
            SD_HALF,
            (0.662828, 0.461142, 0.314524, 0.209826, 0.136544, 0.086394, 0.052939, 0),
            (237.05, 152.39, 87.13, 44.13, 19.75, 7.60, 2.40),
        ),
        (
            SD,
            (0.645023, 0.446921, 0.303438, 0.201400, 0.130309, 0.081911, 0.049818, 0),
            (230.07, 145.94, 82.24, 40.86, 17.86, 6.73, 1.92),
        ),
    ],
    ids=["float16", "float32"],
)
def test_default_run_matches_specification(
    table: NoiseTable, sigmas: tuple[float, ...], timesteps: tuple[float, ...]
) -> None:
    found = KARRAS_3M.sigmas(table, 18, 0.35)
    assert found == pytest.approx(sigmas, abs=5e-7)
    assert [table.timestep(sigma) for sigma in found[:-1]] == pytest.approx(timesteps, abs=5e-3)


def test_karras_schedule_matches_specification() -> None:
    expected = "14.6146 11.5804 9.1029 7.0944 5.4784 4.1888 3.1686 2.3693 1.7494 1.2741 0.9141 0.6450 0.4469 0.3034"
    expected += " 0.2014 0.1303 0.0819 0.0498 0.0000"
    assert [f"{sigma:.4f}" for sigma in KARRAS_3M.sigmas(SD, 18)] == expected.split()


@pytest.mark.parametrize(
    ("creativity", "evaluations"),
    [
        *[(0, 1), (0.05, 1), (0.1, 2), (0.2, 4), (0.28, 6), (0.3, 6), (0.35, 7), (0.4, 8), (0.5, 10)],
        *[(0.6, 11), (0.7, 13), (0.8, 15), (0.9, 17), (1.0, 18), (1.7, 18)],
    ],
)
def test_creativity_sets_number_of_evaluated_steps(creativity: float, evaluations: int) -> None:
    calls = 0

    def counting(x: Tensor, sigma: float) -> Tensor:
        nonlocal calls
        calls += 1
        return gaussian(x, sigma)

    sigmas = KARRAS_3M.sigmas(SD, 18, creativity)
    KARRAS_3M.run(counting, float64_tensor(1), sigmas, lambda left: float64_tensor(0), no_report)
    assert calls == evaluations == len(sigmas) - 1


@every_sampler
@settings(max_examples=25)
@given(steps=st.integers(1, 100), creativity=st.floats(0, 1))
def test_schedules_fall_from_highest_level_to_zero(sampler: Sampler, steps: int, creativity: float) -> None:
    whole = sampler.sigmas(SD, steps)
    part = sampler.sigmas(SD, steps, creativity)
    assert len(whole) == steps + 1
    assert all(above > below for above, below in pairwise(whole))
    assert whole[-1] == 0
    assert SD.sigmas[-1] * (1 + 1e-12) >= whole[0]
    assert len(part) == int(min(creativity, 0.999) * steps) + 2
    assert part == whole[-len(part) :]


@settings(max_examples=25)
@given(steps=st.integers(2, 100))
def test_only_3m_sde_drops_lowest_level(steps: int) -> None:
    dropping = {"dpmpp-3m-sde", "dpmpp-3m-sde-karras", "dpmpp-3m-sde-exponential"}
    for name, sampler in SAMPLERS.items():
        lowest = sampler.sigmas(SD, steps)[-2]
        if name == "ddim":
            assert lowest == SD.sigmas[1]
        elif name in dropping:
            assert lowest == pytest.approx(sampling.schedule(sampler.spacing, SD, steps + 1)[-3], rel=1e-12)
        else:
            assert lowest == pytest.approx(SD.sigmas[0], rel=1e-12)


def test_exponential_and_uniform_spacing() -> None:
    levels = sampling.exponential(SD, 30)
    ratios = [below / above for above, below in pairwise(levels)]
    assert ratios == pytest.approx([ratios[0]] * 29, rel=1e-12)
    assert (levels[0], levels[-1]) == pytest.approx((SD.sigmas[-1], SD.sigmas[0]), rel=1e-12)
    assert sampling.uniform(SD, 1000) == pytest.approx(SD.sigmas[::-1], rel=1e-12)
    assert [SD.timestep(sigma) for sigma in sampling.uniform(SD, 4)] == pytest.approx([999, 666, 333, 0], abs=1e-9)


def test_ddim_timesteps_start_at_one() -> None:
    timesteps = [SD.timestep(sigma) for sigma in sampling.leading(SD, 18)]
    assert timesteps == pytest.approx(range(17 * 55 + 1, 0, -55), abs=1e-9)


@pytest.mark.parametrize("spacing", [sampling.karras, sampling.exponential, sampling.uniform, sampling.leading])
def test_schedule_without_steps_is_rejected(spacing: sampling.Spacing) -> None:
    with pytest.raises(ValueError, match="step"):
        sampling.schedule(spacing, SD, 0)


def test_too_many_steps_or_negative_creativity_are_rejected() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        sampling.leading(SD, 1000)
    with pytest.raises(ValueError, match="negative"):
        schedule_tail((1.0, 0.0), -0.1)


# DPM++ 3M SDE

SEQUENCE = (0.5, -1, 0.25, 2, -0.75, 1.5, -0.3, 0.8, -1.2, 0.4)


@pytest.mark.parametrize(
    ("table", "creativity", "noise", "expected"),
    [
        (EXACT, 0.35, [0] * 6, 0.660655500683),
        (EXACT, 0.35, [1] * 6, 1.748763419997),
        (EXACT, 0.35, SEQUENCE[:6], 0.891118493198),
        (EXACT, 0.6, [0] * 10, 0.126099220730),
        (EXACT, 0.6, [1] * 10, 2.594981941905),
        (EXACT, 0.6, SEQUENCE, 0.899541642518),
        (SD_HALF, 0.35, [0] * 6, 0.648341871796),
        (SD_HALF, 0.35, [1] * 6, 1.763347407028),
        (SD_HALF, 0.35, SEQUENCE[:6], 0.888261546958),
        (SD_HALF, 0.6, [0] * 10, 0.122980021426),
        (SD_HALF, 0.6, [1] * 10, 2.606057621935),
        (SD_HALF, 0.6, SEQUENCE, 0.900773570037),
    ],
)
def test_3m_sde_equals_k_diffusion(
    table: NoiseTable, creativity: float, noise: Sequence[float], expected: float
) -> None:
    sigmas = KARRAS_3M.sigmas(table, 18, creativity)
    assert len(sigmas) == len(noise) + 2  # the last step takes no noise
    result = KARRAS_3M.run(gaussian, float64_tensor(1), sigmas, noise_in_order(noise, sigmas), no_report)
    assert result.item() == pytest.approx(expected, abs=1e-9)


def deviation_by_covariance(sigmas: Sequence[float], start: float) -> float:
    """Return the result's standard deviation from the covariance of (x, last D, the D before it), step by step."""
    covariance = np.zeros((3, 3))
    covariance[0, 0] = start**2
    steps: list[float] = []
    for sigma, below in pairwise(sigmas):
        gain = VARIANCE / (VARIANCE + sigma**2)
        if below == 0:
            return gain * math.sqrt(covariance[0, 0])
        h = math.log(sigma / below)
        phi2 = (math.exp(-2 * h) - 1) / (2 * h) + 1
        phi3 = phi2 / (2 * h) - 0.5
        now, last, before = np.array([gain, 0, 0]), np.array([0, 1, 0]), np.array([0, 0, 1])
        x = math.exp(-2 * h) * np.array([1, 0, 0]) + (1 - math.exp(-2 * h)) * now
        if len(steps) == 1:
            x = x + phi2 * (now - last) / (steps[-1] / h)
        elif len(steps) > 1:
            r0, r1 = steps[-1] / h, steps[-2] / h
            a, b = (now - last) / r0, (last - before) / r1
            x = x + phi2 * (a + (a - b) * r0 / (r0 + r1)) - phi3 * (a - b) / (r0 + r1)
        motion = np.stack((x, now, last))
        covariance = motion @ covariance @ motion.T
        covariance[0, 0] += below**2 * (1 - math.exp(-2 * h))
        steps.append(h)
    raise AssertionError("the schedule does not end in 0")


@pytest.mark.parametrize(("steps", "error"), [(18, -0.01827), (36, -0.00605), (72, -0.00196), (144, -0.00088)])
def test_3m_sde_variance_loss_matches_specification(steps: int, error: float) -> None:
    sigmas = KARRAS_3M.sigmas(EXACT, steps, 0.35)
    start = math.sqrt(VARIANCE + sigmas[0] ** 2)
    found = exact_deviation(sampling.dpmpp_3m_sde, sigmas, start)
    assert found == pytest.approx(deviation_by_covariance(sigmas, start), abs=1e-12)
    assert found - math.sqrt(VARIANCE) == pytest.approx(error, abs=5e-6)


# Against diffusers


def with_diffusers(sigmas: Sequence[float], noise: Sequence[float], *, signed: bool = False, **config: Any) -> float:
    """Run diffusers' multistep solver from 1; `signed` corrects the sign in its third order."""
    from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler

    class Signed(DPMSolverMultistepScheduler):
        def multistep_dpm_solver_third_order_update(self, *args: Any, **given: Any) -> Tensor:
            """Use +0.5 instead of -0.5 as the weight of the second difference."""
            now, outputs = cast(int, self.step_index), args[0]
            h, h0, h1 = (-(self.sigmas[now + 1 - k] / self.sigmas[now - k]).log() for k in range(3))
            newer, older = (outputs[-1] - outputs[-2]) / (h0 / h), (outputs[-2] - outputs[-3]) / (h1 / h)
            alpha, _ = self._sigma_to_alpha_sigma_t(self.sigmas[now + 1])
            stock: Tensor = super().multistep_dpm_solver_third_order_update(*args, **given)
            return torch.add(stock, alpha * (newer - older) / ((h0 + h1) / h))

    scheduler = (Signed if signed else DPMSolverMultistepScheduler)(
        prediction_type="sample", lower_order_final=False, final_sigmas_type="zero", **config
    )
    scheduler.num_inference_steps = len(sigmas) - 1
    scheduler.sigmas = float64_tensor(*sigmas)
    scheduler.timesteps = torch.arange(len(sigmas) - 1, 0, -1)
    scheduler.set_begin_index(0)
    x = float64_tensor(1)
    for step, sigma in enumerate(sigmas[:-1]):
        scale = math.sqrt(1 + sigma**2)  # diffusers keeps x at variance 1
        fresh = float64_tensor(noise[step] if step < len(noise) else 0)
        moved = scheduler.step(gaussian(x, sigma), scheduler.timesteps[step], x / scale, variance_noise=fresh)
        x = moved.prev_sample * math.sqrt(1 + sigmas[step + 1] ** 2)
    return x.item()


THIRD_ORDER: dict[str, Any] = {"algorithm_type": "sde-dpmsolver++", "solver_order": 3, "solver_type": "heun"}


def run_solver(solver: Solver, sigmas: Sequence[float], noise: Sequence[float]) -> float:
    return solver(gaussian, float64_tensor(1), sigmas, noise_in_order(noise, sigmas)).item()


@pytest.mark.parametrize("creativity", [0.35, 0.6])
def test_3m_sde_equals_diffusers_with_corrected_sign(creativity: float) -> None:
    sigmas = KARRAS_3M.sigmas(SD, 18, creativity)
    expected = with_diffusers(sigmas, SEQUENCE, signed=True, **THIRD_ORDER)
    assert run_solver(sampling.dpmpp_3m_sde, sigmas, SEQUENCE) == pytest.approx(expected, abs=1e-6)


@pytest.mark.xfail(
    strict=True, raises=AssertionError, reason="diffusers has a sign wrong there: once this passes, drop `signed`"
)
def test_3m_sde_equals_unmodified_diffusers() -> None:
    sigmas = KARRAS_3M.sigmas(SD, 18, 0.35)
    expected = with_diffusers(sigmas, SEQUENCE, **THIRD_ORDER)
    assert run_solver(sampling.dpmpp_3m_sde, sigmas, SEQUENCE) == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(
    ("solver", "algorithm", "kind"),
    [
        (sampling.dpmpp_2m, "dpmsolver++", "midpoint"),
        (sampling.dpmpp_2m_sde, "sde-dpmsolver++", "midpoint"),
        (sampling.dpmpp_2m_sde_heun, "sde-dpmsolver++", "heun"),
    ],
)
def test_second_order_samplers_equal_diffusers(solver: Solver, algorithm: str, kind: str) -> None:
    sigmas = SAMPLERS["dpmpp-2m-karras"].sigmas(SD, 18, 0.5)
    expected = with_diffusers(sigmas, SEQUENCE, algorithm_type=algorithm, solver_order=2, solver_type=kind)
    assert run_solver(solver, sigmas, SEQUENCE) == pytest.approx(expected, abs=1e-6)


def test_ddim_equals_diffusers() -> None:
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="sample",
        clip_sample=False,
        steps_offset=1,
    )
    scheduler.set_timesteps(20)
    sigmas = SAMPLERS["ddim"].sigmas(SD, 20)
    x = torch.ones(1)
    for timestep, sigma in zip(scheduler.timesteps, sigmas[:-1], strict=True):
        x = scheduler.step(gaussian(x * math.sqrt(1 + sigma**2), sigma), int(timestep), x).prev_sample
    start = float64_tensor(math.sqrt(1 + sigmas[0] ** 2))
    result = SAMPLERS["ddim"].run(gaussian, start, sigmas, lambda left: float64_tensor(0), no_report)
    assert result.item() == pytest.approx(x.item(), rel=1e-4)  # its table is float32


# Against formulas


def karras_levels() -> tuple[float, ...]:
    return sampling.schedule(sampling.karras, SD, 12)


def test_euler_is_a_product_of_gains() -> None:
    sigmas = karras_levels()
    gains = [1 + (below - sigma) / sigma * (1 - VARIANCE / (VARIANCE + sigma**2)) for sigma, below in pairwise(sigmas)]
    assert run_solver(sampling.euler, sigmas, []) == pytest.approx(math.prod(gains), rel=1e-12)


def test_euler_ancestral_matches_published_formula() -> None:
    sigmas = karras_levels()
    noise = [math.sin(3 * number) for number in range(len(sigmas))]
    x = 1.0
    for (sigma, below), fresh in zip(pairwise(sigmas), noise, strict=False):
        up = min(below, math.sqrt(below**2 * (sigma**2 - below**2) / sigma**2))
        down = math.sqrt(below**2 - up**2)
        slope = (x - x * VARIANCE / (VARIANCE + sigma**2)) / sigma
        x += slope * (down - sigma) + up * fresh
    assert run_solver(sampling.euler_ancestral, sigmas, noise) == pytest.approx(x, rel=1e-12)


def test_heun_averages_both_slopes() -> None:
    def slope(x: float, sigma: float) -> float:
        return x * sigma / (VARIANCE + sigma**2)

    x = 1.0
    sigmas = karras_levels()
    for sigma, below in pairwise(sigmas):
        first = slope(x, sigma)
        guess = x + first * (below - sigma)
        x += (first + (slope(guess, below) if below else first)) / 2 * (below - sigma)
    assert run_solver(sampling.heun, sigmas, []) == pytest.approx(x, rel=1e-12)


def test_2m_matches_algorithm_2_of_paper() -> None:
    sigmas = karras_levels()
    alphas = [1 / math.sqrt(1 + sigma**2) for sigma in sigmas]
    noises = [sigma * alpha for sigma, alpha in zip(sigmas, alphas, strict=True)]
    x, last, last_h = alphas[0], None, 0.0
    for step in range(len(sigmas) - 2):
        denoised = x / alphas[step] * VARIANCE / (VARIANCE + sigmas[step] ** 2)
        h = math.log(alphas[step + 1] / noises[step + 1]) - math.log(alphas[step] / noises[step])
        r = last_h / h
        guess = denoised if last is None else (1 + 1 / (2 * r)) * denoised - last / (2 * r)
        x = noises[step + 1] / noises[step] * x - alphas[step + 1] * math.expm1(-h) * guess
        last, last_h = denoised, h
    expected = x / alphas[-2] * VARIANCE / (VARIANCE + sigmas[-2] ** 2)
    assert run_solver(sampling.dpmpp_2m, sigmas, []) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("solver", "order"), [(sampling.euler, 1), (sampling.heun, 2), (sampling.dpmpp_2m, 2)])
def test_error_falls_by_solver_order(solver: Solver, order: int) -> None:
    table = NoiseTable(sigmas=(0.2, 3.0))
    flow = math.sqrt((VARIANCE + 0.2**2) / (VARIANCE + 3.0**2))  # the exact solution of the probability flow
    errors = [abs(run_solver(solver, sampling.exponential(table, steps), []) - flow) for steps in (81, 161)]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize(
    "solver",
    [sampling.euler_ancestral, sampling.dpmpp_2m_sde, sampling.dpmpp_2m_sde_heun, sampling.dpmpp_3m_sde],
)
def test_stochastic_samplers_keep_noise_level(solver: Solver) -> None:
    sigmas = karras_levels()
    rows = torch.eye(len(sigmas), dtype=torch.float64)
    levels: list[float] = []

    def perfect(x: Tensor, sigma: float) -> Tensor:
        levels.append(x.square().sum().sqrt().item() / sigma)
        return torch.zeros_like(x)

    solver(perfect, rows[0] * sigmas[0], sigmas, lambda left: rows[left])
    assert levels == pytest.approx([1] * (len(sigmas) - 1), rel=1e-12)


# Properties of every sampler


def random_latent(batch: int = 1, *, seed: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn((batch, 4, 8, 8), generator=torch.Generator().manual_seed(seed)).to(dtype)


def noise_like(x: Tensor) -> StepNoise:
    return lambda left: random_latent(x.shape[0], seed=100 + left, dtype=x.dtype).to(x.device)


def nonlinear_denoiser(x: Tensor, sigma: float) -> Tensor:
    """A nonlinear denoiser that mixes neighbouring pixels, but not the items of a batch."""
    return torch.tanh(x + x.roll(1, -1) / 4) / (1 + sigma**2)


@every_sampler
@pytest.mark.parametrize("creativity", [0, 0.35, 1])
def test_perfect_denoiser_returns_exact_latent(sampler: Sampler, creativity: float) -> None:
    clean = random_latent(dtype=torch.float32)
    noise = Noise(seed=3, shape=tuple(clean.shape), device=CPU)
    sigmas = sampler.sigmas(SD_HALF, 18, creativity)
    x = sampling.add_noise(clean, noise, sigmas[0])
    assert torch.equal(sampler.run(lambda x, sigma: clean, x, sigmas, noise.step, no_report), clean)


@every_sampler
def test_single_step_returns_denoiser_output(sampler: Sampler) -> None:
    sigmas = sampler.sigmas(SD, 18, 0.0)
    x = random_latent()
    result = sampler.run(nonlinear_denoiser, x, sigmas, noise_like(x), no_report)
    assert torch.equal(result, nonlinear_denoiser(x, sigmas[0]))


@every_sampler
def test_batch_items_are_independent(sampler: Sampler) -> None:
    batch = random_latent(3)
    sigmas = sampler.sigmas(SD, 9, 0.7)

    def run(chosen: slice) -> Tensor:
        return sampler.run(
            nonlinear_denoiser, batch[chosen], sigmas, lambda left: noise_like(batch)(left)[chosen], no_report
        )

    alone = [run(slice(number, number + 1)) for number in range(3)]
    assert torch.equal(run(slice(None)), torch.cat(alone))


@every_sampler
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_dtype_is_kept_and_input_unchanged(sampler: Sampler, dtype: torch.dtype) -> None:
    x = random_latent(dtype=dtype)
    before = x.clone()
    result = sampler.run(nonlinear_denoiser, x, sampler.sigmas(SD, 6), noise_like(x), no_report)
    assert result.dtype == dtype
    assert bool(result.isfinite().all())
    assert torch.equal(x, before)


@every_sampler
def test_steps_never_read_device_values(sampler: Sampler) -> None:
    """Meta tensors raise if a value is read."""
    x = random_latent(dtype=torch.float32).to("meta")
    result = sampler.run(nonlinear_denoiser, x, sampler.sigmas(SD, 6), noise_like(x), no_report)
    assert result.device.type == "meta"
    assert result.shape == x.shape


@every_sampler
def test_same_seed_gives_same_bits(sampler: Sampler) -> None:
    def sample(seed: int) -> Tensor:
        noise = Noise(seed=seed, shape=(1, 4, 8, 8), device=CPU)
        sigmas = sampler.sigmas(SD, 9, 0.5)
        x = sampling.add_noise(random_latent(dtype=torch.float32), noise, sigmas[0])
        return sampler.run(nonlinear_denoiser, x, sigmas, noise.step, no_report)

    assert torch.equal(sample(7), sample(7))
    assert not torch.allclose(sample(7), sample(8), atol=1e-3)


@every_sampler
def test_every_evaluation_reports_progress(sampler: Sampler) -> None:
    calls: list[float] = []
    fractions: list[float] = []

    def counting(x: Tensor, sigma: float) -> Tensor:
        calls.append(sigma)
        return nonlinear_denoiser(x, sigma)

    sampler.run(counting, random_latent(), sampler.sigmas(SD, 10, 0.5), noise_like(random_latent()), fractions.append)
    assert len(calls) == len(fractions) == (11 if sampler.name == "heun" else 6)
    assert fractions == pytest.approx(np.arange(1, len(calls) + 1) / len(calls))
    assert fractions[-1] == 1


@every_sampler
def test_cancelled_run_stops_evaluating(sampler: Sampler) -> None:
    calls = 0

    def counting(x: Tensor, sigma: float) -> Tensor:
        nonlocal calls
        calls += 1
        return nonlinear_denoiser(x, sigma)

    def cancel(fraction: float) -> None:
        if calls == 3:
            raise Cancelled

    with pytest.raises(Cancelled):
        sampler.run(counting, random_latent(), sampler.sigmas(SD, 18), noise_like(random_latent()), cancel)
    assert calls == 3


# Noise


def test_step_noise_ignores_earlier_draws() -> None:
    noise = Noise(seed=5, shape=(1, 4, 8, 8), device=CPU)
    third = noise.step(3)
    noise.start()
    noise.step(1)
    assert torch.equal(noise.step(3), third)
    assert torch.equal(Noise(seed=5, shape=(1, 4, 8, 8), device=CPU).step(3), third)


def test_step_noise_ignores_start_of_run() -> None:
    def noise_numbers(creativity: float) -> dict[float, int]:
        """Return the number with which each step requests its noise, by its level."""
        numbers: dict[float, int] = {}
        level = 0.0

        def denoise(x: Tensor, sigma: float) -> Tensor:
            nonlocal level
            level = sigma
            return nonlinear_denoiser(x, sigma)

        def step(left: int) -> Tensor:
            numbers[level] = left
            return noise_like(random_latent())(left)

        KARRAS_3M.run(denoise, random_latent(), KARRAS_3M.sigmas(SD, 18, creativity), step, no_report)
        return numbers

    short, long = noise_numbers(0.35), noise_numbers(0.8)
    assert len(short) == 6
    assert sorted(short.values()) == list(range(1, 7))  # 0 is the start's
    assert short.items() <= long.items()


def test_noise_draws_are_independent_standard_normals() -> None:
    noise = Noise(seed=11, shape=(1, 4, 128, 128), device=CPU)
    draws = torch.stack((noise.start(), *(noise.step(left) for left in range(1, 6)))).flatten(1).double()
    count = draws.shape[1]
    assert draws.mean(1).abs().max() < 5 / math.sqrt(count)
    assert (torch.cov(draws) - torch.eye(6, dtype=torch.float64)).abs().max() < 8 / math.sqrt(count)
    assert (draws.abs() > 3).double().mean() == pytest.approx(0.0027, abs=5e-4)


def test_start_variance_is_latent_plus_level() -> None:
    clean = 0.9 * random_latent(64, seed=2).reshape(1, 4, 64, 64)
    noise = Noise(seed=1, shape=tuple(clean.shape), device=CPU)
    x = sampling.add_noise(clean, noise, 0.66)
    assert x.dtype == torch.float64
    assert x.var().item() == pytest.approx(clean.var().item() + 0.66**2, rel=0.03)


@pytest.mark.parametrize("other", [6, 5 + 2**32, 5 + 2**52])
def test_all_seed_bits_matter(other: int) -> None:
    def draw(seed: int) -> Callable[[], Tensor]:
        return Noise(seed=seed, shape=(1, 4, 8, 8), device=CPU).start

    correlation = torch.corrcoef(torch.stack((draw(5)().flatten(), draw(other)().flatten())))[0, 1]
    assert abs(correlation.item()) < 0.3


def test_noise_of_a_seed_never_changes() -> None:
    noise = Noise(seed=1337, shape=(1, 4, 8, 8), device=CPU)
    assert noise.start().dtype == torch.float32
    assert noise.start().flatten()[:3].tolist() == pytest.approx([0.347367, 0.977017, 1.716019], abs=1e-6)
    assert noise.step(1).flatten()[:3].tolist() == pytest.approx([-0.388563, 1.242221, -0.967619], abs=1e-6)


def test_noise_is_equal_on_every_machine() -> None:
    noise = Noise(seed=1337, shape=(1, 4, 8, 8), device=CPU)
    assert digest(noise.start()) == "549d3f06978a92f3d5872107feec5eae58f5882b7decd3815d7ce38c4a4a5967"
    assert digest(noise.step(1)) == "184e64fa011985f9d3da1e83c2b6fa6fdcc1d8b7d3faf8892f814f99eb3c627d"


DIGESTS = """
import hashlib, torch
from hiresfix.engine.diffusion.sampling import Noise, NoiseTable
draw = Noise(seed=1, shape=(1, 4, 64, 65), device=torch.device("cpu")).step(2)
tables = torch.tensor([NoiseTable.scaled_linear(half=half).sigmas for half in (False, True)])
print(torch.backends.cpu.get_cpu_capability())
for values in (draw, tables):
    print(hashlib.sha256(values.numpy().tobytes()).hexdigest())
"""


def test_older_cpu_computes_same_bits() -> None:
    """Run PyTorch without vector instructions, and MKL in its mode for unknown CPUs."""
    environment = os.environ | {"ATEN_CPU_CAPABILITY": "default", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2"}
    output = subprocess.run(
        [sys.executable, "-c", DIGESTS], env=environment, capture_output=True, text=True, check=True
    ).stdout.split()
    draw = Noise(seed=1, shape=(1, 4, 64, 65), device=CPU).step(2)
    assert output == ["DEFAULT", digest(draw), digest(torch.tensor([SD.sigmas, SD_HALF.sigmas]))]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_gpu_gets_same_bits() -> None:
    noise = Noise(seed=1, shape=(1, 4, 64, 65), device=CPU)
    there = Noise(seed=1, shape=(1, 4, 64, 65), device=torch.device("cuda"))
    assert torch.equal(there.step(2).cpu(), noise.step(2))
