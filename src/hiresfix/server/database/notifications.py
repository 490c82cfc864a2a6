"""Who waits for a job to change is woken by PostgreSQL, over one listening connection a process.

Guarantees: a waiter holds no connection of its own; one that registered before a change was committed is woken
by it within milliseconds; while the listening connection is away waiters are still woken every `POLL_SECONDS`,
and all of them once it is back. A wake-up is a hint: look at the row, which alone is the truth. It knows no
tables, only the channel and that its payloads begin with an id.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from uuid import UUID

import psycopg
import structlog

from hiresfix.server.database import pool

log = structlog.get_logger(__name__)

CHANNEL = "hiresfix_jobs"
"""Payloads are "<id> <STATE>"; a trigger on the jobs table sends them (migration 0002)."""

POLL_SECONDS = 5.0
"""The net below: a notification lost with its connection delays a waiter by so much at most."""


class Watch:
    """One waiter's eye on one job. What changes between two waits is not missed."""

    def __init__(self, closing: asyncio.Event) -> None:
        self._woken = asyncio.Event()
        self._closing = closing

    def wake(self) -> None:
        self._woken.set()

    async def wait(self, seconds: float = POLL_SECONDS) -> bool:
        """Until the job may have changed, or `seconds` have passed; False when the process is about to stop."""
        if not self._closing.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._woken.wait()
        self._woken.clear()
        return not self._closing.is_set()


class Changes:
    """The waiters of one process."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._watches: defaultdict[UUID, set[Watch]] = defaultdict(set)
        self._closing = asyncio.Event()
        self.listens = asyncio.Event()
        """Set while notifications arrive."""

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        """Listens for the length of the block."""
        task = asyncio.create_task(self._run())
        try:
            yield
        finally:
            self.close()
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    @contextmanager
    def watch(self, job: UUID) -> Iterator[Watch]:
        """Register first, then look at the row, then wait: so no change falls between."""
        watch = Watch(self._closing)
        self._watches[job].add(watch)
        try:
            yield watch
        finally:
            self._watches[job].discard(watch)
            if not self._watches[job]:
                del self._watches[job]

    @property
    def watched(self) -> int:
        """How many waiters there are."""
        return sum(map(len, self._watches.values()))

    def close(self) -> None:
        """Send every waiter home, now and from now on: the process stops."""
        self._closing.set()
        self._wake_all()

    async def _run(self) -> None:
        while True:
            try:
                await self._listen()
            except pool.OUTAGE as error:
                log.warning("changes.listener_restarting", reason=type(error).__name__)
            except Exception:
                log.exception("changes.listener_crashed")
            await asyncio.sleep(pool.RECONNECT_SECONDS)

    async def _listen(self) -> None:
        connection = await psycopg.AsyncConnection.connect(
            self._url,
            autocommit=True,
            **pool.KEEPALIVE,  # type: ignore[arg-type]  # libpq parameters, which psycopg takes as keywords
            application_name="hiresfix-changes",
        )
        async with connection:
            await connection.execute(f"listen {CHANNEL}".encode())
            self._wake_all()  # what changed while nobody listened is only seen by looking
            self.listens.set()
            try:
                async for notification in connection.notifies():
                    self._wake(notification.payload)
            finally:
                self.listens.clear()

    def _wake(self, payload: str) -> None:
        with suppress(ValueError):
            for watch in self._watches.get(UUID(payload.partition(" ")[0]), ()):
                watch.wake()

    def _wake_all(self) -> None:
        for watches in self._watches.values():
            for watch in watches:
                watch.wake()
