"""Ledger: every grant, charge, refund and adjustment of a team's credits, append-only, and the resulting balance.

Guarantees: `teams.credits` equals the sum of the team's entries after every commit and is never negative. A job is
charged at most once and refunded at most once. Amounts are whole credits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import LiteralString
from uuid import UUID

from hiresfix.errors import InsufficientCredits, NotFound
from hiresfix.server.database import query
from hiresfix.server.database.pool import Cursor, Tx


class EntryKind(StrEnum):
    """Reason for a change of the balance."""

    GRANT = "grant"
    CHARGE = "charge"
    REFUND = "refund"
    ADJUST = "adjust"


_COUNTERPARTY = {
    EntryKind.GRANT: "issued",
    EntryKind.CHARGE: "revenue",
    EntryKind.REFUND: "revenue",
    EntryKind.ADJUST: "adjustments",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerEntry:
    """One entry of the ledger. `amount` is what the team gained (negative: lost) from `counterparty`."""

    id: int
    team_id: UUID
    job_id: UUID | None
    kind: str
    amount: int
    counterparty: str
    actor: str
    reason: str
    created_at: datetime


async def balance(tx: Tx, team: UUID) -> int:
    """Return the team's credits; raises NotFound."""
    credits = await query.value(tx, "select credits from teams where id = %(team)s", team=team)
    if credits is None:
        raise NotFound("Team not found")
    return int(credits)


async def grant(tx: Tx, team: UUID, amount: int, *, actor: str, reason: str) -> int:
    """Give `amount` > 0 credits; returns the new balance."""
    if amount <= 0:
        raise ValueError("A grant must be positive")
    return await _move(tx, team, EntryKind.GRANT, amount, actor=actor, reason=reason)


@dataclass(frozen=True, slots=True, kw_only=True)
class Charge:
    """A charge that was sent to the database; its result is unknown before `confirm`."""

    cursor: Cursor
    team: UUID
    cost: int

    async def confirm(self, tx: Tx) -> int:
        """Return the new balance; raises InsufficientCredits, with nothing written and the transaction still usable."""
        row = await self.cursor.fetchone()
        if row is None:
            raise InsufficientCredits(required=self.cost, available=await balance(tx, self.team))
        return int(row[0])


async def charge(tx: Tx, team: UUID, cost: int, *, job: UUID, actor: str) -> Charge:
    """Take a job's price. A pipeline does not wait for the answer, so the caller must call `Charge.confirm`."""
    cursor = await _send_move(tx, team, EntryKind.CHARGE, -cost, job=job, actor=actor, reason="job submitted")
    return Charge(cursor=cursor, team=team, cost=cost)


async def adjust(tx: Tx, team: UUID, amount: int, *, actor: str, reason: str) -> int:
    """Correct the balance by `amount` and return the new one; raises InsufficientCredits below zero."""
    if not amount:
        raise ValueError("An adjustment must not be zero")
    return await _move(tx, team, EntryKind.ADJUST, amount, actor=actor, reason=reason)


async def refund(tx: Tx, team: UUID, cost: int, *, job: UUID, reason: str, actor: str = "system") -> bool:
    """Refund a job's price at most once, however often it is called; return False if that was done before."""
    # `_move` takes the same lock; here it comes before the read, so two refunds of one job cannot both find none.
    await query.execute(tx, "select 1 from teams where id = %(team)s for update", team=team)
    refunded = await query.value(tx, "select 1 from ledger where job_id = %(job)s and kind = 'refund'", job=job)
    if refunded is None:
        await _move(tx, team, EntryKind.REFUND, cost, job=job, actor=actor, reason=reason)
    return refunded is None


async def refund_by_hand(tx: Tx, job: UUID, *, actor: str, reason: str) -> bool:
    """Refund the job's charge, whatever its state; return False if that was done before.

    Raises NotFound for a job that was never charged.
    """
    charged = await (
        await tx.execute("select team_id, -amount from ledger where job_id = %(job)s and kind = 'charge'", {"job": job})
    ).fetchone()
    if charged is None:
        raise NotFound(f"No job {job} was ever charged. `hiresfix jobs list` shows the newest.")
    team, cost = charged
    return await refund(tx, team, cost, job=job, actor=actor, reason=reason)


# One statement, so that a move costs one round trip. The update locks the team's row, so moves of one team wait for
# each other and none reads a stale balance; without enough credits it finds no row and writes nothing.
_MOVE: LiteralString = """
    with moved as (
        update teams set credits = credits + %(amount)s where id = %(team)s and credits + %(amount)s >= 0
        returning credits
    ), written as (
        insert into ledger (team_id, job_id, kind, amount, counterparty, actor, reason)
        select %(team)s, %(job)s, %(kind)s, %(amount)s, %(counterparty)s, %(actor)s, %(reason)s from moved
    )
    select credits from moved
"""


async def _move(
    tx: Tx, team: UUID, kind: EntryKind, amount: int, *, actor: str, reason: str, job: UUID | None = None
) -> int:
    cursor = await _send_move(tx, team, kind, amount, actor=actor, reason=reason, job=job)
    return await Charge(cursor=cursor, team=team, cost=-amount).confirm(tx)


async def _send_move(
    tx: Tx, team: UUID, kind: EntryKind, amount: int, *, actor: str, reason: str, job: UUID | None
) -> Cursor:
    return await tx.execute(
        _MOVE,
        {
            "team": team,
            "job": job,
            "kind": kind.value,
            "amount": amount,
            "counterparty": _COUNTERPARTY[kind],
            "actor": actor,
            "reason": reason,
        },
    )


async def history(tx: Tx, team: UUID, *, limit: int = 100) -> Sequence[LedgerEntry]:
    """Return the team's newest entries first."""
    return await query.every(
        tx,
        LedgerEntry,
        "select id, team_id, job_id, kind, amount, counterparty, actor, reason, created_at"
        " from ledger where team_id = %(team)s order by id desc limit %(limit)s",
        team=team,
        limit=limit,
    )


async def page(tx: Tx, team: UUID, *, user: UUID | None, before: int | None, limit: int) -> list[LedgerEntry]:
    """Return the newest entries first.

    Args:
        tx: Transaction to read in.
        team: Team whose entries are returned.
        user: Only entries of this user's jobs; None is all of the team's.
        before: Only entries older than the one with this id; None is all.
        limit: Most entries to return.
    """
    return await query.every(
        tx,
        LedgerEntry,
        "select id, team_id, job_id, kind, amount, counterparty, actor, reason, created_at from ledger"
        " where team_id = %(team)s and (%(before)s::bigint is null or id < %(before)s)"
        " and (%(user)s::uuid is null or job_id in (select id from jobs where user_id = %(user)s))"
        " order by id desc limit %(limit)s",
        team=team,
        user=user,
        before=before,
        limit=limit,
    )
