"""Notifications of changed jobs: one LISTEN connection per process, fanned out to its subscribers.

Guarantees: a subscriber holds no connection. A change committed after the subscription wakes it within milliseconds.
While the listening connection is down, subscribers wake up every `POLL_SECONDS`, and all of them once it is back.
A wake-up is only a hint: read the row, which alone is the truth. This module knows no tables, only the channel, and
that its payloads begin with an id.
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
"""Payloads are "<id> <STATE>", sent by a trigger on the jobs table (migration 0002)."""

POLL_SECONDS = 5.0
"""Safety net: the longest delay when a notification is lost with its connection."""


class Subscription:
    """A subscription to one job. Changes between two waits are not missed."""

    def __init__(self, closing: asyncio.Event) -> None:
        self._woken = asyncio.Event()
        self._closing = closing

    def wake(self) -> None:
        """Wake the subscriber: the job may have changed."""
        self._woken.set()

    async def wait(self, seconds: float = POLL_SECONDS) -> bool:
        """Wait until the job may have changed or `seconds` passed; return False when the process is about to stop."""
        if not self._closing.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._woken.wait()
        self._woken.clear()
        return not self._closing.is_set()


class Notifications:
    """All subscriptions of one process."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._subscriptions: defaultdict[UUID, set[Subscription]] = defaultdict(set)
        self._closing = asyncio.Event()
        self.connected = asyncio.Event()
        """Set while notifications arrive."""

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        """Listen for the length of the block."""
        task = asyncio.create_task(self._run())
        try:
            yield
        finally:
            self.close()
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    @contextmanager
    def subscribe(self, job: UUID) -> Iterator[Subscription]:
        """Subscribe for the length of the block: subscribe first, then read the row, then wait, to miss no change."""
        subscription = Subscription(self._closing)
        self._subscriptions[job].add(subscription)
        try:
            yield subscription
        finally:
            self._subscriptions[job].discard(subscription)
            if not self._subscriptions[job]:
                del self._subscriptions[job]

    @property
    def subscriber_count(self) -> int:
        """Number of subscribers."""
        return sum(map(len, self._subscriptions.values()))

    def close(self) -> None:
        """End every wait, now and later, because the process stops."""
        self._closing.set()
        self._wake_all()

    async def _run(self) -> None:
        while True:
            try:
                await self._listen()
            except pool.OUTAGE_ERRORS as error:
                log.warning("notifications.listener_restarting", reason=type(error).__name__)
            except Exception:
                log.exception("notifications.listener_crashed")
            await asyncio.sleep(pool.RECONNECT_SECONDS)

    async def _listen(self) -> None:
        connection = await psycopg.AsyncConnection.connect(
            self._url,
            autocommit=True,
            **pool.KEEPALIVE,  # type: ignore[arg-type]  # libpq parameters, passed as keywords
            application_name="hiresfix-notifications",
        )
        async with connection:
            await connection.execute(f"listen {CHANNEL}".encode())
            self._wake_all()  # what changed meanwhile was not notified
            self.connected.set()
            try:
                async for notification in connection.notifies():
                    self._wake(notification.payload)
            finally:
                self.connected.clear()

    def _wake(self, payload: str) -> None:
        with suppress(ValueError):
            for subscription in self._subscriptions.get(UUID(payload.partition(" ")[0]), ()):
                subscription.wake()

    def _wake_all(self) -> None:
        for subscriptions in self._subscriptions.values():
            for subscription in subscriptions:
                subscription.wake()
