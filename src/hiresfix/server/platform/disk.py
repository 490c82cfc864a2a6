"""Free room on the disks where this server keeps files, and whether there is enough to take more in.

Guarantees: asking costs nothing and never waits, however slow a disk is: it is looked at beside, every
`LOOK_SECONDS`, and the last look counts. Below the watermark nothing new is taken in; what is accepted already goes on,
and intake resumes by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import structlog

from hiresfix.errors import Unavailable
from hiresfix.server.platform import metrics

log = structlog.get_logger(__name__)

LOOK_SECONDS = 2.0
RETRY_AFTER = 60
"""Seconds: somebody has to make room first."""
FULL = "The server's disk is nearly full, so it takes in no pictures just now. Nothing was charged. Try again later."


class Disk:
    """Folders by a name that the operator sees, and the bytes that are to stay free below each of them; 0: none."""

    def __init__(self, places: Mapping[str, Path], *, least: int) -> None:
        self._places = places
        self._least = least
        self._free: Mapping[str, int] = {}
        self._open = True

    @property
    def free(self) -> Mapping[str, int]:
        """Bytes by place, as of the last look; places that cannot be looked at are missing."""
        return self._free

    def has_room(self) -> bool:
        return all(free >= self._least for free in self._free.values())

    def require_room(self) -> None:
        """Raises Unavailable below the watermark; call it before anything is stored or charged."""
        if not self.has_room():
            raise Unavailable(FULL, retry_after=RETRY_AFTER)

    @contextlib.asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """Look at the disks for the length of the block, first at its beginning."""
        self._note(await asyncio.to_thread(self._look))
        watch = asyncio.create_task(self._watch())
        try:
            yield
        finally:
            watch.cancel()

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            self._note(await asyncio.to_thread(self._look))

    def _look(self) -> dict[str, int]:
        found = {}
        for name, place in self._places.items():
            with contextlib.suppress(OSError):  # an unmounted disk is for the store's own check to tell
                found[name] = shutil.disk_usage(_existing(place)).free
        return found

    def _note(self, free: Mapping[str, int]) -> None:
        self._free = free
        for name, size in free.items():
            metrics.DISK_FREE.labels(name).set(size)
        is_open = self.has_room()
        if is_open != self._open:
            note = log.info if is_open else log.error
            note("intake.resumed" if is_open else "intake.stopped", free=dict(free), least=self._least)
        self._open = is_open
        metrics.INTAKE_OPEN.set(is_open)


def _existing(place: Path) -> Path:
    """The folder, or the nearest one above it that exists: where it will be made."""
    return next(folder for folder in (place, *place.parents) if folder.exists())
