"""Webhook secrets: the secret that a team shares with its receivers (Standard Webhooks, standardwebhooks.com).

A secret is created when somebody first asks for it; until then nothing is signed this way. After a rotation the old
secret signs beside the new one for a day, so that receivers can switch. Secrets are stored as text, because signing
needs them: anybody who reads the database can sign in the team's name.
"""

from __future__ import annotations

import base64
import secrets
from datetime import timedelta
from uuid import UUID

from hiresfix.server.database import query
from hiresfix.server.database.pool import Tx

WHSEC_PREFIX = "whsec_"
SECRET_BYTES = 32
ROTATION_OVERLAP = timedelta(hours=24)


async def active_secrets(tx: Tx, team: UUID) -> list[str]:
    """Return all secrets that sign now, the newest first; empty if the team never asked for one."""
    rows = await (
        await tx.execute(
            "select secret from webhook_secrets where team_id = %(team)s and (expires_at is null or expires_at > now())"
            " order by expires_at desc nulls first",
            {"team": team},
        )
    ).fetchall()
    return [secret for (secret,) in rows]


async def get_or_create(tx: Tx, team: UUID) -> tuple[str, bool]:
    """Return the team's secret, created if there is none, and whether it was created."""
    statement = "select secret from webhook_secrets where team_id = %(team)s and expires_at is null"
    if (secret := await query.value(tx, statement, team=team)) is not None:
        return str(secret), False
    # Two requests at once both get the secret that was created first.
    created = await _create(tx, team)
    return str(await query.value(tx, statement, team=team)), created


async def rotate(tx: Tx, team: UUID) -> str:
    """Create and return a new secret; the previous one still signs for `ROTATION_OVERLAP`, older ones end now."""
    await query.value(tx, "select 1 from teams where id = %(team)s for no key update", team=team)
    await query.execute(
        tx, "delete from webhook_secrets where team_id = %(team)s and expires_at is not null", team=team
    )
    await query.execute(
        tx,
        "update webhook_secrets set expires_at = now() + %(overlap)s where team_id = %(team)s",
        team=team,
        overlap=ROTATION_OVERLAP,
    )
    await _create(tx, team)
    return (await get_or_create(tx, team))[0]


async def _create(tx: Tx, team: UUID) -> bool:
    secret = WHSEC_PREFIX + base64.b64encode(secrets.token_bytes(SECRET_BYTES)).decode()
    return bool(
        await query.execute(
            tx,
            "insert into webhook_secrets (team_id, secret) values (%(team)s, %(secret)s) on conflict do nothing",
            team=team,
            secret=secret,
        )
    )
