"""Audit log: who changed what about accounts and credits, and when. Append-only, enforced by the database.

An entry is written in the transaction of its change, so neither exists without the other. It never holds secrets.
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
class AuditEntry:
    """One change. `subject` is the id of the changed object, `details` describes the change."""

    id: int
    at: datetime
    actor: str
    action: str
    subject: str
    details: dict[str, Any]


async def record(tx: Tx, *, actor: str, action: str, subject: UUID, **details: str | int | None) -> None:
    """Write one entry. `actor` is `os:<user>`, `api:<part>` or `user:<id>`, `action` is `<kind>.<verb>`."""
    await query.execute(
        tx,
        "insert into audit_log (actor, action, subject, details)"
        " values (%(actor)s, %(action)s, %(subject)s, %(details)s)",
        actor=actor,
        action=action,
        subject=str(subject),
        details=Jsonb(details),
    )


async def newest(tx: Tx, *, subject: str | None = None, limit: int) -> list[AuditEntry]:
    """Return the newest entries first, of one subject or of all."""
    return await query.every(
        tx,
        AuditEntry,
        "select id, at, actor, action, subject, details from audit_log"
        " where %(subject)s::text is null or subject = %(subject)s order by id desc limit %(limit)s",
        subject=subject,
        limit=limit,
    )
