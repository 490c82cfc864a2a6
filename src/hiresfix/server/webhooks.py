"""Webhooks: tells a caller's server that a job ended, at least once, and never holds anything up for it.

Guarantees: an event exists exactly if the transaction that made it true commits; it is sent until the receiver
answers 2xx or the schedule is used up (api-contract.md 15.3); no transaction or connection is open while a
stranger's server is asked. It does not know what a job is: it is given a body and sends it as it is.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID

import structlog

import hiresfix
from hiresfix import signing
from hiresfix.errors import FetchError
from hiresfix.server import accounts, db, outbound
from hiresfix.server.db import Database, Tx
from hiresfix.server.outbound import Policy
from hiresfix.server.queue import Queue

log = structlog.get_logger(__name__)

TASK = "webhooks.deliver"
QUEUE = "io"

SCHEDULE = tuple(timedelta(seconds=seconds) for seconds in (10, 60, 300, 1800, 7200))
"""Pauses before the second, third, ... attempt; after the last one the delivery has failed."""
JITTER = 0.2
SENDING = timedelta(seconds=60)
"""An attempt that has not reported back after so long died with its worker."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """One attempt to make now. `attempt` counts from 1."""

    id: UUID
    job_id: UUID
    key_id: UUID | None
    event: str
    url: str
    body: bytes
    attempt: int


async def announce(tx: Tx, queue: Queue, *, job: UUID, key: UUID | None, event: str, url: str, body: bytes) -> None:
    """Record an event for `url` and enqueue its first delivery."""
    delivery = await db.value(
        tx,
        "insert into webhook_deliveries (job_id, key_id, event, url, body)"
        " values (%(job)s, %(key)s, %(event)s, %(url)s, %(body)s) returning id",
        job=job,
        key=key,
        event=event,
        url=url,
        body=body,
    )
    await _enqueue(tx, queue, delivery)


async def _enqueue(tx: Tx, queue: Queue, delivery: UUID, *, at: datetime | None = None) -> None:
    await queue.enqueue(tx, TASK, queue=QUEUE, at=at, delivery_id=str(delivery))


async def deliver(database: Database, queue: Queue, delivery_id: UUID, *, policy: Policy) -> None:
    """Make the attempt that is due, if one is, and note how it went."""
    async with database.transaction() as tx:
        due = await _claim(tx, delivery_id)
        secret = await accounts.signing_key(tx, due.key_id) if due and due.key_id else None
    if due is None:
        return
    try:
        answer = await outbound.post(due.url, due.body, _headers(due, secret), policy)
        status, problem, excerpt = answer.status, None, answer.excerpt
        retry_after = answer.retry_after
    except FetchError as error:
        status, problem, excerpt, retry_after = None, error.message, None, None
    except Exception:  # a surprise is a failed attempt like any other, or it would be tried without end
        log.exception("webhook.crashed", job_id=str(due.job_id))
        status, problem, excerpt, retry_after = None, "internal error", None, None
    async with database.transaction() as tx:
        await _record(tx, queue, due, status=status, problem=problem, excerpt=excerpt, retry_after=retry_after)


async def _claim(tx: Tx, delivery: UUID) -> Delivery | None:
    """Take the next attempt; two tasks for one delivery cannot both get it."""
    return await db.one(
        tx,
        Delivery,
        "update webhook_deliveries set attempt = attempt + 1, next_attempt_at = now() + %(sending)s"
        " where id = %(id)s and state = 'PENDING' and next_attempt_at <= now()"
        " returning id, job_id, key_id, event, url, body, attempt",
        id=delivery,
        sending=SENDING,
    )


def _headers(due: Delivery, secret: accounts.SigningKey | None) -> dict[str, str]:
    headers = {
        "Content-Type": "application/json",
        "User-Agent": f"hiresfix/{hiresfix.__version__}",
        "X-Webhook-Event": due.event,
        "X-Webhook-Id": str(due.id),
        "X-Webhook-Timestamp": str(int(datetime.now(UTC).timestamp())),
        "X-Webhook-Attempt": str(due.attempt),
    }
    if secret is not None:
        headers["X-Webhook-Signature"] = signing.sign(due.body, secret.digest, mode=secret.mode)
    return headers


async def _record(
    tx: Tx,
    queue: Queue,
    sent: Delivery,
    *,
    status: int | None,
    problem: str | None,
    excerpt: str | None,
    retry_after: float | None,
) -> None:
    pause = None
    if status is not None and 200 <= status < 300:
        state = "DELIVERED"
    elif status == 410 or sent.attempt > len(SCHEDULE):
        state = "FAILED"
    else:
        state = "PENDING"
        pause = next_pause(sent.attempt, retry_after)
    next_attempt_at = datetime.now(UTC) + (pause or timedelta())
    await db.execute(
        tx,
        "update webhook_deliveries set state = %(state)s, last_status = %(status)s, last_error = %(problem)s,"
        " last_answer = %(excerpt)s, next_attempt_at = %(next)s,"
        " finished_at = case when %(state)s <> 'PENDING' then now() end"
        " where id = %(id)s and attempt = %(attempt)s",
        state=state,
        status=status,
        problem=problem,
        excerpt=excerpt,
        next=next_attempt_at,
        id=sent.id,
        attempt=sent.attempt,
    )
    if pause is not None:
        await _enqueue(tx, queue, sent.id, at=next_attempt_at)
    log.info("webhook.attempted", job_id=str(sent.job_id), event_name=sent.event, attempt=sent.attempt,
             status=status, state=state)  # fmt: skip


def next_pause(attempt: int, retry_after: float | None) -> timedelta:
    """How long to wait after failed attempt number `attempt`: the schedule +- 20 %, or longer if asked to."""
    pause = SCHEDULE[attempt - 1] * random.uniform(1 - JITTER, 1 + JITTER)  # noqa: S311 - spreads load, no secret
    return max(pause, timedelta(seconds=min(retry_after or 0.0, SCHEDULE[-1].total_seconds())))


async def sweep(tx: Tx, queue: Queue) -> int:
    """Enqueue deliveries that are due but have no task any more; returns how many."""
    forgotten = await (
        await tx.execute(
            "select id from webhook_deliveries delivery where state = 'PENDING'"
            " and next_attempt_at < now() - interval '30 seconds'"
            " and not exists (select from procrastinate_jobs task where task.task_name = %(task)s"
            " and task.status = 'todo' and task.args ->> 'delivery_id' = delivery.id::text)"
            " limit 100 for update skip locked",
            {"task": TASK},
        )
    ).fetchall()
    for (delivery,) in forgotten:
        await _enqueue(tx, queue, delivery)
    return len(forgotten)
