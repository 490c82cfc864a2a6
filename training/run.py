"""Train the compact checkpoint.

    python -m training.run --data DIR --out DIR --minutes N [--size s|m] [--device auto]

Saves its state every few minutes, and resumes an earlier run in the same --out. Writes:

    OUT/checkpoint    the averaged weights, in the layout that the engine reads
    OUT/log.csv       the loss of each step
    OUT/dev.csv       the metrics on images that are not trained on
    OUT/sheet-*.png   contact sheets: super-resolution network alone, model, original
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
from hiresfix.engine.diffusion.compact.checkpoint import CompactModel
from hiresfix.engine.diffusion.compact.dct_codec import CHANNELS, BlockTransform
from hiresfix.engine.diffusion.sampling import NoiseTable
from training import captions, dataset, evaluation, muon, networks, objective
from training.dataset import Photo, TrainingBatch

LOSS_BANDS = (0.3, 0.8, 2.0)
"""Noise levels that divide the loss in the log into bands."""
DECAY_FROM = 0.4
"""Share of the time after which the learning rate starts to fall to 0."""
STATISTICS_CROPS = 512
"""Random crops on which the statistics of the latents are measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingOptions:
    """Options of a training run.

    `minutes` is the training time in total, earlier runs included. `crop` is the side of a crop in pixels; in the last
    fifth of the time it is half as much again.
    """

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


class TrainedNetworks(nn.Module):
    """The three networks as one module, for optimisers and averaging."""

    def __init__(self, model: CompactModel) -> None:
        super().__init__()
        self.unet, self.controlnet, self.text_encoder = model.unet, model.controlnet, model.text_encoder

    def in_model(self, model: CompactModel) -> CompactModel:
        return replace(model, unet=self.unet, controlnet=self.controlnet, text_encoder=self.text_encoder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a folder of images, with or without MANIFEST.csv")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, required=True, help="training time in total; 20 to 25 on a large GPU")
    parser.add_argument("--size", choices=sorted(networks.SIZES), default="s")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--batch", type=int, default=256, help="crops per step; use 8 on a CPU")
    parser.add_argument("--crop", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--ema", type=float, default=0.9995, help="decay of the averaged weights; use 0.998 for short runs"
    )
    parser.add_argument("--save-minutes", type=float, default=3.0)
    parser.add_argument(
        "--no-pairs", dest="pairs", action="store_false", help="train without copies upscaled by our own network"
    )
    parser.add_argument("--steps", type=int, help="stop after so many steps, even if time is left")
    train(TrainingOptions(**vars(parser.parse_args())))


def train(options: TrainingOptions) -> list[float]:
    """Train and return the loss of each step of this run.

    Raises:
        ValueError: The folder has no usable images.
    """
    options.out.mkdir(parents=True, exist_ok=True)
    device = devices.choose_device(options.device)
    train_files, dev_files = dataset.image_files(options.data)
    photos = dataset.load_photos(train_files, device)
    dev = dataset.load_photos(dev_files, device)
    if options.pairs:
        photos = dataset.add_upscaled_copies(photos, options.out / "pairs", device, seed=options.seed)
    run = _TrainingRun.start(options, photos, dev, device)
    return run.go()


class _TrainingRun:
    """The state of a training run; `save` writes it and `resume` reads it."""

    def __init__(
        self, options: TrainingOptions, photos: Sequence[Photo], dev: Sequence[Photo], model: CompactModel
    ) -> None:
        self.options, self.photos, self.dev, self.model = options, photos, dev, model
        self.device = model.codec.device
        self.table = NoiseTable.scaled_linear()
        self.trained = TrainedNetworks(model).to(self.device).train()
        averaging: Any = get_ema_multi_avg_fn  # untyped
        self.average = AveragedModel(self.trained, multi_avg_fn=averaging(options.ema))
        self.optimisers = muon.optimisers(self.trained, lr=0.02, fine_lr=2e-3)
        self.rates = [optimiser.param_groups[0]["lr"] for optimiser in self.optimisers]
        self.step, self.seconds = 0, 0.0

    @classmethod
    def start(
        cls, options: TrainingOptions, photos: Sequence[Photo], dev: Sequence[Photo], device: torch.device
    ) -> _TrainingRun:
        """Start a new run, or resume the one in the output folder."""
        generator = Generator().manual_seed(options.seed)
        codec, statistics = measure_statistics(photos, options, generator, device)
        model = networks.build(networks.SIZES[options.size], captions.word_ids(), codec, statistics, options.seed)
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
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
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
        assert isinstance(averaged, TrainedNetworks)
        checkpoint.save(averaged.in_model(self.model), self.options.out / "checkpoint")
        with torch.inference_mode():
            figures = evaluation.evaluate(averaged.eval().in_model(self.model), self.dev, self.options.out, self.step)
        _append_row(self.options.out / "dev.csv", {"step": self.step, **figures})

    def go(self) -> list[float]:
        options = self.options
        losses: list[float] = []
        # Another stream for each start, so that a resumed run sees new crops.
        generator = Generator().manual_seed(options.seed * 1_000_003 + self.step)
        batches, large = self._batches(options.crop, generator), self._batches(options.crop * 3 // 2, generator)
        saved = self.seconds
        with _progress() as progress:
            bar = progress.add_task("Training", total=options.minutes * 60)
            while self.left > 0 and (options.steps is None or len(losses) < options.steps):
                start = time.monotonic()
                losses.append(self._step(next(batches if self.left > 0.2 else large), generator))
                self.seconds += time.monotonic() - start
                progress.update(bar, completed=self.seconds, description=f"step {self.step}, loss {losses[-1]:.3f}")
                if self.seconds - saved > options.save_minutes * 60:
                    self.save()
                    saved = self.seconds
        self.save()
        return losses

    def _batches(self, crop: int, generator: Generator) -> Iterator[TrainingBatch]:
        crop = min(crop, min(max(photo.clean.shape[1:]) for photo in self.photos)) // 16 * 16
        return dataset.batches(self.photos, count=self.options.batch, side=crop, generator=generator)

    @property
    def left(self) -> float:
        """The remaining share of the time, 1..0."""
        return 1 - self.seconds / (self.options.minutes * 60)

    def _step(self, batch: TrainingBatch, generator: Generator) -> float:
        warm_up = min(1.0, (self.step + 1) / self.options.warm_up)
        decay = min(1.0, self.left / (1 - DECAY_FROM))
        for optimiser, rate in zip(self.optimisers, self.rates, strict=True):
            for group in optimiser.param_groups:
                group["lr"] = rate * warm_up * decay
            optimiser.zero_grad(set_to_none=True)
        losses = objective.losses(self.trained.in_model(self.model), batch, self.table, generator)
        loss = losses.relative.mean()
        loss.backward()  # type: ignore[no-untyped-call]  # upstream
        nn.utils.clip_grad_norm_(self.trained.parameters(), 1.0)
        for optimiser in self.optimisers:
            optimiser.step()
        self.average.update_parameters(self.trained)
        self.step += 1
        value = float(loss.detach())
        self._log(value, losses.relative.detach().cpu(), losses.sigma)
        return value

    def _log(self, loss: float, relative: Tensor, sigma: Tensor) -> None:
        edges = (0.0, *LOSS_BANDS, float("inf"))
        row: dict[str, Any] = {"step": self.step, "seconds": round(self.seconds, 1), "loss": round(loss, 4)}
        for low, high in itertools.pairwise(edges):
            inside = relative[(sigma >= low) & (sigma < high)]
            row[f"sigma {low:g}..{high:g}"] = round(float(inside.mean()), 4) if len(inside) else ""
        _append_row(self.options.out / "log.csv", row)


def measure_statistics(
    photos: Sequence[Photo], options: TrainingOptions, generator: Generator, device: torch.device
) -> tuple[BlockTransform, preconditioning.Preconditioning]:
    """Measure the codec's means and scales (half whitened: std^-0.5) and the preconditioning, on random crops."""
    side = min(options.crop, min(max(photo.clean.shape[1:]) for photo in photos)) // 16 * 16
    batch = next(dataset.batches(photos, count=STATISTICS_CROPS, side=side, generator=generator))
    plain = BlockTransform(mean=(0.0,) * CHANNELS, scale=(1.0,) * CHANNELS, device=device)
    bands = plain.forward(batch.clean).transpose(0, 1).flatten(1)
    scale = bands.std(1).clamp(min=1e-3).rsqrt()
    # Normalised so that the mean variance of the channels is 1, as samplers expect of a latent.
    scale = scale / (bands.std(1) * scale).square().mean().sqrt()
    codec = BlockTransform(mean=tuple(bands.mean(1).tolist()), scale=tuple(scale.tolist()), device=device)
    return codec, preconditioning.measure(codec.forward(batch.clean), codec.forward(batch.control))


def _append_row(path: Path, row: dict[str, Any]) -> None:
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
