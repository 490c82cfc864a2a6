"""The secret a team shares with its receivers, to sign webhooks after Standard Webhooks (standardwebhooks.com).

A secret is made when somebody first asks for it; until then nothing is signed this way. After a rotation the old one
signs beside the new for a day, so that receivers can change over. Kept as text, because signing needs it: whoever
reads the database can sign in the team's name.
"""

from __future__ import annotations

import base64
import secrets
from datetime import timedelta
from uuid import UUID

from hiresfix.server.database import query
from hiresfix.server.database.pool import Tx

PREFIX = "whsec_"
BYTES = 32
OVERLAP = timedelta(hours=24)


async def signing(tx: Tx, team: UUID) -> list[str]:
    """All secrets that sign now, the newest first; empty if the team never asked for one."""
    rows = await (
        await tx.execute(
            "select secret from webhook_secrets where team_id = %(team)s and (expires_at is null or expires_at > now())"
            " order by expires_at desc nulls first",
            {"team": team},
        )
    ).fetchall()
    return [secret for (secret,) in rows]


async def current(tx: Tx, team: UUID) -> tuple[str, bool]:
    """The team's secret, made if there is none, and whether it was."""
    statement = "select secret from webhook_secrets where team_id = %(team)s and expires_at is null"
    if (found := await query.value(tx, statement, team=team)) is not None:
        return str(found), False
    # Two that ask at once both get the one that was made first.
    made = await _make(tx, team)
    return str(await query.value(tx, statement, team=team)), made


async def rotate(tx: Tx, team: UUID) -> str:
    """A new secret; the one before it signs beside it for `OVERLAP`, and any older one ends now."""
    await query.value(tx, "select 1 from teams where id = %(team)s for no key update", team=team)
    await query.execute(
        tx, "delete from webhook_secrets where team_id = %(team)s and expires_at is not null", team=team
    )
    await query.execute(
        tx,
        "update webhook_secrets set expires_at = now() + %(overlap)s where team_id = %(team)s",
        team=team,
        overlap=OVERLAP,
    )
    await _make(tx, team)
    return (await current(tx, team))[0]


async def _make(tx: Tx, team: UUID) -> bool:
    secret = PREFIX + base64.b64encode(secrets.token_bytes(BYTES)).decode()
    return bool(
        await query.execute(
            tx,
            "insert into webhook_secrets (team_id, secret) values (%(team)s, %(secret)s) on conflict do nothing",
            team=team,
            secret=secret,
        )
    )
