"""Training objective: predict the part of a clean latent that the optimal linear estimate misses.

State, anchor, ControlNet weights and timesteps are those that `engine.diffusion.guidance` uses when it runs the
checkpoint, so nothing has to be converted after training.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from hiresfix.engine.diffusion import guidance
from hiresfix.engine.diffusion.compact.checkpoint import CompactModel
from hiresfix.engine.diffusion.sampling import NoiseTable
from training import captions
from training.dataset import TrainingBatch

MIN_ENERGY = 0.7
"""Least energy by which a target's loss is divided, so that samples of little energy do not dominate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Losses:
    """Squared error relative to the target's energy, and noise level, (n,) each."""

    relative: Tensor
    sigma: Tensor


def losses(model: CompactModel, batch: TrainingBatch, table: NoiseTable, generator: Generator) -> Losses:
    """Return the loss of each sample, with a random noise level, control weight and caption for each."""
    captioned = captions.add_captions(batch.clean, generator)
    clean, control = model.codec.forward(captioned.target), model.codec.forward(batch.control)
    count, device = len(clean), clean.device
    sigma = _sigmas(count, table, generator)
    timesteps = torch.tensor([table.timestep(float(level)) for level in sigma], device=device)
    weight = _control_weights(count, generator).to(device).view(-1, 1, 1, 1)
    level = sigma.to(device).view(-1, 1, 1, 1)
    noise = torch.randn(clean.shape, generator=generator).to(device)
    x = _start_latent(clean, control, sigma, generator) + level * noise

    scale = model.preconditioning.scaling(level, weight, device)
    target = (clean - scale.skip * x - scale.control * control) / scale.output
    with torch.autocast(device.type, torch.bfloat16):
        output = _predict(model, x * scale.input, timesteps, captioned.ids, batch.control, weight)
    error = (output.float() - target).square().mean((1, 2, 3))
    return Losses(relative=error / target.square().mean((1, 2, 3)).clamp(min=MIN_ENERGY), sigma=sigma)


def _predict(model: CompactModel, sample: Tensor, t: Tensor, ids: Tensor, control: Tensor, weight: Tensor) -> Tensor:
    text = model.text_encoder(input_ids=ids).last_hidden_state
    # (n, 3, H, W) in 0..1, as the engine's control image.
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
    """Draw noise levels of img2img: 60 % even in the timestep up to 680, 40 % log-normal."""
    timesteps = 20 + 660 * torch.rand(count, generator=generator)
    even = torch.tensor([table.sigma(float(t)) for t in timesteps])
    normal = torch.exp(-0.8 + 0.9 * torch.randn(count, generator=generator)).clamp(table.sigmas[0], table.sigmas[720])
    return torch.where(torch.rand(count, generator=generator) < 0.6, even, normal)


def _control_weights(count: int, generator: Generator) -> Tensor:
    draw, even = torch.rand(2, count, generator=generator)
    return torch.where(draw < 0.71, torch.ones(count), torch.where(draw < 0.85, 1.6 * even, torch.zeros(count)))


def _start_latent(clean: Tensor, control: Tensor, sigma: Tensor, generator: Generator) -> Tensor:
    """Blend a fifth of the samples with the control latent, as img2img starts; the target stays clean."""
    draw, blend = torch.rand(2, len(clean), generator=generator)
    share = torch.where((draw < 0.2) & (sigma > 0.4), 0.2 + 0.8 * blend, torch.zeros(len(clean)))
    return clean + share.view(-1, 1, 1, 1).to(clean.device) * (control - clean)
