"""Periodic maintenance: expired leases, lost queue tasks, and files past their retention.

Every step runs in its own transaction and is safe to run in any number of workers at once. A failing step does not
stop the others.
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
from hiresfix.server import idempotency, storage_keys, uploads
from hiresfix.server.database import pool, query, task_queue
from hiresfix.server.database.pool import Database, Tx
from hiresfix.server.database.task_queue import Queue
from hiresfix.server.jobs import lifecycle, orphaned_results, retention, scheduler, worker_registry
from hiresfix.server.jobs.model import PurgeableJob
from hiresfix.server.platform import metrics
from hiresfix.server.settings import Settings
from hiresfix.server.storage import Storage
from hiresfix.server.uploads import UploadRecord
from hiresfix.server.webhooks import events
from hiresfix.states import JobState

log = structlog.get_logger(__name__)

Purgeable = TypeVar("Purgeable", PurgeableJob, UploadRecord)

HOUSEKEEPING_SECONDS = 60.0
ORPHANED_RESULT_AGE = timedelta(hours=1)
"""A worker that lost its claim longer ago is dead, or deletes its image itself once it finds its claim lost."""
UNCLAIMED_FILE_AGE = timedelta(hours=1)
"""A younger source or upload without a row may belong to a submission in progress; an older one is left by a crash."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Maintenance:
    """The recurring work of one worker process."""

    settings: Settings
    database: Database
    storage: Storage
    queue: Queue

    async def run(self) -> None:
        """Run until cancelled: leases and lost tasks every `maintenance_seconds`, everything else once a minute."""
        often, seldom = self.settings.maintenance_seconds, HOUSEKEEPING_SECONDS
        async with asyncio.TaskGroup() as loops:
            for seconds, step in (
                (often, self.requeue_expired_jobs),
                (often, self.replace_lost_tasks),
                (seldom, self.forget_old_keys),
                (seldom, self.forget_dead_workers),
                (seldom, self.purge_results),
                (seldom, self.purge_sources),
                (seldom, self.purge_uploads),
                (seldom, self.purge_orphaned_results),
                (seldom, self.purge_unclaimed_files),
                (seldom, self.prune_webhooks),
            ):
                loops.create_task(repeat(seconds, step))

    async def requeue_expired_jobs(self) -> int:
        """Requeue or fail all jobs whose lease expired; returns their number."""
        count = 0
        while True:
            async with self.database.transaction() as tx:
                expired = await lifecycle.requeue_expired(tx, self.queue, public_url=self.settings.public_url)
            if expired is None:
                return count
            count += 1
            metrics.EXPIRED_LEASES.labels("requeued" if expired.state is JobState.QUEUED else "failed").inc()
            log.warning("job.lease_expired", job_id=str(expired.id), request_id=expired.request_id,
                        attempt=expired.attempt, state=expired.state)  # fmt: skip

    async def replace_lost_tasks(self) -> int:
        """Enqueue tasks for jobs and deliveries that wait without one; returns their number."""
        async with self.database.transaction() as tx:
            count = await scheduler.replace_lost_tasks(tx, self.queue)
        async with self.database.transaction() as tx:
            count += await events.requeue_lost(tx, self.queue)
        if count:
            metrics.TASKS_REPLACED.inc(count)
            log.warning("tasks.replaced", count=count)
        return count

    async def forget_old_keys(self) -> None:
        """Delete tasks of dead workers and expired idempotency keys."""
        async with self.database.transaction() as tx:
            await task_queue.delete_orphaned_tasks(tx)
            await idempotency.delete_expired(tx)

    async def forget_dead_workers(self) -> None:
        async with self.database.transaction() as tx:
            await worker_registry.forget_dead(tx)

    async def prune_webhooks(self) -> int:
        """Delete the attempts of deliveries that ended long ago; returns the number of deleted rows."""
        async with self.database.transaction() as tx:
            return await events.prune(tx, older_than=timedelta(days=self.settings.webhook_log_days))

    async def purge_results(self) -> int:
        """Delete images past retention; the job's row stays and says so. Returns their number."""
        period = timedelta(days=self.settings.retention_days)

        async def purge(job: PurgeableJob) -> None:
            await self.storage.delete_prefix(storage_keys.result_prefix(job.id))
            async with self.database.transaction() as tx:
                await retention.mark_result_purged(tx, job.id)

        return await self._purge(lambda tx, last: retention.expired_results(tx, retention=period, after=last), purge)

    async def purge_sources(self) -> int:
        """Delete the sources of finished jobs, and images of attempts that did not win; returns the number of jobs."""
        period = timedelta(hours=self.settings.input_retention_hours)

        async def purge(job: PurgeableJob) -> None:
            await self.storage.delete(job.source_key)
            async for stored in self.storage.list(storage_keys.result_prefix(job.id)):
                if stored.key != job.result_key:
                    await self.storage.delete(stored.key)
            async with self.database.transaction() as tx:
                await retention.mark_source_purged(tx, job.id)

        return await self._purge(lambda tx, last: retention.finished_sources(tx, retention=period, after=last), purge)

    async def purge_orphaned_results(self) -> int:
        """Delete images that attempts may have stored after losing their claim; returns the number of keys."""
        purged, last = 0, ""
        while True:
            async with self.database.transaction() as tx:
                keys = await orphaned_results.list_due(tx, age=ORPHANED_RESULT_AGE, after=last)
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
        """Delete expired uploads; returns their number."""

        async def purge(upload: UploadRecord) -> None:
            await self.storage.delete(upload.key)
            async with self.database.transaction() as tx:
                await uploads.delete(tx, upload.id)

        return await self._purge(lambda tx, last: uploads.list_expired(tx, after=last), purge)

    async def _purge(
        self,
        find: Callable[[Tx, Purgeable | None], Awaitable[list[Purgeable]]],
        purge: Callable[[Purgeable], Awaitable[None]],
    ) -> int:
        """Purge everything that `find` returns, oldest first; returns the number purged.

        `purge` deletes the file before it marks the row, so an interrupted purge is repeated. A file that cannot be
        deleted is skipped, and tried again in a minute.
        """
        purged, last = 0, None
        while True:
            async with self.database.transaction() as tx:
                rows = await find(tx, last)
            if not rows:
                return purged
            last = rows[-1]
            for row in rows:
                try:
                    await purge(row)
                except StorageFailed as error:
                    log.warning("file.not_purged", id=str(row.id), reason=error.message)
                else:
                    purged += 1

    async def purge_unclaimed_files(self) -> int:
        """Delete files of submissions and uploads that died before their transaction; returns their number."""
        newest = datetime.now(UTC) - UNCLAIMED_FILE_AGE
        purged = 0
        for prefix in (storage_keys.SOURCES, storage_keys.UPLOADS):
            async for stored in self.storage.list(prefix.rstrip("/")):
                if stored.modified < newest and not await self._has_row(stored.key, prefix):
                    await self.storage.delete(stored.key)
                    purged += 1
        return purged

    async def _has_row(self, key: str, prefix: str) -> bool:
        try:
            owner = UUID(key.removeprefix(prefix))
        except ValueError:
            return False
        statement: LiteralString = (
            "select 1 from jobs where id = %(owner)s"
            if prefix == storage_keys.SOURCES
            else "select 1 from uploads where id = %(owner)s"
        )
        async with self.database.transaction() as tx:
            return await query.value(tx, statement, owner=owner) is not None


async def repeat(seconds: float, step: Callable[[], Awaitable[Any]]) -> None:
    """Run `step` again and again until cancelled, with a pause of `seconds`; an error ends one run, never the loop."""
    while True:
        try:
            await step()
        except (*pool.OUTAGE_ERRORS, HiresfixError) as error:
            metrics.MAINTENANCE_FAILURES.labels(step.__name__).inc()
            log.warning("maintenance.postponed", step=step.__name__, reason=type(error).__name__)
        except Exception:
            metrics.MAINTENANCE_FAILURES.labels(step.__name__).inc()
            log.exception("maintenance.failed", step=step.__name__)
        await asyncio.sleep(seconds)
