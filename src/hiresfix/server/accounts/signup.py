"""Signing up by oneself, where the operator allows it: openly, or with an invitation.

Guarantees: team, owner, free credits and key appear in one transaction or not at all; an invitation works once, until
it expires; every refusal has the same text, and whether an address has an account is not even looked up for who has
no good invitation. An open sign-up hands out a key at once and so cannot hide that an address is taken: there the
limit of attempts by network address is what keeps lists from being tried.
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal, TypeAlias
from uuid import UUID

from hiresfix.errors import Conflict, Forbidden
from hiresfix.server.accounts import audit_log, authentication, teams
from hiresfix.server.accounts.teams import Role
from hiresfix.server.billing import ledger
from hiresfix.server.database import query
from hiresfix.server.database.pool import Database, Tx

Mode: TypeAlias = Literal["open", "invite", "closed"]

ACTOR = "api:signup"
CLOSED = "Sign-up is closed on this server. Ask its operator for a key."
REFUSED = (
    "This sign-up cannot be accepted. Use a valid invite code, and an e-mail address that has no account here yet."
)
MOST_REFUSALS = 5
"""An invitation that was tried with so many taken addresses is void: it must not serve to find out who is here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """What a sign-up made; `key` is the only copy of the API key."""

    user: UUID
    team: UUID
    team_name: str
    credits: int
    key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Invite:
    """An invitation as it may be shown: without its code."""

    id: UUID
    note: str
    created_at: datetime
    expires_at: datetime
    refusals: int
    used_at: datetime | None


async def sign_up(
    database: Database, *, email: str, name: str, team_name: str, invite: str | None, mode: Mode, free_credits: int
) -> Account:
    """Make a team with this owner, the free credits and a key; raises Forbidden if that is not to be."""
    if mode == "closed":
        raise Forbidden(CLOSED)
    async with database.transaction() as tx:
        ticket = await _live_invite(tx, invite) if mode == "invite" else None
        account = None
        if mode == "open" or ticket is not None:
            account = await _try_create(tx, email, name, team_name, free_credits=free_credits)
        # A refusal commits too: it is counted.
        if ticket is not None:
            await _stamp(tx, ticket, account)
    if account is None:
        raise Forbidden(REFUSED)
    return account


async def _try_create(tx: Tx, email: str, name: str, team_name: str, *, free_credits: int) -> Account | None:
    """None, and nothing is left behind, if the address has an account."""
    try:
        async with tx.transaction():
            return await _create(tx, email, name, team_name, free_credits=free_credits)
    except Conflict:
        return None


async def _create(tx: Tx, email: str, name: str, team_name: str, *, free_credits: int) -> Account:
    team = await teams.create_team(tx, team_name or email.partition("@")[0], actor=ACTOR)
    user = await teams.create_user(tx, team.id, email, role=Role.OWNER, name=name, actor=ACTOR)
    if free_credits:
        await ledger.grant(tx, team.id, free_credits, actor=ACTOR, reason="free credits")
    key = await authentication.create_key(tx, "Default", user=user.id)
    return Account(user=user.id, team=team.id, team_name=team.name, credits=free_credits, key=key)


# Invitations ------------------------------------------------------------------------------------------------------


async def invite(tx: Tx, *, note: str, valid_for: timedelta, actor: str) -> str:
    """A new invitation's code; the returned text is the only copy there will ever be."""
    code = f"inv_{secrets.token_hex(16)}"
    made = await query.value(
        tx,
        "insert into invites (digest, note, expires_at) values (%(digest)s, %(note)s, now() + %(valid)s) returning id",
        digest=_digest(code),
        note=note,
        valid=valid_for,
    )
    await audit_log.note(tx, actor=actor, action="invite.create", subject=made, note=note)
    return code


async def invites(tx: Tx) -> list[Invite]:
    """All invitations, the newest first."""
    return await query.every(
        tx,
        Invite,
        "select id, note, created_at, expires_at, refusals, used_at from invites order by created_at desc",
    )


def _digest(code: str) -> bytes:
    return hashlib.sha256(code.encode(errors="replace")).digest()


async def _live_invite(tx: Tx, code: str | None) -> UUID | None:
    """The invitation with this code, locked, if it is still good."""
    found = await query.value(
        tx,
        "select id from invites where digest = %(digest)s and used_at is null and expires_at > now()"
        " and refusals < %(most)s for update",
        digest=_digest(code or ""),
        most=MOST_REFUSALS,
    )
    assert found is None or isinstance(found, UUID)
    return found


async def _stamp(tx: Tx, ticket: UUID, account: Account | None) -> None:
    if account is None:
        await query.execute(tx, "update invites set refusals = refusals + 1 where id = %(id)s", id=ticket)
    else:
        await query.execute(
            tx, "update invites set used_at = now(), user_id = %(user)s where id = %(id)s", user=account.user, id=ticket
        )
