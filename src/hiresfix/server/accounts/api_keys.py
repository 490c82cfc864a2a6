"""API keys as operators and teams hand them out and take them back; every change leaves a line in the audit log.

Everything takes effect with the next request. A revoked key stays revoked; a suspended one can be resumed. Webhooks of
jobs that a key submitted are signed with it whatever became of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import LiteralString
from uuid import UUID

from hiresfix import signing
from hiresfix.errors import Conflict, Forbidden, NotFound
from hiresfix.server.accounts import audit_log, authentication
from hiresfix.server.accounts.authentication import Caller, Key
from hiresfix.server.database import query
from hiresfix.server.database.pool import Tx

MOST_KEYS = 100
"""Live keys of a team to which its people may come; what asks for more is a loop that went wrong."""

_BY_DIGEST: LiteralString = "select id from api_keys where digest = %(digest)s"


async def issue(tx: Tx, user: UUID, name: str, *, actor: str, valid_for: timedelta | None = None) -> str:
    """A new key for the user, ending by itself if so wanted. The returned text is the only copy there will ever be."""
    key = await authentication.create_key(tx, name, user=user, valid_for=valid_for)
    made = await query.value(tx, _BY_DIGEST, digest=authentication.digest(key))
    await audit_log.note(tx, actor=actor, action="key.create", subject=made, user=str(user), name=name)
    return key


async def rename(tx: Tx, key: Key, name: str, *, actor: str) -> None:
    await query.execute(tx, "update api_keys set name = %(name)s where id = %(id)s", name=name, id=key.id)
    await audit_log.note(tx, actor=actor, action="key.rename", subject=key.id, before=key.name, name=name)


async def suspend(tx: Tx, key: Key, *, actor: str) -> None:
    """Refused with 403 until it is resumed."""
    await query.execute(tx, "update api_keys set active = false where id = %(id)s", id=key.id)
    await audit_log.note(tx, actor=actor, action="key.suspend", subject=key.id)


async def resume(tx: Tx, key: Key, *, actor: str) -> None:
    await query.execute(tx, "update api_keys set active = true where id = %(id)s", id=key.id)
    await audit_log.note(tx, actor=actor, action="key.resume", subject=key.id)


async def revoke(tx: Tx, key: Key, *, actor: str) -> None:
    """Refused with 401 from now on, for good. Jobs it submitted go on."""
    await query.execute(tx, "update api_keys set revoked_at = now() where id = %(id)s", id=key.id)
    await audit_log.note(tx, actor=actor, action="key.revoke", subject=key.id)


async def sign_as(tx: Tx, key: Key, mode: signing.KeyMode, *, actor: str) -> None:
    """Whether its webhooks are signed with the raw digest or its hexadecimal text (contract.md D11)."""
    await query.execute(tx, "update api_keys set signing_mode = %(mode)s where id = %(id)s", mode=mode, id=key.id)
    await audit_log.note(tx, actor=actor, action="key.sign_as", subject=key.id, mode=mode)


async def set_budget(tx: Tx, key: Key, monthly: int | None, *, actor: str) -> None:
    """Bound what the key may spend in a calendar month (UTC); None takes the bound away."""
    await query.execute(
        tx, "update api_keys set monthly_budget = %(monthly)s where id = %(id)s", monthly=monthly, id=key.id
    )
    await audit_log.note(tx, actor=actor, action="key.set_budget", subject=key.id, credits=monthly)


# By the team's own people -----------------------------------------------------------------------------------------


async def shown_to(tx: Tx, caller: Caller, *, team: bool) -> Sequence[Key]:
    """The caller's own keys, or all of the team's, which raises Forbidden for members; oldest first."""
    if team and not caller.leads:
        raise Forbidden("Only owners and admins may list the team's keys. Leave out scope, or use scope=user.")
    return await authentication.keys(tx, team=caller.team if team else None, user=None if team else caller.user)


async def make(tx: Tx, caller: Caller, name: str, *, monthly_budget: int | None) -> tuple[Key, str]:
    """Another key for the caller, and its only copy. Raises Forbidden, or Conflict where there are too many.

    A key with a budget makes none: what is bounded must not be able to give itself more.
    """
    if not caller.leads:
        raise Forbidden("Only owners and admins may make keys. Ask one of them.")
    if await query.value(tx, "select monthly_budget from api_keys where id = %(id)s", id=caller.key) is not None:
        raise Forbidden("A key with a monthly budget may not make keys. Use one without.")
    # The team's row is the turnstile: of two that make the last key at once, the second counts the first.
    await query.execute(tx, "select 1 from teams where id = %(team)s for no key update", team=caller.team)
    living = [key for key in await authentication.keys(tx, team=caller.team) if key.revoked_at is None]
    if len(living) >= MOST_KEYS:
        raise Conflict(f"This team has {len(living)} keys already. Revoke some that are not used.")
    actor = _person(caller)
    secret = await issue(tx, caller.user, name, actor=actor)
    made = await _by_id(tx, await query.value(tx, _BY_DIGEST, digest=authentication.digest(secret)))
    if monthly_budget is not None:
        await set_budget(tx, made, monthly_budget, actor=actor)
    return await _by_id(tx, made.id), secret


async def take_back(tx: Tx, caller: Caller, key: UUID) -> Key:
    """Revoke a key of the caller's, or of the caller's team; one that was revoked before stays so.

    Raises NotFound for a key that the caller may not see, and Forbidden for an owner's where the caller is none.
    """
    found = next((known for known in await authentication.keys(tx, team=caller.team) if known.id == key), None)
    if found is None or not (caller.leads or found.user == caller.user):
        raise NotFound("Key not found")
    if found.role == "OWNER" and caller.role != "OWNER":
        raise Forbidden("Only an owner may revoke an owner's key. Ask one of them.")
    if found.revoked_at is None:
        await revoke(tx, found, actor=_person(caller))
    return await _by_id(tx, key)


async def _by_id(tx: Tx, key: UUID) -> Key:
    return next(known for known in await authentication.keys(tx) if known.id == key)


def _person(caller: Caller) -> str:
    return f"user:{caller.user}"
