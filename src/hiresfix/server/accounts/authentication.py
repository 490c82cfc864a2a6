"""Authentication: find the user and the team behind an API key.

A key is shown once and never stored; only its SHA-256 is, which also signs the key's webhooks.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import LiteralString
from uuid import UUID

from hiresfix import messages, webhook_signing
from hiresfix.errors import Conflict, Forbidden, NotFound, Unauthenticated
from hiresfix.server.billing import ledger
from hiresfix.server.database import query
from hiresfix.server.database.pool import Database, Tx

# Clients redact keys by exactly this pattern; keys issued here are hexadecimal after the prefix.
_KEY_PATTERN = re.compile(r"afk_[A-Za-z0-9]{16,128}")
PREFIX_LENGTH = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """The sender of a request: ids of user, team and key, and the user's role in the team."""

    user: UUID
    team: UUID
    key: UUID
    role: str

    @property
    def manages_team(self) -> bool:
        """True for owners and admins, who see and change everything of their team; members only their own."""
        return self.role in ("OWNER", "ADMIN")


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """User, team and key behind a request, as the caller may see them."""

    user_id: UUID
    email: str
    role: str
    team_id: UUID
    team_name: str
    credits: int
    plan: str
    max_concurrent_jobs: int
    key_id: UUID
    key_name: str
    key_prefix: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """An API key as it may be shown: everything but the key itself."""

    id: UUID
    name: str
    prefix: str
    email: str
    team: UUID
    team_name: str
    active: bool
    signing_mode: webhook_signing.KeyMode
    monthly_budget: int | None
    """Credits it may spend in a calendar month; None is no limit but the team's credits."""
    created_at: datetime
    last_used_at: datetime | None
    expires_at: datetime | None
    """When it expires; None is never."""
    revoked_at: datetime | None
    user: UUID
    role: str
    """Role of the key's user; keys have none."""


_KEYS: LiteralString = """
    select k.id, k.name, k.prefix, u.email, t.id as team, t.name as team_name, k.active, k.signing_mode,
    k.monthly_budget, k.created_at, k.last_used_at, k.expires_at, k.revoked_at, u.id as user, u.role
    from api_keys k join users u on u.id = k.user_id join teams t on t.id = u.team_id
"""


def digest(key: str) -> bytes:
    """Return the SHA-256 of the key: the stored value, and the secret that signs its webhooks."""
    return hashlib.sha256(key.encode()).digest()


async def authenticate(tx: Tx, key: str | None) -> Caller:
    """Return the caller behind an API key, and record the use of the key at most once a minute.

    Raises Unauthenticated for a missing, unknown, revoked or expired key, and Forbidden for a suspended one or while
    its user or team is suspended.
    """
    if not key:
        raise Unauthenticated("API key is required")
    if not _KEY_PATTERN.fullmatch(key):
        raise Unauthenticated("Invalid API key")
    # The lookup is by the hash of a random 160-bit secret, so its timing reveals nothing about the key.
    row = await (
        await tx.execute(
            "select k.id, k.user_id, u.team_id, u.role,"
            " k.active and u.suspended_at is null and t.suspended_at is null,"
            " k.last_used_at is null or k.last_used_at < now() - interval '1 minute'"
            " from api_keys k join users u on u.id = k.user_id join teams t on t.id = u.team_id"
            " where k.digest = %(digest)s and k.revoked_at is null"
            " and (k.expires_at is null or k.expires_at > now())",
            {"digest": digest(key)},
        )
    ).fetchone()
    if row is None:
        raise Unauthenticated("Invalid API key")
    key_id, user, team, role, active, stale = row
    if not active:
        raise Forbidden("API key is inactive")
    if stale:
        await query.execute(tx, "update api_keys set last_used_at = now() where id = %(id)s", id=key_id)
    return Caller(user=user, team=team, key=key_id, role=role)


async def profile(tx: Tx, caller: Caller) -> Profile:
    """Return user, team and key of the caller."""
    row = await query.one(
        tx,
        Profile,
        "select u.id as user_id, u.email, u.role, t.id as team_id, t.name as team_name, t.credits, t.plan,"
        " coalesce(t.max_concurrent_jobs, p.max_concurrent_jobs) as max_concurrent_jobs,"
        " k.id as key_id, k.name as key_name, k.prefix as key_prefix"
        " from api_keys k join users u on u.id = k.user_id join teams t on t.id = u.team_id"
        " join plans p on p.name = t.plan where k.id = %(key)s",
        key=caller.key,
    )
    assert row is not None
    return row


async def create_key(tx: Tx, name: str, *, user: UUID, valid_for: timedelta | None = None) -> tuple[UUID, str]:
    """Create a key for the user, which expires after `valid_for`. Return its id and its only copy."""
    key = f"afk_{secrets.token_hex(20)}"
    key_id = await query.value(
        tx,
        "insert into api_keys (user_id, name, prefix, digest, expires_at)"
        " values (%(user)s, %(name)s, %(prefix)s, %(digest)s, now() + %(valid)s::interval) returning id",
        user=user,
        valid=valid_for,
        name=name,
        prefix=key[:PREFIX_LENGTH],
        digest=digest(key),
    )
    assert isinstance(key_id, UUID)
    return key_id, key


async def bootstrap(tx: Tx, *, free_credits: int, key_name: str) -> str | None:
    """Create a team with its owner, the free credits and a key on an empty database; return the key.

    Returns None if there is a team already. Two servers that start together create one team.
    """
    await query.execute(tx, "lock table teams in exclusive mode")
    if await query.value(tx, "select 1 from teams limit 1"):
        return None
    team = await query.value(tx, "insert into teams (name) values ('Default') returning id")
    user = await query.value(
        tx,
        "insert into users (team_id, email, role) values (%(team)s, 'owner@localhost', 'OWNER') returning id",
        team=team,
    )
    if free_credits:
        await ledger.grant(tx, team, free_credits, actor="system", reason=messages.FREE_CREDITS.text)
    return (await create_key(tx, key_name, user=user))[1]


async def first_owner(tx: Tx) -> UUID:
    """Return the user that the command line acts for by default: the first owner. Raises NotFound."""
    owner = await query.value(
        tx, "select id from users where role = 'OWNER' and removed_at is null order by created_at limit 1"
    )
    if owner is None:
        raise NotFound("There is no account yet. Run `hiresfix serve` or `hiresfix migrate` once.")
    assert isinstance(owner, UUID)
    return owner


async def first_team(tx: Tx) -> UUID:
    """Return the team of the first owner. Raises NotFound."""
    team = await query.value(tx, "select team_id from users where id = %(user)s", user=await first_owner(tx))
    assert isinstance(team, UUID)
    return team


async def list_keys(tx: Tx, *, team: UUID | None = None, user: UUID | None = None) -> Sequence[ApiKey]:
    """Return all keys, or those of one team or user, oldest first."""
    return await query.every(
        tx,
        ApiKey,
        _KEYS + " where (%(team)s::uuid is null or t.id = %(team)s) and (%(user)s::uuid is null or u.id = %(user)s)"
        " order by k.created_at",
        team=team,
        user=user,
    )


async def find_key(tx: Tx, identifier: str) -> ApiKey:
    """Return the one key with this id, name or prefix that is not revoked; raises NotFound or Conflict."""
    matching = await query.every(
        tx,
        ApiKey,
        _KEYS + " where %(identifier)s in (k.id::text, k.name, k.prefix) and k.revoked_at is null",
        identifier=identifier,
    )
    if not matching:
        raise NotFound(f"No live key is called {identifier!r}. `hiresfix keys list` shows them.")
    if len(matching) > 1:
        raise Conflict(f"{len(matching)} keys are called {identifier!r}. Name one by its id (`hiresfix keys list`).")
    return matching[0]


async def find_key_by_id(tx: Tx, key_id: UUID) -> ApiKey | None:
    """Return the key with this id, revoked or not; None if there is none."""
    return await query.one(tx, ApiKey, _KEYS + " where k.id = %(id)s", id=key_id)


async def get_key(tx: Tx, key_id: UUID) -> ApiKey:
    """Return the existing key with this id."""
    key = await find_key_by_id(tx, key_id)
    assert key is not None
    return key


@dataclass(frozen=True, slots=True, kw_only=True)
class SigningKey:
    """Secret of a key's webhooks: the key's digest, used raw or as hexadecimal text (contract.md D11)."""

    digest: bytes
    mode: webhook_signing.KeyMode


async def signing_key(tx: Tx, key: UUID) -> SigningKey | None:
    """Return the signing key, also of a revoked key: its last webhooks are still signed with it."""
    return await query.one(
        tx, SigningKey, "select digest, signing_mode as mode from api_keys where id = %(key)s", key=key
    )


async def authenticate_headers(database: Database, *, api_key: str | None, authorization: str | None) -> Caller:
    """Return the caller behind `X-API-Key` or `Authorization: Bearer`; raises Unauthenticated or Forbidden."""
    scheme, _, bearer = (authorization or "").partition(" ")
    if not api_key and scheme.lower() == "bearer":
        api_key = bearer
    async with database.autocommit() as tx:
        return await authenticate(tx, api_key.strip() if api_key else None)
