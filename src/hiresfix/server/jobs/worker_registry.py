"""Worker registry: which worker processes are up, what each can hold, and until when it counts as alive.

`Capacity` says what a worker can hold; in SQL, the view `capacities` and the function `holds` say the same.

Guarantees: a worker is listed from the moment it is ready for jobs until it leaves, or until it has missed
`MISSED_HEARTBEATS` of its heartbeats. A worker whose row was lost (a crash of the database, too) is listed again with
its next heartbeat. The registry decides nothing about jobs: a worker that is missing here keeps its leases.

A readiness check asks `any_alive`; `list_workers` also returns the workers that died within the last hour.
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

MISSED_HEARTBEATS = 4
"""Number of missed heartbeats in a row after which a worker is dead, but never sooner than `MIN_ALIVE_SECONDS`."""
MIN_ALIVE_SECONDS = 5.0
DEAD_WORKERS_KEPT = "1 hour"


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """Limits of a worker: megapixels of a result, and the tags it has. A job may need no other tags; None: any."""

    most_megapixels: float
    tags: Sequence[str] | None

    @property
    def name(self) -> str:
        """16 hexadecimal digits, the same for equal capacities in any process; empty for `UNLIMITED`."""
        if self.tags is None:
            return ""
        return hashlib.blake2b(f"{float(self.most_megapixels)} {sorted(self.tags)}".encode(), digest_size=8).hexdigest()

    def to_sql(self) -> dict[str, object]:
        """Return the arguments of the SQL function `holds`."""
        return {"most_megapixels": self.most_megapixels, "tags": None if self.tags is None else list(self.tags)}


UNLIMITED = Capacity(most_megapixels=math.inf, tags=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerInfo:
    """A worker's description of itself.

    Attributes:
        name: as in the rows of the jobs it works on.
        device: in torch's notation.
        memory_bytes: of the device, or of the host if the device is the CPU.
        most_megapixels: the largest result that fits.
        tags: properties that jobs may need.
        draining: it finishes its running job and takes no other.
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
class RegisteredWorker(WorkerInfo):
    """A worker as the database knows it."""

    started_at: datetime
    seen_at: datetime
    alive: bool


async def heartbeat(tx: Tx, worker: WorkerInfo, *, every: float) -> None:
    """Record that the worker is alive and sends its next heartbeat in `every` seconds."""
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
        lifetime=max(MISSED_HEARTBEATS * every, MIN_ALIVE_SECONDS),
    )


async def unregister(tx: Tx, worker: UUID) -> None:
    """Remove a worker that shuts down; does nothing if it is not listed."""
    await query.execute(tx, "delete from workers where id = %(worker)s", worker=worker)


async def any_alive(tx: Tx) -> bool:
    """Return True if at least one worker is up and takes jobs."""
    return bool(await query.value(tx, "select exists (select from workers where alive_until > now() and not draining)"))


async def list_workers(tx: Tx) -> list[RegisteredWorker]:
    """Return all registered workers by name, including those that died within the last hour."""
    return await query.every(
        tx,
        RegisteredWorker,
        "select id, name, host, device, memory_bytes, most_megapixels, tags, version, draining, started_at, seen_at,"
        " alive_until > now() as alive from workers order by name, started_at",
    )


async def capacities(tx: Tx) -> list[Capacity]:
    """Return the distinct capacities of the workers that take jobs now; only `UNLIMITED` if no worker is known."""
    return await query.every(tx, Capacity, "select most_megapixels, tags from capacities")


async def forget_dead(tx: Tx) -> int:
    """Delete workers that have been dead for an hour; returns their number."""
    return await query.execute(
        tx, "delete from workers where alive_until < now() - %(kept)s::interval", kept=DEAD_WORKERS_KEPT
    )
