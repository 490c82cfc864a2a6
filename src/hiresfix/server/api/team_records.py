"""What a team's people look up afterwards: what was charged, and what receivers of webhooks were told.

Guarantees the same rule everywhere: everybody sees what is of their own jobs, owners and admins on request all of
their team's; what somebody may not see does not exist for them. Pages go on where the last one ended: whatever is
added meanwhile, nothing is shown twice or left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, LiteralString, TypeVar
from uuid import UUID

from hiresfix.errors import Forbidden, NotFound
from hiresfix.server.accounts import audit_log
from hiresfix.server.accounts.authentication import Caller
from hiresfix.server.billing import ledger as credits
from hiresfix.server.billing.ledger import Entry
from hiresfix.server.database.pool import Tx
from hiresfix.server.database.task_queue import Queue
from hiresfix.server.jobs import lifecycle
from hiresfix.server.webhooks import events
from hiresfix.server.webhooks.events import Attempt, Told
from hiresfix.wire import Place
from hiresfix.wire.records import DeliveryQuery, LedgerQuery

After = TypeVar("After")
Row = TypeVar("Row")


@dataclass(frozen=True, slots=True, kw_only=True)
class Page(Generic[Row, After]):
    """`after` is where the next page begins, None if this is the last one."""

    rows: list[Row]
    after: After | None


async def ledger(tx: Tx, caller: Caller, query: LedgerQuery) -> Page[Entry, int]:
    """Charges and refunds of the caller's jobs, or all entries of the team; the newest first."""
    _require_leader(caller, team=query.team)
    found = await credits.page(
        tx, caller.team, user=None if query.team else caller.user, before=query.after, limit=query.limit + 1
    )
    shown = found[: query.limit]
    return Page(rows=shown, after=shown[-1].id if len(found) > query.limit else None)


async def deliveries(tx: Tx, caller: Caller, query: DeliveryQuery) -> Page[Told, Place]:
    """Deliveries of the caller's jobs, or of all the team's; the newest first."""
    _require_leader(caller, team=query.team)
    conditions: list[LiteralString] = ["d.team_id = %(team)s"]
    if not query.team:
        conditions.append("d.job_id in (select id from jobs where user_id = %(user)s)")
    if query.job:
        conditions.append("d.job_id = %(job)s")
    if query.status:
        conditions.append("d.state = %(state)s")
    if query.after:
        conditions.append("(d.created_at, d.id) < (%(after_time)s, %(after_id)s)")
    found = await events.find(
        tx,
        " where " + " and ".join(conditions) + " order by d.created_at desc, d.id desc limit %(limit)s",
        team=caller.team,
        user=caller.user,
        job=query.job,
        state=query.status,
        after_time=query.after and query.after.created_at,
        after_id=query.after and query.after.id,
        limit=query.limit + 1,
    )
    shown = found[: query.limit]
    last = shown[-1] if len(found) > query.limit else None
    return Page(rows=shown, after=Place(created_at=last.created_at, id=last.id) if last else None)


async def delivery(tx: Tx, caller: Caller, wanted: UUID) -> tuple[Told, list[Attempt]]:
    """A delivery and its attempts; raises NotFound unless the caller may see its job."""
    missing = NotFound("Delivery not found")
    try:
        told, attempts = await events.get(tx, wanted)
        await lifecycle.get(tx, told.job_id, caller=caller)
    except NotFound as error:
        raise missing from error
    return told, attempts


async def redeliver(tx: Tx, queue: Queue, caller: Caller, wanted: UUID) -> tuple[Told, list[Attempt]]:
    """Send an event again, now, with the whole schedule before it; raises NotFound or Conflict."""
    await delivery(tx, caller, wanted)
    await events.redeliver(tx, queue, wanted)
    await audit_log.note(tx, actor=f"user:{caller.user}", action="webhook.redeliver", subject=wanted)
    return await events.get(tx, wanted)


def _require_leader(caller: Caller, *, team: bool) -> None:
    if team and not caller.leads:
        raise Forbidden("Only owners and admins may see what is the team's. Leave out scope, or use scope=user.")
