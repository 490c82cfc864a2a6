"""Finished image in memory, with the job that made it."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hiresfix.client.downloads import require_suffix
from hiresfix.client.values import Job
from hiresfix.files import PartFile

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """Result of a job. `data` holds the bytes of the file as the server wrote it."""

    job: Job
    data: bytes = field(repr=False)

    @property
    def seed(self) -> int | None:
        """Seed of the result; pass it again to make the same image."""
        return self.job.seed

    @property
    def width(self) -> int | None:
        return self.job.width

    @property
    def height(self) -> int | None:
        return self.job.height

    @property
    def metadata(self) -> Mapping[str, Any]:
        """Facts about the run from the engine; empty if the server sends none."""
        return self.job.metadata or {}

    @property
    def image(self) -> Image.Image:
        """Decode the result as a Pillow image; needs Pillow installed."""
        from PIL import Image

        with Image.open(io.BytesIO(self.data)) as image:
            image.load()
            return image

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the file unchanged, completely or not at all, and return its path. Creates missing folders.

        Raises ValueError for the suffix of another format.
        """
        require_suffix(self.job, Path(path))
        with PartFile(Path(path)) as part:
            part.write(self.data)
            part.finish()
        return Path(path)
