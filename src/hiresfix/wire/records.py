"""Keys, sign-in links, uploads by address, ledger, deliveries: reading what is asked, writing what is told.

Routes of our own, in the manners of the published ones: camelCase names, keyset cursors, all problems at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol
from uuid import UUID

from hiresfix.errors import InvalidRequest
from hiresfix.wire.body import json_object
from hiresfix.wire.locations import canonical_url
from hiresfix.wire.problems import ROOT, Problems, Wrong, shown
from hiresfix.wire.queries import (
    DEFAULT_LIMIT,
    JOB_QUERY,
    SCOPES,
    Place,
    choice_of,
    cursor,
    job_id,
    page_size,
    place_of,
    uuid,
)
from hiresfix.wire.render import timestamp

MAX_NAME = 100
MAX_BUDGET = 10**9
MAX_TOKEN = 200
DELIVERY_STATES = ("pending", "delivered", "failed")
_LEDGER, _DELIVERIES = "ledger", "deliveries"
_MOST_ENTRIES = 2**63

_PAGE = {
    "limit": {**JOB_QUERY["limit"], "description": f"Rows on a page; {DEFAULT_LIMIT} unless given."},
    "cursor": JOB_QUERY["cursor"],
}
_SCOPE = {"type": "string", "enum": list(SCOPES)}

KEY_QUERY: Mapping[str, Mapping[str, Any]] = {
    "scope": {**_SCOPE, "description": "`user`: your own keys. `team`: your team's, for owners and admins."},
}
"""JSON Schema of each parameter of `GET /v2/keys`."""

LEDGER_QUERY: Mapping[str, Mapping[str, Any]] = {
    "scope": {
        **_SCOPE,
        "description": "`user`: what your own jobs took and got back. `team`: every entry, for owners and admins.",
    },
    **_PAGE,
}
"""JSON Schema of each parameter of `GET /v2/credits/ledger`."""

DELIVERY_QUERY: Mapping[str, Mapping[str, Any]] = {
    "jobId": {"type": "string", "format": "uuid", "description": "Only what was told of this job."},
    "status": {"type": "string", "enum": list(DELIVERY_STATES), "description": "Only deliveries in this state."},
    "scope": {**_SCOPE, "description": "`user`: of your own jobs. `team`: of your team's, for owners and admins."},
    **_PAGE,
}
"""JSON Schema of each parameter of `GET /v2/webhooks/deliveries`."""


# Reading ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerQuery:
    """A valid `GET /v2/credits/ledger`; `after`: number of the entry that was shown last."""

    team: bool = False
    limit: int = DEFAULT_LIMIT
    after: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryQuery:
    """A valid `GET /v2/webhooks/deliveries`; None: any. `status` is as the database has it."""

    team: bool = False
    limit: int = DEFAULT_LIMIT
    after: Place | None = None
    job: UUID | None = None
    status: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NewKey:
    """A request for a key; `monthly_budget` None: as much as the team has."""

    name: str
    monthly_budget: int | None


class _Query:
    """The parameters that were sent and not left empty, and what is wrong with them."""

    def __init__(self, sent: Mapping[str, str]) -> None:
        self.given = {name: value for name, value in sent.items() if value}
        self.problems = Problems()

    def team(self) -> bool:
        return self.choice("scope", SCOPES) == "team"

    def choice(self, name: str, choices: tuple[str, ...]) -> str | None:
        return self.problems.catch(name, choice_of, self.given[name], choices) if name in self.given else None

    def limit(self) -> int:
        found = self.problems.catch("limit", page_size, self.given["limit"]) if "limit" in self.given else None
        return found or DEFAULT_LIMIT

    def after(self, of: str) -> Place | None:
        return self.problems.catch("cursor", place_of, self.given["cursor"], of=of) if "cursor" in self.given else None


def parse_key_query(sent: Mapping[str, str]) -> bool:
    """Whether all of the team's keys are asked for. Raises InvalidRequest."""
    query = _Query(sent)
    team = query.team()
    query.problems.raise_if_any()
    return team


def parse_ledger_query(sent: Mapping[str, str]) -> LedgerQuery:
    """Raises InvalidRequest."""
    query = _Query(sent)
    after = query.after(_LEDGER)
    if after and after.id.int >= _MOST_ENTRIES:
        query.problems.add("cursor", "Not a cursor of this list. Start without one.")
    parsed = LedgerQuery(team=query.team(), limit=query.limit(), after=after.id.int if after else None)
    query.problems.raise_if_any()
    return parsed


def parse_delivery_query(sent: Mapping[str, str]) -> DeliveryQuery:
    """Raises InvalidRequest."""
    query = _Query(sent)
    status = query.choice("status", DELIVERY_STATES)
    parsed = DeliveryQuery(
        team=query.team(),
        limit=query.limit(),
        after=query.after(_DELIVERIES),
        job=query.problems.catch("jobId", job_id, query.given["jobId"]) if "jobId" in query.given else None,
        status=status.upper() if status else None,
    )
    query.problems.raise_if_any()
    return parsed


def parse_id(text: str, *, name: str) -> UUID:
    """A UUID in a path; raises InvalidRequest under the path parameter's name."""
    parsed = uuid(text)
    if parsed is None:
        raise InvalidRequest({name: ["Expected a UUID"]})
    return parsed


def parse_new_key(body: bytes, content_type: str | None) -> NewKey:
    """Raises InvalidRequest with everything that is wrong."""
    problems, fields = _object(body, content_type, known=("name", "monthlyBudget"))
    name = problems.catch("name", _name, fields.get("name"))
    budget = problems.catch("monthlyBudget", _budget, fields.get("monthlyBudget"))
    problems.raise_if_any()
    return NewKey(name=name or "", monthly_budget=budget)


def parse_sign_in(body: bytes, content_type: str | None) -> str:
    """The link's token. Raises InvalidRequest."""
    problems, fields = _object(body, content_type, known=("token",))
    token = problems.catch("token", _token, fields.get("token"))
    problems.raise_if_any()
    return token or ""


def parse_upload_url(body: bytes, content_type: str | None) -> str:
    """The address of a picture that the server is to fetch. Raises InvalidRequest."""
    problems, fields = _object(body, content_type, known=("url",))
    url = problems.catch("url", _web_address, fields.get("url"))
    problems.raise_if_any()
    return url or ""


def _web_address(value: Any) -> str:
    if value is None:
        raise Wrong("Required")
    expected = "Expected an http(s) URL"
    if not isinstance(value, str):
        raise Wrong(expected)
    return canonical_url(value.strip(), expected=expected)


def _object(body: bytes, content_type: str | None, *, known: tuple[str, ...]) -> tuple[Problems, dict[str, Any]]:
    problems = Problems()
    fields = problems.catch(ROOT, json_object, body, content_type) or {}
    problems.raise_if_any()
    if unknown := sorted(fields.keys() - set(known)):
        names = ", ".join(f"'{shown(key)}'" for key in unknown)
        problems.add(ROOT, f"Unrecognized key(s): {names}. Known are {', '.join(known)}.")
    return problems, fields


def _name(value: Any) -> str:
    if value is None:
        raise Wrong("Required")
    if not isinstance(value, str):
        raise Wrong("Expected a string")
    text = value.strip()
    if not 1 <= len(text) <= MAX_NAME:
        raise Wrong(f"Must have 1 to {MAX_NAME} characters")
    if not text.isprintable():
        raise Wrong("Must not contain control characters")
    return text


def _budget(value: Any) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise Wrong("Expected whole credits, or null for no budget")
    if not 0 <= value <= MAX_BUDGET:
        raise Wrong(f"Must be between 0 and {MAX_BUDGET}")
    return value


def _token(value: Any) -> str:
    if value is None:
        raise Wrong("Required")
    if not isinstance(value, str) or not 1 <= len(value) <= MAX_TOKEN:
        raise Wrong("Expected the token of a sign-in link")
    return value


# Writing ----------------------------------------------------------------------------------------------------------


class KeyView(Protocol):
    """What rendering reads of a key."""

    @property
    def id(self) -> UUID: ...
    @property
    def name(self) -> str: ...
    @property
    def prefix(self) -> str: ...
    @property
    def email(self) -> str: ...
    @property
    def active(self) -> bool: ...
    @property
    def monthly_budget(self) -> int | None: ...
    @property
    def created_at(self) -> datetime: ...
    @property
    def last_used_at(self) -> datetime | None: ...
    @property
    def expires_at(self) -> datetime | None: ...
    @property
    def revoked_at(self) -> datetime | None: ...


def key(view: KeyView, *, secret: str | None = None) -> dict[str, Any]:
    """The Key object; with its `secret` in the one answer that shows it."""
    body = {
        "id": str(view.id),
        "name": view.name,
        "prefix": view.prefix,
        "user": view.email,
        "active": view.active,
        "monthlyBudget": view.monthly_budget,
        "createdAt": timestamp(view.created_at),
        "lastUsedAt": _moment(view.last_used_at),
        "expiresAt": _moment(view.expires_at),
        "revokedAt": _moment(view.revoked_at),
    }
    return body if secret is None else {**body, "apiKey": secret}


class EntryView(Protocol):
    """What rendering reads of an entry of the ledger."""

    @property
    def id(self) -> int: ...
    @property
    def job_id(self) -> UUID | None: ...
    @property
    def kind(self) -> str: ...
    @property
    def amount(self) -> int: ...
    @property
    def reason(self) -> str: ...
    @property
    def created_at(self) -> datetime: ...


def ledger(entries: Sequence[EntryView], after: int | None) -> dict[str, Any]:
    """A page of the ledger; `amount` is what the team gained. `after`: the last one's number if more follow."""
    place = Place(created_at=datetime.fromtimestamp(0, UTC), id=UUID(int=after)) if after is not None else None
    shown_entries = [
        {
            "id": entry.id,
            "kind": entry.kind,
            "amount": entry.amount,
            "jobId": None if entry.job_id is None else str(entry.job_id),
            "reason": entry.reason,
            "createdAt": timestamp(entry.created_at),
        }
        for entry in entries
    ]
    return _page("entries", shown_entries, place, of=_LEDGER)


class ToldView(Protocol):
    """What rendering reads of a delivery. `state` is PENDING, DELIVERED or FAILED."""

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
    """What rendering reads of an attempt; without `milliseconds` it is being made."""

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


def delivery(view: ToldView, attempts: Sequence[AttemptView] | None = None) -> dict[str, Any]:
    """The WebhookDelivery object; lists leave the attempts out."""
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
        "finishedAt": _moment(view.finished_at),
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


def deliveries(page: Sequence[ToldView], after: Place | None) -> dict[str, Any]:
    """A page of deliveries; `after`: where the next one begins, None on the last."""
    return _page("deliveries", [delivery(view) for view in page], after, of=_DELIVERIES)


def _page(name: str, rows: list[dict[str, Any]], after: Place | None, *, of: str) -> dict[str, Any]:
    return {name: rows, "nextCursor": cursor(after, of=of) if after else None, "hasMore": after is not None}


def _moment(moment: datetime | None) -> str | None:
    return None if moment is None else timestamp(moment)
