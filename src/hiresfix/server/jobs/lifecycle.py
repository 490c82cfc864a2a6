"""Jobs: what a customer pays for, from submission to settlement. This table is the truth.

Guarantees, whatever dies and when:
- a job, its charge, its queue task and (see `gate`) its idempotency row appear in one transaction;
- a claim takes the job whose turn it is (`turns`) and gives a fresh token and a lease; only the holder of the token
  can renew or settle, so a worker that comes back late changes nothing;
- every job ends exactly once, as COMPLETED or as FAILED/CANCELLED with its credits given back in the same
  transaction that also announces the end to the caller's webhook; CANCELLED only by `cancel`;
- `sweep` hands on jobs whose lease lapsed, and stops jobs that failed too often;
- whoever loses a claim may have stored a picture, or may yet: the place is written down in the same transaction.

Everything that writes a job's state is here. Locks are taken in one order, job before team, so nobody deadlocks.
It knows no pictures, no HTTP and no engine.
"""

from __future__ import annotations

import asyncio
import math
import random
from datetime import timedelta
from typing import Any, LiteralString
from uuid import UUID, uuid4

from psycopg.types.json import Jsonb

from hiresfix import wire
from hiresfix.errors import Conflict, NotFound, RateLimited, Unavailable
from hiresfix.server.accounts.authentication import Caller
from hiresfix.server.billing import budgets, ledger
from hiresfix.server.database import query
from hiresfix.server.database.pool import Database, Tx
from hiresfix.server.database.task_queue import Queue
from hiresfix.server.jobs import estimates, orphaned_results, scheduler
from hiresfix.server.jobs.model import (
    Claim,
    Completed,
    Failed,
    Foreign,
    Hindered,
    Job,
    Outcome,
    Purgeable,
    Refused,
    Result,
    Room,
    Source,
    Submission,
    Swept,
)
from hiresfix.server.jobs.worker_registry import ANYTHING, Capacity
from hiresfix.server.webhooks import events
from hiresfix.states import TERMINAL, JobState

INTERRUPTED = "The job was interrupted too often and has been stopped. Your credits were returned."
CANCELLED = "Job was cancelled"

UNDERSTOOD_WITHIN = timedelta(hours=1)
"""What an upgrade of a fleet may take, as far as jobs wait for it."""
FOREIGN_PAUSE = timedelta(seconds=5)
"""Before a worker, maybe one that understands it, is offered the job again."""

UNKNOWN_WAIT = 30
LONGEST_WAIT = 600
"""Seconds after which to try again where the queue is full: when no pace is known, and at most."""

HINDERED_PAUSE = timedelta(seconds=5)
"""Before a job that was hindered may be tried again, perhaps by a worker that is hindered too."""

CONTESTED_SECONDS = (0.005, 0.25)
"""The longest pause before asking again for a contested turn: at first, and where doubling it ends."""


_SELECT: LiteralString = """
    select id, team_id, user_id, key_id, model, state, progress, cost, attempt, max_attempts, recipe, input, result,
    error, hook_url, hook_events, created_at, started_at, completed_at, purged_at is not null as expired,
    case when hook_url is null then null
         when completed_at is null then 'pending'
         when exists (select from webhook_deliveries d where d.job_id = jobs.id and d.state = 'PENDING') then 'pending'
         when exists (select from webhook_deliveries d where d.job_id = jobs.id and d.state = 'FAILED'
                      and d.event in ('completed', 'failed')) then 'failed'
         else 'delivered' end as webhook_status
    from jobs
"""


# Submission -----------------------------------------------------------------------------------------------------


_RUNNING: LiteralString = "select count(*) from jobs where state = 'PROCESSING'"
_TEAMS_ROOM: LiteralString = """
    select t.credits, k.monthly_budget is not null, coalesce(t.max_queued_jobs, %(per_team)s),
    (select count(*) from (select from jobs where state = 'QUEUED' and team_id = t.id
                           limit coalesce(t.max_queued_jobs, %(per_team)s)) waiting)
    from teams t, api_keys k where t.id = %(team)s and k.id = %(key)s
"""


async def room_for(
    tx: Tx,
    caller: Caller,
    *,
    per_team: int,
    in_total: int,
    waiting: int | None = None,
    seconds_a_job: float | None = None,
) -> Room:
    """Raises RateLimited if the team, and Unavailable if the whole server, has too many jobs waiting.

    per_team: for a team that has no number of its own. waiting: how many wait in all as far as is known; only if they
    seem too many they are counted. seconds_a_job: what a job takes these days, None if unknown; from it follows when
    one of those that wait will have started.
    """
    values = {"team": caller.team, "key": caller.key, "per_team": per_team}
    row = await (await tx.execute(_TEAMS_ROOM, values)).fetchone()
    assert row is not None
    credits, budgeted, cap, of_team = row
    if of_team >= cap:
        running = await query.value(tx, _RUNNING + " and team_id = %(team)s", team=caller.team)
        raise RateLimited(
            f"Your team has {cap} jobs waiting already. Try again when some are done.",
            retry_after=_until_next(seconds_a_job, running),
        )
    if (waiting is None or waiting >= in_total) and await estimates.waiting_in_all(tx, most=in_total) >= in_total:
        raise Unavailable(retry_after=_until_next(seconds_a_job, await query.value(tx, _RUNNING)))
    return Room(credits=credits, budgeted=budgeted)


def _until_next(seconds_a_job: float | None, running: int) -> int:
    """Whole seconds until one of `running` jobs, begun at any time, is likely to be done."""
    if seconds_a_job is None:
        return UNKNOWN_WAIT
    return min(max(1, math.ceil(seconds_a_job / max(1, running))), LONGEST_WAIT)


async def submit(tx: Tx, queue: Queue, new: Submission) -> None:
    """Insert the job, take its price, put it in its team's line. Raises InsufficientCredits or OverBudget.

    In a pipeline (`db.Database.pipelined`) all of it is one message to the server and one back.
    """
    inserted = await tx.execute(_INSERT, _columns(new))
    charge = await ledger.charge(tx, new.caller.team, new.cost, job=new.id, actor=f"key:{new.caller.key}")
    await scheduler.line_up(tx, queue, new.caller.team, new.id)
    await charge.confirm(tx)
    row = await inserted.fetchone()
    assert row is not None
    if row[0]:  # most keys have no budget
        await budgets.check(tx, new.caller.key, new.cost)


# The key's row is locked before the team's, which the charge locks.
_INSERT: LiteralString = f"""
    with held as materialized ({budgets.HELD})
    insert into jobs (id, team_id, user_id, key_id, request_id, model, recipe, input, source, hook_url, hook_events,
    max_attempts, cost, needs, traceparent) values (%(id)s, %(team)s, %(user)s, %(key)s, %(request)s, %(model)s,
    %(recipe)s, %(input)s, %(source)s, %(hook_url)s, %(hook_events)s, %(max_attempts)s, %(cost)s, %(needs)s,
    %(traceparent)s) returning (select true from held)
"""  # noqa: S608 - put together from literals


def _columns(new: Submission) -> dict[str, object]:
    return {
        "id": new.id,
        "team": new.caller.team,
        "user": new.caller.user,
        "key": new.caller.key,
        "request": new.request_id,
        "model": new.model,
        "recipe": Jsonb(new.recipe.to_dict()),
        "input": Jsonb(new.input),
        "source": Jsonb(_fields(new.source)),
        "hook_url": new.hook_url,
        "hook_events": list(new.hook_events),
        "max_attempts": new.max_attempts,
        "cost": new.cost,
        "needs": list(new.needs),
        "traceparent": new.traceparent,
    }


async def get(tx: Tx, job: UUID, *, caller: Caller | None = None) -> Job:
    """The job, if `caller` (None: the operator) may see it: its user, or owner and admins of its team.

    Raises NotFound for an unknown job and for someone else's alike.
    """
    found = await query.one(tx, Job, _SELECT + " where id = %(job)s", job=job)
    if found is None or not (caller is None or _may_see(caller, found)):
        raise NotFound("Job not found")
    return found


def _may_see(caller: Caller, job: Job) -> bool:
    return caller.user == job.user_id or (caller.leads and caller.team == job.team_id)


async def find(tx: Tx, rest: LiteralString, **values: object) -> list[Job]:
    """The jobs that the rest of a select statement (where, order, limit) names."""
    return await query.every(tx, Job, _SELECT + rest, **values)


async def newest(tx: Tx, *, limit: int) -> list[Job]:
    return await find(tx, " order by created_at desc, id desc limit %(limit)s", limit=limit)


# Work -----------------------------------------------------------------------------------------------------------


async def claim(
    database: Database, *, worker: str, lease_seconds: float, capacity: Capacity = ANYTHING
) -> Claim | None:
    """Take the job whose turn it is for this worker; None if no job may start now that it can hold."""
    pause, longest = CONTESTED_SECONDS
    while True:
        try:
            async with database.pipelined() as tx:
                return await _claim(tx, worker=worker, lease_seconds=lease_seconds, capacity=capacity)
        except scheduler.Contested:
            await asyncio.sleep(random.uniform(0, pause))  # noqa: S311 - spreads load, no secret
            pause = min(2 * pause, longest)


async def _claim(tx: Tx, *, worker: str, lease_seconds: float, capacity: Capacity) -> Claim | None:
    job = await scheduler.give(tx, capacity)
    if job is None:
        return None
    row = await (
        await tx.execute(
            "update jobs set state = 'PROCESSING', attempt = attempt + 1, token = %(token)s, worker = %(worker)s,"
            " lease_until = now() + make_interval(secs => %(lease)s), started_at = coalesce(started_at, now())"
            " where id = %(job)s returning token, attempt, max_attempts, recipe, source, model, request_id, refused,"
            " extract(epoch from statement_timestamp() - queued_at)::float8,"
            " extract(epoch from statement_timestamp() - created_at)::float8, traceparent",
            {"token": uuid4(), "worker": worker, "lease": lease_seconds, "job": job},
        )
    ).fetchone()
    assert row is not None
    token, attempt, max_attempts, recipe, source, model, request_id, refused, waited, age, trace = row
    return Claim(
        id=job,
        token=token,
        attempt=attempt,
        max_attempts=max_attempts,
        stored_recipe=recipe,
        source=Source(**source),
        model=model,
        request_id=request_id,
        refused=refused,
        waited=waited,
        age=age,
        traceparent=trace,
    )


async def is_held(tx: Tx, held: Claim) -> bool:
    """Whether the job is still this claim's: a look that writes nothing, for those who cannot wait for a renewal."""
    return bool(
        await query.value(
            tx, "select 1 from jobs where id = %(job)s and token = %(token)s", job=held.id, token=held.token
        )
    )


async def _is_ours(tx: Tx, held: Claim) -> bool:
    """As `is_held`, and it stays so until `tx` ends."""
    statement: LiteralString = "select 1 from jobs where id = %(job)s and token = %(token)s for update"
    return await query.value(tx, statement, job=held.id, token=held.token) is not None


async def renew(tx: Tx, held: Claim, *, progress: int, lease_seconds: float) -> bool:
    """Prolong the lease and note progress (0..99, never backwards); False: the job is no longer ours."""
    return (
        await query.execute(
            tx,
            "update jobs set lease_until = now() + make_interval(secs => %(lease)s),"
            " progress = greatest(progress, %(progress)s) where id = %(job)s and token = %(token)s",
            lease=lease_seconds,
            progress=min(max(progress, 0), 99),
            job=held.id,
            token=held.token,
        )
        == 1
    )


async def announce_progress(tx: Tx, queue: Queue, held: Claim, *, public_url: str) -> None:
    """Tell the caller's webhook how far the job is, if it asked for that; in the transaction of `renew`."""
    job = await get(tx, held.id)
    if job.hook_url and events.PROGRESS in job.hook_events:
        await events.announce_progress(
            tx,
            queue,
            job=job.id,
            team=job.team_id,
            key=job.key_id,
            url=job.hook_url,
            body=wire.hook_body(events.PROGRESS, job, public_url=public_url),
        )


async def settle(tx: Tx, queue: Queue, held: Claim, outcome: Outcome, *, public_url: str) -> JobState | None:
    """End the attempt; returns the job's new state, or None if the claim was lost and nothing was changed.

    A retryable failure with attempts left puts the job back into the queue, invisibly to the caller.
    """
    if not await _is_ours(tx, held):
        return None
    match outcome:
        case Completed(result=result):
            await _finish(tx, queue, held.id, JobState.COMPLETED, public_url=public_url, result=result)
            return JobState.COMPLETED
        case Failed(retryable=True) if held.attempt < held.max_attempts:
            # A pause that grows: what failed just now (a full disk, a store that is away) may need a moment.
            await _requeue(tx, queue, held.id, pause=timedelta(seconds=2**held.attempt))
            return JobState.QUEUED
        case Refused() if held.attempt < held.max_attempts and not held.refused:
            await query.execute(tx, "update jobs set refused = true where id = %(job)s", job=held.id)
            await _requeue(tx, queue, held.id)
            return JobState.QUEUED
        case Hindered():
            await _uncount(tx, held.id)
            await _requeue(tx, queue, held.id, pause=HINDERED_PAUSE)
            return JobState.QUEUED
        case Foreign() if not await _is_overdue(tx, held.id):
            await _uncount(tx, held.id)
            await _requeue(tx, queue, held.id, pause=FOREIGN_PAUSE)
            return JobState.QUEUED
        case Failed(error=error) | Refused(error=error) | Foreign(error=error):
            await _finish(tx, queue, held.id, JobState.FAILED, public_url=public_url, error=error)
            return JobState.FAILED


async def _is_overdue(tx: Tx, job: UUID) -> bool:
    """Note that nobody understood the job so far; whether that has been so for too long."""
    return bool(
        await query.value(
            tx,
            "update jobs set not_understood_since = coalesce(not_understood_since, now()) where id = %(job)s"
            " returning not_understood_since < now() - %(within)s",
            job=job,
            within=UNDERSTOOD_WITHIN,
        )
    )


async def give_back(tx: Tx, queue: Queue, held: Claim) -> bool:
    """Return an unfinished job to the queue because this worker shuts down; it does not cost an attempt."""
    if not await _is_ours(tx, held):
        return False
    await _uncount(tx, held.id)
    await _requeue(tx, queue, held.id)
    return True


async def cancel(tx: Tx, queue: Queue, job: UUID, *, public_url: str, caller: Caller | None = None) -> Job:
    """End a job that is not over yet, at its caller's wish (None: the operator's), and give its credits back.

    Who may see a job may cancel it. Its worker finds its claim gone and stops. Raises NotFound as `get` does, and
    Conflict for a job that is over.
    """
    await get(tx, job, caller=caller)
    state = JobState(await query.value(tx, "select state from jobs where id = %(job)s for update", job=job))
    if state in TERMINAL:
        raise Conflict(f"The job is {state.value} already and cannot be cancelled. Submit another one instead.")
    await _finish(tx, queue, job, JobState.CANCELLED, public_url=public_url, error=CANCELLED)
    return await get(tx, job)


async def _uncount(tx: Tx, job: UUID) -> None:
    """The attempt that ends here was none."""
    await query.execute(tx, "update jobs set attempt = attempt - 1 where id = %(job)s", job=job)


async def _requeue(tx: Tx, queue: Queue, job: UUID, *, pause: timedelta = timedelta()) -> None:
    """Back into its team's line, where it was: before all that were submitted later."""
    await orphaned_results.note(tx, job)
    row = await (
        await tx.execute(
            "update jobs set state = 'QUEUED', token = null, lease_until = null, worker = null,"
            " queued_at = now() + %(pause)s where id = %(job)s returning team_id, queued_at",
            {"job": job, "pause": pause},
        )
    ).fetchone()
    assert row is not None
    team, queued_at = row
    # A new task, not a retry of the old one: only inserts notify, so waiting workers start at once.
    await scheduler.call(tx, queue, at=queued_at if pause else None)
    if pause:  # until then another job of the team may have the place
        await scheduler.free_place(tx, queue, team)


async def _finish(
    tx: Tx,
    queue: Queue,
    job: UUID,
    state: JobState,
    *,
    public_url: str,
    result: Result | None = None,
    error: str | None = None,
) -> None:
    """The one place where a job ends: state, refund, announcement and the place it frees, together."""
    if state is not JobState.COMPLETED:
        await orphaned_results.note(tx, job)
    was_running = await query.value(
        tx,
        "with before as (select state from jobs where id = %(job)s)"
        " update jobs set state = %(state)s, progress = %(progress)s, result = %(result)s, error = %(error)s,"
        " token = null, lease_until = null, completed_at = now() where id = %(job)s"
        " returning (select state = 'PROCESSING' from before)",
        state=state.value,
        progress=100 if state is JobState.COMPLETED else 0,
        result=Jsonb(_fields(result)) if result else None,
        error=error,
        job=job,
    )
    ended = await get(tx, job)
    if state is not JobState.COMPLETED:
        await ledger.refund(tx, ended.team_id, ended.cost, job=job, reason=f"job {state.value.lower()}")
    if was_running:
        await scheduler.free_place(tx, queue, ended.team_id)
    if ended.hook_url:
        await events.withdraw_progress(tx, job)
    event = "completed" if state is JobState.COMPLETED else "failed"
    if ended.hook_url and event in ended.hook_events:
        await events.announce(
            tx,
            queue,
            job=job,
            team=ended.team_id,
            key=ended.key_id,
            event=event,
            url=ended.hook_url,
            body=wire.hook_body(event, ended, public_url=public_url),
        )


def _fields(value: Source | Result) -> dict[str, Any]:
    return {name: getattr(value, name) for name in value.__slots__}


# Upkeep ---------------------------------------------------------------------------------------------------------


async def sweep(tx: Tx, queue: Queue, *, public_url: str) -> Swept | None:
    """Hand on one job whose worker went silent, or fail it when no attempt is left; None if there is none.

    Any number may sweep at once. One job a transaction: two that refund several teams' jobs would deadlock.
    """
    row = await (
        await tx.execute(
            "select id, request_id, attempt, attempt < max_attempts from jobs"
            " where state = 'PROCESSING' and lease_until < now()"
            " order by lease_until limit 1 for update skip locked"
        )
    ).fetchone()
    if row is None:
        return None
    job, request_id, attempt, attempts_left = row
    if attempts_left:
        await _requeue(tx, queue, job)
    else:
        await _finish(tx, queue, job, JobState.FAILED, public_url=public_url, error=INTERRUPTED)
    state = JobState.QUEUED if attempts_left else JobState.FAILED
    return Swept(id=job, request_id=request_id, attempt=attempt, state=state)


_PURGEABLE: LiteralString = """
    select id, completed_at, source ->> 'key' as source_key, result ->> 'key' as result_key from jobs
    where completed_at < now() - %(retention)s
    and (%(at)s::timestamptz is null or (completed_at, id) > (%(at)s, %(id)s))
"""
_OLDEST_FIRST: LiteralString = " order by completed_at, id limit 1000"


async def expired_results(tx: Tx, *, retention: timedelta, after: Purgeable | None = None) -> list[Purgeable]:
    """Completed jobs whose picture is older than `retention`: the 1000 oldest, or the 1000 that follow `after`."""
    return await _purgeable(tx, " and state = 'COMPLETED' and purged_at is null", retention, after)


async def finished_sources(tx: Tx, *, retention: timedelta, after: Purgeable | None = None) -> list[Purgeable]:
    """Finished jobs whose input has been kept for `retention`; as many as above."""
    return await _purgeable(tx, " and source_purged_at is null", retention, after)


async def _purgeable(
    tx: Tx, condition: LiteralString, retention: timedelta, after: Purgeable | None
) -> list[Purgeable]:
    return await query.every(
        tx,
        Purgeable,
        _PURGEABLE + condition + _OLDEST_FIRST,
        retention=retention,
        at=after.completed_at if after else None,
        id=after.id if after else None,
    )


async def mark_result_purged(tx: Tx, job: UUID) -> None:
    await query.execute(tx, "update jobs set purged_at = now() where id = %(job)s", job=job)


async def mark_source_purged(tx: Tx, job: UUID) -> None:
    await query.execute(tx, "update jobs set source_purged_at = now() where id = %(job)s", job=job)
