"""Turns: whose job is next. A task of the queue says only that there is work; which, is decided here.

Guarantees: of the teams that have a job ready and fewer running than they may, the one that has been longest without
a turn is next, and of its jobs the oldest; a team never has more jobs running than it may, however many workers ask
at once. Whatever makes one more job eligible enqueues one more task in the same transaction, so there are always at
least as many tasks as eligible jobs, and hardly more; `reconcile` replaces those that died with their worker.

It reads the jobs and writes none: who was given the turn does, in the same transaction.
"""

from __future__ import annotations

from datetime import datetime
from typing import LiteralString
from uuid import UUID

from hiresfix.server import db
from hiresfix.server.db import Tx
from hiresfix.server.queue import Queue

TASK = "jobs.run"
QUEUE = "engine"

MOST_AT_ONCE = 100
_RECONCILING = 7_305_001
"""Key of the advisory lock that keeps two workers from replacing the same tasks."""


class Contested(Exception):
    """Somebody else is giving the turn just now. Roll back and try again in a moment."""


# statement_timestamp() and not now(): this transaction may have begun before a job came that it now has to see.

# The teams that can be given a turn, each found by one look into the index, however many jobs wait. `given` is what
# this statement's snapshot knows of the team's turns, `room` how many more of its jobs may start.
_ELIGIBLE: LiteralString = """
    with recursive waiting (team) as (
        (select team_id from jobs where state = 'QUEUED' and queued_at <= statement_timestamp()
         order by team_id limit 1)
        union all
        select (select team_id from jobs where state = 'QUEUED' and queued_at <= statement_timestamp()
                and team_id > waiting.team order by team_id limit 1)
        from waiting where waiting.team is not null
    ), running as (
        select team_id, count(*) as jobs from jobs where state = 'PROCESSING' group by team_id
    ), eligible as materialized (
        select turns.team_id as team, turns.given,
               coalesce(teams.max_concurrent_jobs, plans.max_concurrent_jobs) - coalesce(running.jobs, 0) as room
        from waiting
        join turns on turns.team_id = waiting.team
        join teams on teams.id = waiting.team
        join plans on plans.name = teams.plan
        left join running on running.team_id = waiting.team
        where coalesce(teams.max_concurrent_jobs, plans.max_concurrent_jobs) > coalesce(running.jobs, 0)
    )
"""

# A team that was given a turn after this statement began is passed over (PostgreSQL compares `given` again, with the
# row as it is then, when it takes the lock): what the snapshot says of its running jobs is out of date, and its turn
# is over.
_GIVE: LiteralString = f"""{_ELIGIBLE}
    , chosen as (
        select turns.team_id from turns join eligible on eligible.team = turns.team_id
        where turns.given = eligible.given
        order by eligible.given, turns.team_id limit 1 for update of turns skip locked
    ), next as (
        select id, team_id from jobs
        where state = 'QUEUED' and queued_at <= statement_timestamp() and team_id = (select team_id from chosen)
        order by created_at, id limit 1 for update skip locked
    ), given as (
        update turns set given = nextval('turns_given') where team_id = (select team_id from next)
    )
    select (select id from next), exists (select from eligible)
"""  # noqa: S608 - put together from literals

_LACKING: LiteralString = f"""{_ELIGIBLE}
    , ready as (
        select (select count(*) from (select from jobs where state = 'QUEUED' and team_id = eligible.team
                and queued_at <= statement_timestamp() limit eligible.room) ready) as jobs from eligible
    )
    select coalesce((select sum(jobs) from ready), 0) - (
        select count(*) from procrastinate_jobs
        where task_name = %(task)s and status = 'todo' and coalesce(scheduled_at, now()) <= now())
"""  # noqa: S608 - put together from literals


# How many more jobs of the team may run than do, and how many are ready (counted no further than that).
_ROOM: LiteralString = """
    with room as (
        select coalesce(teams.max_concurrent_jobs, plans.max_concurrent_jobs)
               - (select count(*) from jobs where team_id = teams.id and state = 'PROCESSING') as room
        from teams join plans on plans.name = teams.plan where teams.id = %(team)s
    ), counted as (
        select room, (select count(*) from (
            select from jobs where team_id = %(team)s and state = 'QUEUED' and queued_at <= statement_timestamp()
            limit greatest(room, 0) + 1) ready) as waiting
        from room
    )
"""
_ONE_IF_ROOM: LiteralString = _ROOM + "select from counted where waiting <= room"
_ONE_IF_OTHERS_WAITED: LiteralString = _ROOM + "select from counted where 0 < room and room <= waiting"


async def give(tx: Tx) -> UUID | None:
    """The job whose turn it is, locked until `tx` ends, which makes it PROCESSING; None if nothing may start.

    Raises Contested if something may start, but is locked: the turn has to be asked for again.
    """
    row = await (await tx.execute(_GIVE)).fetchone()
    assert row is not None
    job, contested = row
    if job is None and contested:
        raise Contested
    assert job is None or isinstance(job, UUID)
    return job


async def line_up(tx: Tx, queue: Queue, team: UUID) -> None:
    """A new job of the team waits; its charge has locked the team's row, so nobody frees a place meanwhile."""
    await tx.execute("insert into turns (team_id) values (%(team)s) on conflict do nothing", {"team": team})
    await queue.enqueue_for_each(tx, _ONE_IF_ROOM, {"team": team}, TASK, queue=QUEUE)


async def free_place(tx: Tx, queue: Queue, team: UUID) -> None:
    """A job of the team has stopped running: if others waited for its place, one more of them may start.

    Locks the team's row first: a job that is being submitted now either is seen here or sees the free place.
    """
    await db.execute(tx, "select from teams where id = %(team)s for no key update", team=team)
    await queue.enqueue_for_each(tx, _ONE_IF_OTHERS_WAITED, {"team": team}, TASK, queue=QUEUE)


async def call(tx: Tx, queue: Queue, *, at: datetime | None = None) -> None:
    """One worker looks for work, now or `at` a time, once `tx` commits."""
    await queue.enqueue(tx, TASK, queue=QUEUE, at=at)


async def reconcile(tx: Tx, queue: Queue) -> int:
    """Enqueue as many tasks as eligible jobs lack, at most `MOST_AT_ONCE`; returns how many.

    They lack some when a worker died between taking a task and claiming a job, and when a team was allowed more.
    """
    if not await db.value(tx, "select pg_try_advisory_xact_lock(%(key)s)", key=_RECONCILING):
        return 0
    lacking = await db.value(tx, _LACKING, task=TASK)
    missing = min(max(0, int(lacking)), MOST_AT_ONCE)
    if missing:
        await queue.enqueue_for_each(
            tx, "select from generate_series(1, %(missing)s)", {"missing": missing}, TASK, queue=QUEUE
        )
    return missing
