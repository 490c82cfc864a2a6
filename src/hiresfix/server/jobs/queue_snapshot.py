"""The waiting jobs in the order of their turns, kept in memory and brought up to date by what changed.

A look costs the database what happened since the one before, and a slice of the line that is compared with what is
known, however many wait: only the first goes through all of it. What could be missed (rows changed by hand, say) is
mended when its slice comes around. It is for one task at a time, and knows nothing of how long anything takes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import LiteralString, NamedTuple
from uuid import UUID

from hiresfix.server.database import query
from hiresfix.server.database.pool import Tx
from hiresfix.server.jobs import worker_registry
from hiresfix.server.jobs.worker_registry import Capacity

SLICE = 500
"""Jobs that a look compares."""
MARGIN = timedelta(seconds=30)
"""What a transaction may take from its beginning, whose time its rows bear, to its commit."""
LONGEST = timedelta(minutes=10)
"""After which the line is read anew: sources of jobs that ended since may be purged (see `_ENDED`)."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Line:
    """The waiting jobs in their order, by columns.

    ids: 16 bytes of each job one after the other. megapixels: what each will put out; None for a job that no worker
    which is up can hold, so that it waits for one to come, and keeps no other waiting.
    """

    ids: bytes
    models: Sequence[str]
    megapixels: Sequence[float | None]


_Place = tuple[bytes, datetime, bytes]
"""Team, time and id of a job: where the index has it. Bytes, because Python compares UUIDs twenty times slower."""


class _Job(NamedTuple):
    place: _Place
    model: str
    megapixels: float
    needs: tuple[str, ...]

    @property
    def id(self) -> bytes:
        return self.place[2]


_WAITING: LiteralString = (
    "select team_id, created_at, id, model, megapixels(jobs), needs from jobs where state = 'QUEUED'"
)
_SLICE: LiteralString = _WAITING + (
    " and (team_id, created_at, id) > (%(team)s, %(created_at)s, %(id)s)"
    " order by team_id, created_at, id limit %(most)s"
)
_NEW: LiteralString = _WAITING + " and created_at > %(since)s"
_RETURNED: LiteralString = _WAITING + " and id = any(%(ids)s)"
_ENDED: LiteralString = (
    "select id from jobs where completed_at is not null and source_purged_at is null and completed_at > %(since)s"
)
_GIVEN: LiteralString = "select team_id, given from turns where team_id = any(%(teams)s)"

_START: _Place = (bytes(16), datetime(1970, 1, 1, tzinfo=UTC), bytes(16))


class Waiting:
    """What one process knows of the line."""

    def __init__(self) -> None:
        self._jobs: dict[bytes, _Job] = {}
        self._running: frozenset[UUID] = frozenset()
        self._at: datetime | None = None
        self._checked: _Place = _START

    async def look(self, tx: Tx, running: Collection[UUID]) -> Line:
        """Every waiting job, in the order in which workers will take them as far as can be told now.

        running: those that do, as `tx` has just read them.
        """
        now: datetime = await query.value(tx, "select now()")
        if self._at is None or now - self._at > LONGEST:
            await self._read_all(tx)
        else:
            await self._catch_up(tx, self._at - MARGIN, running)
            await self._check_slice(tx)
        for job in running:
            self._jobs.pop(job.bytes, None)
        self._running, self._at = frozenset(running), now
        given = await self._given(tx)
        return _in_turn(self._jobs.values(), given, await worker_registry.capacities(tx))

    async def _read_all(self, tx: Tx) -> None:
        self._jobs, self._checked = {}, _START
        while not await self._check_slice(tx):
            pass

    async def _catch_up(self, tx: Tx, since: datetime, running: Collection[UUID]) -> None:
        """What was submitted, what has ended, and what ran and does not run any more."""
        returned = list(self._running.difference(running))
        for job in await _read(tx, _NEW, since=since) + await _read(tx, _RETURNED, ids=returned):
            self._jobs[job.id] = job
        for (ended,) in await (await tx.execute(_ENDED, {"since": since})).fetchall():
            self._jobs.pop(ended.bytes, None)

    async def _check_slice(self, tx: Tx) -> bool:
        """Compare the next stretch of the line; True when that was the last."""
        team, created_at, job = before = self._checked
        found = await _read(tx, _SLICE, team=UUID(bytes=team), created_at=created_at, id=UUID(bytes=job), most=SLICE)
        last = found[-1].place if len(found) == SLICE else None
        for place in [known.place for known in self._jobs.values()]:
            if place > before and (last is None or place <= last):
                del self._jobs[place[2]]
        self._jobs.update({one.id: one for one in found})
        self._checked = last or _START
        return last is None

    async def _given(self, tx: Tx) -> Mapping[bytes, int]:
        teams = [UUID(bytes=team) for team in {job.place[0] for job in self._jobs.values()}]
        rows = await (await tx.execute(_GIVEN, {"teams": teams})).fetchall()
        return {team.bytes: given for team, given in rows}


async def in_turn(tx: Tx) -> Line:
    """The line as it is now, for who looks once."""
    return await Waiting().look(tx, ())


async def _read(tx: Tx, statement: LiteralString, **values: object) -> list[_Job]:
    rows = await (await tx.execute(statement, values)).fetchall()
    return [
        _Job((team.bytes, at, job.bytes), model, megapixels, tuple(needs))
        for team, at, job, model, megapixels, needs in rows
    ]


def _in_turn(jobs: Collection[_Job], given: Mapping[bytes, int], capacities: Sequence[Capacity]) -> Line:
    """Teams take turns, so all first jobs of a team come before any second one; who waits longest is first."""
    of_team: dict[bytes, int] = {}
    turns = []
    for job in sorted(jobs):  # by place, which no two share
        team, created_at, own = job.place
        number = of_team[team] = of_team.get(team, 0) + 1
        turns.append((number, given.get(team, -1), created_at, own, job))
    turns.sort()
    line = [turn[-1] for turn in turns]
    kinds = {(job.megapixels, job.needs) for job in line}
    held = {kind for kind in kinds if any(_holds(capacity, *kind) for capacity in capacities)}
    return Line(
        ids=b"".join(job.id for job in line),
        models=[job.model for job in line],
        megapixels=[job.megapixels if (job.megapixels, job.needs) in held else None for job in line],
    )


def _holds(capacity: Capacity, megapixels: float, needs: Sequence[str]) -> bool:
    """As the function of that name says it to SQL."""
    return megapixels <= capacity.most_megapixels and (capacity.tags is None or set(needs) <= set(capacity.tags))
