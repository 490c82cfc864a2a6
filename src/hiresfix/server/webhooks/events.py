"""Webhook events: record what to send to callers' servers, schedule attempts and log their outcomes.

Guarantees: an event exists exactly if the transaction that made it true commits. `completed` and `failed` are sent
until the receiver answers 2xx or the schedule is used up. `progress` is sent once, at most every two seconds, only
when it changed, and never after its job's end (contract.md 15.3). The number of simultaneous attempts is limited per
receiver and per team; other deliveries wait without a task, so that a dead host does not block everybody else. Every
attempt is logged.

This module does not know jobs, nor how an attempt is made: see `delivery`.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final, LiteralString
from urllib.parse import urlsplit
from uuid import UUID

from hiresfix import messages
from hiresfix.errors import Conflict, NotFound
from hiresfix.server.database import query
from hiresfix.server.database.pool import Tx
from hiresfix.server.database.task_queue import Queue

TASK = "webhooks.deliver"
QUEUE = "io"
PROGRESS = "progress"

RETRY_SCHEDULE = tuple(timedelta(seconds=seconds) for seconds in (10, 60, 300, 1800, 7200))
"""Pauses before the second, third, ... attempt. If the last attempt fails too, the delivery has failed."""
RETRY_JITTER = 0.2
ATTEMPT_TIMEOUT = timedelta(seconds=20)
"""An attempt without outcome after this time, twice the receiver's timeout, died with its worker."""
LOST_TASK_AFTER = timedelta(seconds=5)
"""A delivery that is due for this long without a task lost it; before, a worker may just have taken the task."""
PROGRESS_INTERVAL = timedelta(seconds=2)
_SLOTS: Final = {"per_receiver": 2, "per_team": 4}
"""Simultaneous attempts in all workers together; an attempt takes ten seconds at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DueDelivery:
    """An attempt to make now. `attempt` counts from 1 over all rounds; earlier rounds had `attempts_before`."""

    id: UUID
    job_id: UUID
    request_id: str
    team_id: UUID
    key_id: UUID | None
    event: str
    url: str
    receiver: str
    body: bytes
    attempt: int
    attempts_before: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryOutcome:
    """Outcome of an attempt: the response's status, or None and the error.

    `excerpt` is the first KiB of the response, `retry_after` the seconds it asks to wait.
    """

    status: int | None = None
    error: str | None = None
    excerpt: str | None = None
    retry_after: float | None = None
    milliseconds: int

    @property
    def is_success(self) -> bool:
        """True for a 2xx response."""
        return self.status is not None and 200 <= self.status < 300


async def announce(
    tx: Tx, queue: Queue, *, job: UUID, team: UUID, key: UUID | None, event: str, url: str, body: bytes
) -> None:
    """Record an event for `url` and enqueue its first attempt.

    Args:
        tx: Transaction that makes the event true.
        queue: Queue of the attempts.
        job: Job that the event is about.
        team: Team of the job.
        key: API key that submitted the job and signs the delivery; None if it is unknown.
        event: `completed`, `failed` or `progress`.
        url: Receiver.
        body: JSON to send.
    """
    delivery = await query.value(
        tx,
        "insert into webhook_deliveries (job_id, team_id, key_id, event, url, receiver, body)"
        " values (%(job)s, %(team)s, %(key)s, %(event)s, %(url)s, %(receiver)s, %(body)s) returning id",
        job=job,
        team=team,
        key=key,
        event=event,
        url=url,
        receiver=urlsplit(url).netloc.lower(),
        body=body,
    )
    await _enqueue(tx, queue, delivery)


async def announce_progress(
    tx: Tx, queue: Queue, *, job: UUID, team: UUID, key: UUID | None, url: str, body: bytes
) -> bool:
    """Record a progress event; return False without one if it would be too soon or nothing changed.

    Too soon is within `PROGRESS_INTERVAL` of the last one, or while that is being sent. An event that is not sent yet
    is replaced: a slow receiver gets fewer events, never old ones. Arguments are those of `announce`.
    """
    await withdraw_progress(tx, job)
    skip = await query.value(
        tx,
        "select body = %(body)s or sending_until > now() or exists (select from webhook_attempts"
        " where delivery_id = d.id and started_at > now() - %(pause)s)"
        " from webhook_deliveries d where job_id = %(job)s and event = 'progress' order by created_at desc limit 1",
        job=job,
        body=body,
        pause=PROGRESS_INTERVAL,
    )
    if skip:
        return False
    await announce(tx, queue, job=job, team=team, key=key, event=PROGRESS, url=url, body=body)
    return True


async def withdraw_progress(tx: Tx, job: UUID) -> None:
    """Delete progress events that are not sent yet, because a newer one replaces them or the job ended."""
    await query.execute(
        tx,
        "delete from webhook_deliveries where job_id = %(job)s and event = 'progress' and state = 'PENDING'"
        " and attempt = 0",
        job=job,
    )


async def _enqueue(tx: Tx, queue: Queue, delivery: UUID, *, at: datetime | None = None) -> None:
    await queue.enqueue(tx, TASK, queue=QUEUE, at=at, delivery_id=str(delivery))


# Attempts ---------------------------------------------------------------------------------------------------------


async def claim(tx: Tx, delivery: UUID) -> DueDelivery | None:
    """Claim the attempt that is due; two tasks for one delivery cannot both get it.

    Returns None if none is due, or if its receiver or team has no free slot; then it waits until `record` frees one.
    """
    owner = await (
        await tx.execute("select team_id, receiver from webhook_deliveries where id = %(id)s", {"id": delivery})
    ).fetchone()
    if owner is None:
        return None
    await _lock_slots(tx, *owner)
    claimed = await query.one(
        tx,
        DueDelivery,
        "update webhook_deliveries d set attempt = attempt + 1, waiting = false, sending_until = now() + %(sending)s,"
        " next_attempt_at = now() + %(sending)s"
        " where id = %(id)s and state = 'PENDING' and next_attempt_at <= now()"
        " and webhook_has_turn(d, %(per_receiver)s, %(per_team)s)"
        " returning id, job_id, team_id, key_id, event, url, receiver, body, attempt, attempts_before,"
        " (select request_id from jobs where jobs.id = d.job_id) as request_id",
        id=delivery,
        sending=ATTEMPT_TIMEOUT,
        **_SLOTS,
    )
    if claimed is None:
        await query.execute(
            tx,
            "update webhook_deliveries set waiting = true"
            " where id = %(id)s and state = 'PENDING' and next_attempt_at <= now()",
            id=delivery,
        )
        return None
    await query.execute(
        tx,
        "insert into webhook_attempts (delivery_id, number) values (%(id)s, %(number)s)",
        id=claimed.id,
        number=claimed.attempt,
    )
    return claimed


async def _lock_slots(tx: Tx, team: UUID, receiver: str) -> None:
    """Lock the slots of this team and receiver until `tx` ends, always in this order to avoid deadlocks."""
    for owner in (f"team {team}", f"receiver {receiver}"):
        await tx.execute(
            "select pg_advisory_xact_lock(hashtextextended(%(owner)s, 0))", {"owner": f"hiresfix.webhooks {owner}"}
        )


async def record(tx: Tx, queue: Queue, sent: DueDelivery, outcome: DeliveryOutcome) -> str:
    """Record the outcome, schedule the next attempt and pass the slot on; return the delivery's new state."""
    await _lock_slots(tx, sent.team_id, sent.receiver)
    state, pause = _next_state(sent, outcome)
    at = datetime.now(UTC) + (pause or timedelta())
    updated = await query.execute(
        tx,
        "update webhook_deliveries set state = %(state)s, next_attempt_at = %(at)s, sending_until = null,"
        " finished_at = case when %(state)s <> 'PENDING' then now() end where id = %(id)s and attempt = %(attempt)s",
        state=state,
        at=at,
        id=sent.id,
        attempt=sent.attempt,
    )
    await query.execute(
        tx,
        "update webhook_attempts set status = %(status)s, error = %(error)s, answer = %(answer)s,"
        " milliseconds = %(milliseconds)s where delivery_id = %(id)s and number = %(attempt)s",
        status=outcome.status,
        error=outcome.error,
        answer=outcome.excerpt,
        milliseconds=outcome.milliseconds,
        id=sent.id,
        attempt=sent.attempt,
    )
    if updated and pause is not None:
        await _enqueue(tx, queue, sent.id, at=at)
    await _enqueue_next(tx, queue, team=sent.team_id, receiver=sent.receiver)
    return state


def _next_state(sent: DueDelivery, outcome: DeliveryOutcome) -> tuple[str, timedelta | None]:
    """Return the delivery's state after this attempt, and the pause before the next attempt if there is one."""
    attempts = sent.attempt - sent.attempts_before
    if outcome.is_success:
        return "DELIVERED", None
    if sent.event == PROGRESS or outcome.status == 410 or attempts > len(RETRY_SCHEDULE):
        return "FAILED", None
    return "PENDING", next_pause(attempts, outcome.retry_after)


def next_pause(attempt: int, retry_after: float | None) -> timedelta:
    """Return the pause after failed attempt `attempt`: the schedule +- 20 %, or longer if the receiver asks for it."""
    pause = RETRY_SCHEDULE[attempt - 1] * random.uniform(1 - RETRY_JITTER, 1 + RETRY_JITTER)  # noqa: S311 - spreads load, no secret
    return max(pause, timedelta(seconds=min(retry_after or 0.0, RETRY_SCHEDULE[-1].total_seconds())))


async def _enqueue_next(tx: Tx, queue: Queue, *, team: UUID, receiver: str) -> None:
    """Enqueue the delivery of this receiver or team that has waited longest for the slot that became free."""
    delivery = await query.value(
        tx,
        "update webhook_deliveries set waiting = false where id = (select id from webhook_deliveries d"
        " where waiting and (receiver = %(receiver)s or team_id = %(team)s)"
        " and webhook_has_turn(d, %(per_receiver)s, %(per_team)s)"
        " order by next_attempt_at limit 1 for update skip locked) returning id",
        receiver=receiver,
        team=team,
        **_SLOTS,
    )
    if delivery is not None:
        await _enqueue(tx, queue, delivery)


async def requeue_lost(tx: Tx, queue: Queue) -> int:
    """Enqueue due deliveries that lost their task, or that wait although a slot is free; return their number.

    A worker that dies during an attempt never passes its slot on, so one waiting delivery of every receiver with a
    free slot is enqueued.
    """
    lost = await (
        await tx.execute(
            "select id from webhook_deliveries delivery where state = 'PENDING' and not waiting"
            " and next_attempt_at < now() - %(lost_after)s"
            " and not exists (select from procrastinate_jobs task where task.task_name = %(task)s"
            " and task.status = 'todo' and task.args ->> 'delivery_id' = delivery.id::text)"
            " limit 100 for update skip locked",
            {"task": TASK, "lost_after": LOST_TASK_AFTER},
        )
    ).fetchall()
    waiting = await (
        await tx.execute(
            "update webhook_deliveries set waiting = false where id in (select distinct on (receiver) id"
            " from webhook_deliveries d where waiting and webhook_has_turn(d, %(per_receiver)s, %(per_team)s)"
            " order by receiver, next_attempt_at limit 100) returning id",
            _SLOTS,
        )
    ).fetchall()
    for (delivery,) in (*lost, *waiting):
        await _enqueue(tx, queue, delivery)
    return len(lost) + len(waiting)


# The log ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryRecord:
    """A delivery as operators and teams see it; `next_attempt_at` is meaningful while `state` is PENDING."""

    id: UUID
    job_id: UUID
    event: str
    url: str
    receiver: str
    state: str
    attempts: int
    last_status: int | None
    last_error: str | None
    created_at: datetime
    next_attempt_at: datetime
    finished_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptRecord:
    """A logged attempt. Without `milliseconds` it is running, or its worker died during it."""

    number: int
    started_at: datetime
    milliseconds: int | None
    status: int | None
    error: str | None
    answer: str | None


_RECORDS: LiteralString = """
    select d.id, d.job_id, d.event, d.url, d.receiver, d.state, d.attempt as attempts, a.status as last_status,
    a.error as last_error, d.created_at, d.next_attempt_at, d.finished_at
    from webhook_deliveries d left join webhook_attempts a on a.delivery_id = d.id and a.number = d.attempt
"""


async def newest(tx: Tx, *, state: str | None = None, job: UUID | None = None, limit: int) -> list[DeliveryRecord]:
    """Return the newest deliveries, of one state or job or of all."""
    return await query.every(
        tx,
        DeliveryRecord,
        _RECORDS + " where (%(state)s::text is null or d.state = %(state)s) and (%(job)s::uuid is null"
        " or d.job_id = %(job)s) order by d.created_at desc limit %(limit)s",
        state=state,
        job=job,
        limit=limit,
    )


async def find(tx: Tx, conditions: LiteralString, **values: object) -> list[DeliveryRecord]:
    """Return deliveries, called `d` in `conditions`, which begins with `where` and may end with an order."""
    return await query.every(tx, DeliveryRecord, _RECORDS + conditions, **values)


async def get(tx: Tx, delivery: UUID) -> tuple[DeliveryRecord, list[AttemptRecord]]:
    """Return the delivery and its attempts, first to last; raises NotFound."""
    record = await query.one(tx, DeliveryRecord, _RECORDS + " where d.id = %(id)s", id=delivery)
    if record is None:
        raise NotFound("There is no such delivery. `hiresfix webhooks list` shows them.")
    attempts = await query.every(
        tx,
        AttemptRecord,
        "select number, started_at, milliseconds, status, error, answer from webhook_attempts"
        " where delivery_id = %(id)s order by number",
        id=delivery,
    )
    return record, attempts


async def redeliver(tx: Tx, queue: Queue, delivery: UUID) -> None:
    """Send an event again now, with a new schedule; raises NotFound or Conflict."""
    record, _ = await get(tx, delivery)
    if record.event == PROGRESS:
        raise Conflict(messages.DELIVERY_PROGRESS())
    updated = await query.execute(
        tx,
        "update webhook_deliveries set state = 'PENDING', next_attempt_at = now(), finished_at = null,"
        " attempts_before = case when state = 'PENDING' then attempts_before else attempt end"
        " where id = %(id)s and (sending_until is null or sending_until < now())",
        id=delivery,
    )
    if not updated:
        raise Conflict(messages.DELIVERY_IN_PROGRESS())
    await _enqueue(tx, queue, delivery)


async def prune(tx: Tx, *, older_than: timedelta) -> int:
    """Delete progress events and logged attempts that ended before `older_than`; return the number of rows.

    The `completed` and `failed` events stay: a job's webhook status is read from them, and they can be sent again.
    """
    attempts = await query.execute(
        tx,
        "delete from webhook_attempts a using webhook_deliveries d where d.id = a.delivery_id"
        " and d.finished_at < now() - %(age)s",
        age=older_than,
    )
    return attempts + await query.execute(
        tx,
        "delete from webhook_deliveries where event = 'progress' and finished_at < now() - %(age)s",
        age=older_than,
    )
