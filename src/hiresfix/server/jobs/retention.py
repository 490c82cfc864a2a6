"""Retention: find the files of finished jobs that are past their time, and mark them as deleted."""

from __future__ import annotations

from datetime import timedelta
from typing import LiteralString
from uuid import UUID

from hiresfix.server.database import query
from hiresfix.server.database.pool import Tx
from hiresfix.server.jobs.model import PurgeableJob

_PURGEABLE: LiteralString = """
    select id, completed_at, source ->> 'key' as source_key, result ->> 'key' as result_key from jobs
    where completed_at < now() - %(retention)s
    and (%(at)s::timestamptz is null or (completed_at, id) > (%(at)s, %(id)s))
"""
_OLDEST_FIRST: LiteralString = " order by completed_at, id limit 1000"


async def expired_results(tx: Tx, *, retention: timedelta, after: PurgeableJob | None = None) -> list[PurgeableJob]:
    """Return the 1000 oldest completed jobs whose result is older than `retention`, or the next 1000 behind `after`."""
    return await _purgeable(tx, " and state = 'COMPLETED' and purged_at is null", retention, after)


async def finished_sources(tx: Tx, *, retention: timedelta, after: PurgeableJob | None = None) -> list[PurgeableJob]:
    """Return finished jobs whose source has been kept for `retention`, paged like `expired_results`."""
    return await _purgeable(tx, " and source_purged_at is null", retention, after)


async def _purgeable(
    tx: Tx, condition: LiteralString, retention: timedelta, after: PurgeableJob | None
) -> list[PurgeableJob]:
    return await query.every(
        tx,
        PurgeableJob,
        _PURGEABLE + condition + _OLDEST_FIRST,
        retention=retention,
        at=after.completed_at if after else None,
        id=after.id if after else None,
    )


async def mark_result_purged(tx: Tx, job: UUID) -> None:
    await query.execute(tx, "update jobs set purged_at = now() where id = %(job)s", job=job)


async def mark_source_purged(tx: Tx, job: UUID) -> None:
    await query.execute(tx, "update jobs set source_purged_at = now() where id = %(job)s", job=job)
