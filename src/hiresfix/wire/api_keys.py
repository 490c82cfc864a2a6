"""API keys on the wire: the query, the request for a new key, and the Key object."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol
from uuid import UUID

from hiresfix import messages
from hiresfix.wire.json_body import known_fields
from hiresfix.wire.problems import InvalidValue
from hiresfix.wire.queries import SCOPE, QueryReader
from hiresfix.wire.render import optional_timestamp, timestamp

MAX_NAME = 100
MAX_BUDGET = 10**9

KEY_QUERY: Mapping[str, Mapping[str, Any]] = {
    "scope": {**SCOPE, "description": "`user`: your own keys. `team`: your team's, for owners and admins."},
}
"""JSON Schema of each parameter of `GET /v2/keys`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewKey:
    """A request for a key; `monthly_budget` None: as much as the team has."""

    name: str
    monthly_budget: int | None


def parse_key_query(query: Mapping[str, str]) -> bool:
    """Return whether all of the team's keys are requested. Raises InvalidRequest."""
    reader = QueryReader(query)
    team = reader.team()
    reader.problems.raise_if_any()
    return team


def parse_new_key(body: bytes, content_type: str | None) -> NewKey:
    """Return the requested key. Raises InvalidRequest with all problems."""
    problems, fields = known_fields(body, content_type, known=("name", "monthlyBudget"))
    name = problems.catch("name", _name, fields.get("name"))
    budget = problems.catch("monthlyBudget", _budget, fields.get("monthlyBudget"))
    problems.raise_if_any()
    return NewKey(name=name or "", monthly_budget=budget)


def _name(value: Any) -> str:
    if value is None:
        raise InvalidValue(messages.REQUIRED())
    if not isinstance(value, str):
        raise InvalidValue(messages.EXPECTED_STRING())
    text = value.strip()
    if not 1 <= len(text) <= MAX_NAME:
        raise InvalidValue(messages.CHARACTERS_BETWEEN(minimum=1, maximum=MAX_NAME))
    if not text.isprintable():
        raise InvalidValue(messages.CONTROL_CHARACTERS())
    return text


def _budget(value: Any) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidValue(messages.EXPECTED_BUDGET())
    if not 0 <= value <= MAX_BUDGET:
        raise InvalidValue(messages.BETWEEN(minimum=0, maximum=MAX_BUDGET))
    return value


class KeyView(Protocol):
    """Fields of a key that rendering reads."""

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
    """Return the Key object; its `secret` is in one answer only, when the key is created."""
    body = {
        "id": str(view.id),
        "name": view.name,
        "prefix": view.prefix,
        "user": view.email,
        "active": view.active,
        "monthlyBudget": view.monthly_budget,
        "createdAt": timestamp(view.created_at),
        "lastUsedAt": optional_timestamp(view.last_used_at),
        "expiresAt": optional_timestamp(view.expires_at),
        "revokedAt": optional_timestamp(view.revoked_at),
    }
    return body if secret is None else {**body, "apiKey": secret}
