"""Dispatch: hands *tasks* to workers through procrastinate. No product words.

Guarantees: a task enqueued in a transaction exists exactly if that transaction commits, and starts within
milliseconds of it (LISTEN/NOTIFY). It does not guarantee "exactly once": a task may run twice or be lost with
its worker, so whoever enqueues keeps the truth in a table of its own and sweeps it (see `jobs`, `webhooks`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from typing import LiteralString

import procrastinate
import procrastinate.exceptions
import procrastinate.jobs
import procrastinate.worker
import psycopg_pool
import structlog
from psycopg.types.json import Jsonb

from hiresfix.server.database import pool, query
from hiresfix.server.database.pool import Tx

log = structlog.get_logger(__name__)

RESTART_SECONDS = 2.0

_ENQUEUE: LiteralString = (
    "procrastinate_defer_jobs_v1(array[row("
    "%(queue)s, %(task)s, %(priority)s, null, null, %(args)s, %(at)s::timestamptz)"
    "::procrastinate_job_to_defer_v1])"
)


class Queue:
    """One process's door to the queue. Enqueuing needs no connection of its own, working does."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._tasks: list[tuple[str, str, Callable[..., Awaitable[None]]]] = []

    def _new_app(self) -> procrastinate.App:
        connector = procrastinate.PsycopgConnector(
            conninfo=self._url,
            min_size=1,
            max_size=5,
            timeout=10,
            reconnect_timeout=pool.RECONNECT_SECONDS,
            kwargs={**pool.KEEPALIVE, "application_name": "hiresfix-queue"},
        )
        return procrastinate.App(connector=connector)

    async def enqueue(self, tx: Tx, task: str, *, queue: str, at: datetime | None = None, **args: str) -> None:
        """Ask for `task` to run on `queue`, now or `at` a time, once `tx` commits."""
        # procrastinate's own way to this statement builds and logs a task object, at ten times the statement's cost.
        await self.enqueue_for_each(tx, "select", {}, task, queue=queue, at=at, priority=0, **args)

    async def enqueue_for_each(
        self,
        tx: Tx,
        rows: LiteralString,
        values: Mapping[str, object],
        task: str,
        *,
        queue: str,
        at: datetime | None = None,
        priority: int = 0,
        **args: str,
    ) -> None:
        """As `enqueue`, once for each row that the query `rows` finds: what is wanted is decided by the database.

        Of the tasks that wait, workers take those of the highest priority first.
        """
        # procrastinate's own way to its function builds and logs a task object, at several times the statement's cost.
        named = {"queue": queue, "task": task, "args": Jsonb(args), "at": at, "priority": priority}
        statement: LiteralString = "select " + _ENQUEUE + " from (" + rows + ") wanted"  # noqa: S608 - from literals
        await tx.execute(statement, {**values, **named})

    def on(self, task: str, *, queue: str, run: Callable[..., Awaitable[None]]) -> None:
        """Declare what this process does for `task`."""
        self._tasks.append((task, queue, run))

    async def work(self, *, queue: str, concurrency: int, beside: Sequence[str] = ()) -> None:
        """Work on one queue until cancelled; what is running then is finished before this returns.

        beside: more queues that its tasks are taken from, whatever queue they were declared for.

        An outage of the database stops procrastinate's loop, by an error or, if only its listener or heartbeat
        fell, without one. It is started again for as long as it takes.
        """
        while True:
            app = self._new_app()
            for task, on_queue, run in self._tasks:
                if on_queue == queue:
                    app.task(name=task, queue=queue)(run)
            try:
                async with app.open_async():
                    worker = _Worker(
                        app,
                        queues=[queue, *beside],
                        concurrency=concurrency,
                        name=queue,
                        install_signal_handlers=False,
                        delete_jobs="always",
                        update_heartbeat_interval=5,
                        stalled_worker_timeout=60,
                    )
                    await worker.run()  # type: ignore[no-untyped-call]  # upstream
                log.warning("queue.worker_restarting", queue=queue, reason="stopped by itself")
            except asyncio.CancelledError:
                raise
            except (procrastinate.exceptions.ConnectorException, psycopg_pool.PoolTimeout, *pool.OUTAGE) as error:
                log.warning("queue.worker_restarting", queue=queue, reason=type(error).__name__)
            except Exception:
                log.exception("queue.worker_crashed", queue=queue)
            await asyncio.sleep(RESTART_SECONDS)


class _Worker(procrastinate.worker.Worker):
    """procrastinate 3.10's worker, mended: it stops when its listener or heartbeat falls, so that it can be started
    again, and does not forget that a task was announced while it looked for one.
    """

    _announced = 0
    """Tasks, so far."""

    async def _periodic_deferrer(self) -> None:
        # Upstream's returns at once when there are no periodic tasks, and its end is all that the watch over listener
        # and heartbeat sees: after any outage a worker would go on without notifications, polling, for good.
        await asyncio.Event().wait()

    async def _handle_notification(self, *, channel: str, notification: procrastinate.jobs.Notification) -> None:
        if notification["type"] == "job_inserted":
            self._announced += 1
        await super()._handle_notification(channel=channel, notification=notification)

    async def _fetch_and_process_jobs(self) -> None:
        # Upstream clears its event after the look that found nothing. What was announced between the two waited for
        # the next poll, five seconds: one of sixty jobs that were submitted as soon as the one before was done.
        seen = None
        while seen != self._announced and not self._stop_event.is_set():
            seen = self._announced
            await super()._fetch_and_process_jobs()  # type: ignore[no-untyped-call]  # upstream


async def bury_orphans(tx: Tx) -> int:
    """Remove tasks whose worker is gone; whoever needed them enqueues anew. Returns how many."""
    await query.execute(tx, "delete from procrastinate_workers where last_heartbeat < now() - interval '10 minutes'")
    # The foreign key has just set worker_id to null where the worker went away.
    return await query.execute(tx, "delete from procrastinate_jobs where status = 'doing' and worker_id is null")
