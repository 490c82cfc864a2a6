"""What keeps the service whole without being asked: lapsed leases, lost tasks, files that have served their time.

Every step is its own transaction and safe to run in any number of workers at once. One step failing does not
keep the others from running.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import structlog

from hiresfix.errors import HiresfixError
from hiresfix.server import db, gate, jobs, queue, uploads, webhooks
from hiresfix.server.config import Settings
from hiresfix.server.db import Database
from hiresfix.server.queue import Queue
from hiresfix.server.storage import Storage

log = structlog.get_logger(__name__)

HOUSEKEEPING_SECONDS = 60.0
ORPHAN_AGE = timedelta(hours=1)
"""A source without a job is either this moment's submission or the remains of a crash; an hour tells them apart."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Upkeep:
    """The recurring work of one worker process."""

    settings: Settings
    database: Database
    storage: Storage
    queue: Queue

    async def run(self) -> None:
        """Until cancelled: leases every `sweep_seconds`, the rest once a minute."""
        async with asyncio.TaskGroup() as loops:
            loops.create_task(_every(self.settings.sweep_seconds, self.leases))
            loops.create_task(_every(HOUSEKEEPING_SECONDS, self.housekeeping))

    async def leases(self) -> None:
        async with self.database.transaction() as tx:
            swept = await jobs.sweep(tx, self.queue, public_url=self.settings.public_url)
        if swept.lapsed or swept.enqueued:
            log.warning("jobs.swept", lapsed=swept.lapsed, given_up=swept.given_up, enqueued=swept.enqueued)
        async with self.database.transaction() as tx:
            await webhooks.sweep(tx, self.queue)

    async def housekeeping(self) -> None:
        async with self.database.transaction() as tx:
            await queue.bury_orphans(tx)
            await gate.forget_old(tx)
        await self.purge_results()
        await self.purge_sources()
        await self.purge_orphans()

    async def purge_results(self) -> int:
        """Delete pictures past retention; the job row stays and says so. Returns how many."""
        retention = timedelta(days=self.settings.retention_days)
        async with self.database.transaction() as tx:
            due = await jobs.expired_results(tx, retention=retention)
        for job in due:
            # Deleted first: an interrupted purge is taken up again, and leaves no file behind for good.
            await self.storage.delete(job.key)
            async with self.database.transaction() as tx:
                await jobs.mark_result_purged(tx, job.id)
        return len(due)

    async def purge_sources(self) -> int:
        """Delete the inputs of finished jobs, and pictures of attempts that did not win. Returns how many."""
        retention = timedelta(hours=self.settings.input_retention_hours)
        async with self.database.transaction() as tx:
            due = await jobs.finished_sources(tx, retention=retention)
        for job in due:
            await self.storage.delete(job.key)
            async for stored in self.storage.list(f"results/{job.id}"):
                if stored.key != job.result_key:
                    await self.storage.delete(stored.key)
            async with self.database.transaction() as tx:
                await jobs.mark_source_purged(tx, job.id)
        return len(due)

    async def purge_orphans(self) -> int:
        """Delete sources of submissions that died before their transaction. Returns how many."""
        oldest = datetime.now(UTC) - ORPHAN_AGE
        found = 0
        async for stored in self.storage.list("sources"):
            if stored.modified < oldest and not await self._has_job(stored.key):
                await self.storage.delete(stored.key)
                found += 1
        return found

    async def _has_job(self, key: str) -> bool:
        try:
            job = UUID(key.removeprefix(uploads.SOURCES))
        except ValueError:
            return False
        async with self.database.transaction() as tx:
            return await db.value(tx, "select 1 from jobs where id = %(job)s", job=job) is not None


async def _every(seconds: float, step: Callable[[], Awaitable[Any]]) -> None:
    while True:
        try:
            await step()
        except (*db.OUTAGE, HiresfixError) as error:
            log.warning("upkeep.postponed", step=step.__name__, reason=type(error).__name__)
        except Exception:
            log.exception("upkeep.failed", step=step.__name__)
        await asyncio.sleep(seconds)
