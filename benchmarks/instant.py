"""A worker with all its machinery and an engine that takes next to no time: `python -m benchmarks.instant`.

The engine's double repeats every pixel, so decoding, encoding, storing, leases and settlement are real, and what is
measured of a job is what the machinery costs.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from hiresfix.engine.upscaler import Upscaled
from hiresfix.images import DecodedImage
from hiresfix.recipe import Recipe
from hiresfix.server.platform import logging
from hiresfix.server.settings import load_settings
from hiresfix.server.worker import process


class Instant:
    """Stands in for `Upscaler`."""

    def __init__(self, device: str = "auto", *, exact: bool = False) -> None:
        self.device = torch.device("cpu")
        self.dtype = torch.float32

    def run(self, picture: DecodedImage, recipe: Recipe, report: object) -> Upscaled:
        """The picture with each pixel repeated `scale` times in both directions."""
        factor = recipe.scale
        alpha = None if picture.alpha is None else picture.alpha.repeat(factor, 0).repeat(factor, 1)
        rgb = picture.rgb.repeat(factor, 0).repeat(factor, 1)
        return Upscaled(picture=replace(picture, rgb=rgb, alpha=alpha), metadata={"engine": "instant"})


def main() -> None:
    settings = load_settings().model_copy(update={"self_test": False})  # which the double would rightly fail
    assert settings.database_url
    logging.configure(settings.log_level)
    process.Upscaler = Instant  # type: ignore[attr-defined,assignment]  # the double has what a worker uses of the real one
    process.run(settings, database_url=settings.database_url)


if __name__ == "__main__":
    main()
