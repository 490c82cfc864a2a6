"""Waiting for jobs without holding anything: no connection, no transaction, one small object a waiter."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from uuid import UUID

from hiresfix.server.database import pool
from hiresfix.server.database.notifications import POLL_SECONDS, Changes
from hiresfix.server.database.pool import Database
from hiresfix.server.jobs import lifecycle
from hiresfix.server.jobs.model import Job
from hiresfix.states import TERMINAL


async def follow(database: Database, changes: Changes, job: UUID, *, seconds: float) -> AsyncGenerator[Job | None]:
    """The job now, and again whenever it may have changed; a finished one is the last.

    None stands for a look that the database did not answer. It ends early after `seconds` or when the process is
    about to stop. At least every `POLL_SECONDS` there is a look, whatever happens to notifications.
    """
    deadline = time.monotonic() + seconds
    with changes.watch(job) as watch:
        while True:
            found = await _look(database, job)
            yield found
            left = deadline - time.monotonic()
            if (found and found.state in TERMINAL) or left <= 0 or not await watch.wait(min(left, POLL_SECONDS)):
                return


async def finished(database: Database, changes: Changes, job: UUID, *, seconds: float) -> Job | None:
    """The job as soon as it is finished; None if it is not within `seconds`."""
    async with aclosing(follow(database, changes, job, seconds=seconds)) as looks:
        async for found in looks:
            if found and found.state in TERMINAL:
                return found
    return None


async def _look(database: Database, job: UUID) -> Job | None:
    try:
        async with database.looking() as tx:
            return await lifecycle.get(tx, job)
    except pool.OUTAGE:
        return None
