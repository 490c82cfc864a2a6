"""API keys as an operator hands them out and takes them back; every change leaves a line in the audit log.

Everything takes effect with the next request. A revoked key stays revoked; a suspended one can be resumed. Webhooks of
jobs that a key submitted are signed with it whatever became of it.
"""

from __future__ import annotations

from hiresfix import signing
from hiresfix.server import accounts, audit, db
from hiresfix.server.accounts import Key
from hiresfix.server.db import Tx
from hiresfix.server.members import User


async def issue(tx: Tx, user: User, name: str, *, actor: str) -> str:
    """A new key for the user. The returned text is the only copy there will ever be."""
    key = await accounts.create_key(tx, name, user=user.id)
    made = await db.value(tx, "select id from api_keys where digest = %(digest)s", digest=accounts.digest(key))
    await audit.note(tx, actor=actor, action="key.create", subject=made, user=str(user.id), name=name)
    return key


async def rename(tx: Tx, key: Key, name: str, *, actor: str) -> None:
    await db.execute(tx, "update api_keys set name = %(name)s where id = %(id)s", name=name, id=key.id)
    await audit.note(tx, actor=actor, action="key.rename", subject=key.id, before=key.name, name=name)


async def suspend(tx: Tx, key: Key, *, actor: str) -> None:
    """Refused with 403 until it is resumed."""
    await db.execute(tx, "update api_keys set active = false where id = %(id)s", id=key.id)
    await audit.note(tx, actor=actor, action="key.suspend", subject=key.id)


async def resume(tx: Tx, key: Key, *, actor: str) -> None:
    await db.execute(tx, "update api_keys set active = true where id = %(id)s", id=key.id)
    await audit.note(tx, actor=actor, action="key.resume", subject=key.id)


async def revoke(tx: Tx, key: Key, *, actor: str) -> None:
    """Refused with 401 from now on, for good. Jobs it submitted go on."""
    await db.execute(tx, "update api_keys set revoked_at = now() where id = %(id)s", id=key.id)
    await audit.note(tx, actor=actor, action="key.revoke", subject=key.id)


async def sign_as(tx: Tx, key: Key, mode: signing.KeyMode, *, actor: str) -> None:
    """Whether its webhooks are signed with the raw digest or its hexadecimal text (api-contract.md D11)."""
    await db.execute(tx, "update api_keys set signing_mode = %(mode)s where id = %(id)s", mode=mode, id=key.id)
    await audit.note(tx, actor=actor, action="key.sign_as", subject=key.id, mode=mode)


async def set_budget(tx: Tx, key: Key, monthly: int | None, *, actor: str) -> None:
    """Bound what the key may spend in a calendar month (UTC); None takes the bound away."""
    await db.execute(
        tx, "update api_keys set monthly_budget = %(monthly)s where id = %(id)s", monthly=monthly, id=key.id
    )
    await audit.note(tx, actor=actor, action="key.set_budget", subject=key.id, credits=monthly)
