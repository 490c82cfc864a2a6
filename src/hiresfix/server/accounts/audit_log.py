"""The audit log: who changed what about accounts and credits, when; append-only, the database sees to it.

A line is written in the transaction of what it tells of, so there is neither a change without its line nor a line
without its change. Secrets never go in.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from psycopg.types.json import Jsonb

from hiresfix.server.database import query
from hiresfix.server.database.pool import Tx


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One change. `subject` is the id of what was changed, `details` what about it."""

    id: int
    at: datetime
    actor: str
    action: str
    subject: str
    details: dict[str, Any]


async def note(tx: Tx, *, actor: str, action: str, subject: UUID, **details: str | int | None) -> None:
    """Write one line. `actor` is `os:<user>`, `api:<part>` or `user:<id>`, `action` is `<kind>.<verb>`."""
    await query.execute(
        tx,
        "insert into audit_log (actor, action, subject, details)"
        " values (%(actor)s, %(action)s, %(subject)s, %(details)s)",
        actor=actor,
        action=action,
        subject=str(subject),
        details=Jsonb(details),
    )


async def newest(tx: Tx, *, subject: str | None = None, limit: int) -> list[Line]:
    """The newest lines first, of one subject if wanted."""
    return await query.every(
        tx,
        Line,
        "select id, at, actor, action, subject, details from audit_log"
        " where %(subject)s::text is null or subject = %(subject)s order by id desc limit %(limit)s",
        subject=subject,
        limit=limit,
    )
