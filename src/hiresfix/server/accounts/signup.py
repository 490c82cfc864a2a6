"""Sign-up by users themselves, where the operator allows it: open, or with an invitation.

Guarantees: team, owner, free credits and key appear in one transaction or not at all. An invitation works once, until
it expires. Every refusal has the same text, and without a valid invitation the address is not even looked up. An open
sign-up returns a key at once and so cannot hide that an address is taken; there the rate limit by network address
keeps anybody from testing lists of addresses.
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal, TypeAlias
from uuid import UUID

from hiresfix import messages
from hiresfix.errors import Conflict, Forbidden
from hiresfix.server.accounts import audit_log, authentication, teams
from hiresfix.server.accounts.teams import Role
from hiresfix.server.billing import ledger
from hiresfix.server.database import query
from hiresfix.server.database.pool import Database, Tx

SignupMode: TypeAlias = Literal["open", "invite", "closed"]

ACTOR = "api:signup"
CLOSED = messages.SIGNUP_CLOSED()
REFUSED = messages.SIGNUP_REJECTED()
MAX_REFUSALS = 5
"""After this many taken addresses an invitation is void, so that it cannot be used to find out who has an account."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewAccount:
    """Result of a sign-up; `key` is the only copy of the API key."""

    user: UUID
    team: UUID
    team_name: str
    credits: int
    key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Invite:
    """An invitation as it may be shown, without its code."""

    id: UUID
    note: str
    created_at: datetime
    expires_at: datetime
    refusals: int
    used_at: datetime | None


async def sign_up(
    database: Database,
    *,
    email: str,
    name: str,
    team_name: str,
    invite: str | None,
    mode: SignupMode,
    free_credits: int,
) -> NewAccount:
    """Create a team with this owner, the free credits and a key.

    Raises Forbidden when sign-up is closed, the invitation is not valid or the address has an account.

    Args:
        database: Where the account is created.
        email: Address of the owner.
        name: Name of the owner; may be empty.
        team_name: Name of the team; without one it is the address up to its `@`.
        invite: Code of an invitation, needed in mode "invite".
        mode: The operator's setting.
        free_credits: Credits granted to the new team.
    """
    if mode == "closed":
        raise Forbidden(CLOSED)
    async with database.transaction() as tx:
        invite_id = await _live_invite(tx, invite) if mode == "invite" else None
        account = None
        if mode == "open" or invite_id is not None:
            account = await _try_create(tx, email, name, team_name, free_credits=free_credits)
        # A refusal commits too, because it is counted.
        if invite_id is not None:
            await _record_use(tx, invite_id, account)
    if account is None:
        raise Forbidden(REFUSED)
    return account


async def _try_create(tx: Tx, email: str, name: str, team_name: str, *, free_credits: int) -> NewAccount | None:
    """Create the account; return None, and leave nothing behind, if the address has one."""
    try:
        async with tx.transaction():
            return await _create(tx, email, name, team_name, free_credits=free_credits)
    except Conflict:
        return None


async def _create(tx: Tx, email: str, name: str, team_name: str, *, free_credits: int) -> NewAccount:
    team = await teams.create_team(tx, team_name or email.partition("@")[0], actor=ACTOR)
    user = await teams.create_user(tx, team.id, email, role=Role.OWNER, name=name, actor=ACTOR)
    if free_credits:
        await ledger.grant(tx, team.id, free_credits, actor=ACTOR, reason=messages.FREE_CREDITS.text)
    _, key = await authentication.create_key(tx, "Default", user=user.id)
    return NewAccount(user=user.id, team=team.id, team_name=team.name, credits=free_credits, key=key)


# Invitations ------------------------------------------------------------------------------------------------------


async def create_invite(tx: Tx, *, note: str, valid_for: timedelta, actor: str) -> str:
    """Create an invitation and return its code, of which this is the only copy."""
    code = f"inv_{secrets.token_hex(16)}"
    invite_id = await query.value(
        tx,
        "insert into invites (digest, note, expires_at) values (%(digest)s, %(note)s, now() + %(valid)s) returning id",
        digest=_digest(code),
        note=note,
        valid=valid_for,
    )
    await audit_log.record(tx, actor=actor, action="invite.create", subject=invite_id, note=note)
    return code


async def list_invites(tx: Tx) -> list[Invite]:
    """Return all invitations, the newest first."""
    return await query.every(
        tx,
        Invite,
        "select id, note, created_at, expires_at, refusals, used_at from invites order by created_at desc",
    )


def _digest(code: str) -> bytes:
    return hashlib.sha256(code.encode(errors="replace")).digest()


async def _live_invite(tx: Tx, code: str | None) -> UUID | None:
    """Return the valid invitation with this code, locked; None if there is none."""
    invite_id = await query.value(
        tx,
        "select id from invites where digest = %(digest)s and used_at is null and expires_at > now()"
        " and refusals < %(max_refusals)s for update",
        digest=_digest(code or ""),
        max_refusals=MAX_REFUSALS,
    )
    assert invite_id is None or isinstance(invite_id, UUID)
    return invite_id


async def _record_use(tx: Tx, invite_id: UUID, account: NewAccount | None) -> None:
    if account is None:
        await query.execute(tx, "update invites set refusals = refusals + 1 where id = %(id)s", id=invite_id)
    else:
        await query.execute(
            tx,
            "update invites set used_at = now(), user_id = %(user)s where id = %(id)s",
            user=account.user,
            id=invite_id,
        )
