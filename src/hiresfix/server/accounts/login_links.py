"""Signing a browser in without showing anybody a key: by a link that works once and soon ends.

Guarantees: a link makes one key, however many follow it at once; the key is its user's, has a name by which it is told
from others and ends by itself; neither link nor key is stored, only their hashes. Who is suspended or was removed
meanwhile gets nothing, and every refusal has the same text.
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from hiresfix.errors import Unauthenticated
from hiresfix.server.accounts import api_keys, audit_log, authentication
from hiresfix.server.database import query
from hiresfix.server.database.pool import Tx

KEY_NAME = "Studio"
KEY_DAYS = 30
"""How long the key lasts that a link was exchanged for."""
FRAGMENT = "signin"
REFUSED = "This sign-in link was used already or is too old. Get a new one with `hiresfix signin`, or use an API key."
ACTOR = "api:signin"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entrance:
    """What a link was exchanged for; `key` is the only copy of the API key."""

    key: str
    expires_at: datetime


async def offer(tx: Tx, user: UUID, *, valid_for: timedelta, actor: str) -> str:
    """A new link's token for this user. The returned text is the only copy there will ever be."""
    await query.execute(tx, "delete from signin_links where expires_at < now() - interval '1 day'")
    token = secrets.token_hex(20)
    made = await query.value(
        tx,
        "insert into signin_links (digest, user_id, expires_at)"
        " values (%(digest)s, %(user)s, now() + %(valid)s) returning id",
        digest=_digest(token),
        user=user,
        valid=valid_for,
    )
    await audit_log.note(tx, actor=actor, action="signin.offer", subject=made, user=str(user))
    return token


def link(public_url: str, token: str) -> str:
    """The address to open. The token is behind the `#`: browsers send it to no server and in no Referer."""
    return f"{public_url.rstrip('/')}/studio#{FRAGMENT}={token}"


async def redeem(tx: Tx, token: str) -> Entrance:
    """Use the link up and make its key; raises Unauthenticated if it is not good, or not any more."""
    user = await query.value(
        tx,
        "update signin_links link set used_at = now() from users u join teams t on t.id = u.team_id"
        " where link.digest = %(digest)s and link.used_at is null and link.expires_at > now() and u.id = link.user_id"
        " and u.removed_at is null and u.suspended_at is null and t.suspended_at is null returning u.id",
        digest=_digest(token),
    )
    if user is None:
        raise Unauthenticated(REFUSED)
    key = await api_keys.issue(tx, user, KEY_NAME, actor=ACTOR, valid_for=timedelta(days=KEY_DAYS))
    expires_at = await query.value(
        tx, "select expires_at from api_keys where digest = %(digest)s", digest=authentication.digest(key)
    )
    return Entrance(key=key, expires_at=expires_at)


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode(errors="replace")).digest()
