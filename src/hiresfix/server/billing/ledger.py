"""The ledger: every credit a team was granted, charged or given back, append-only, and the balance it sums to.

Guarantees: `teams.credits` equals the sum of the team's entries after every commit and is never negative; a
job is charged at most once and refunded at most once. Whole credits only.
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


class Kind(StrEnum):
    GRANT = "grant"
    CHARGE = "charge"
    REFUND = "refund"
    ADJUST = "adjust"


_COUNTERPARTY = {
    Kind.GRANT: "issued",
    Kind.CHARGE: "revenue",
    Kind.REFUND: "revenue",
    Kind.ADJUST: "adjustments",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One line of the ledger. `amount` is what the team gained (negative: lost) from `counterparty`."""

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
    credits = await query.value(tx, "select credits from teams where id = %(team)s", team=team)
    if credits is None:
        raise NotFound("Team not found")
    return int(credits)


async def grant(tx: Tx, team: UUID, amount: int, *, actor: str, reason: str) -> int:
    """Give `amount` > 0 credits; returns the new balance."""
    if amount <= 0:
        raise ValueError("A grant must be positive")
    return await _move(tx, team, Kind.GRANT, amount, actor=actor, reason=reason)


@dataclass(frozen=True, slots=True, kw_only=True)
class Charge:
    """A charge that was sent to the database; nothing is known of it before `confirm`."""

    moved: Cursor
    team: UUID
    cost: int

    async def confirm(self, tx: Tx) -> int:
        """The new balance; raises InsufficientCredits, with the transaction still usable and nothing written."""
        row = await self.moved.fetchone()
        if row is None:
            raise InsufficientCredits(required=self.cost, available=await balance(tx, self.team))
        return int(row[0])


async def charge(tx: Tx, team: UUID, cost: int, *, job: UUID, actor: str) -> Charge:
    """Take a job's price. In a pipeline it does not wait for the answer, which has to be read: `Charge.confirm`."""
    moved = await _send_move(tx, team, Kind.CHARGE, -cost, job=job, actor=actor, reason="job submitted")
    return Charge(moved=moved, team=team, cost=cost)


async def adjust(tx: Tx, team: UUID, amount: int, *, actor: str, reason: str) -> int:
    """Correct the balance by `amount`, up or down but not below zero (InsufficientCredits); returns the new one."""
    if not amount:
        raise ValueError("An adjustment by nothing changes nothing")
    return await _move(tx, team, Kind.ADJUST, amount, actor=actor, reason=reason)


async def refund(tx: Tx, team: UUID, cost: int, *, job: UUID, reason: str, actor: str = "system") -> bool:
    """Give a job's price back, once however often and from wherever it is called; False: that was done before."""
    # The lock that `_move` takes anyway, but before the look: two that refund one job cannot both find nothing.
    await query.execute(tx, "select 1 from teams where id = %(team)s for update", team=team)
    done = await query.value(tx, "select 1 from ledger where job_id = %(job)s and kind = 'refund'", job=job)
    if done is None:
        await _move(tx, team, Kind.REFUND, cost, job=job, actor=actor, reason=reason)
    return done is None


async def refund_by_hand(tx: Tx, job: UUID, *, actor: str, reason: str) -> bool:
    """Give back what the job's charge took, whatever became of the job; False: that was done before.

    Raises NotFound for a job that was never charged.
    """
    charged = await (
        await tx.execute("select team_id, -amount from ledger where job_id = %(job)s and kind = 'charge'", {"job": job})
    ).fetchone()
    if charged is None:
        raise NotFound(f"No job {job} was ever charged. `hiresfix jobs list` shows the newest.")
    team, cost = charged
    return await refund(tx, team, cost, job=job, actor=actor, reason=reason)


# One statement, so that a move costs one message to the server. The update locks the team's row, so two moves of one
# team queue up and neither reads a stale balance; without credits enough it finds no row and nothing is written.
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
    tx: Tx, team: UUID, kind: Kind, amount: int, *, actor: str, reason: str, job: UUID | None = None
) -> int:
    moved = await _send_move(tx, team, kind, amount, actor=actor, reason=reason, job=job)
    return await Charge(moved=moved, team=team, cost=-amount).confirm(tx)


async def _send_move(
    tx: Tx, team: UUID, kind: Kind, amount: int, *, actor: str, reason: str, job: UUID | None
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


async def history(tx: Tx, team: UUID, *, limit: int = 100) -> Sequence[Entry]:
    """The team's newest entries first."""
    return await query.every(
        tx,
        Entry,
        "select id, team_id, job_id, kind, amount, counterparty, actor, reason, created_at"
        " from ledger where team_id = %(team)s order by id desc limit %(limit)s",
        team=team,
        limit=limit,
    )


async def page(tx: Tx, team: UUID, *, user: UUID | None, before: int | None, limit: int) -> list[Entry]:
    """The newest entries before one (None: all), of one user's jobs if wanted."""
    return await query.every(
        tx,
        Entry,
        "select id, team_id, job_id, kind, amount, counterparty, actor, reason, created_at from ledger"
        " where team_id = %(team)s and (%(before)s::bigint is null or id < %(before)s)"
        " and (%(user)s::uuid is null or job_id in (select id from jobs where user_id = %(user)s))"
        " order by id desc limit %(limit)s",
        team=team,
        user=user,
        before=before,
        limit=limit,
    )
