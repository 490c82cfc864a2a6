"""Orphaned results: images that an attempt stored, or may still store, after it lost its claim.

Guarantees: the storage key is recorded in the same transaction that takes the claim away, so nothing a worker stores
before it dies stays for good, and finding it needs no scan of the store. A token is never issued twice, so whatever
lies under such a key is not, and never becomes, a job's result. A worker that is so late that the record is gone
finds its claim lost and deletes its image itself.
"""

from __future__ import annotations

from datetime import timedelta
from uuid import UUID

from hiresfix.server import storage_keys
from hiresfix.server.database import query
from hiresfix.server.database.pool import Tx


async def record(tx: Tx, job: UUID) -> None:
    """Record the key of the attempt that is about to lose its claim on the job, if there is one."""
    token = await query.value(tx, "select token from jobs where id = %(job)s", job=job)
    if token is not None:
        await query.execute(tx, "insert into strays (key) values (%(key)s)", key=storage_keys.result(job, token))


async def list_due(tx: Tx, *, age: timedelta, after: str) -> list[str]:
    """Return up to 1000 keys recorded at least `age` ago, in key order, starting behind `after`."""
    rows = await tx.execute(
        "select key from strays where since < now() - %(age)s and key > %(after)s order by key limit 1000",
        {"age": age, "after": after},
    )
    return [key for (key,) in await rows.fetchall()]


async def forget(tx: Tx, key: str) -> None:
    await query.execute(tx, "delete from strays where key = %(key)s", key=key)
