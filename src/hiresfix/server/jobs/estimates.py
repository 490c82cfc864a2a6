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
from itertools import accumulate
from typing import LiteralString, Protocol
from uuid import UUID

from hiresfix.models import catalog
from hiresfix.server.database import pool, query
from hiresfix.server.database.pool import Database, Tx
from hiresfix.server.jobs.queue_snapshot import Line, Waiting

QUEUE_SECONDS = 2.0
PACE_SECONDS = 60.0
WAITING_SECONDS = 1.0
REST = 10.0
"""Between two looks at the queue lies so many times what the last one took: a long queue takes a while."""
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
    """A running job: megapixels it will put out, and its progress in percent."""

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

_RUNNING: LiteralString = """
    select id, model, progress, megapixels(jobs) as megapixels from jobs where state = 'PROCESSING'
"""


async def paces(tx: Tx) -> dict[str, Pace]:
    """By model id; only jobs that went through at the first attempt count, since others also waited."""
    rows = await query.every(
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


async def waiting_in_all(tx: Tx, *, most: int) -> int:
    """How many jobs wait, counted no further than `most`."""
    counted = "select count(*) from (select from jobs where state = 'QUEUED' limit %(most)s) waiting"
    return int(await query.value(tx, counted, most=most))


async def running(tx: Tx) -> list[Ahead]:
    return await query.every(tx, Ahead, _RUNNING)


class Forecasts:
    """What can be said about the jobs that wait and those that run, as they were at one moment.

    As many jobs as run are taken to run side by side until the queue is empty: while jobs wait, the workers are busy.
    A job of unknown length makes everything behind it unknown, and one that nobody can hold only itself.
    """

    def __init__(self, waiting: Line, running: Iterable[Ahead], paces: Mapping[str, Pace]) -> None:
        pace = {name: found.seconds_per_megapixel for name, found in paces.items()}
        self._running = {
            job.id: pace.get(job.model, math.nan) * job.megapixels * (1 - job.progress / 100) for job in running
        }
        self._lanes = max(1, len(self._running))
        self._own = [
            math.nan if size is None else pace.get(model, math.nan) * size
            for model, size in zip(waiting.models, waiting.megapixels, strict=True)
        ]
        counted = (0.0 if size is None else own for own, size in zip(self._own, waiting.megapixels, strict=True))
        self._before = list(accumulate(counted, initial=math.fsum(self._running.values())))
        self._places = {waiting.ids[16 * place : 16 * place + 16]: place for place in range(len(self._own))}

    def of_waiting(self, job: UUID) -> Forecast:
        place = self._places.get(job.bytes)
        if place is None:
            return UNKNOWN
        seconds = self._before[place] / self._lanes + self._own[place]
        return Forecast(position=place + 1, seconds=_whole(seconds))

    def of_running(self, job: UUID) -> Forecast:
        return Forecast(seconds=_whole(self._running.get(job, math.nan)))


def _whole(seconds: float) -> int | None:
    return None if math.isnan(seconds) else max(1, math.ceil(seconds))


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
    forecasts: Forecasts


class Outlook:
    """One process's view of pace and queue, a moment old at most."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._paces: dict[str, Pace] = {}
        self._paces_until = -math.inf
        self._picture: _Picture | None = None
        self._line = Waiting()
        self._looking = asyncio.Lock()
        self._waiting = 0
        self._waiting_until = -math.inf

    async def pace(self, model: str) -> Pace | None:
        """A model's recent pace, None if it has none; while the database is away, what was known last."""
        async with self._looking:
            if time.monotonic() >= self._paces_until:
                # Noted first: while the database is away, strangers who ask for this do not queue up for it.
                self._paces_until = time.monotonic() + PACE_SECONDS
                with suppress(*pool.OUTAGE):
                    async with self._database.transaction() as tx:
                        self._paces = await paces(tx)
        return self._paces.get(model)

    async def waiting(self, *, most: int) -> int:
        """How many jobs wait in all, counted no further than `most` and at most `WAITING_SECONDS` ago, with those that
        were submitted through this process since.
        """
        if time.monotonic() >= self._waiting_until:
            self._waiting_until = time.monotonic() + WAITING_SECONDS  # first: whoever asks meanwhile does not count too
            async with self._database.looking() as tx:
                self._waiting = await waiting_in_all(tx, most=most)
        return self._waiting

    def one_more(self) -> None:
        """A job was submitted through this process."""
        self._waiting += 1

    async def of(self, job: Unfinished) -> Forecast:
        """What can be said about this job; nothing once it is finished."""
        if job.state not in ("QUEUED", "PROCESSING"):
            return UNKNOWN
        try:
            picture = await self._look(since=job.started_at or job.created_at)
        except pool.OUTAGE:
            return UNKNOWN  # no reason to break off what is being told of the job itself
        known = picture.forecasts
        return known.of_waiting(job.id) if job.state == "QUEUED" else known.of_running(job.id)

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
            taken_at = await query.value(tx, "select now()")
            if time.monotonic() >= self._paces_until:
                self._paces, self._paces_until = await paces(tx), time.monotonic() + PACE_SECONDS
            at_work = await running(tx)
            line = await self._line.look(tx, [job.id for job in at_work])
        found = Forecasts(line, at_work, self._paces)
        ended = time.monotonic()
        return _Picture(
            taken_at=taken_at,
            stale=started + QUEUE_SECONDS,
            rested=ended + REST * (ended - started),
            forecasts=found,
        )
