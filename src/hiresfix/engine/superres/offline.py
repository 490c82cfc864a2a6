"""The offline creative model: what a `clarity-upscale` job does when no diffusion model is there.

A super-resolution network is read as a denoiser that knows pictures: seeded noise where the picture has texture makes
it paint texture of its own (`invention`: creativity and seed), what it adds to interpolation is turned up or down
(dynamic), and what it lost of the input is shown to it once more (steps). Guarantees: creativity 0 at a dynamic of 6
is the enlarger alone, bit for bit; a pass costs as many evaluations of the network on its input as `Plan` says, one
below 30 steps. It does not follow prompts, and says so. Knows no files and no devices.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hiresfix.engine import devices, progress
from hiresfix.engine.pixels import tiling
from hiresfix.engine.pixels.resampling import Samples
from hiresfix.engine.pixels.tiling import Span
from hiresfix.engine.progress import Report
from hiresfix.engine.superres import tiled_inference
from hiresfix.engine.superres.networks import Network
from hiresfix.engine.superres.texture_noise import Invention
from hiresfix.engine.superres.tiled_inference import Extra, Finish
from hiresfix.recipe import Recipe

NAME = "gan-prior"
WARNINGS = ("The offline engine does not follow prompts: prompt and negative_prompt were kept, and changed nothing.",)
REPAIRED = "The input is damaged, so its colours are followed more than its pixels; resemblance above 1 follows both."

NATURAL = 0.35
"""The creativity at which the result has about as much fine detail as a photograph of its size."""
NEUTRAL = 6.0
STEPS_OF_AN_EVALUATION = 30
_MOST_EVALUATIONS = 3
_LEAST_GAIN, _MOST_GAIN = 0.7, 1.3

# By how many times the network's result is reduced: the less of its detail is averaged away, the less it needs.
# Found on photographs reduced to a half and a quarter, against the originals' spectra and gradients.
_AMPLITUDES = {1: (0.3, 1.2), 2: (1.8, 3.5), 4: (2.5, 5.0)}
"""Noise relative to texture at `NATURAL` and at full creativity."""
_FEEDBACK = {1: 0.2, 2: 0.5, 4: 0.5}
"""How much of what an evaluation lost the next one is shown."""

Misses = NDArray[np.float16]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What one pass does; by default no more than the enlarger.

    invention: None for nothing. gain: on what the network adds to interpolation. evaluations: of the network on the
    pass's input, of which all but the last find out what it loses. feedback: the share of that which the next sees.
    """

    invention: Invention | None = None
    gain: float = 1.0
    evaluations: int = 1
    feedback: float = 0.0


def plan(recipe: Recipe, *, reduction: int) -> Plan:
    """For a pass with this recipe's creativity and seed. reduction: the network's scale over the pass's factor."""
    nearest = min(_AMPLITUDES, key=lambda known: abs(known - reduction))
    amplitude = float(np.interp(recipe.creativity, (0, NATURAL, 1), (0, *_AMPLITUDES[nearest])))
    # Half as much feedback where half as much may be invented, so that creativity has no sudden step at 0.
    feedback = _FEEDBACK[nearest] * min(1.0, recipe.creativity / NATURAL)
    return Plan(
        invention=Invention(seed=recipe.seed, amplitude=amplitude) if amplitude else None,
        gain=gain(recipe.dynamic),
        evaluations=evaluations(recipe.steps) if feedback else 1,
        feedback=feedback,
    )


def evaluations(steps: int) -> int:
    """How often a pass runs the network: once below 30 steps, twice below 60, then three times."""
    return min(_MOST_EVALUATIONS, 1 + steps // STEPS_OF_AN_EVALUATION)


def gain(dynamic: float) -> float:
    """0.7 at a dynamic of 1, exactly 1 at 6, 1.3 at 50; every doubling changes it by the same in between."""
    if dynamic <= NEUTRAL:
        return 1 - (1 - _LEAST_GAIN) * math.log(NEUTRAL / dynamic) / math.log(NEUTRAL)
    return 1 + (_MOST_GAIN - 1) * math.log(dynamic / NEUTRAL) / math.log(50 / NEUTRAL)


def following(resemblance: float, severity: float) -> tuple[float, float]:
    """How tightly to follow the input's pixels, 0..3, and its colours, 0..1; severity: of its damage, 0..1.

    To follow a damaged picture pixel by pixel brings its damage back: its colours are enough, unless more than 1 is
    asked for.
    """
    pixels = (1 - severity) * resemblance + severity * 3 * max(0.0, resemblance - 1) / 2
    return min(3.0, pixels), severity * min(1.0, resemblance)


def run(
    network: Network, rgb: Samples, plan: Plan, tile: int, *, factor: int, finish: Finish, report: Report
) -> tuple[Samples, int]:
    """One pass: the picture at `factor` times its size, and the tile that fitted; otherwise as `enlarging.enlarge`."""
    share = 1 / plan.evaluations
    misses: Misses | None = None
    for number in range(plan.evaluations - 1):
        part = progress.portion(report, number * share, share)
        look = partial(_missed, network, rgb, misses, plan.feedback, report=part)
        misses, tile = devices.with_room(tile, look)
    enlarge = partial(
        tiled_inference.enlarge,
        network,
        rgb,
        factor=factor,
        finish=finish,
        report=progress.portion(report, 1 - share, share),
        extra=_extra(rgb, plan.invention, misses),
    )
    return devices.with_room(tile, enlarge)


def _missed(
    network: Network, rgb: Samples, before: Misses | None, feedback: float, tile: int, *, report: Report
) -> Misses:
    """What to add to the input (H, W, 3), 0..1: `before`, and a share of what the network loses of it even so."""
    misses = np.zeros(rgb.shape, np.float16) if before is None else before.copy()
    pieces = tiled_inference.flow(
        network, rgb, tile, factor=1, finish=_miss, report=report, extra=_extra(rgb, None, before)
    )
    for rows, columns, miss in pieces:
        misses[rows.slice, columns.slice] += (feedback * miss[0]).permute(1, 2, 0).cpu().numpy().astype(np.float16)
    return misses


def _miss(y: Tensor, x: Tensor) -> Tensor:
    return x - y.clamp(0, 1)


def _extra(rgb: Samples, invention: Invention | None, misses: Misses | None) -> Extra | None:
    """What the network sees beside the picture; None for nothing."""
    if invention is None and misses is None:
        return None

    def extra(rows: Span, columns: Span) -> Tensor:
        added = torch.zeros(1, 1, rows.length, columns.length)
        if invention is not None:
            added = added + torch.from_numpy(invention(rgb, rows, columns) / np.float32(255))
        if misses is not None:
            place = np.ix_(tiling.mirrored(rows, rgb.shape[0]), tiling.mirrored(columns, rgb.shape[1]))
            added = added + torch.from_numpy(misses[place].astype(np.float32)).permute(2, 0, 1)
        return added

    return extra
