"""Login links: sign a browser in by a link that works once and expires soon, without showing a key.

Guarantees: a link creates one key, however many requests redeem it at once. The key belongs to the link's user, has a
recognisable name and expires. Neither link nor key is stored, only their hashes. A user who was suspended or removed
meanwhile gets nothing. Every refusal has the same text.
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from hiresfix import messages
from hiresfix.errors import Unauthenticated
from hiresfix.server.accounts import api_keys, audit_log, authentication
from hiresfix.server.database import query
from hiresfix.server.database.pool import Tx

KEY_NAME = "Studio"
KEY_DAYS = 30
"""Lifetime of the key that a link is exchanged for."""
FRAGMENT = "signin"
REFUSED = messages.LOGIN_LINK_INVALID()
ACTOR = "api:signin"


@dataclass(frozen=True, slots=True, kw_only=True)
class RedeemedLink:
    """Result of redeeming a link; `key` is the only copy of the API key."""

    key: str
    expires_at: datetime


async def create(tx: Tx, user: UUID, *, valid_for: timedelta, actor: str) -> str:
    """Create a link for this user and return its token, of which this is the only copy."""
    await query.execute(tx, "delete from signin_links where expires_at < now() - interval '1 day'")
    token = secrets.token_hex(20)
    link_id = await query.value(
        tx,
        "insert into signin_links (digest, user_id, expires_at)"
        " values (%(digest)s, %(user)s, now() + %(valid)s) returning id",
        digest=_digest(token),
        user=user,
        valid=valid_for,
    )
    await audit_log.record(tx, actor=actor, action="signin.offer", subject=link_id, user=str(user))
    return token


def url(public_url: str, token: str) -> str:
    """Return the URL to open. The token is behind the `#`, which browsers send neither to servers nor in Referer."""
    return f"{public_url.rstrip('/')}/studio#{FRAGMENT}={token}"


async def redeem(tx: Tx, token: str) -> RedeemedLink:
    """Mark the link as used and create its key; raises Unauthenticated for an invalid, used or expired link."""
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
    return RedeemedLink(key=key, expires_at=expires_at)


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode(errors="replace")).digest()
