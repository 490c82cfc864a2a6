"""Headroom: may a team submit one more job, judged by the number of jobs that wait already."""

from __future__ import annotations

import math
from typing import LiteralString

from hiresfix import messages
from hiresfix.errors import RateLimited, Unavailable
from hiresfix.server.accounts.authentication import Caller
from hiresfix.server.database import query
from hiresfix.server.database.pool import Tx
from hiresfix.server.jobs import estimates
from hiresfix.server.jobs.model import Headroom

DEFAULT_RETRY_AFTER = 30
MAX_RETRY_AFTER = 600
"""`Retry-After` in seconds when the queue is full: if no pace is known, and at most."""

_RUNNING: LiteralString = "select count(*) from jobs where state = 'PROCESSING'"
_TEAM_HEADROOM: LiteralString = """
    select t.credits, k.monthly_budget is not null, coalesce(t.max_queued_jobs, %(per_team)s),
    (select count(*) from (select from jobs where state = 'QUEUED' and team_id = t.id
                           limit coalesce(t.max_queued_jobs, %(per_team)s)) waiting)
    from teams t, api_keys k where t.id = %(team)s and k.id = %(key)s
"""


async def check(
    tx: Tx,
    caller: Caller,
    *,
    per_team: int,
    in_total: int,
    waiting: int | None = None,
    seconds_per_job: float | None = None,
) -> Headroom:
    """Return the team's headroom; raise if the queue is full.

    Args:
        tx: open transaction or connection.
        caller: who submits.
        per_team: limit of waiting jobs for a team without a limit of its own.
        in_total: limit of waiting jobs of all teams.
        waiting: known number of waiting jobs of all teams; they are counted only if it is None or too high.
        seconds_per_job: recent duration of a job, from which `Retry-After` follows; None: unknown.

    Raises:
        RateLimited: the team has too many jobs waiting.
        Unavailable: the whole server has too many jobs waiting.
    """
    values = {"team": caller.team, "key": caller.key, "per_team": per_team}
    row = await (await tx.execute(_TEAM_HEADROOM, values)).fetchone()
    assert row is not None
    credits, has_budget, team_limit, team_waiting = row
    if team_waiting >= team_limit:
        running = await query.value(tx, _RUNNING + " and team_id = %(team)s", team=caller.team)
        raise RateLimited(
            messages.TEAM_QUEUE_FULL(limit=team_limit),
            retry_after=_seconds_until_next(seconds_per_job, running),
        )
    if (waiting is None or waiting >= in_total) and await estimates.count_queued(tx, limit=in_total) >= in_total:
        raise Unavailable(retry_after=_seconds_until_next(seconds_per_job, await query.value(tx, _RUNNING)))
    return Headroom(credits=credits, has_budget=has_budget)


def _seconds_until_next(seconds_per_job: float | None, running: int) -> int:
    """Return the whole seconds until one of `running` jobs, started at any time, is likely to be done."""
    if seconds_per_job is None:
        return DEFAULT_RETRY_AFTER
    return min(max(1, math.ceil(seconds_per_job / max(1, running))), MAX_RETRY_AFTER)
