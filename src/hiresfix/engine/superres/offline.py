"""Offline creative engine: runs `clarity-upscale` jobs where no diffusion model is installed.

It uses a super-resolution network as a denoiser that knows images: seeded noise where the image has texture makes the
network paint texture of its own (`texture_noise`: creativity and seed), what it adds to interpolation is amplified or
damped (dynamic), and what it lost of the input is shown to it once more (steps). Guarantees: creativity 0 at a dynamic
of 6 is the network alone, bit for bit; a pass costs as many evaluations of the network on its input as `PassPlan`
says, one below 30 steps. It does not follow prompts, and warns about it. Knows no files and no devices.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hiresfix import messages
from hiresfix.engine import devices, progress
from hiresfix.engine.pixels import tiling
from hiresfix.engine.pixels.arrays import ImageArray
from hiresfix.engine.pixels.tiling import Span
from hiresfix.engine.progress import ProgressCallback
from hiresfix.engine.superres import tiled_inference
from hiresfix.engine.superres.networks import Network
from hiresfix.engine.superres.texture_noise import TextureNoise
from hiresfix.engine.superres.tiled_inference import ExtraInput, PostProcess
from hiresfix.recipe import Recipe

ENGINE_NAME = "gan-prior"
PROMPT_WARNINGS = (messages.PROMPT_IGNORED_OFFLINE(),)
DAMAGE_WARNING = messages.DAMAGED_INPUT_COLOURS()

NATURAL_CREATIVITY = 0.35
"""Creativity at which the result has about as much fine detail as a photo of its size."""
NEUTRAL_DYNAMIC = 6.0
STEPS_PER_EVALUATION = 30
_MAX_EVALUATIONS = 3
_MIN_GAIN, _MAX_GAIN = 0.7, 1.3

# By reduction of the network's result: the less of its detail is averaged away, the less noise and feedback it needs.
# Found on photos reduced to a half and a quarter, against the spectra and gradients of the originals.
_AMPLITUDES = {1: (0.3, 1.2), 2: (1.8, 3.5), 4: (2.5, 5.0)}
"""Noise relative to texture at `NATURAL_CREATIVITY` and at full creativity."""
_FEEDBACK = {1: 0.2, 2: 0.5, 4: 0.5}
"""Share of an evaluation's losses that the next evaluation is shown."""

Residual = NDArray[np.float16]
"""(H, W, 3): what to add to the input, in 0..1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PassPlan:
    """Settings of one pass; the defaults run only the network.

    Attributes:
        texture_noise: noise to add to the input; None for none.
        gain: factor on what the network adds to interpolation.
        evaluations: of the network on the input of the pass; all but the last only measure what it loses.
        feedback: share of these losses that the next evaluation is shown.
    """

    texture_noise: TextureNoise | None = None
    gain: float = 1.0
    evaluations: int = 1
    feedback: float = 0.0


def plan_pass(recipe: Recipe, *, reduction: int) -> PassPlan:
    """Plan a pass with this creativity and seed. reduction: the network's scale over the factor of the pass."""
    nearest = min(_AMPLITUDES, key=lambda known: abs(known - reduction))
    amplitude = float(np.interp(recipe.creativity, (0, NATURAL_CREATIVITY, 1), (0, *_AMPLITUDES[nearest])))
    # Less feedback where there is less noise, so that creativity has no sudden step at 0.
    feedback = _FEEDBACK[nearest] * min(1.0, recipe.creativity / NATURAL_CREATIVITY)
    return PassPlan(
        texture_noise=TextureNoise(seed=recipe.seed, amplitude=amplitude) if amplitude else None,
        gain=gain(recipe.dynamic),
        evaluations=evaluations(recipe.steps) if feedback else 1,
        feedback=feedback,
    )


def evaluations(steps: int) -> int:
    """Return how often a pass runs the network: once below 30 steps, twice below 60, then three times."""
    return min(_MAX_EVALUATIONS, 1 + steps // STEPS_PER_EVALUATION)


def gain(dynamic: float) -> float:
    """Return 0.7 at a dynamic of 1, exactly 1 at 6, 1.3 at 50; in between, each doubling changes it by the same."""
    if dynamic <= NEUTRAL_DYNAMIC:
        return 1 - (1 - _MIN_GAIN) * math.log(NEUTRAL_DYNAMIC / dynamic) / math.log(NEUTRAL_DYNAMIC)
    return 1 + (_MAX_GAIN - 1) * math.log(dynamic / NEUTRAL_DYNAMIC) / math.log(50 / NEUTRAL_DYNAMIC)


def split_resemblance(resemblance: float, severity: float) -> tuple[float, float]:
    """Return how tightly to follow the input's pixels, 0..3, and its colours, 0..1.

    Following a damaged image pixel by pixel restores its damage, so there only the colours are followed, unless
    resemblance is above 1. severity: of the damage, 0..1.
    """
    pixels = (1 - severity) * resemblance + severity * 3 * max(0.0, resemblance - 1) / 2
    return min(3.0, pixels), severity * min(1.0, resemblance)


def run_pass(
    network: Network,
    rgb: ImageArray,
    plan: PassPlan,
    tile: int,
    *,
    factor: int,
    postprocess: PostProcess,
    report: ProgressCallback,
) -> tuple[ImageArray, int]:
    """Run one pass; return the image at `factor` times its size, and the tile that fitted into memory.

    Arguments as for `tiled_inference.upscale`.
    """
    share = 1 / plan.evaluations
    residual: Residual | None = None
    for number in range(plan.evaluations - 1):
        part = progress.portion(report, number * share, share)
        measure = partial(_add_losses, network, rgb, residual, plan.feedback, report=part)
        residual, tile = devices.retry_with_smaller_tile(tile, measure)
    upscale = partial(
        tiled_inference.upscale,
        network,
        rgb,
        factor=factor,
        postprocess=postprocess,
        report=progress.portion(report, 1 - share, share),
        extra_input=_extra_input(rgb, plan.texture_noise, residual),
    )
    return devices.retry_with_smaller_tile(tile, upscale)


def _add_losses(
    network: Network,
    rgb: ImageArray,
    before: Residual | None,
    feedback: float,
    tile: int,
    *,
    report: ProgressCallback,
) -> Residual:
    """Return `before` plus a share of what the network still loses of the input."""
    residual = np.zeros(rgb.shape, np.float16) if before is None else before.copy()
    pieces = tiled_inference.upscale_pieces(
        network,
        rgb,
        tile,
        factor=1,
        postprocess=lambda y, x: x - y.clamp(0, 1),
        report=report,
        extra_input=_extra_input(rgb, None, before),
    )
    for rows, columns, loss in pieces:
        residual[rows.slice, columns.slice] += (feedback * loss[0]).permute(1, 2, 0).cpu().numpy().astype(np.float16)
    return residual


def _extra_input(rgb: ImageArray, noise: TextureNoise | None, residual: Residual | None) -> ExtraInput | None:
    """Return what is added to the network's input; None for nothing."""
    if noise is None and residual is None:
        return None

    def extra_input(rows: Span, columns: Span) -> Tensor:
        extra = torch.zeros(1, 1, rows.length, columns.length)
        if noise is not None:
            extra = extra + torch.from_numpy(noise(rgb, rows, columns) / np.float32(255))
        if residual is not None:
            cut = tiling.cut_mirrored(residual, rows, columns).astype(np.float32)
            extra = extra + torch.from_numpy(cut).permute(2, 0, 1)
        return extra

    return extra_input
