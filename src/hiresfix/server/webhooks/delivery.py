"""Make one delivery attempt: sign, POST, record the outcome.

Guarantees: no transaction or database connection is open during the request. Whatever happens to the receiver or to
the database meanwhile, the outcome is recorded, unless the process dies. `events` decides when to try, and whether to
try again.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID

import structlog
from standardwebhooks import Webhook

from hiresfix import __version__, webhook_signing
from hiresfix.errors import FetchError
from hiresfix.server import guarded_http
from hiresfix.server.accounts import authentication
from hiresfix.server.accounts.authentication import SigningKey
from hiresfix.server.database import pool
from hiresfix.server.database.pool import Database
from hiresfix.server.database.task_queue import Queue
from hiresfix.server.guarded_http import HttpPolicy
from hiresfix.server.platform import metrics
from hiresfix.server.webhooks import events
from hiresfix.server.webhooks import secrets as webhook_secrets
from hiresfix.server.webhooks.events import DeliveryOutcome, DueDelivery

log = structlog.get_logger(__name__)

_COUNTED_AS = {"DELIVERED": "delivered", "PENDING": "retried", "FAILED": "failed"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Signers:
    """Secrets that sign a delivery: the key that submitted the job, and the team's secrets if it has any."""

    key: SigningKey | None
    secrets: Sequence[str]


async def deliver(database: Database, queue: Queue, delivery_id: UUID, *, policy: HttpPolicy) -> None:
    """Make the attempt that is due, if there is one, and record its outcome."""
    async with database.transaction() as tx:
        due = await events.claim(tx, delivery_id)
        if due is None:
            return
        key = await authentication.signing_key(tx, due.key_id) if due.key_id else None
        signers = Signers(key=key, secrets=await webhook_secrets.active_secrets(tx, due.team_id))
    outcome = await _attempt(due, signers, policy)

    async def record() -> str:
        async with database.transaction() as tx:
            return await events.record(tx, queue, due, outcome)

    state = await pool.retry_while_unavailable(record, log_event="webhook.record_postponed")
    metrics.WEBHOOK_ATTEMPTS.labels(_COUNTED_AS[state]).inc()
    metrics.WEBHOOK_SECONDS.observe(outcome.milliseconds / 1000)
    log.info("webhook.attempted", job_id=str(due.job_id), request_id=due.request_id, delivery_id=str(due.id),
             event_name=due.event, delivery_attempt=due.attempt, status=outcome.status,
             milliseconds=outcome.milliseconds, state=state)  # fmt: skip


async def _attempt(due: DueDelivery, signers: Signers, policy: HttpPolicy) -> DeliveryOutcome:
    started = time.perf_counter()

    def elapsed() -> int:
        return round(1000 * (time.perf_counter() - started))

    try:
        response = await guarded_http.post(due.url, due.body, headers(due, signers, now=datetime.now(UTC)), policy)
    except FetchError as error:
        return DeliveryOutcome(error=error.message, milliseconds=elapsed())
    except Exception:  # an unexpected error is a failed attempt too, or it would be retried forever
        log.exception("webhook.crashed", job_id=str(due.job_id), request_id=due.request_id, delivery_id=str(due.id))
        return DeliveryOutcome(error="internal error", milliseconds=elapsed())
    return DeliveryOutcome(
        status=response.status,
        excerpt=response.excerpt,
        retry_after=response.retry_after,
        milliseconds=round(1000 * response.seconds),
    )


def headers(due: DueDelivery, signers: Signers, *, now: datetime) -> dict[str, str]:
    """Return the request's headers (contract.md 15.1), with those of Standard Webhooks if the team has a secret."""
    delivery, timestamp = str(due.id), str(int(now.timestamp()))
    values = {
        "Content-Type": "application/json",
        "User-Agent": f"hiresfix/{__version__}",
        "X-Webhook-Event": due.event,
        "X-Webhook-Id": delivery,
        "X-Webhook-Timestamp": timestamp,
        "X-Webhook-Attempt": str(due.attempt),
    }
    if signers.key is not None:
        values["X-Webhook-Signature"] = webhook_signing.sign(due.body, signers.key.digest, mode=signers.key.mode)
    if signers.secrets:
        signatures = (Webhook(secret).sign(delivery, now, due.body.decode()) for secret in signers.secrets)
        values |= {"webhook-id": delivery, "webhook-timestamp": timestamp, "webhook-signature": " ".join(signatures)}
    return values
