"""Idempotency keys: find the job or upload that an earlier request with the same key created.

Guarantees: a row is written in the transaction of the job or upload it names (contract.md 13). So after a crash
between commit and response the retry finds it, and a refused request leaves its key unused.
"""

from __future__ import annotations

from uuid import UUID

import psycopg

from hiresfix import messages
from hiresfix.errors import Conflict, Unavailable
from hiresfix.server.accounts.authentication import Caller
from hiresfix.server.database import query
from hiresfix.server.database.pool import Tx

WINDOW = "24 hours"


class Replayed(Exception):
    """Raised when an equal request with the same key created a job or upload before: roll back, and answer with it."""

    def __init__(self, result_id: UUID) -> None:
        super().__init__(str(result_id))
        self.result_id = result_id


async def find_result(tx: Tx, caller: Caller, *, route: str, key: str, fingerprint: bytes) -> UUID | None:
    """Return the job or unexpired upload that this request created before; None if there is none.

    Raises Conflict if the key belongs to another request.
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
    result_id, first_fingerprint = row
    if first_fingerprint != fingerprint:
        raise Conflict(messages.IDEMPOTENCY_KEY_REUSED())
    assert isinstance(result_id, UUID)
    return result_id


async def bind(
    tx: Tx,
    caller: Caller,
    *,
    route: str,
    key: str,
    fingerprint: bytes,
    job: UUID | None = None,
    upload: UUID | None = None,
) -> None:
    """Bind the key to the job or upload that this transaction is about to create. Call it before taking any lock.

    Of requests that race with one key, the unique index lets one through. The others wait here until it ends, for
    `pool.LOCK_TIMEOUT` at most, and then raise Unavailable, take its place, or raise Replayed or Conflict.

    Args:
        tx: Transaction that creates the job or upload.
        caller: Sender; keys of different users are independent.
        route: Route of the request; keys of different routes are independent.
        key: The Idempotency-Key.
        fingerprint: Hash of the request; the same key with another fingerprint is a Conflict.
        job: Job that is created.
        upload: Upload that is created instead.
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
        first_result = await find_result(tx, caller, route=route, key=key, fingerprint=fingerprint)
        if first_result is None:
            raise Unavailable
        raise Replayed(first_result)


async def delete_expired(tx: Tx) -> int:
    """Delete rows older than `WINDOW`; return their number."""
    return await query.execute(
        tx, "delete from idempotency_keys where created_at <= now() - %(window)s::interval", window=WINDOW
    )
