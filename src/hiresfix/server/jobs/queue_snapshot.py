"""Queue snapshot: the waiting jobs in the scheduler's order and the running jobs, all as of one moment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import LiteralString
from uuid import UUID

from hiresfix.server.database import query
from hiresfix.server.database.pool import Tx
from hiresfix.server.jobs import scheduler
from hiresfix.server.jobs.scheduler import QueuedJob


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningJob:
    """A running job: megapixels of its result, and its progress in percent."""

    id: UUID
    model: str
    megapixels: float
    progress: int


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueSnapshot:
    """The queue at `taken_at` by the database's clock; waiting jobs in the order in which they will start."""

    taken_at: datetime
    waiting: Sequence[QueuedJob]
    running: Sequence[RunningJob]


_RUNNING: LiteralString = """
    select id, model, progress, megapixels(jobs) as megapixels from jobs where state = 'PROCESSING'
"""


async def take(tx: Tx) -> QueueSnapshot:
    """Read the queue; `tx` must be a transaction that has run no query yet."""
    # Without it a job that is claimed between two of the queries would be in both lists, or in none.
    await tx.execute("set transaction isolation level repeatable read, read only")
    return QueueSnapshot(
        taken_at=await query.value(tx, "select now()"),
        waiting=await scheduler.read_queue(tx),
        running=await query.every(tx, RunningJob, _RUNNING),
    )
