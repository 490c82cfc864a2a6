"""Create, change and revoke API keys, for operators and for teams; every change is in the audit log.

Every change takes effect with the next request. A revoked key stays revoked; a suspended key can be resumed. Webhooks
of jobs that a key submitted are signed with it, even after it was revoked.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from uuid import UUID

from hiresfix import messages, webhook_signing
from hiresfix.errors import Conflict, Forbidden, NotFound
from hiresfix.server.accounts import audit_log, authentication
from hiresfix.server.accounts.authentication import ApiKey, Caller
from hiresfix.server.database import query
from hiresfix.server.database.pool import Tx

MAX_KEYS_PER_TEAM = 100
"""Live keys that a team can create by itself; more would be a runaway loop."""


async def issue(tx: Tx, user: UUID, name: str, *, actor: str, valid_for: timedelta | None = None) -> str:
    """Create a key for the user, which expires after `valid_for`. Return the key; it cannot be read again."""
    return (await _issue(tx, user, name, actor=actor, valid_for=valid_for))[1]


async def _issue(tx: Tx, user: UUID, name: str, *, actor: str, valid_for: timedelta | None = None) -> tuple[UUID, str]:
    """Create a key and return its id and the key."""
    key_id, key = await authentication.create_key(tx, name, user=user, valid_for=valid_for)
    await audit_log.record(tx, actor=actor, action="key.create", subject=key_id, user=str(user), name=name)
    return key_id, key


async def rename(tx: Tx, key: ApiKey, name: str, *, actor: str) -> None:
    await query.execute(tx, "update api_keys set name = %(name)s where id = %(id)s", name=name, id=key.id)
    await audit_log.record(tx, actor=actor, action="key.rename", subject=key.id, before=key.name, name=name)


async def suspend(tx: Tx, key: ApiKey, *, actor: str) -> None:
    """Refuse the key with 403 until it is resumed."""
    await query.execute(tx, "update api_keys set active = false where id = %(id)s", id=key.id)
    await audit_log.record(tx, actor=actor, action="key.suspend", subject=key.id)


async def resume(tx: Tx, key: ApiKey, *, actor: str) -> None:
    await query.execute(tx, "update api_keys set active = true where id = %(id)s", id=key.id)
    await audit_log.record(tx, actor=actor, action="key.resume", subject=key.id)


async def revoke(tx: Tx, key: ApiKey, *, actor: str) -> None:
    """Refuse the key with 401 for good. Jobs it submitted continue."""
    await query.execute(tx, "update api_keys set revoked_at = now() where id = %(id)s", id=key.id)
    await audit_log.record(tx, actor=actor, action="key.revoke", subject=key.id)


async def set_signing_mode(tx: Tx, key: ApiKey, mode: webhook_signing.KeyMode, *, actor: str) -> None:
    """Sign the key's webhooks with the raw digest or with its hexadecimal text (contract.md D11)."""
    await query.execute(tx, "update api_keys set signing_mode = %(mode)s where id = %(id)s", mode=mode, id=key.id)
    await audit_log.record(tx, actor=actor, action="key.sign_as", subject=key.id, mode=mode)


async def set_budget(tx: Tx, key: ApiKey, monthly: int | None, *, actor: str) -> None:
    """Limit what the key may spend in a calendar month (UTC); None removes the limit."""
    await query.execute(
        tx, "update api_keys set monthly_budget = %(monthly)s where id = %(id)s", monthly=monthly, id=key.id
    )
    await audit_log.record(tx, actor=actor, action="key.set_budget", subject=key.id, credits=monthly)


# For callers: members of a team, with their permissions ------------------------------------------------------------


async def list_for_caller(tx: Tx, caller: Caller, *, team: bool) -> Sequence[ApiKey]:
    """Return the caller's own keys, or all of the team's, oldest first. Raises Forbidden if a member asks for those."""
    if team and not caller.manages_team:
        raise Forbidden(messages.TEAM_KEYS_FORBIDDEN())
    return await authentication.list_keys(tx, team=caller.team if team else None, user=None if team else caller.user)


async def create_for_caller(tx: Tx, caller: Caller, name: str, *, monthly_budget: int | None) -> tuple[ApiKey, str]:
    """Create another key for the caller; return it and its only copy.

    Raises Forbidden for members and for a key with a budget, which must not be able to give itself more, and Conflict
    when the team has too many keys.
    """
    if not caller.manages_team:
        raise Forbidden(messages.KEY_CREATION_FORBIDDEN())
    if await query.value(tx, "select monthly_budget from api_keys where id = %(id)s", id=caller.key) is not None:
        raise Forbidden(messages.KEY_CREATION_WITH_BUDGET())
    # Lock the team: of two that create the last key at once, the second counts the first.
    await query.execute(tx, "select 1 from teams where id = %(team)s for no key update", team=caller.team)
    live_keys = [key for key in await authentication.list_keys(tx, team=caller.team) if key.revoked_at is None]
    if len(live_keys) >= MAX_KEYS_PER_TEAM:
        raise Conflict(messages.TOO_MANY_KEYS(count=len(live_keys)))
    actor = _actor(caller)
    key_id, secret = await _issue(tx, caller.user, name, actor=actor)
    if monthly_budget is not None:
        await set_budget(tx, await authentication.get_key(tx, key_id), monthly_budget, actor=actor)
    return await authentication.get_key(tx, key_id), secret


async def revoke_for_caller(tx: Tx, caller: Caller, key_id: UUID) -> ApiKey:
    """Revoke a key of the caller or, for owners and admins, of the team; a revoked key stays revoked.

    Raises NotFound for a key that the caller may not see, and Forbidden if an admin revokes an owner's key.
    """
    key = await authentication.find_key_by_id(tx, key_id)
    if key is None or key.team != caller.team or not (caller.manages_team or key.user == caller.user):
        raise NotFound("Key not found")
    if key.role == "OWNER" and caller.role != "OWNER":
        raise Forbidden(messages.OWNER_KEY_PROTECTED())
    if key.revoked_at is None:
        await revoke(tx, key, actor=_actor(caller))
    return await authentication.get_key(tx, key_id)


def _actor(caller: Caller) -> str:
    return f"user:{caller.user}"
