"""Estimates: the recent pace of each model, and from it the queue position and remaining time of a job.

Everything is measured, nothing is promised: a model that has finished no job recently has no pace, and whatever
depends on it is unknown. However often callers ask, one process reads the queue at most once in `QUEUE_SECONDS` and
the pace once in `PACE_SECONDS`. A job that is newer than the last snapshot has no estimate yet, or causes a new one.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from itertools import accumulate
from typing import LiteralString, Protocol
from uuid import UUID

from hiresfix.models import catalog
from hiresfix.server.database import pool, query
from hiresfix.server.database.pool import Database, Tx
from hiresfix.server.jobs import queue_snapshot
from hiresfix.server.jobs.queue_snapshot import QueueSnapshot
from hiresfix.states import JobState

QUEUE_SECONDS = 2.0
PACE_SECONDS = 60.0
COUNT_SECONDS = 1.0
SNAPSHOT_REST = 10.0
"""Minimum pause between two snapshots, as a multiple of the last one's duration: a long queue takes a while."""
PACE_PERIOD = "7 days"
PACE_SAMPLE = 200
"""The pace of a model is measured on its newest jobs, up to this many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """Recent duration of a model's jobs from their start: seconds on average, and per megapixel of output."""

    model: str
    seconds: float
    seconds_per_megapixel: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """`position` in the queue from 1, while the job waits; `seconds` until it is done, at least 1. None: unknown."""

    position: int | None = None
    seconds: int | None = None


UNKNOWN = Estimate()


async def paces(tx: Tx) -> dict[str, Pace]:
    """Return the pace by model id, of jobs that succeeded at the first attempt; others include waiting time."""
    rows = await query.every(
        tx,
        Pace,
        "select model, avg(seconds)::float8 as seconds, (sum(seconds) / sum(megapixels))::float8"
        " as seconds_per_megapixel from unnest(%(models)s::text[]) as wanted (name) cross join lateral"
        " (select model, extract(epoch from completed_at - started_at) as seconds,"
        "  (result ->> 'width')::numeric * (result ->> 'height')::numeric / 1e6 as megapixels from jobs"
        "  where model = wanted.name and state = 'COMPLETED' and completed_at > now() - %(period)s::interval"
        "  and attempt = 1 and queued_at <= started_at order by completed_at desc limit %(sample)s) recent"
        " group by model",
        models=[model.id for model in catalog.MODELS],
        period=PACE_PERIOD,
        sample=PACE_SAMPLE,
    )
    return {pace.model: pace for pace in rows}


async def count_queued(tx: Tx, *, limit: int) -> int:
    """Return how many jobs wait, counted up to `limit`."""
    statement: LiteralString = "select count(*) from (select from jobs where state = 'QUEUED' limit %(limit)s) waiting"
    return int(await query.value(tx, statement, limit=limit))


class QueueEstimates:
    """Estimates of all waiting and running jobs of one snapshot.

    Assumes that as many jobs as run now run side by side until the queue is empty: while jobs wait, all workers are
    busy. A job of unknown duration makes the duration of everything behind it unknown; a job that no worker can hold
    only its own.
    """

    def __init__(self, snapshot: QueueSnapshot, paces: Mapping[str, Pace]) -> None:
        pace = {name: measured.seconds_per_megapixel for name, measured in paces.items()}
        self._running = {
            job.id: pace.get(job.model, math.nan) * job.megapixels * (1 - job.progress / 100)
            for job in snapshot.running
        }
        self._lanes = max(1, len(self._running))
        self._durations = [
            math.nan if job.megapixels is None else pace.get(job.model, math.nan) * job.megapixels
            for job in snapshot.waiting
        ]
        ahead = (
            0.0 if job.megapixels is None else duration
            for job, duration in zip(snapshot.waiting, self._durations, strict=True)
        )
        self._ahead = list(accumulate(ahead, initial=math.fsum(self._running.values())))
        self._places = {job.id: place for place, job in enumerate(snapshot.waiting)}

    def of_waiting(self, job: UUID) -> Estimate:
        place = self._places.get(job)
        if place is None:
            return UNKNOWN
        seconds = self._ahead[place] / self._lanes + self._durations[place]
        return Estimate(position=place + 1, seconds=_whole_seconds(seconds))

    def of_running(self, job: UUID) -> Estimate:
        return Estimate(seconds=_whole_seconds(self._running.get(job, math.nan)))


def _whole_seconds(seconds: float) -> int | None:
    return None if math.isnan(seconds) else max(1, math.ceil(seconds))


class EstimatedJob(Protocol):
    """The fields of a job that an estimate needs."""

    @property
    def id(self) -> UUID: ...
    @property
    def state(self) -> str: ...
    @property
    def created_at(self) -> datetime: ...
    @property
    def started_at(self) -> datetime | None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class _CachedEstimates:
    """Estimates of the snapshot taken at `taken_at` (database's clock).

    By this process's clock: used until `stale_at`, and not replaced before `replaceable_at`.
    """

    taken_at: datetime
    stale_at: float
    replaceable_at: float
    estimates: QueueEstimates


class Estimator:
    """One process's cached view of pace and queue, at most a moment old."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._paces: dict[str, Pace] = {}
        self._paces_until = -math.inf
        self._cached: _CachedEstimates | None = None
        self._reading = asyncio.Lock()
        self._queued = 0
        self._queued_until = -math.inf

    async def pace(self, model: str) -> Pace | None:
        """Return the model's recent pace, None if it has none; the last known one while the database is away."""
        async with self._reading:
            if time.monotonic() >= self._paces_until:
                # Set first: while the database is away, anonymous requests for the pace must not queue up for it.
                self._paces_until = time.monotonic() + PACE_SECONDS
                with suppress(*pool.OUTAGE_ERRORS):
                    async with self._database.transaction() as tx:
                        self._paces = await paces(tx)
        return self._paces.get(model)

    async def queued_jobs(self, *, limit: int) -> int:
        """Return how many jobs wait, counted up to `limit`.

        The count is at most `COUNT_SECONDS` old; jobs submitted through this process since then are added to it.
        """
        if time.monotonic() >= self._queued_until:
            self._queued_until = time.monotonic() + COUNT_SECONDS  # first: concurrent callers must not count as well
            async with self._database.autocommit() as tx:
                self._queued = await count_queued(tx, limit=limit)
        return self._queued

    def count_submission(self) -> None:
        """Add a job that was submitted through this process to the count of waiting jobs."""
        self._queued += 1

    async def estimate(self, job: EstimatedJob) -> Estimate:
        """Return the estimate for this job; UNKNOWN once it is finished, or while the database is away."""
        if job.state not in (JobState.QUEUED, JobState.PROCESSING):
            return UNKNOWN
        try:
            cached = await self._current(since=job.started_at or job.created_at)
        except pool.OUTAGE_ERRORS:
            return UNKNOWN  # the rest of the answer about the job is still useful
        known = cached.estimates
        return known.of_waiting(job.id) if job.state == JobState.QUEUED else known.of_running(job.id)

    async def _current(self, *, since: datetime) -> _CachedEstimates:
        """Return the cached estimates if they are fresh and know of what happened at `since`, else new ones."""
        async with self._reading:
            cached, now = self._cached, time.monotonic()
            if cached is None or (now >= cached.replaceable_at and (now >= cached.stale_at or cached.taken_at < since)):
                cached = self._cached = await self._take_snapshot()
            return cached

    async def _take_snapshot(self) -> _CachedEstimates:
        started = time.monotonic()
        async with self._database.transaction() as tx:
            snapshot = await queue_snapshot.take(tx)
            if time.monotonic() >= self._paces_until:
                self._paces, self._paces_until = await paces(tx), time.monotonic() + PACE_SECONDS
        estimates = QueueEstimates(snapshot, self._paces)
        ended = time.monotonic()
        return _CachedEstimates(
            taken_at=snapshot.taken_at,
            stale_at=started + QUEUE_SECONDS,
            replaceable_at=ended + SNAPSHOT_REST * (ended - started),
            estimates=estimates,
        )
