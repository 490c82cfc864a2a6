"""Image file suffixes, and files that appear under their name complete or not at all."""

from __future__ import annotations

import errno
import os
import secrets
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Final, Self

FORMAT_OF_SUFFIX: Final = {".png": "png", ".jpg": "jpg", ".jpeg": "jpg", ".webp": "webp"}
"""Suffixes that can be written."""
SUFFIXES: Final = FORMAT_OF_SUFFIX.keys() | {".gif", ".tif", ".tiff", ".bmp", ".avif", ".heic", ".heif"}
"""Suffixes that can be read; the content decides the format."""


class PartFile:
    """A file beside `target` that takes its place on `finish`; left without that, it is gone and `target` untouched.

    Folders on the way are made. Not for several threads at once.
    """

    def __init__(self, target: Path) -> None:
        self.target = target
        self._part = target.with_name(f".{target.name}.{os.getpid()}-{secrets.token_hex(4)}.part")
        self._file: BinaryIO | None = None

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abandon()

    def open(self) -> None:
        self.target.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._part.open("xb")

    def write(self, piece: bytes) -> None:
        assert self._file is not None
        self._file.write(piece)

    def finish(self) -> None:
        """On the disk for good, and then under its name."""
        assert self._file is not None
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._part.replace(self.target)

    def abandon(self) -> None:
        """Nothing, after `finish`."""
        if self._file is not None:
            self._file.close()
            self._part.unlink(missing_ok=True)


def require_writable(target: Path) -> None:
    """Raises OSError if `target` could not be written as things are. Writes nothing, and makes no folder."""
    if target.is_dir():
        raise OSError(errno.EISDIR, os.strerror(errno.EISDIR), str(target))
    folder = next(folder for folder in target.absolute().parents if folder.exists())
    number = errno.EACCES if folder.is_dir() else errno.ENOTDIR
    if number == errno.ENOTDIR or not os.access(folder, os.W_OK | os.X_OK):
        raise OSError(number, os.strerror(number), str(folder))
