"""The worker processes that are up: who they are, what they can hold, and until when they count as alive.

What a worker can hold is its `Capacity`; the view `capacities` and the function `holds` say the same to SQL.

Guarantees: a worker is listed from the moment it is ready for jobs until it leaves, or until it has not been heard of
for `BEATS` of its own beats; a worker that was forgotten, by a crash of the database too, is listed again with its next
beat. It decides nothing about jobs: a worker that is missing here keeps what its leases give it.

Whoever asks "is a worker alive?", say a readiness check, asks `anybody_alive`; who wants to show them, `members` gives
the dead ones of the last hour too.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from hiresfix.server.database import query
from hiresfix.server.database.pool import Tx

BEATS = 4
"""A worker is dead when so many beats in a row are missing; never sooner than in `LEAST_SECONDS`."""
LEAST_SECONDS = 5.0
REMEMBERED = "1 hour"


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """What a worker can hold: results of so many megapixels, and jobs that need nothing but these tags (None: any)."""

    most_megapixels: float
    tags: Sequence[str] | None

    @property
    def name(self) -> str:
        """The same for equal capacities in any process; 16 letters and digits. Empty for one that holds everything."""
        if self.tags is None:
            return ""
        return hashlib.blake2b(f"{float(self.most_megapixels)} {sorted(self.tags)}".encode(), digest_size=8).hexdigest()

    def to_sql(self) -> dict[str, object]:
        """The arguments of `holds`."""
        return {"most_megapixels": self.most_megapixels, "tags": None if self.tags is None else list(self.tags)}


ANYTHING = Capacity(most_megapixels=math.inf, tags=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """What a worker says of itself. name: as the jobs it works on have it. device: as torch calls it.

    memory_bytes: of the device, or of the host where that is the CPU. most_megapixels: of a result that it can hold.
    tags: what it has that jobs may need. draining: it finishes what it has and takes nothing more.
    """

    id: UUID
    name: str
    host: str
    device: str
    memory_bytes: int
    most_megapixels: float
    tags: Sequence[str]
    version: str
    draining: bool = False

    @property
    def capacity(self) -> Capacity:
        return Capacity(most_megapixels=self.most_megapixels, tags=self.tags)


@dataclass(frozen=True, slots=True, kw_only=True)
class Member(Worker):
    """A worker as the database knows it."""

    started_at: datetime
    seen_at: datetime
    alive: bool


async def beat(tx: Tx, worker: Worker, *, every: float) -> None:
    """The worker lives, and is going to say so again in `every` seconds."""
    await query.execute(
        tx,
        "insert into workers (id, name, host, device, memory_bytes, most_megapixels, tags, version, draining,"
        " started_at, seen_at, alive_until) values (%(id)s, %(name)s, %(host)s, %(device)s, %(memory_bytes)s,"
        " %(most_megapixels)s, %(tags)s, %(version)s, %(draining)s, now(), now(),"
        " now() + make_interval(secs => %(lifetime)s)) on conflict (id) do update"
        " set seen_at = excluded.seen_at, alive_until = excluded.alive_until, draining = excluded.draining",
        id=worker.id,
        name=worker.name,
        host=worker.host,
        device=worker.device,
        memory_bytes=worker.memory_bytes,
        most_megapixels=worker.most_megapixels,
        tags=sorted(worker.tags),
        version=worker.version,
        draining=worker.draining,
        lifetime=max(BEATS * every, LEAST_SECONDS),
    )


async def leave(tx: Tx, worker: UUID) -> None:
    """The worker ends and says so; no error when it is not listed."""
    await query.execute(tx, "delete from workers where id = %(worker)s", worker=worker)


async def anybody_alive(tx: Tx) -> bool:
    """Whether any worker is up and takes jobs."""
    return bool(await query.value(tx, "select exists (select from workers where alive_until > now() and not draining)"))


async def members(tx: Tx) -> list[Member]:
    """Every worker that is remembered, by name."""
    return await query.every(
        tx,
        Member,
        "select id, name, host, device, memory_bytes, most_megapixels, tags, version, draining, started_at, seen_at,"
        " alive_until > now() as alive from workers order by name, started_at",
    )


async def capacities(tx: Tx) -> list[Capacity]:
    """The different capacities of the workers that take jobs now; `ANYTHING` alone while no worker is known."""
    return await query.every(tx, Capacity, "select most_megapixels, tags from capacities")


async def forget_dead(tx: Tx) -> int:
    """Forget those that have been dead for an hour; returns how many."""
    return await query.execute(
        tx, "delete from workers where alive_until < now() - %(remembered)s::interval", remembered=REMEMBERED
    )
