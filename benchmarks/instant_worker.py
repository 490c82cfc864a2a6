"""Worker with the real machinery and an engine that takes almost no time.

    python -m benchmarks.instant_worker

The fake engine repeats every pixel. Decoding, encoding, storing, leases and settlement are real, so the time of a job
is the cost of the machinery.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from hiresfix.engine.upscaler import EngineResult
from hiresfix.images import DecodedImage
from hiresfix.recipe import Recipe
from hiresfix.server.platform import logging
from hiresfix.server.settings import load_settings
from hiresfix.server.worker import process


class InstantUpscaler:
    """Replacement for `Upscaler`."""

    def __init__(self, device: str = "auto", *, exact: bool = False) -> None:
        self.device = torch.device("cpu")
        self.dtype = torch.float32

    def run(self, image: DecodedImage, recipe: Recipe, report: object) -> EngineResult:
        """Return the image with each pixel repeated `scale` times in both directions."""
        factor = recipe.scale
        alpha = None if image.alpha is None else image.alpha.repeat(factor, 0).repeat(factor, 1)
        rgb = image.rgb.repeat(factor, 0).repeat(factor, 1)
        return EngineResult(image=replace(image, rgb=rgb, alpha=alpha), metadata={"engine": "instant"})


def main() -> None:
    settings = load_settings().model_copy(update={"self_test": False})  # the fake engine would rightly fail it
    assert settings.database_url
    logging.configure(settings.log_level)
    process.Upscaler = InstantUpscaler  # type: ignore[attr-defined,assignment]  # has everything a worker uses
    process.run(settings, database_url=settings.database_url)


if __name__ == "__main__":
    main()
