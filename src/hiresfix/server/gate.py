"""What every request passes before it does anything: whose it is, and whether it was answered already.

The idempotency rows live here. A row appears in the transaction of the job it names (api-contract.md 13), so
after a crash between commit and answer the retry finds the job, and a refused request leaves its key unused.
"""

from __future__ import annotations

from uuid import UUID

import psycopg

from hiresfix.errors import Conflict, Unavailable
from hiresfix.server import accounts, db
from hiresfix.server.accounts import Caller
from hiresfix.server.db import Database, Tx

WINDOW = "24 hours"
REUSED = "Idempotency-Key was already used with a different request"


class Replayed(Exception):
    """A request with the same key and fingerprint was accepted before, as `job`; roll back and answer with it."""

    def __init__(self, job: UUID) -> None:
        super().__init__(str(job))
        self.job = job


async def admit(database: Database, *, api_key: str | None, authorization: str | None) -> Caller:
    """The caller behind `X-API-Key` or `Authorization: Bearer`; raises Unauthenticated or Forbidden."""
    scheme, _, bearer = (authorization or "").partition(" ")
    if not api_key and scheme.lower() == "bearer":
        api_key = bearer
    async with database.transaction() as tx:
        return await accounts.authenticate(tx, api_key.strip() if api_key else None)


async def recall(tx: Tx, caller: Caller, *, route: str, key: str, fingerprint: bytes) -> UUID | None:
    """The job that this request made before, if it did; raises Conflict if the key stands for another request."""
    row = await (
        await tx.execute(
            "select job_id, fingerprint from idempotency_keys where user_id = %(user)s and route = %(route)s"
            " and key = %(key)s and created_at > now() - %(window)s::interval",
            {"user": caller.user, "route": route, "key": key, "window": WINDOW},
        )
    ).fetchone()
    if row is None:
        return None
    job, first = row
    if first != fingerprint:
        raise Conflict(REUSED)
    assert isinstance(job, UUID)
    return job


async def remember(tx: Tx, caller: Caller, *, route: str, key: str, fingerprint: bytes, job: UUID) -> None:
    """Bind the key to the job that this transaction is about to make. Call it before anything is locked.

    Of requests that race with one key, the unique index lets one through; the others wait here for its end
    (for `db.LOCK_TIMEOUT` at most, then Unavailable) and either take its place or raise Replayed or Conflict.
    """
    try:
        await db.execute(
            tx,
            "delete from idempotency_keys where user_id = %(user)s and route = %(route)s and key = %(key)s"
            " and created_at <= now() - %(window)s::interval",
            user=caller.user,
            route=route,
            key=key,
            window=WINDOW,
        )
        bound = await db.execute(
            tx,
            "insert into idempotency_keys (user_id, route, key, fingerprint, job_id) values"
            " (%(user)s, %(route)s, %(key)s, %(fingerprint)s, %(job)s) on conflict do nothing",
            user=caller.user,
            route=route,
            key=key,
            fingerprint=fingerprint,
            job=job,
        )
    except psycopg.errors.LockNotAvailable as error:
        raise Unavailable from error
    if not bound:
        first = await recall(tx, caller, route=route, key=key, fingerprint=fingerprint)
        if first is None:
            raise Unavailable
        raise Replayed(first)


async def forget_old(tx: Tx) -> int:
    """Drop rows whose window has passed; returns how many."""
    return await db.execute(
        tx, "delete from idempotency_keys where created_at <= now() - %(window)s::interval", window=WINDOW
    )
