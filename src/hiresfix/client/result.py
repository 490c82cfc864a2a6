"""A finished picture in memory, and what is known of how it was made."""

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
    """The result of a job. data: the bytes of the file, as the server made it."""

    job: Job
    data: bytes = field(repr=False)

    @property
    def seed(self) -> int | None:
        """Reuse it to make the same picture again."""
        return self.job.seed

    @property
    def width(self) -> int | None:
        return self.job.width

    @property
    def height(self) -> int | None:
        return self.job.height

    @property
    def metadata(self) -> Mapping[str, Any]:
        """What the engine says of its work; empty for servers that say nothing."""
        return self.job.metadata or {}

    @property
    def image(self) -> Image.Image:
        """The picture as a Pillow image, decoded now; needs Pillow installed."""
        from PIL import Image

        with Image.open(io.BytesIO(self.data)) as found:
            found.load()
            return found

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the file as it is, whole or not at all; folders on the way are made. Returns the path.

        Raises ValueError for the suffix of another format.
        """
        require_suffix(self.job, Path(path))
        with PartFile(Path(path)) as part:
            part.write(self.data)
            part.finish()
        return Path(path)
