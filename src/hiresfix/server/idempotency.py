"""What every request passes before it does anything: whose it is, whether too many came, whether it was answered.

Each request counts against one quota (`Bucket`): its key's or, if its key is wrong, its address's. A right key works
from everywhere, also from an address that tries wrong ones: a key holds 160 random bits, so no rate of guessing finds
one, while a lock on the address would let one broken client shut out everybody behind the same router.

The idempotency rows live here. A row appears in the transaction of the job it names (contract.md 13), so
after a crash between commit and answer the retry finds the job, and a refused request leaves its key unused.
"""

from __future__ import annotations

from uuid import UUID

import psycopg

from hiresfix.errors import Conflict, Unavailable
from hiresfix.server.accounts.authentication import Caller
from hiresfix.server.database import query
from hiresfix.server.database.pool import Tx

WINDOW = "24 hours"
REUSED = "Idempotency-Key was already used with a different request"


class Replayed(Exception):
    """A request with the same key and fingerprint made `made` before, a job or an upload; roll back, answer with it."""

    def __init__(self, made: UUID) -> None:
        super().__init__(str(made))
        self.made = made


async def recall(tx: Tx, caller: Caller, *, route: str, key: str, fingerprint: bytes) -> UUID | None:
    """The job, or the upload that is not expired, that this request made before, if it did.

    Raises Conflict if the key stands for another request.
    """
    row = await (
        await tx.execute(
            "select coalesce(job_id, upload_id), fingerprint from idempotency_keys where user_id = %(user)s"
            " and route = %(route)s and key = %(key)s and created_at > now() - %(window)s::interval"
            " and not exists (select from uploads where id = upload_id and expires_at <= now())",
            {"user": caller.user, "route": route, "key": key, "window": WINDOW},
        )
    ).fetchone()
    if row is None:
        return None
    made, first = row
    if first != fingerprint:
        raise Conflict(REUSED)
    assert isinstance(made, UUID)
    return made


async def remember(
    tx: Tx,
    caller: Caller,
    *,
    route: str,
    key: str,
    fingerprint: bytes,
    job: UUID | None = None,
    upload: UUID | None = None,
) -> None:
    """Bind the key to the job or upload that this transaction is about to make. Call it before anything is locked.

    Of requests that race with one key, the unique index lets one through; the others wait here for its end
    (for `db.LOCK_TIMEOUT` at most, then Unavailable) and either take its place or raise Replayed or Conflict.
    """
    try:
        await query.execute(
            tx,
            "delete from idempotency_keys where user_id = %(user)s and route = %(route)s and key = %(key)s"
            " and (created_at <= now() - %(window)s::interval"
            " or exists (select from uploads where id = upload_id and expires_at <= now()))",
            user=caller.user,
            route=route,
            key=key,
            window=WINDOW,
        )
        bound = await query.value(
            tx,
            "insert into idempotency_keys (user_id, route, key, fingerprint, job_id, upload_id) values"
            " (%(user)s, %(route)s, %(key)s, %(fingerprint)s, %(job)s, %(upload)s) on conflict do nothing"
            " returning true",
            user=caller.user,
            route=route,
            key=key,
            fingerprint=fingerprint,
            job=job,
            upload=upload,
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
    return await query.execute(
        tx, "delete from idempotency_keys where created_at <= now() - %(window)s::interval", window=WINDOW
    )
