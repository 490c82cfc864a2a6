"""Turns: whose job is next. A task of the queue says only that there is work; which, is decided here.

Guarantees: of the teams that have a job ready which the asking worker can hold, and fewer running than they may, the
one that has been longest without a turn is next, and of those jobs the oldest; a team never has more jobs running than
it may, however many workers ask at once. A job that nobody can hold keeps nobody else waiting, of its own team neither.

Whatever makes one more job eligible enqueues one more task in the same transaction, so there are always at least as
many tasks as eligible jobs, and hardly more; `reconcile` replaces those that died with their worker. Any worker takes
these tasks. One that finds only jobs beyond its capacity hands its task on (`hand_on`): into the queues of the
capacities that hold one of them, each of which only workers of just that capacity listen to, and take from first.

It reads the jobs and writes none: who was given the turn does, in the same transaction.
"""

from __future__ import annotations

from datetime import datetime
from typing import LiteralString
from uuid import UUID

from hiresfix.server.database import query
from hiresfix.server.database.pool import Tx
from hiresfix.server.database.task_queue import Queue
from hiresfix.server.jobs import worker_registry
from hiresfix.server.jobs.worker_registry import ANYTHING, Capacity

TASK = "jobs.run"
QUEUE = "engine"

MOST_AT_ONCE = 100
"""Tasks that are made up for in one go, and counted: while so many wait, no worker is without."""
_RECONCILING = 7_305_001
"""Key of the advisory lock that keeps two workers from replacing the same tasks."""


class Contested(Exception):
    """Somebody else is giving the turn just now. Roll back and try again in a moment."""


_READY: LiteralString = (
    # statement_timestamp() and not now(): a transaction may have begun before a job came that it now has to see.
    "state = 'QUEUED' and queued_at <= statement_timestamp() and holds(%(most_megapixels)s, %(tags)s, jobs)"
)
"""Of a job: a worker of this capacity may take it, as far as its team's other jobs allow."""

# The teams that can be given a turn, each found by one look into the index, however many jobs wait, as long as the
# oldest can be held. `given` is what this statement's snapshot knows of the team's turns, `room` how many more of its
# jobs may start.
_ELIGIBLE: LiteralString = f"""
    with recursive waiting (team) as (
        (select team_id from jobs where {_READY} order by team_id limit 1)
        union all
        select (select team_id from jobs where {_READY} and team_id > waiting.team order by team_id limit 1)
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
"""  # noqa: S608 - put together from literals

# A team that was given a turn after this statement began is passed over (PostgreSQL compares `given` again, with the
# row as it is then, when it takes the lock): what the snapshot says of its running jobs is out of date, and its turn
# is over.
_GIVE: LiteralString = f"""{_ELIGIBLE}
    , chosen as (
        select turns.team_id from turns join eligible on eligible.team = turns.team_id
        where turns.given = eligible.given
        order by eligible.given, turns.team_id limit 1 for update of turns skip locked
    ), next as (
        select id, team_id from jobs where {_READY} and team_id = (select team_id from chosen)
        order by created_at, id limit 1 for update skip locked
    ), given as (
        update turns set given = nextval('turns_given') where team_id = (select team_id from next)
    )
    select (select id from next), exists (select from eligible)
"""  # noqa: S608 - put together from literals

# How many tasks there are less than eligible jobs; of neither more than `most` are counted, so that it costs the same
# however many wait. A look for each of the two ways in which a task is due: the index serves both, but not one "or".
_LACKING: LiteralString = f"""{_ELIGIBLE}
    , ready as (
        select from eligible cross join lateral (
            select from jobs where {_READY} and team_id = eligible.team limit least(eligible.room, %(most)s)) ready
        limit %(most)s
    ), due as (
        (select from procrastinate_jobs where task_name = %(task)s and status = 'todo'
         and queue_name = any(%(queues)s) and scheduled_at is null limit %(most)s)
        union all
        (select from procrastinate_jobs where task_name = %(task)s and status = 'todo'
         and queue_name = any(%(queues)s) and scheduled_at <= now() limit %(most)s)
    )
    select (select count(*) from ready) - (select count(*) from (select from due limit %(most)s) due)
"""  # noqa: S608 - put together from literals

# The queues of capacities that are gone; each name is found by one look into the index, however many tasks it has.
_GONE: LiteralString = """
    with recursive names (name) as (
        (select queue_name from procrastinate_jobs where queue_name >= %(first)s order by queue_name limit 1)
        union all
        select (select queue_name from procrastinate_jobs where queue_name > names.name order by queue_name limit 1)
        from names where names.name is not null
    )
    select name from names where starts_with(name, %(first)s) and not name = any(%(queues)s)
"""


# How many more jobs of the team may run than do, and how many are ready for each of the capacities that are there
# (counted no further than that).
_ROOM: LiteralString = """
    with room as (
        select coalesce(teams.max_concurrent_jobs, plans.max_concurrent_jobs)
               - (select count(*) from jobs where team_id = teams.id and state = 'PROCESSING') as room
        from teams join plans on plans.name = teams.plan where teams.id = %(team)s
    ), counted as (
        select room, capacity.*, (select count(*) from (
            select from jobs where team_id = %(team)s and state = 'QUEUED' and queued_at <= statement_timestamp()
            and holds(capacity.most_megapixels, capacity.tags, jobs) limit greatest(room, 0) + 1) ready) as waiting
        from room, capacities capacity
    )
"""
_ONE_IF_IT_MAY_START: LiteralString = _ROOM + (
    "select from counted, jobs where waiting <= room and id = %(job)s and holds(most_megapixels, tags, jobs) limit 1"
)
_ONE_IF_OTHERS_WAITED: LiteralString = _ROOM + "select from counted where 0 < room and room <= waiting limit 1"


def queues(capacity: Capacity) -> tuple[str, str]:
    """The queue of all workers, and that of the workers of just this capacity."""
    return QUEUE, f"{QUEUE}.{capacity.name}" if capacity.name else QUEUE


async def give(tx: Tx, capacity: Capacity = ANYTHING) -> UUID | None:
    """The job whose turn it is, locked until `tx` ends, which makes it PROCESSING; None if nothing may start there.

    Raises Contested if something may start, but is locked: the turn has to be asked for again.
    """
    row = await (await tx.execute(_GIVE, capacity.to_sql())).fetchone()
    assert row is not None
    job, contested = row
    if job is None and contested:
        raise Contested
    assert job is None or isinstance(job, UUID)
    return job


async def line_up(tx: Tx, queue: Queue, team: UUID, job: UUID) -> None:
    """A new job of the team waits; its charge has locked the team's row, so nobody frees a place meanwhile."""
    await queue.enqueue_for_each(tx, _ONE_IF_IT_MAY_START, {"team": team, "job": job}, TASK, queue=QUEUE)


async def free_place(tx: Tx, queue: Queue, team: UUID) -> None:
    """A job of the team has stopped running: if others waited for its place, one more of them may start.

    Locks the team's row first: a job that is being submitted now either is seen here or sees the free place.
    """
    await query.execute(tx, "select from teams where id = %(team)s for no key update", team=team)
    await queue.enqueue_for_each(tx, _ONE_IF_OTHERS_WAITED, {"team": team}, TASK, queue=QUEUE)


async def call(
    tx: Tx, queue: Queue, *, at: datetime | None = None, capacity: Capacity = ANYTHING, times: int = 1
) -> None:
    """Workers look for work, as many as `times`, now or `at` a time, once `tx` commits: any, or those of a capacity.

    What is for a capacity is taken first, so that a task that anybody takes is left to those who can take no other.
    """
    everybodys, own = queues(capacity)
    rows: LiteralString = "select from generate_series(1, %(times)s)"
    priority = 0 if own == everybodys else 1
    await queue.enqueue_for_each(tx, rows, {"times": times}, TASK, queue=own, at=at, priority=priority)


async def hand_on(tx: Tx, queue: Queue, mine: Capacity) -> int:
    """A worker found nothing that it can hold: calls those who can hold what waits; returns how many tasks it took."""
    others = [capacity for capacity in await worker_registry.capacities(tx) if capacity.name not in ("", mine.name)]
    return sum([await _make_up(tx, queue, capacity) for capacity in others])


async def stranded(tx: Tx) -> int:
    """How many jobs wait that no worker can hold which is up; 0 while none is up."""
    return int(
        await query.value(
            tx,
            "select count(*) from jobs where state = 'QUEUED' and not exists"
            " (select from capacities c where holds(c.most_megapixels, c.tags, jobs))",
        )
    )


async def reconcile(tx: Tx, queue: Queue) -> int:
    """Enqueue as many tasks as eligible jobs lack, up to `MOST_AT_ONCE` that wait for a capacity; returns how many.

    They lack some when a worker died between taking a task and claiming a job, when a team was allowed more, and when
    a worker came that can hold what no other could. Tasks for a capacity that is gone are forgotten.
    """
    if not await query.value(tx, "select pg_try_advisory_xact_lock(%(key)s)", key=_RECONCILING):
        return 0
    capacities = await worker_registry.capacities(tx)
    await _forget_gone(tx, [name for capacity in (ANYTHING, *capacities) for name in queues(capacity)])
    return sum([await _make_up(tx, queue, capacity) for capacity in capacities])


async def _forget_gone(tx: Tx, living: list[str]) -> None:
    for (name,) in await (await tx.execute(_GONE, {"first": QUEUE, "queues": living})).fetchall():
        await query.execute(
            tx,
            "delete from procrastinate_jobs where queue_name = %(name)s and task_name = %(task)s and status = 'todo'",
            name=name,
            task=TASK,
        )


async def _make_up(tx: Tx, queue: Queue, capacity: Capacity) -> int:
    """Enqueue the tasks that are lacking for jobs of this capacity; returns how many."""
    values = {"task": TASK, "queues": list(queues(capacity)), "most": MOST_AT_ONCE}
    missing = max(0, int(await query.value(tx, _LACKING, **values, **capacity.to_sql())))
    if missing:
        await call(tx, queue, capacity=capacity, times=missing)
    return missing
