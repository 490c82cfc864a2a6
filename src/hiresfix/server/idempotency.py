"""What every request passes before it does anything: whose it is, whether too many came, whether it was answered.

Each request counts against one quota (`Bucket`): its key's or, if its key is wrong, its address's. A right key works
from everywhere, also from an address that tries wrong ones: a key holds 160 random bits, so no rate of guessing finds
one, while a lock on the address would let one broken client shut out everybody behind the same router.

The idempotency rows live here. A row appears in the transaction of the job it names (api-contract.md 13), so
after a crash between commit and answer the retry finds the job, and a refused request leaves its key unused.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from enum import StrEnum
from uuid import UUID

import psycopg

from hiresfix.errors import Conflict, Unavailable
from hiresfix.server.accounts import authentication
from hiresfix.server.accounts.authentication import Caller
from hiresfix.server.database import pool
from hiresfix.server.database.pool import Database, Tx
from hiresfix.server.http.rate_limit import Quota
from hiresfix.server.settings import Settings

WINDOW = "24 hours"
REUSED = "Idempotency-Key was already used with a different request"


class Bucket(StrEnum):
    """What a request counts as. Job polling is apart: published loops crash on an error in place of a job."""

    GENERAL = "general"
    JOB_POLLING = "job-polling"
    SUBMISSIONS = "submissions"
    UPLOADS = "uploads"
    FAILED_AUTH = "failed-auth"
    SIGN_UP = "sign-up"


def quotas(settings: Settings) -> Mapping[Bucket, Quota]:
    """How many a minute of each."""
    amounts = {
        Bucket.GENERAL: settings.rate_general,
        Bucket.JOB_POLLING: settings.rate_job_polling,
        Bucket.SUBMISSIONS: settings.rate_submissions,
        Bucket.UPLOADS: settings.rate_uploads,
        Bucket.FAILED_AUTH: settings.rate_failed_auth,
        Bucket.SIGN_UP: settings.rate_signup,
    }
    return {bucket: Quota(name=bucket.value, amount=amount) for bucket, amount in amounts.items()}


def address_group(host: str | None) -> str:
    """What counts as one address: a subscriber's whole IPv6 network (/64), or one IPv4 address however written."""
    try:
        address = ipaddress.ip_address(host or "")
    except ValueError:
        return "unknown"  # a socket file, or nonsense from a proxy: all of those together
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    return str(address.ipv4_mapped or ipaddress.ip_network((int(address), 64), strict=False))


class Replayed(Exception):
    """A request with the same key and fingerprint made `made` before, a job or an upload; roll back, answer with it."""

    def __init__(self, made: UUID) -> None:
        super().__init__(str(made))
        self.made = made


async def admit(database: Database, *, api_key: str | None, authorization: str | None) -> Caller:
    """The caller behind `X-API-Key` or `Authorization: Bearer`; raises Unauthenticated or Forbidden."""
    scheme, _, bearer = (authorization or "").partition(" ")
    if not api_key and scheme.lower() == "bearer":
        api_key = bearer
    async with database.looking() as tx:
        return await authentication.authenticate(tx, api_key.strip() if api_key else None)


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
        await pool.execute(
            tx,
            "delete from idempotency_keys where user_id = %(user)s and route = %(route)s and key = %(key)s"
            " and (created_at <= now() - %(window)s::interval"
            " or exists (select from uploads where id = upload_id and expires_at <= now()))",
            user=caller.user,
            route=route,
            key=key,
            window=WINDOW,
        )
        bound = await pool.value(
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
    return await pool.execute(
        tx, "delete from idempotency_keys where created_at <= now() - %(window)s::interval", window=WINDOW
    )
