"""Train the compact checkpoint.

    python -m training.run --data DIR --out DIR --minutes N [--size s|m] [--device auto]

Goes on where an earlier run in the same --out was stopped, by whatever: state is saved every few minutes. Writes
OUT/checkpoint (the averaged weights, in the layout that the engine reads), OUT/log.csv, OUT/dev.csv and
OUT/sheet-*.png (what was shown, what it makes of it, the original).
"""

from __future__ import annotations

import argparse
import csv
import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Generator, Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from hiresfix.engine import devices
from hiresfix.engine.diffusion.compact import checkpoint, preconditioning
from hiresfix.engine.diffusion.compact.checkpoint import Compact
from hiresfix.engine.diffusion.compact.dct_codec import CHANNELS, BlockTransform
from hiresfix.engine.diffusion.sampling import NoiseTable
from training import captions, evaluation, muon, networks, objective, pictures
from training.pictures import Batch, Photo

BANDS = (0.3, 0.8, 2.0)
"""Noise levels between which the log gives the loss by itself."""
DECAY_FROM = 0.4
"""From this share of the time on, the learning rate falls to 0."""
MEASURED_CROPS = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """minutes: of training in all, earlier runs included. crop: pixels a side, half as much again in the last fifth."""

    data: Path
    out: Path
    minutes: float
    size: str = "s"
    device: str = "auto"
    batch: int = 256
    crop: int = 128
    seed: int = 0
    ema: float = 0.9995
    save_minutes: float = 3.0
    pairs: bool = True
    steps: int | None = None
    warm_up: int = 30


class Trained(nn.Module):
    """The three networks as one, for optimisers and averaging."""

    def __init__(self, model: Compact) -> None:
        super().__init__()
        self.unet, self.controlnet, self.text_encoder = model.unet, model.controlnet, model.text_encoder

    def of(self, model: Compact) -> Compact:
        return replace(model, unet=self.unet, controlnet=self.controlnet, text_encoder=self.text_encoder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a folder of pictures, with or without MANIFEST.csv")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, required=True, help="of training in all; 20 to 25 on a large GPU")
    parser.add_argument("--size", choices=sorted(networks.SIZES), default="s")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--batch", type=int, default=256, help="8 on a CPU")
    parser.add_argument("--crop", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ema", type=float, default=0.9995, help="0.998 for short runs")
    parser.add_argument("--save-minutes", type=float, default=3.0)
    parser.add_argument("--no-pairs", dest="pairs", action="store_false", help="without copies by our own enlarger")
    parser.add_argument("--steps", type=int, help="stop after so many, however much time is left")
    train(Options(**vars(parser.parse_args())))


def train(options: Options) -> list[float]:
    """Returns the loss of each step of this run. Raises ValueError for a folder without usable pictures."""
    options.out.mkdir(parents=True, exist_ok=True)
    device = devices.choose_device(options.device)
    train_files, dev_files = pictures.files(options.data)
    photos = pictures.load(train_files, device)
    dev = pictures.load(dev_files, device)
    if options.pairs:
        photos = pictures.enlarged(photos, options.out / "pairs", device, seed=options.seed)
    run = _Run.start(options, photos, dev, device)
    return run.go()


class _Run:
    """All that changes while training; `resume` and `save` keep it."""

    def __init__(self, options: Options, photos: Sequence[Photo], dev: Sequence[Photo], model: Compact) -> None:
        self.options, self.photos, self.dev, self.model = options, photos, dev, model
        self.device = model.codec.device
        self.table = NoiseTable.scaled_linear()
        self.trained = Trained(model).to(self.device).train()
        averaging: Any = get_ema_multi_avg_fn  # untyped
        self.average = AveragedModel(self.trained, multi_avg_fn=averaging(options.ema))
        self.optimisers = muon.optimisers(self.trained, lr=0.02, fine_lr=2e-3)
        self.rates = [optimiser.param_groups[0]["lr"] for optimiser in self.optimisers]
        self.step, self.seconds = 0, 0.0

    @classmethod
    def start(cls, options: Options, photos: Sequence[Photo], dev: Sequence[Photo], device: torch.device) -> _Run:
        """Anew, or where the folder's state is."""
        generator = Generator().manual_seed(options.seed)
        codec, known = measured(photos, options, generator, device)
        model = networks.build(networks.SIZES[options.size], captions.words(), codec, known, options.seed)
        run = cls(options, photos, dev, model)
        if run.state_file.is_file():
            run.resume()
        return run

    @property
    def state_file(self) -> Path:
        return self.options.out / "state.pt"

    def resume(self) -> None:
        state = torch.load(self.state_file, map_location=self.device, weights_only=True)
        self.trained.load_state_dict(state["trained"])
        self.average.load_state_dict(state["average"])
        for optimiser, kept in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(kept)
        self.step, self.seconds = state["step"], state["seconds"]

    def save(self) -> None:
        state: dict[str, Any] = {
            "trained": self.trained.state_dict(),
            "average": self.average.state_dict(),
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
            "step": self.step,
            "seconds": self.seconds,
        }
        part = self.state_file.with_suffix(".part")
        torch.save(state, part)
        part.replace(self.state_file)
        averaged = self.average.module
        assert isinstance(averaged, Trained)
        checkpoint.save(averaged.of(self.model), self.options.out / "checkpoint")
        with torch.inference_mode():
            figures = evaluation.judge(averaged.eval().of(self.model), self.dev, self.options.out, self.step)
        _append(self.options.out / "dev.csv", {"step": self.step, **figures})

    def go(self) -> list[float]:
        options = self.options
        losses: list[float] = []
        # Another stream for each start, so that a run that goes on sees other crops.
        generator = Generator().manual_seed(options.seed * 1_000_003 + self.step)
        batches, large = self._batches(options.crop, generator), self._batches(options.crop * 3 // 2, generator)
        saved = self.seconds
        with _progress() as progress:
            bar = progress.add_task("Training", total=options.minutes * 60)
            while self.left > 0 and (options.steps is None or len(losses) < options.steps):
                begun = time.monotonic()
                losses.append(self._step(next(batches if self.left > 0.2 else large), generator))
                self.seconds += time.monotonic() - begun
                progress.update(bar, completed=self.seconds, description=f"step {self.step}, loss {losses[-1]:.3f}")
                if self.seconds - saved > options.save_minutes * 60:
                    self.save()
                    saved = self.seconds
        self.save()
        return losses

    def _batches(self, crop: int, generator: Generator) -> Iterator[Batch]:
        crop = min(crop, min(max(photo.clean.shape[1:]) for photo in self.photos)) // 16 * 16
        return pictures.batches(self.photos, count=self.options.batch, side=crop, generator=generator)

    @property
    def left(self) -> float:
        """The share of the time that is left, 1..0."""
        return 1 - self.seconds / (self.options.minutes * 60)

    def _step(self, batch: Batch, generator: Generator) -> float:
        warm = min(1.0, (self.step + 1) / self.options.warm_up)
        falling = min(1.0, self.left / (1 - DECAY_FROM))
        for optimiser, rate in zip(self.optimisers, self.rates, strict=True):
            for group in optimiser.param_groups:
                group["lr"] = rate * warm * falling
            optimiser.zero_grad(set_to_none=True)
        found = objective.losses(self.trained.of(self.model), batch, self.table, generator)
        loss = found.relative.mean()
        loss.backward()  # type: ignore[no-untyped-call]  # upstream
        nn.utils.clip_grad_norm_(self.trained.parameters(), 1.0)
        for optimiser in self.optimisers:
            optimiser.step()
        self.average.update_parameters(self.trained)
        self.step += 1
        value = float(loss.detach())
        self._log(value, found.relative.detach().cpu(), found.sigma)
        return value

    def _log(self, loss: float, relative: Tensor, sigma: Tensor) -> None:
        edges = (0.0, *BANDS, float("inf"))
        row: dict[str, Any] = {"step": self.step, "seconds": round(self.seconds, 1), "loss": round(loss, 4)}
        for low, high in itertools.pairwise(edges):
            inside = relative[(sigma >= low) & (sigma < high)]
            row[f"sigma {low:g}..{high:g}"] = round(float(inside.mean()), 4) if len(inside) else ""
        _append(self.options.out / "log.csv", row)


def measured(
    photos: Sequence[Photo], options: Options, generator: Generator, device: torch.device
) -> tuple[BlockTransform, preconditioning.Preconditioning]:
    """The bands' means and scales (half whitened: std^-0.5), and what the control tells of each, from random crops."""
    side = min(options.crop, min(max(photo.clean.shape[1:]) for photo in photos)) // 16 * 16
    batch = next(pictures.batches(photos, count=MEASURED_CROPS, side=side, generator=generator))
    plain = BlockTransform(mean=(0.0,) * CHANNELS, scale=(1.0,) * CHANNELS, device=device)
    bands = plain.forward(batch.clean).transpose(0, 1).flatten(1)
    scale = bands.std(1).clamp(min=1e-3).rsqrt()
    # Where the sum of all variances is 1 a channel, as samplers expect of a latent.
    scale = scale / (bands.std(1) * scale).square().mean().sqrt()
    codec = BlockTransform(mean=tuple(bands.mean(1).tolist()), scale=tuple(scale.tolist()), device=device)
    return codec, preconditioning.measured(codec.forward(batch.clean), codec.forward(batch.control))


def _append(path: Path, row: dict[str, Any]) -> None:
    new = not path.is_file()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, row)
        if new:
            writer.writeheader()
        writer.writerow(row)


def _progress() -> Progress:
    return Progress(TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())


if __name__ == "__main__":
    main()
