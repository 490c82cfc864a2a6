"""Free space on the disks where this server keeps files, and whether new images can be accepted.

Asking costs nothing and never waits, however slow a disk is: the disks are checked in the background every
`CHECK_SECONDS`, and the last result counts. Below the watermark no new images are accepted; accepted jobs go on, and
the server accepts images again by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import structlog

from hiresfix import messages
from hiresfix.errors import Unavailable
from hiresfix.server.platform import metrics

log = structlog.get_logger(__name__)

CHECK_SECONDS = 2.0
RETRY_AFTER = 60
"""Seconds: the operator has to free space first."""


class Disk:
    """Watched folders by a name for the operator, and the bytes that must stay free on each disk; 0: no limit."""

    def __init__(self, folders: Mapping[str, Path], *, min_free: int) -> None:
        self._folders = folders
        self._min_free = min_free
        self._free: Mapping[str, int] = {}
        self._open = True

    @property
    def free(self) -> Mapping[str, int]:
        """Free bytes by folder, as of the last check; folders that cannot be checked are missing."""
        return self._free

    def has_room(self) -> bool:
        """Return whether every folder is above the watermark."""
        return all(free >= self._min_free for free in self._free.values())

    def require_room(self) -> None:
        """Raise Unavailable below the watermark; call it before anything is stored or charged."""
        if not self.has_room():
            raise Unavailable(messages.DISK_FULL(), retry_after=RETRY_AFTER)

    @contextlib.asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """Check the disks during the block, first at its beginning."""
        self._note(await asyncio.to_thread(self._measure))
        watch = asyncio.create_task(self._watch())
        try:
            yield
        finally:
            watch.cancel()

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            self._note(await asyncio.to_thread(self._measure))

    def _measure(self) -> dict[str, int]:
        free = {}
        for name, folder in self._folders.items():
            with contextlib.suppress(OSError):  # an unmounted disk is reported by the store's own check
                free[name] = shutil.disk_usage(_existing(folder)).free
        return free

    def _note(self, free: Mapping[str, int]) -> None:
        self._free = free
        for name, size in free.items():
            metrics.DISK_FREE.labels(name).set(size)
        is_open = self.has_room()
        if is_open != self._open:
            write = log.info if is_open else log.error
            write(
                "images.accepted_again" if is_open else "images.refused_disk_full",
                free=dict(free),
                min_free=self._min_free,
            )
        self._open = is_open
        metrics.ACCEPTING_IMAGES.set(is_open)


def _existing(folder: Path) -> Path:
    """Return the folder, or its nearest parent that exists."""
    return next(candidate for candidate in (folder, *folder.parents) if candidate.exists())
