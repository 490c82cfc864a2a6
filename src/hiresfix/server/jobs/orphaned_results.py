"""Strays: pictures that an attempt stored, or may store yet, after it lost its claim.

Guarantees: the place is written down in the transaction that takes the claim away, so that nothing a worker stores
before it dies stays for good, and no look through the whole store is needed to find it. A claim is never given out
twice, so what lies at such a place is nobody's result, now or later. Whoever is so late that the note is gone finds
its claim lost and deletes its picture itself.
"""

from __future__ import annotations

from datetime import timedelta
from uuid import UUID

from hiresfix.server.database import query
from hiresfix.server.database.pool import Tx


def result_key(job: UUID, token: UUID) -> str:
    """Where the attempt with this token stores its picture."""
    return f"results/{job}/{token}"


async def note(tx: Tx, job: UUID) -> None:
    """The attempt that has the job's token, if one has, is about to lose it."""
    token = await query.value(tx, "select token from jobs where id = %(job)s", job=job)
    if token is not None:
        await query.execute(tx, "insert into strays (key) values (%(key)s)", key=result_key(job, token))


async def overdue(tx: Tx, *, age: timedelta, after: str) -> list[str]:
    """Places noted so long ago, up to 1000, in the order of their keys from the one that follows `after`."""
    rows = await tx.execute(
        "select key from strays where since < now() - %(age)s and key > %(after)s order by key limit 1000",
        {"age": age, "after": after},
    )
    return [key for (key,) in await rows.fetchall()]


async def forget(tx: Tx, key: str) -> None:
    await query.execute(tx, "delete from strays where key = %(key)s", key=key)
