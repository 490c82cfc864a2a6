"""Webhook deliveries on the wire: the query, the WebhookDelivery object and the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol
from uuid import UUID

from hiresfix.wire.queries import DEFAULT_LIMIT, PAGE, SCOPE, PagePosition, QueryReader
from hiresfix.wire.render import optional_timestamp, page, timestamp

DELIVERY_STATES = ("pending", "delivered", "failed")
_LIST = "deliveries"

DELIVERY_QUERY: Mapping[str, Mapping[str, Any]] = {
    "jobId": {"type": "string", "format": "uuid", "description": "Only deliveries of this job."},
    "status": {"type": "string", "enum": list(DELIVERY_STATES), "description": "Only deliveries in this state."},
    "scope": {**SCOPE, "description": "`user`: of your own jobs. `team`: of your team's, for owners and admins."},
    **PAGE,
}
"""JSON Schema of each parameter of `GET /v2/webhooks/deliveries`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryQuery:
    """A valid `GET /v2/webhooks/deliveries`; None means any. `status` is spelled as in the database."""

    team: bool = False
    limit: int = DEFAULT_LIMIT
    after: PagePosition | None = None
    job: UUID | None = None
    status: str | None = None


def parse_delivery_query(query: Mapping[str, str]) -> DeliveryQuery:
    """Return the query of `GET /v2/webhooks/deliveries`. Raises InvalidRequest."""
    reader = QueryReader(query)
    status = reader.choice("status", DELIVERY_STATES)
    parsed = DeliveryQuery(
        team=reader.team(),
        limit=reader.limit(),
        after=reader.after(of=_LIST),
        job=reader.job("jobId"),
        status=status.upper() if status else None,
    )
    reader.problems.raise_if_any()
    return parsed


class DeliveryView(Protocol):
    """Fields of a delivery that rendering reads. `state` is PENDING, DELIVERED or FAILED."""

    @property
    def id(self) -> UUID: ...
    @property
    def job_id(self) -> UUID: ...
    @property
    def event(self) -> str: ...
    @property
    def url(self) -> str: ...
    @property
    def state(self) -> str: ...
    @property
    def attempts(self) -> int: ...
    @property
    def last_status(self) -> int | None: ...
    @property
    def last_error(self) -> str | None: ...
    @property
    def created_at(self) -> datetime: ...
    @property
    def next_attempt_at(self) -> datetime: ...
    @property
    def finished_at(self) -> datetime | None: ...


class AttemptView(Protocol):
    """Fields of an attempt that rendering reads; `milliseconds` is None while it is in progress."""

    @property
    def number(self) -> int: ...
    @property
    def started_at(self) -> datetime: ...
    @property
    def milliseconds(self) -> int | None: ...
    @property
    def status(self) -> int | None: ...
    @property
    def error(self) -> str | None: ...
    @property
    def answer(self) -> str | None: ...


def delivery(view: DeliveryView, attempts: Sequence[AttemptView] | None = None) -> dict[str, Any]:
    """Return the WebhookDelivery object; lists leave the attempts out."""
    body: dict[str, Any] = {
        "id": str(view.id),
        "jobId": str(view.job_id),
        "event": view.event,
        "url": view.url,
        "status": view.state.lower(),
        "attemptCount": view.attempts,
        "lastStatus": view.last_status,
        "lastError": view.last_error,
        "createdAt": timestamp(view.created_at),
        "nextAttemptAt": timestamp(view.next_attempt_at) if view.state == "PENDING" else None,
        "finishedAt": optional_timestamp(view.finished_at),
    }
    return body if attempts is None else {**body, "attempts": [_attempt(attempt) for attempt in attempts]}


def _attempt(view: AttemptView) -> dict[str, Any]:
    return {
        "number": view.number,
        "startedAt": timestamp(view.started_at),
        "milliseconds": view.milliseconds,
        "status": view.status,
        "error": view.error,
        "answer": view.answer,
    }


def deliveries(rows: Sequence[DeliveryView], after: PagePosition | None) -> dict[str, Any]:
    """Return a page of deliveries; `after`: position of the next page, None on the last."""
    return page("deliveries", [delivery(view) for view in rows], after, of=_LIST)
