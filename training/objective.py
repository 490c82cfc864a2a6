"""What the networks are trained for: the part of a clean latent that no linear estimate finds.

The state, the anchor, the weights of the ControlNet and the timesteps are those that `engine.guidance` uses when the
checkpoint is run, so that nothing has to be converted afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from hiresfix.engine.diffusion import guidance
from hiresfix.engine.diffusion.compact.checkpoint import Compact
from hiresfix.engine.diffusion.sampling import NoiseTable
from training import captions
from training.pictures import Batch

LEAST_ENERGY = 0.7
"""Of a target, by which its loss is divided: else samples whose caption contradicts what is shown drown the rest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Losses:
    """(n,) each: the squared error relative to the target's energy, and the noise level it was made at."""

    relative: Tensor
    sigma: Tensor


def losses(model: Compact, batch: Batch, table: NoiseTable, generator: Generator) -> Losses:
    """One random noise level, control weight and caption for each sample."""
    said = captions.captioned(batch.clean, generator)
    clean, control = model.codec.forward(said.target), model.codec.forward(batch.control)
    count, device = len(clean), clean.device
    sigma = _sigmas(count, table, generator)
    timesteps = torch.tensor([table.timestep(float(level)) for level in sigma], device=device)
    weight = _control_weights(count, generator).to(device).view(-1, 1, 1, 1)
    level = sigma.to(device).view(-1, 1, 1, 1)
    noise = torch.randn(clean.shape, generator=generator).to(device)
    x = _started(clean, control, sigma, generator) + level * noise

    scale = model.preconditioning.scaling(level, weight, device)
    target = (clean - scale.skip * x - scale.control * control) / scale.output
    with torch.autocast(device.type, torch.bfloat16):
        output = _said(model, x * scale.input, timesteps, said.ids, batch.control, weight)
    error = (output.float() - target).square().mean((1, 2, 3))
    return Losses(relative=error / target.square().mean((1, 2, 3)).clamp(min=LEAST_ENERGY), sigma=sigma)


def _said(model: Compact, sample: Tensor, t: Tensor, ids: Tensor, control: Tensor, weight: Tensor) -> Tensor:
    text = model.text_encoder(input_ids=ids).last_hidden_state
    # (n, 3, H, W) in 0..1, as the engine's hint.
    down, middle = model.controlnet(sample, t, text, control, return_dict=False)
    *weights, last = guidance.soft_weights(1.0, len(down) + 1)
    (output,) = model.unet(
        sample,
        t,
        text,
        down_block_additional_residuals=[
            residual * (weight * soft) for residual, soft in zip(down, weights, strict=True)
        ],
        mid_block_additional_residual=middle * (weight * last),
        return_dict=False,
    )
    assert isinstance(output, Tensor)
    return output


def _sigmas(count: int, table: NoiseTable, generator: Generator) -> Tensor:
    """Levels at which img2img works: 60 % even in the timestep up to 680, 40 % log-normal."""
    timesteps = 20 + 660 * torch.rand(count, generator=generator)
    even = torch.tensor([table.sigma(float(t)) for t in timesteps])
    normal = torch.exp(-0.8 + 0.9 * torch.randn(count, generator=generator)).clamp(table.sigmas[0], table.sigmas[720])
    return torch.where(torch.rand(count, generator=generator) < 0.6, even, normal)


def _control_weights(count: int, generator: Generator) -> Tensor:
    draw, even = torch.rand(2, count, generator=generator)
    return torch.where(draw < 0.71, torch.ones(count), torch.where(draw < 0.85, 1.6 * even, torch.zeros(count)))


def _started(clean: Tensor, control: Tensor, sigma: Tensor, generator: Generator) -> Tensor:
    """A fifth of the samples begin at a blend with what is shown, as img2img does; the target stays clean."""
    draw, blend = torch.rand(2, len(clean), generator=generator)
    share = torch.where((draw < 0.2) & (sigma > 0.4), 0.2 + 0.8 * blend, torch.zeros(len(clean)))
    return clean + share.view(-1, 1, 1, 1).to(clean.device) * (control - clean)
