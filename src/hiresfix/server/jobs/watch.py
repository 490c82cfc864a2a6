"""Watch a job until it is finished, holding no connection and no transaction in between."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from uuid import UUID

from hiresfix.server.database import pool
from hiresfix.server.database.notifications import POLL_SECONDS, Notifications
from hiresfix.server.database.pool import Database
from hiresfix.server.jobs import lifecycle
from hiresfix.server.jobs.model import Job
from hiresfix.states import TERMINAL


async def updates(
    database: Database, notifications: Notifications, job: UUID, *, seconds: float
) -> AsyncGenerator[Job | None]:
    """Yield the job now and whenever it may have changed, ending with the finished job.

    Yields None when the database did not answer. Ends early after `seconds`, or when the process is about to stop.
    Reads the job at least every `POLL_SECONDS`, even if notifications are lost.
    """
    deadline = time.monotonic() + seconds
    with notifications.subscribe(job) as watch:
        while True:
            current = await _read(database, job)
            yield current
            left = deadline - time.monotonic()
            if (current and current.state in TERMINAL) or left <= 0 or not await watch.wait(min(left, POLL_SECONDS)):
                return


async def wait_until_finished(
    database: Database, notifications: Notifications, job: UUID, *, seconds: float
) -> Job | None:
    """Return the job as soon as it is finished, or None if it is not within `seconds`."""
    async with aclosing(updates(database, notifications, job, seconds=seconds)) as states:
        async for current in states:
            if current and current.state in TERMINAL:
                return current
    return None


async def _read(database: Database, job: UUID) -> Job | None:
    try:
        async with database.autocommit() as tx:
            return await lifecycle.get(tx, job)
    except pool.OUTAGE_ERRORS:
        return None
