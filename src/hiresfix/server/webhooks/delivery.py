"""One attempt to tell a receiver: sign, POST, note how it went.

Guarantees: no transaction or connection is open while a stranger's server is asked; whatever happens there or to the
database meanwhile, the attempt ends in a note, unless its process dies. When to try, and whether again, is for
`webhooks`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID

import structlog
from standardwebhooks import Webhook

from hiresfix import __version__, signing
from hiresfix.errors import FetchError
from hiresfix.server import guarded_http
from hiresfix.server.accounts import authentication
from hiresfix.server.accounts.authentication import SigningKey
from hiresfix.server.database import pool
from hiresfix.server.database.pool import Database
from hiresfix.server.database.task_queue import Queue
from hiresfix.server.guarded_http import Policy
from hiresfix.server.platform import metrics
from hiresfix.server.webhooks import events
from hiresfix.server.webhooks import secrets as webhook_secrets
from hiresfix.server.webhooks.events import Delivery, Outcome

log = structlog.get_logger(__name__)

_COUNTED_AS = {"DELIVERED": "delivered", "PENDING": "retried", "FAILED": "failed"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Signers:
    """What signs a delivery: the key that submitted the job, and the team's secrets if it has any."""

    key: SigningKey | None
    secrets: Sequence[str]


async def deliver(database: Database, queue: Queue, delivery_id: UUID, *, policy: Policy) -> None:
    """Make the attempt that is due, if one is, and note how it went."""
    async with database.transaction() as tx:
        due = await events.claim(tx, delivery_id)
        if due is None:
            return
        key = await authentication.signing_key(tx, due.key_id) if due.key_id else None
        signers = Signers(key=key, secrets=await webhook_secrets.signing(tx, due.team_id))
    outcome = await _attempt(due, signers, policy)

    async def record() -> str:
        async with database.transaction() as tx:
            return await events.record(tx, queue, due, outcome)

    state = await pool.insist(record, postponed="webhook.record_postponed")
    metrics.WEBHOOK_ATTEMPTS.labels(_COUNTED_AS[state]).inc()
    metrics.WEBHOOK_SECONDS.observe(outcome.milliseconds / 1000)
    log.info("webhook.attempted", job_id=str(due.job_id), request_id=due.request_id, delivery_id=str(due.id),
             event_name=due.event, delivery_attempt=due.attempt, status=outcome.status,
             milliseconds=outcome.milliseconds, state=state)  # fmt: skip


async def _attempt(due: Delivery, signers: Signers, policy: Policy) -> Outcome:
    started = time.perf_counter()

    def elapsed() -> int:
        return round(1000 * (time.perf_counter() - started))

    try:
        answer = await guarded_http.post(due.url, due.body, headers(due, signers, now=datetime.now(UTC)), policy)
    except FetchError as error:
        return Outcome(error=error.message, milliseconds=elapsed())
    except Exception:  # a surprise is a failed attempt like any other, or it would be tried without end
        log.exception("webhook.crashed", job_id=str(due.job_id), request_id=due.request_id, delivery_id=str(due.id))
        return Outcome(error="internal error", milliseconds=elapsed())
    return Outcome(
        status=answer.status,
        excerpt=answer.excerpt,
        retry_after=answer.retry_after,
        milliseconds=round(1000 * answer.seconds),
    )


def headers(due: Delivery, signers: Signers, *, now: datetime) -> dict[str, str]:
    """The request's headers (contract.md 15.1); those of Standard Webhooks only for a team with a secret."""
    delivery, timestamp = str(due.id), str(int(now.timestamp()))
    found = {
        "Content-Type": "application/json",
        "User-Agent": f"hiresfix/{__version__}",
        "X-Webhook-Event": due.event,
        "X-Webhook-Id": delivery,
        "X-Webhook-Timestamp": timestamp,
        "X-Webhook-Attempt": str(due.attempt),
    }
    if signers.key is not None:
        found["X-Webhook-Signature"] = signing.sign(due.body, signers.key.digest, mode=signers.key.mode)
    if signers.secrets:
        signatures = (Webhook(secret).sign(delivery, now, due.body.decode()) for secret in signers.secrets)
        found |= {"webhook-id": delivery, "webhook-timestamp": timestamp, "webhook-signature": " ".join(signatures)}
    return found
