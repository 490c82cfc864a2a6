"""What keeps the service whole without being asked: lapsed leases, lost tasks, files that have served their time.

Every step is its own transaction and safe to run in any number of workers at once. One step failing does not
keep the others from running.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, LiteralString, TypeVar
from uuid import UUID

import structlog

from hiresfix.errors import HiresfixError, StorageFailed
from hiresfix.server import idempotency, uploads
from hiresfix.server.database import pool, query, task_queue
from hiresfix.server.database.pool import Database, Tx
from hiresfix.server.database.task_queue import Queue
from hiresfix.server.jobs import lifecycle, orphaned_results, scheduler, worker_registry
from hiresfix.server.jobs.model import Purgeable
from hiresfix.server.platform import metrics
from hiresfix.server.settings import Settings
from hiresfix.server.storage import Storage
from hiresfix.server.uploads import Upload
from hiresfix.server.webhooks import events
from hiresfix.states import JobState

log = structlog.get_logger(__name__)

Due = TypeVar("Due", Purgeable, Upload)

HOUSEKEEPING_SECONDS = 60.0
STRAY_AGE = timedelta(hours=1)
"""Who lost its claim longer ago has died, or will delete its picture itself when it wakes up and finds it lost."""
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
        """Until cancelled: leases and lost tasks every `sweep_seconds`, the rest once a minute."""
        often, seldom = self.settings.sweep_seconds, HOUSEKEEPING_SECONDS
        async with asyncio.TaskGroup() as loops:
            for seconds, step in (
                (often, self.hand_on_lapsed),
                (often, self.replace_lost_tasks),
                (seldom, self.forget_old_keys),
                (seldom, self.forget_dead_workers),
                (seldom, self.purge_results),
                (seldom, self.purge_sources),
                (seldom, self.purge_uploads),
                (seldom, self.purge_strays),
                (seldom, self.purge_orphans),
                (seldom, self.prune_webhooks),
            ):
                loops.create_task(every(seconds, step))

    async def hand_on_lapsed(self) -> int:
        """Jobs whose worker went silent; returns how many there were."""
        handed = 0
        while True:
            async with self.database.transaction() as tx:
                swept = await lifecycle.sweep(tx, self.queue, public_url=self.settings.public_url)
            if swept is None:
                return handed
            handed += 1
            metrics.LAPSED.labels("requeued" if swept.state is JobState.QUEUED else "failed").inc()
            log.warning("job.lease_lapsed", job_id=str(swept.id), request_id=swept.request_id,
                        attempt=swept.attempt, state=swept.state)  # fmt: skip

    async def replace_lost_tasks(self) -> int:
        """Jobs and deliveries that wait without a task; returns how many."""
        async with self.database.transaction() as tx:
            found = await scheduler.reconcile(tx, self.queue)
        async with self.database.transaction() as tx:
            found += await events.sweep(tx, self.queue)
        if found:
            metrics.TASKS_REPLACED.inc(found)
            log.warning("tasks.enqueued_again", count=found)
        return found

    async def forget_old_keys(self) -> None:
        async with self.database.transaction() as tx:
            await task_queue.bury_orphans(tx)
            await idempotency.forget_old(tx)

    async def forget_dead_workers(self) -> None:
        async with self.database.transaction() as tx:
            await worker_registry.forget_dead(tx)

    async def prune_webhooks(self) -> int:
        """Forget the attempts of deliveries that ended long ago; returns how many rows went."""
        async with self.database.transaction() as tx:
            return await events.prune(tx, older_than=timedelta(days=self.settings.webhook_log_days))

    async def purge_results(self) -> int:
        """Delete pictures past retention; the job row stays and says so. Returns how many."""
        retention = timedelta(days=self.settings.retention_days)

        async def purge(job: Purgeable) -> None:
            await self.storage.delete_prefix(f"results/{job.id}")
            async with self.database.transaction() as tx:
                await lifecycle.mark_result_purged(tx, job.id)

        return await self._purge(lambda tx, last: lifecycle.expired_results(tx, retention=retention, after=last), purge)

    async def purge_sources(self) -> int:
        """Delete the inputs of finished jobs, and pictures of attempts that did not win. Returns how many."""
        retention = timedelta(hours=self.settings.input_retention_hours)

        async def purge(job: Purgeable) -> None:
            await self.storage.delete(job.source_key)
            async for stored in self.storage.list(f"results/{job.id}"):
                if stored.key != job.result_key:
                    await self.storage.delete(stored.key)
            async with self.database.transaction() as tx:
                await lifecycle.mark_source_purged(tx, job.id)

        return await self._purge(
            lambda tx, last: lifecycle.finished_sources(tx, retention=retention, after=last), purge
        )

    async def purge_strays(self) -> int:
        """Delete what attempts that lost their claim may have stored after all. Returns at how many places."""
        purged, last = 0, ""
        while True:
            async with self.database.transaction() as tx:
                keys = await orphaned_results.overdue(tx, age=STRAY_AGE, after=last)
            if not keys:
                return purged
            last = keys[-1]
            for key in keys:
                try:
                    await self.storage.delete(key)
                except StorageFailed as error:
                    log.warning("file.not_purged", key=key, reason=error.message)
                    continue
                async with self.database.transaction() as tx:
                    await orphaned_results.forget(tx, key)
                purged += 1

    async def purge_uploads(self) -> int:
        """Delete uploads whose time is up. Returns how many."""

        async def purge(upload: Upload) -> None:
            await self.storage.delete(upload.key)
            async with self.database.transaction() as tx:
                await uploads.forget(tx, upload.id)

        return await self._purge(lambda tx, last: uploads.overdue(tx, after=last), purge)

    async def _purge(
        self, find: Callable[[Tx, Due | None], Awaitable[list[Due]]], purge: Callable[[Due], Awaitable[None]]
    ) -> int:
        """Once through all that is due, oldest first. Files first, mark after: an interrupted purge is taken up again.

        A file that cannot be deleted keeps only itself from going, and is tried again in a minute.
        """
        purged, last = 0, None
        while True:
            async with self.database.transaction() as tx:
                due = await find(tx, last)
            if not due:
                return purged
            last = due[-1]
            for one in due:
                try:
                    await purge(one)
                except StorageFailed as error:
                    log.warning("file.not_purged", id=str(one.id), reason=error.message)
                else:
                    purged += 1

    async def purge_orphans(self) -> int:
        """Delete files of submissions and uploads that died before their transaction. Returns how many."""
        oldest = datetime.now(UTC) - ORPHAN_AGE
        found = 0
        for prefix in (uploads.SOURCES, uploads.UPLOADS):
            async for stored in self.storage.list(prefix.rstrip("/")):
                if stored.modified < oldest and not await self._is_known(stored.key, prefix):
                    await self.storage.delete(stored.key)
                    found += 1
        return found

    async def _is_known(self, key: str, prefix: str) -> bool:
        try:
            owner = UUID(key.removeprefix(prefix))
        except ValueError:
            return False
        statement: LiteralString = (
            "select 1 from jobs where id = %(owner)s"
            if prefix == uploads.SOURCES
            else "select 1 from uploads where id = %(owner)s"
        )
        async with self.database.transaction() as tx:
            return await query.value(tx, statement, owner=owner) is not None


async def every(seconds: float, step: Callable[[], Awaitable[Any]]) -> None:
    """Until cancelled: the step, a pause, the step. An outage or a bug ends one step, never the loop."""
    while True:
        try:
            await step()
        except (*pool.OUTAGE, HiresfixError) as error:
            metrics.UPKEEP_FAILURES.labels(step.__name__).inc()
            log.warning("upkeep.postponed", step=step.__name__, reason=type(error).__name__)
        except Exception:
            metrics.UPKEEP_FAILURES.labels(step.__name__).inc()
            log.exception("upkeep.failed", step=step.__name__)
        await asyncio.sleep(seconds)
