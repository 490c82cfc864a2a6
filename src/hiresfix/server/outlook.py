"""How long it takes: the recent pace of each model, the order of the waiting jobs, and what follows for one job.

Everything is measured, nothing promised: a model that finished nothing of late has no pace, and what depends on
it is unknown. However often callers ask, the database is asked once in `QUEUE_SECONDS` about the queue and once
in `PACE_SECONDS` about the pace. A job that is newer than the last look has no forecast yet, or causes a look.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import LiteralString, Protocol
from uuid import UUID

from hiresfix import catalog
from hiresfix.server import db
from hiresfix.server.db import Database, Tx

QUEUE_SECONDS = 2.0
PACE_SECONDS = 60.0
REST = 10.0
"""Between two looks at the queue lies so many times what the last one took: 10 000 waiting jobs take a while."""
RECENT = "7 days"
SAMPLE = 200
"""Jobs of a model that its pace is measured on, the newest ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """What a model's recent jobs took from their start: seconds on average, and per megapixel of output."""

    model: str
    seconds: float
    seconds_per_megapixel: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Ahead:
    """An unfinished job: megapixels it will put out, and its progress in percent."""

    id: UUID
    model: str
    megapixels: float
    progress: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """`position` in the queue from 1, while it waits; `seconds` until it is done, at least 1. None: unknown."""

    position: int | None = None
    seconds: int | None = None


UNKNOWN = Forecast()

_AHEAD: LiteralString = """
    select id, model, progress, (source ->> 'width')::float8 * (source ->> 'height')::float8
    * (recipe ->> 'scale')::float8 ^ 2 / 1e6 as megapixels from jobs
"""


async def paces(tx: Tx) -> dict[str, Pace]:
    """By model id; only jobs that went through at the first attempt count, since others also waited."""
    rows = await db.every(
        tx,
        Pace,
        "select model, avg(seconds)::float8 as seconds, (sum(seconds) / sum(megapixels))::float8"
        " as seconds_per_megapixel from unnest(%(models)s::text[]) as wanted (name) cross join lateral"
        " (select model, extract(epoch from completed_at - started_at) as seconds,"
        "  (result ->> 'width')::numeric * (result ->> 'height')::numeric / 1e6 as megapixels from jobs"
        "  where model = wanted.name and state = 'COMPLETED' and completed_at > now() - %(recent)s::interval"
        "  and attempt = 1 and queued_at <= started_at order by completed_at desc limit %(sample)s) recent"
        " group by model",
        models=[model.id for model in catalog.MODELS],
        recent=RECENT,
        sample=SAMPLE,
    )
    return {pace.model: pace for pace in rows}


async def waiting_in_turn(tx: Tx) -> list[Ahead]:
    """Every waiting job, in the order in which workers will take them as far as can be told now."""
    # Teams take turns, so all first jobs of a team come before any second one; who waits longest is first.
    return await db.every(
        tx,
        Ahead,
        _AHEAD + " left join turns using (team_id) where state = 'QUEUED'"
        " order by row_number() over (partition by team_id order by created_at, id), given nulls first, created_at, id",
    )


async def running(tx: Tx) -> list[Ahead]:
    return await db.every(tx, Ahead, _AHEAD + " where state = 'PROCESSING'")


def forecasts(
    waiting: Iterable[Ahead], running: Iterable[Ahead], paces: Mapping[str, Pace]
) -> tuple[dict[UUID, Forecast], dict[UUID, Forecast]]:
    """What waits and what runs, by id.

    As many jobs as run now are taken to run side by side until the queue is empty: while jobs wait, the workers
    are busy. A job of unknown length makes everything behind it unknown.
    """
    left = {job.id: _seconds(job, paces) for job in running}
    lanes, before = max(1, len(left)), _sum(left.values())
    queued: dict[UUID, Forecast] = {}
    for position, job in enumerate(waiting, 1):
        own = _seconds(job, paces)
        done_in = None if before is None or own is None else before / lanes + own
        queued[job.id] = Forecast(position=position, seconds=_whole(done_in))
        before = _sum((before, own))
    return queued, {job: Forecast(seconds=_whole(seconds)) for job, seconds in left.items()}


def _seconds(job: Ahead, paces: Mapping[str, Pace]) -> float | None:
    """What is left of a job, by its size and progress."""
    pace = paces.get(job.model)
    return None if pace is None else job.megapixels * pace.seconds_per_megapixel * (1 - job.progress / 100)


def _sum(parts: Iterable[float | None]) -> float | None:
    total = 0.0
    for part in parts:
        if part is None:
            return None
        total += part
    return total


def _whole(seconds: float | None) -> int | None:
    return None if seconds is None else max(1, math.ceil(seconds))


class Unfinished(Protocol):
    """What a forecast reads of a job."""

    @property
    def id(self) -> UUID: ...
    @property
    def state(self) -> str: ...
    @property
    def created_at(self) -> datetime: ...
    @property
    def started_at(self) -> datetime | None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class _Picture:
    """The queue as it was at `taken_at`, by the database's clock.

    By this process's: worth keeping until `stale`, and not to be replaced before `rested`.
    """

    taken_at: datetime
    stale: float
    rested: float
    waiting: dict[UUID, Forecast]
    running: dict[UUID, Forecast]


class Outlook:
    """One process's view of pace and queue, a moment old at most."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._paces: dict[str, Pace] = {}
        self._paces_until = -math.inf
        self._picture: _Picture | None = None
        self._looking = asyncio.Lock()

    async def pace(self, model: str) -> Pace | None:
        """A model's recent pace, None if it has none; while the database is away, what was known last."""
        async with self._looking:
            if time.monotonic() >= self._paces_until:
                # Noted first: while the database is away, strangers who ask for this do not queue up for it.
                self._paces_until = time.monotonic() + PACE_SECONDS
                with suppress(*db.OUTAGE):
                    async with self._database.transaction() as tx:
                        self._paces = await paces(tx)
        return self._paces.get(model)

    async def of(self, job: Unfinished) -> Forecast:
        """What can be said about this job; nothing once it is finished."""
        if job.state not in ("QUEUED", "PROCESSING"):
            return UNKNOWN
        try:
            picture = await self._look(since=job.started_at or job.created_at)
        except db.OUTAGE:
            return UNKNOWN  # no reason to break off what is being told of the job itself
        return (picture.waiting if job.state == "QUEUED" else picture.running).get(job.id, UNKNOWN)

    async def _look(self, *, since: datetime) -> _Picture:
        """The queue, from memory if that is fresh and knows of what happened at `since`."""
        async with self._looking:
            picture, now = self._picture, time.monotonic()
            if picture is None or (now >= picture.rested and (now >= picture.stale or picture.taken_at < since)):
                picture = self._picture = await self._take_picture()
            return picture

    async def _take_picture(self) -> _Picture:
        started = time.monotonic()
        async with self._database.transaction() as tx:
            taken_at = await db.value(tx, "select now()")
            if time.monotonic() >= self._paces_until:
                self._paces, self._paces_until = await paces(tx), time.monotonic() + PACE_SECONDS
            waiting, at_work = forecasts(await waiting_in_turn(tx), await running(tx), self._paces)
        ended = time.monotonic()
        return _Picture(
            taken_at=taken_at,
            stale=started + QUEUE_SECONDS,
            rested=ended + REST * (ended - started),
            waiting=waiting,
            running=at_work,
        )
