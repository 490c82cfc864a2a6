"""Webhooks: what a caller's server is to be told, and how far the telling has come.

Guarantees: an event exists exactly if the transaction that made it true commits. `completed` and `failed` are sent
until the receiver answers 2xx or the schedule is used up; `progress` is sent once, at most every two seconds, only
when it changed, and never after its job's end (contract.md 15.3). One receiver, and one team, has only so many
attempts at a time: the rest waits without a task, so that a dead host leaves room for everybody else. Every attempt
leaves a line in the log.

It does not know what a job is, nor how an attempt is made: see `delivery`.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final, LiteralString
from urllib.parse import urlsplit
from uuid import UUID

from hiresfix.errors import Conflict, NotFound
from hiresfix.server.database import query
from hiresfix.server.database.pool import Tx
from hiresfix.server.database.task_queue import Queue

TASK = "webhooks.deliver"
QUEUE = "io"
PROGRESS = "progress"

SCHEDULE = tuple(timedelta(seconds=seconds) for seconds in (10, 60, 300, 1800, 7200))
"""Pauses before the second, third, ... attempt; after the last one the delivery has failed."""
JITTER = 0.2
SENDING = timedelta(seconds=20)
"""An attempt that has not reported back after so long, twice what a receiver is given, died with its worker."""
UNCALLED = timedelta(seconds=5)
"""A delivery that is due for so long and has no task has lost it; who claims one right now has taken the task."""
PROGRESS_PAUSE = timedelta(seconds=2)
_AT_ONCE: Final = {"per_receiver": 2, "per_team": 4}
"""Attempts under way, in all workers together; an attempt takes ten seconds at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """One attempt to make now. `attempt` counts from 1 over all rounds; `attempts_before` are earlier rounds'."""

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
class Outcome:
    """How an attempt went: the answer's status, or None and why there was none.

    `excerpt` is the first KiB of the answer, `retry_after` the seconds it asked to wait.
    """

    status: int | None = None
    error: str | None = None
    excerpt: str | None = None
    retry_after: float | None = None
    milliseconds: int

    @property
    def is_success(self) -> bool:
        return self.status is not None and 200 <= self.status < 300


async def announce(
    tx: Tx, queue: Queue, *, job: UUID, team: UUID, key: UUID | None, event: str, url: str, body: bytes
) -> None:
    """Record an event for `url` and enqueue its first attempt."""
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
    """Tell of progress unless it is what was last sent, or that was under two seconds ago or is still under way.

    What was recorded and not sent yet is replaced: a slow receiver gets fewer events, never old ones.
    """
    await withdraw_progress(tx, job)
    too_soon = await query.value(
        tx,
        "select body = %(body)s or sending_until > now() or exists (select from webhook_attempts"
        " where delivery_id = d.id and started_at > now() - %(pause)s)"
        " from webhook_deliveries d where job_id = %(job)s and event = 'progress' order by created_at desc limit 1",
        job=job,
        body=body,
        pause=PROGRESS_PAUSE,
    )
    if too_soon:
        return False
    await announce(tx, queue, job=job, team=team, key=key, event=PROGRESS, url=url, body=body)
    return True


async def withdraw_progress(tx: Tx, job: UUID) -> None:
    """Forget progress that is not sent yet: newer is known, or the job ended. What is under way is waited for."""
    await query.execute(
        tx,
        "delete from webhook_deliveries where job_id = %(job)s and event = 'progress' and state = 'PENDING'"
        " and attempt = 0",
        job=job,
    )


async def _enqueue(tx: Tx, queue: Queue, delivery: UUID, *, at: datetime | None = None) -> None:
    await queue.enqueue(tx, TASK, queue=QUEUE, at=at, delivery_id=str(delivery))


# Attempts ---------------------------------------------------------------------------------------------------------


async def claim(tx: Tx, delivery: UUID) -> Delivery | None:
    """Take the attempt that is due; two tasks for one delivery cannot both get it.

    None if none is due, and also if its receiver or team has no slot: then it waits until `record` frees one.
    """
    whose = await (
        await tx.execute("select team_id, receiver from webhook_deliveries where id = %(id)s", {"id": delivery})
    ).fetchone()
    if whose is None:
        return None
    await _lock_turns(tx, *whose)
    claimed = await query.one(
        tx,
        Delivery,
        "update webhook_deliveries d set attempt = attempt + 1, waiting = false, sending_until = now() + %(sending)s,"
        " next_attempt_at = now() + %(sending)s"
        " where id = %(id)s and state = 'PENDING' and next_attempt_at <= now()"
        " and webhook_has_turn(d, %(per_receiver)s, %(per_team)s)"
        " returning id, job_id, team_id, key_id, event, url, receiver, body, attempt, attempts_before,"
        " (select request_id from jobs where jobs.id = d.job_id) as request_id",
        id=delivery,
        sending=SENDING,
        **_AT_ONCE,
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


async def _lock_turns(tx: Tx, team: UUID, receiver: str) -> None:
    """Until `tx` ends nobody else counts or frees slots of this team or receiver; always in this order."""
    for whose in (f"team {team}", f"receiver {receiver}"):
        await tx.execute(
            "select pg_advisory_xact_lock(hashtextextended(%(whose)s, 0))", {"whose": f"hiresfix.webhooks {whose}"}
        )


async def record(tx: Tx, queue: Queue, sent: Delivery, outcome: Outcome) -> str:
    """Note how the attempt went, plan the next one, and let the next in line have the slot. Returns the new state."""
    await _lock_turns(tx, sent.team_id, sent.receiver)
    state, pause = _verdict(sent, outcome)
    at = datetime.now(UTC) + (pause or timedelta())
    ours = await query.execute(
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
    if ours and pause is not None:
        await _enqueue(tx, queue, sent.id, at=at)
    await _wake_next(tx, queue, team=sent.team_id, receiver=sent.receiver)
    return state


def _verdict(sent: Delivery, outcome: Outcome) -> tuple[str, timedelta | None]:
    """The delivery's state after this attempt, and the pause before the next if there is one."""
    tried = sent.attempt - sent.attempts_before
    if outcome.is_success:
        return "DELIVERED", None
    if sent.event == PROGRESS or outcome.status == 410 or tried > len(SCHEDULE):
        return "FAILED", None
    return "PENDING", next_pause(tried, outcome.retry_after)


def next_pause(attempt: int, retry_after: float | None) -> timedelta:
    """How long to wait after failed attempt number `attempt`: the schedule +- 20 %, or longer if asked to."""
    pause = SCHEDULE[attempt - 1] * random.uniform(1 - JITTER, 1 + JITTER)  # noqa: S311 - spreads load, no secret
    return max(pause, timedelta(seconds=min(retry_after or 0.0, SCHEDULE[-1].total_seconds())))


async def _wake_next(tx: Tx, queue: Queue, *, team: UUID, receiver: str) -> None:
    """Give the slot that became free to whom it was missing for longest."""
    woken = await query.value(
        tx,
        "update webhook_deliveries set waiting = false where id = (select id from webhook_deliveries d"
        " where waiting and (receiver = %(receiver)s or team_id = %(team)s)"
        " and webhook_has_turn(d, %(per_receiver)s, %(per_team)s)"
        " order by next_attempt_at limit 1 for update skip locked) returning id",
        receiver=receiver,
        team=team,
        **_AT_ONCE,
    )
    if woken is not None:
        await _enqueue(tx, queue, woken)


async def sweep(tx: Tx, queue: Queue) -> int:
    """Enqueue deliveries that are due but have no task any more, or wait for nothing; returns how many.

    Whoever died over an attempt woke nobody: of every receiver with a free slot one delivery is woken here.
    """
    forgotten = await (
        await tx.execute(
            "select id from webhook_deliveries delivery where state = 'PENDING' and not waiting"
            " and next_attempt_at < now() - %(uncalled)s"
            " and not exists (select from procrastinate_jobs task where task.task_name = %(task)s"
            " and task.status = 'todo' and task.args ->> 'delivery_id' = delivery.id::text)"
            " limit 100 for update skip locked",
            {"task": TASK, "uncalled": UNCALLED},
        )
    ).fetchall()
    woken = await (
        await tx.execute(
            "update webhook_deliveries set waiting = false where id in (select distinct on (receiver) id"
            " from webhook_deliveries d where waiting and webhook_has_turn(d, %(per_receiver)s, %(per_team)s)"
            " order by receiver, next_attempt_at limit 100) returning id",
            _AT_ONCE,
        )
    ).fetchall()
    for (delivery,) in (*forgotten, *woken):
        await _enqueue(tx, queue, delivery)
    return len(forgotten) + len(woken)


# The log ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """A delivery as the operator sees it; `next_attempt_at` means something while `state` is PENDING."""

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
class Attempt:
    """One line of the log. Without `milliseconds` it is being made, or its worker died over it."""

    number: int
    started_at: datetime
    milliseconds: int | None
    status: int | None
    error: str | None
    answer: str | None


_TOLD: LiteralString = """
    select d.id, d.job_id, d.event, d.url, d.receiver, d.state, d.attempt as attempts, a.status as last_status,
    a.error as last_error, d.created_at, d.next_attempt_at, d.finished_at
    from webhook_deliveries d left join webhook_attempts a on a.delivery_id = d.id and a.number = d.attempt
"""


async def newest(tx: Tx, *, state: str | None = None, job: UUID | None = None, limit: int) -> list[Told]:
    """The newest deliveries, of one state or one job if wanted."""
    return await query.every(
        tx,
        Told,
        _TOLD + " where (%(state)s::text is null or d.state = %(state)s) and (%(job)s::uuid is null"
        " or d.job_id = %(job)s) order by d.created_at desc limit %(limit)s",
        state=state,
        job=job,
        limit=limit,
    )


async def find(tx: Tx, rest: LiteralString, **values: object) -> list[Told]:
    """The deliveries, `d`, that the conditions in `rest` choose, in its order."""
    return await query.every(tx, Told, _TOLD + rest, **values)


async def get(tx: Tx, delivery: UUID) -> tuple[Told, list[Attempt]]:
    """The delivery and its attempts, first to last; raises NotFound."""
    told = await query.one(tx, Told, _TOLD + " where d.id = %(id)s", id=delivery)
    if told is None:
        raise NotFound("There is no such delivery. `hiresfix webhooks list` shows them.")
    attempts = await query.every(
        tx,
        Attempt,
        "select number, started_at, milliseconds, status, error, answer from webhook_attempts"
        " where delivery_id = %(id)s order by number",
        id=delivery,
    )
    return told, attempts


async def redeliver(tx: Tx, queue: Queue, delivery: UUID) -> None:
    """Send an event again, now, with the whole schedule before it; raises NotFound or Conflict."""
    told, _ = await get(tx, delivery)
    if told.event == PROGRESS:
        raise Conflict("Progress is told once. Redeliver the job's completed or failed event.")
    renewed = await query.execute(
        tx,
        "update webhook_deliveries set state = 'PENDING', next_attempt_at = now(), finished_at = null,"
        " attempts_before = case when state = 'PENDING' then attempts_before else attempt end"
        " where id = %(id)s and (sending_until is null or sending_until < now())",
        id=delivery,
    )
    if not renewed:
        raise Conflict("It is being sent this moment. Look at it again: `hiresfix webhooks show`.")
    await _enqueue(tx, queue, delivery)


async def prune(tx: Tx, *, older_than: timedelta) -> int:
    """Forget progress events, and the attempts of events, that ended so long ago; returns how many rows went.

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
