"""The ledger of credits on the wire: the query and the page of entries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol
from uuid import UUID

from hiresfix import messages
from hiresfix.wire.queries import DEFAULT_LIMIT, PAGE, SCOPE, PagePosition, QueryReader
from hiresfix.wire.render import page, timestamp

_LIST = "ledger"
_MAX_ENTRIES = 2**63

LEDGER_QUERY: Mapping[str, Mapping[str, Any]] = {
    "scope": {
        **SCOPE,
        "description": "`user`: charges and refunds of your own jobs. `team`: every entry, for owners and admins.",
    },
    **PAGE,
}
"""JSON Schema of each parameter of `GET /v2/credits/ledger`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerQuery:
    """A valid `GET /v2/credits/ledger`; `after`: number of the last entry shown."""

    team: bool = False
    limit: int = DEFAULT_LIMIT
    after: int | None = None


def parse_ledger_query(query: Mapping[str, str]) -> LedgerQuery:
    """Return the query of `GET /v2/credits/ledger`. Raises InvalidRequest."""
    reader = QueryReader(query)
    after = reader.after(of=_LIST)
    if after and after.id.int >= _MAX_ENTRIES:
        reader.problems.add("cursor", messages.INVALID_CURSOR())
    parsed = LedgerQuery(team=reader.team(), limit=reader.limit(), after=after.id.int if after else None)
    reader.problems.raise_if_any()
    return parsed


class LedgerEntryView(Protocol):
    """Fields of a ledger entry that rendering reads."""

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


def ledger(entries: Sequence[LedgerEntryView], after: int | None) -> dict[str, Any]:
    """Return a page of the ledger; `after`: the last entry's number if more follow.

    `amount` is what the team gained.
    """
    position = None
    if after is not None:
        position = PagePosition(created_at=datetime.fromtimestamp(0, UTC), id=UUID(int=after))
    rows = [
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
    return page("entries", rows, position, of=_LIST)
