"""Task queue: hand tasks to workers through procrastinate. Knows neither jobs nor webhooks.

Guarantees: a task enqueued in a transaction exists exactly if that transaction commits, and starts within
milliseconds of it (LISTEN/NOTIFY). There is no "exactly once": a task may run twice or be lost with its worker, so
the code that enqueues keeps the truth in a table of its own and enqueues lost tasks again (see `jobs`, `webhooks`).
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
    """The task queue as one process uses it. Enqueuing needs no connection of its own, working does."""

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
        """Enqueue `task` on `queue`, to run now or at a time, once `tx` commits."""
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
        """Enqueue `task` once for each row of a query, in the same statement.

        Args:
            tx: Transaction that the tasks depend on.
            rows: Query whose number of rows decides how many tasks there are.
            values: Parameters of `rows`.
            task: Name under which workers registered the task.
            queue: Queue to put it on.
            at: Earliest time to run it; None is now.
            priority: Workers take waiting tasks of the highest priority first.
            **args: Arguments of the task.
        """
        # procrastinate's own API builds and logs a task object, at several times the cost of the statement.
        task_values = {"queue": queue, "task": task, "args": Jsonb(args), "at": at, "priority": priority}
        statement: LiteralString = "select " + _ENQUEUE + " from (" + rows + ") rows_to_enqueue"  # noqa: S608 - from literals
        await tx.execute(statement, {**values, **task_values})

    def register(self, task: str, *, queue: str, run: Callable[..., Awaitable[None]]) -> None:
        """Declare the function that this process runs for `task`."""
        self._tasks.append((task, queue, run))

    async def work(self, *, queue: str, concurrency: int, extra_queues: Sequence[str] = ()) -> None:
        """Work on one queue until cancelled; running tasks are finished before this returns.

        An outage of the database stops procrastinate's loop, with an error or, if only its listener or heartbeat
        failed, without one. It is started again until it runs.

        Args:
            queue: Queue whose registered tasks are run.
            concurrency: Most tasks at a time.
            extra_queues: More queues to take those tasks from.
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
                        queues=[queue, *extra_queues],
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
            except (
                procrastinate.exceptions.ConnectorException,
                psycopg_pool.PoolTimeout,
                *pool.OUTAGE_ERRORS,
            ) as error:
                log.warning("queue.worker_restarting", queue=queue, reason=type(error).__name__)
            except Exception:
                log.exception("queue.worker_crashed", queue=queue)
            await asyncio.sleep(RESTART_SECONDS)


class _Worker(procrastinate.worker.Worker):
    """Worker of procrastinate 3.10 with two fixes.

    It stops when its listener or heartbeat fails, so that it can be started again, and it does not lose a notification
    that arrives while it looks for tasks.
    """

    _announced = 0
    """Number of tasks announced so far."""

    async def _periodic_deferrer(self) -> None:
        # Upstream's returns at once without periodic tasks, and upstream watches listener and heartbeat only until the
        # first of the three ends: after any outage a worker would go on without notifications, polling, forever.
        await asyncio.Event().wait()

    async def _handle_notification(self, *, channel: str, notification: procrastinate.jobs.Notification) -> None:
        if notification["type"] == "job_inserted":
            self._announced += 1
        await super()._handle_notification(channel=channel, notification=notification)

    async def _fetch_and_process_jobs(self) -> None:
        # Upstream clears its event after the query that found nothing. A task announced between the two waited for the
        # next poll, five seconds; this hit one of sixty jobs that were each submitted when the previous one was done.
        seen = None
        while seen != self._announced and not self._stop_event.is_set():
            seen = self._announced
            await super()._fetch_and_process_jobs()  # type: ignore[no-untyped-call]  # upstream


async def delete_orphaned_tasks(tx: Tx) -> int:
    """Delete tasks whose worker is gone, and return their number; their owners enqueue them again."""
    await query.execute(tx, "delete from procrastinate_workers where last_heartbeat < now() - interval '10 minutes'")
    # The foreign key has just set worker_id to null for deleted workers.
    return await query.execute(tx, "delete from procrastinate_jobs where status = 'doing' and worker_id is null")
