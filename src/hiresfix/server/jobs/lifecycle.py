"""Lifecycle of a job, from submission to settlement. The table `jobs` is the truth.

Guarantees, whatever dies and when:
- a job, its charge, its queue task and its idempotency row (see `idempotency`) appear in one transaction;
- a claim takes the job that the scheduler chooses and gets a fresh token and a lease; only the holder of the token can
  renew or settle, so a worker that comes back late changes nothing;
- every job ends exactly once: as COMPLETED, or as FAILED or CANCELLED with its credits returned in the transaction
  that also announces the end to the caller's webhook; as CANCELLED only by `cancel`;
- `requeue_expired` requeues jobs whose lease expired, and fails jobs without attempts left;
- a worker that loses its claim may have stored an image, or may still do so: its key is recorded in the same
  transaction (`orphaned_results`).

Everything that writes a job's state is in this module. Locks are taken in one order, job before team, so there are no
deadlocks. The module knows no images, no HTTP and no engine.
"""

from __future__ import annotations

import asyncio
import random
from datetime import timedelta
from typing import Any, LiteralString
from uuid import UUID, uuid4

from psycopg.types.json import Jsonb

from hiresfix import messages, wire
from hiresfix.errors import Conflict, NotFound
from hiresfix.messages import Message
from hiresfix.server.accounts.authentication import Caller
from hiresfix.server.billing import budgets, ledger
from hiresfix.server.database import query
from hiresfix.server.database.pool import Database, Tx
from hiresfix.server.database.task_queue import Queue
from hiresfix.server.jobs import orphaned_results, scheduler
from hiresfix.server.jobs.model import (
    AttemptOutcome,
    Claim,
    Completed,
    ExpiredLease,
    Failed,
    Job,
    RejectedResult,
    StoredResult,
    StoredSource,
    StoreUnavailable,
    Submission,
    Unsupported,
)
from hiresfix.server.jobs.worker_registry import UNLIMITED, Capacity
from hiresfix.server.webhooks import events
from hiresfix.states import TERMINAL, JobState

INTERRUPTED = messages.JOB_INTERRUPTED()
CANCELLED = "Job was cancelled"

MAX_UNSUPPORTED = timedelta(hours=1)
"""How long a job waits for a worker that understands it: the time allowed for an upgrade of all workers."""
UNSUPPORTED_PAUSE = timedelta(seconds=5)
"""Pause before an unsupported job is offered to a worker again."""
STORE_PAUSE = timedelta(seconds=5)
"""Pause before a retry after the file store was unavailable; the next worker may not reach it either."""

BUSY_PAUSE_SECONDS = (0.005, 0.25)
"""Longest random pause before asking a busy scheduler again: at first, and the maximum of its doubling."""


_SELECT: LiteralString = """
    select id, team_id, user_id, key_id, model, state, progress, cost, attempt, max_attempts, recipe, input, result,
    error, error_message, hook_url, hook_events, created_at, started_at, completed_at, purged_at is not null as expired,
    case when hook_url is null then null
         when completed_at is null then 'pending'
         when exists (select from webhook_deliveries d where d.job_id = jobs.id and d.state = 'PENDING') then 'pending'
         when exists (select from webhook_deliveries d where d.job_id = jobs.id and d.state = 'FAILED'
                      and d.event in ('completed', 'failed')) then 'failed'
         else 'delivered' end as webhook_status
    from jobs
"""


# Submission -----------------------------------------------------------------------------------------------------


async def submit(tx: Tx, queue: Queue, new: Submission) -> None:
    """Insert the job, charge its price and enqueue its task. Raises InsufficientCredits or OverBudget.

    In a pipeline (`Database.pipelined`) all of it takes one round trip to the server.
    """
    inserted = await tx.execute(_INSERT, _columns(new))
    charge = await ledger.charge(tx, new.caller.team, new.cost, job=new.id, actor=f"key:{new.caller.key}")
    await scheduler.enqueue_for_new_job(tx, queue, new.caller.team, new.id)
    await charge.confirm(tx)
    row = await inserted.fetchone()
    assert row is not None
    if row[0]:  # most keys have no budget
        await budgets.check(tx, new.caller.key, new.cost)


# The key's row is locked before the team's row, which the charge locks.
_INSERT: LiteralString = f"""
    with budget as materialized ({budgets.LOCK_BUDGET})
    insert into jobs (id, team_id, user_id, key_id, request_id, model, recipe, input, source, hook_url, hook_events,
    max_attempts, cost, needs, traceparent) values (%(id)s, %(team)s, %(user)s, %(key)s, %(request)s, %(model)s,
    %(recipe)s, %(input)s, %(source)s, %(hook_url)s, %(hook_events)s, %(max_attempts)s, %(cost)s, %(needs)s,
    %(traceparent)s) returning (select true from budget)
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
    """Return the job if `caller` may see it: its user, or owners and admins of its team (None: the operator).

    Raises NotFound for an unknown job and for a job of somebody else alike.
    """
    row = await query.one(tx, Job, _SELECT + " where id = %(job)s", job=job)
    if row is None or not (caller is None or _may_see(caller, row)):
        raise NotFound("Job not found")
    return row


def _may_see(caller: Caller, job: Job) -> bool:
    return caller.user == job.user_id or (caller.manages_team and caller.team == job.team_id)


async def find(tx: Tx, clauses: LiteralString, **values: object) -> list[Job]:
    """Return the jobs that `clauses` (where, order by, limit) select."""
    return await query.every(tx, Job, _SELECT + clauses, **values)


async def newest(tx: Tx, *, limit: int) -> list[Job]:
    return await find(tx, " order by created_at desc, id desc limit %(limit)s", limit=limit)


# Work -----------------------------------------------------------------------------------------------------------


async def claim(
    database: Database, *, worker: str, lease_seconds: float, capacity: Capacity = UNLIMITED
) -> Claim | None:
    """Claim the job that the scheduler chooses for this worker; None if it can hold no job that may start now."""
    pause, max_pause = BUSY_PAUSE_SECONDS
    while True:
        try:
            async with database.pipelined() as tx:
                return await _claim(tx, worker=worker, lease_seconds=lease_seconds, capacity=capacity)
        except scheduler.SchedulerBusy:
            await asyncio.sleep(random.uniform(0, pause))  # noqa: S311 - spreads load, no secret
            pause = min(2 * pause, max_pause)


async def _claim(tx: Tx, *, worker: str, lease_seconds: float, capacity: Capacity) -> Claim | None:
    job = await scheduler.next_job(tx, capacity)
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
    token, attempt, max_attempts, recipe, source, model, request_id, rejected, wait, age, traceparent = row
    return Claim(
        id=job,
        token=token,
        attempt=attempt,
        max_attempts=max_attempts,
        stored_recipe=recipe,
        source=StoredSource(**source),
        model=model,
        request_id=request_id,
        rejected_before=rejected,
        wait_seconds=wait,
        age_seconds=age,
        traceparent=traceparent,
    )


_IS_CURRENT: LiteralString = "select 1 from jobs where id = %(job)s and token = %(token)s"


async def is_current(tx: Tx, claim: Claim) -> bool:
    """Return True if the claim still holds the job; writes nothing, for checks between two renewals."""
    return await query.value(tx, _IS_CURRENT, job=claim.id, token=claim.token) is not None


async def _lock_if_current(tx: Tx, claim: Claim) -> bool:
    """Return True if the claim still holds the job, which it then does until `tx` ends."""
    return await query.value(tx, _IS_CURRENT + " for update", job=claim.id, token=claim.token) is not None


async def renew(tx: Tx, claim: Claim, *, progress: int, lease_seconds: float) -> bool:
    """Extend the lease and store the progress (0..99, never backwards); False if the claim was lost."""
    return (
        await query.execute(
            tx,
            "update jobs set lease_until = now() + make_interval(secs => %(lease)s),"
            " progress = greatest(progress, %(progress)s) where id = %(job)s and token = %(token)s",
            lease=lease_seconds,
            progress=min(max(progress, 0), 99),
            job=claim.id,
            token=claim.token,
        )
        == 1
    )


async def announce_progress(tx: Tx, queue: Queue, claim: Claim, *, public_url: str) -> None:
    """Announce the progress to the caller's webhook, if it asked for that; in the transaction of `renew`."""
    job = await get(tx, claim.id)
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


async def settle(tx: Tx, queue: Queue, claim: Claim, outcome: AttemptOutcome, *, public_url: str) -> JobState | None:
    """End the attempt; returns the job's new state, or None if the claim was lost and nothing was changed.

    A retryable failure with attempts left puts the job back into the queue, invisibly to the caller.
    """
    if not await _lock_if_current(tx, claim):
        return None
    match outcome:
        case Completed(result=result):
            await _finish(tx, queue, claim.id, JobState.COMPLETED, public_url=public_url, result=result)
            return JobState.COMPLETED
        case Failed(retryable=True) if claim.attempt < claim.max_attempts:
            # A growing pause: the cause (a full disk, an unavailable store) may take a moment to go away.
            await _requeue(tx, queue, claim.id, pause=timedelta(seconds=2**claim.attempt))
            return JobState.QUEUED
        case RejectedResult() if claim.attempt < claim.max_attempts and not claim.rejected_before:
            await query.execute(tx, "update jobs set refused = true where id = %(job)s", job=claim.id)
            await _requeue(tx, queue, claim.id)
            return JobState.QUEUED
        case StoreUnavailable():
            await _uncount_attempt(tx, claim.id)
            await _requeue(tx, queue, claim.id, pause=STORE_PAUSE)
            return JobState.QUEUED
        case Unsupported() if not await _is_unsupported_too_long(tx, claim.id):
            await _uncount_attempt(tx, claim.id)
            await _requeue(tx, queue, claim.id, pause=UNSUPPORTED_PAUSE)
            return JobState.QUEUED
        case Failed(error=error) | RejectedResult(error=error) | Unsupported(error=error):
            await _finish(tx, queue, claim.id, JobState.FAILED, public_url=public_url, error=error)
            return JobState.FAILED


async def _is_unsupported_too_long(tx: Tx, job: UUID) -> bool:
    """Record that the job is unsupported; True if it has been for more than `MAX_UNSUPPORTED`."""
    return bool(
        await query.value(
            tx,
            "update jobs set not_understood_since = coalesce(not_understood_since, now()) where id = %(job)s"
            " returning not_understood_since < now() - %(limit)s",
            job=job,
            limit=MAX_UNSUPPORTED,
        )
    )


async def give_back(tx: Tx, queue: Queue, claim: Claim) -> bool:
    """Requeue an unfinished job because this worker shuts down, without counting the attempt; False if lost."""
    if not await _lock_if_current(tx, claim):
        return False
    await _uncount_attempt(tx, claim.id)
    await _requeue(tx, queue, claim.id)
    return True


async def cancel(tx: Tx, queue: Queue, job: UUID, *, public_url: str, caller: Caller | None = None) -> Job:
    """Cancel a job that is not finished and return its credits. caller: as for `get`; everyone who sees a job may.

    Its worker finds its claim gone and stops. Raises NotFound as `get` does, and Conflict for a finished job.
    """
    await get(tx, job, caller=caller)
    state = JobState(await query.value(tx, "select state from jobs where id = %(job)s for update", job=job))
    if state in TERMINAL:
        raise Conflict(messages.JOB_ALREADY_OVER(state=state.value))
    await _finish(tx, queue, job, JobState.CANCELLED, public_url=public_url, error=CANCELLED)
    return await get(tx, job)


async def _uncount_attempt(tx: Tx, job: UUID) -> None:
    """Do not count this attempt against `max_attempts`."""
    await query.execute(tx, "update jobs set attempt = attempt - 1 where id = %(job)s", job=job)


async def _requeue(tx: Tx, queue: Queue, job: UUID, *, pause: timedelta = timedelta()) -> None:
    """Put the job back into the queue, at its old place: before all jobs of its team that were submitted later."""
    await orphaned_results.record(tx, job)
    row = await (
        await tx.execute(
            "update jobs set state = 'QUEUED', token = null, lease_until = null, worker = null,"
            " queued_at = now() + %(pause)s where id = %(job)s returning team_id, queued_at",
            {"job": job, "pause": pause},
        )
    ).fetchone()
    assert row is not None
    team, queued_at = row
    # A new task instead of a retry of the old one: only inserts notify, so waiting workers start at once.
    await scheduler.wake_workers(tx, queue, at=queued_at if pause else None)
    if pause:  # until then another job of the team may use the slot
        await scheduler.release_slot(tx, queue, team)


async def _finish(
    tx: Tx,
    queue: Queue,
    job: UUID,
    state: JobState,
    *,
    public_url: str,
    result: StoredResult | None = None,
    error: str | None = None,
) -> None:
    """End a job; the only place that does: state, refund, announcement and the released slot go together."""
    message = error if isinstance(error, Message) and error.reason else None
    if state is not JobState.COMPLETED:
        await orphaned_results.record(tx, job)
    was_running = await query.value(
        tx,
        "with before as (select state from jobs where id = %(job)s)"
        " update jobs set state = %(state)s, progress = %(progress)s, result = %(result)s, error = %(error)s,"
        " error_message = %(error_message)s, token = null, lease_until = null, completed_at = now() where id = %(job)s"
        " returning (select state = 'PROCESSING' from before)",
        state=state.value,
        progress=100 if state is JobState.COMPLETED else 0,
        result=Jsonb(_fields(result)) if result else None,
        error=error,
        error_message=Jsonb({"reason": message.reason, "params": dict(message.params)}) if message else None,
        job=job,
    )
    finished = await get(tx, job)
    if state is not JobState.COMPLETED:
        await ledger.refund(tx, finished.team_id, finished.cost, job=job, reason=f"job {state.value.lower()}")
    if was_running:
        await scheduler.release_slot(tx, queue, finished.team_id)
    if finished.hook_url:
        await events.withdraw_progress(tx, job)
    event = "completed" if state is JobState.COMPLETED else "failed"
    if finished.hook_url and event in finished.hook_events:
        await events.announce(
            tx,
            queue,
            job=job,
            team=finished.team_id,
            key=finished.key_id,
            event=event,
            url=finished.hook_url,
            body=wire.hook_body(event, finished, public_url=public_url),
        )


def _fields(value: StoredSource | StoredResult) -> dict[str, Any]:
    return {name: getattr(value, name) for name in value.__slots__}


# Maintenance ----------------------------------------------------------------------------------------------------


async def requeue_expired(tx: Tx, queue: Queue, *, public_url: str) -> ExpiredLease | None:
    """Requeue one job whose lease expired, or fail it if no attempt is left; None if there is no such job.

    Safe to run any number of times at once. One job per transaction: two transactions that each refund jobs of
    several teams would deadlock.
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
    return ExpiredLease(id=job, request_id=request_id, attempt=attempt, state=state)
