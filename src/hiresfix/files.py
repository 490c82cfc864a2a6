"""Image file suffixes, and writing files that are either complete or absent."""

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
    """Temporary file next to `target` that replaces it on `finish`.

    Without `finish` the temporary file is deleted and `target` stays as it was. Missing parent folders are created.
    Not thread-safe.
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

    def write(self, chunk: bytes) -> None:
        assert self._file is not None
        self._file.write(chunk)

    def finish(self) -> None:
        """Flush to disk, then rename to `target`."""
        assert self._file is not None
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._part.replace(self.target)

    def abandon(self) -> None:
        """Delete the temporary file; after `finish` there is none."""
        if self._file is not None:
            self._file.close()
            self._part.unlink(missing_ok=True)


def require_writable(target: Path) -> None:
    """Check that `target` can be written now, without writing anything or creating folders.

    Raises:
        OSError: `target` is a folder, or its nearest existing parent is not a writable folder.
    """
    if target.is_dir():
        raise OSError(errno.EISDIR, os.strerror(errno.EISDIR), str(target))
    folder = next(folder for folder in target.absolute().parents if folder.exists())
    number = errno.EACCES if folder.is_dir() else errno.ENOTDIR
    if number == errno.ENOTDIR or not os.access(folder, os.W_OK | os.X_OK):
        raise OSError(number, os.strerror(number), str(folder))


def write_all(descriptor: int, data: bytes | memoryview) -> None:
    """Write all of `data` to a file descriptor; one `os.write` may write only a part."""
    remaining = memoryview(data)
    while remaining:
        remaining = remaining[os.write(descriptor, remaining) :]
