"""The line that a process keeps in mind: the same as the database's, whatever happened, at the price of what did."""

from __future__ import annotations

import random
from datetime import timedelta
from uuid import UUID

import pytest

from hiresfix.server.database import query
from hiresfix.server.database.pool import Database
from hiresfix.server.jobs import estimates, lifecycle, model, queue_snapshot
from hiresfix.server.jobs.model import Claim, Failed
from hiresfix.server.jobs.queue_snapshot import Waiting
from tests.server.jobs.test_lifecycle import URL, Town, result, town
from tests.server.jobs.test_scheduler import second_team

__all__ = ["town"]

# As the first releases asked for it.
_LINE = """
    select id from (
        select id, turns.given, created_at, row_number() over (partition by team_id order by created_at, id) as of_team
        from jobs left join turns using (team_id) where state = 'QUEUED'
    ) waiting order by of_team, given nulls first, created_at, id
"""
_COPIES = """
    with copied as (
        insert into jobs (id, team_id, user_id, key_id, request_id, model, recipe, input, source, max_attempts, cost,
                          created_at)
        select gen_random_uuid(), team_id, user_id, key_id, request_id, model, recipe, input, source, max_attempts, 0,
               now() - interval '1 hour'
        from jobs, generate_series(1, %(copies)s) where id = %(job)s returning 1
    )
    select count(*) from copied
"""


async def look(database: Database, known: Waiting) -> list[UUID]:
    async with database.transaction() as tx:
        line = await known.look(tx, [job.id for job in await estimates.running(tx)])
    return [UUID(bytes=line.ids[at : at + 16]) for at in range(0, len(line.ids), 16)]


async def truth(database: Database) -> list[UUID]:
    async with database.looking() as tx:
        return [job for (job,) in await (await tx.execute(_LINE)).fetchall()]


class Life:
    """What may happen to the jobs of two teams, by chance."""

    def __init__(self, town: Town, other: Town) -> None:
        self.town, self.towns = town, [town, other]
        self.dice, self.held = random.Random(7), list[Claim]()

    async def submit(self) -> None:
        await self.dice.choice(self.towns).submit(cost=0)

    async def claim(self) -> None:
        if found := await self.town.claim_next():
            self.held.append(found)

    async def settle(self) -> None:
        if self.held:
            held = self.held.pop(self.dice.randrange(len(self.held)))
            outcomes: list[model.Outcome] = [result(held), Failed(error="x", retryable=True)]
            await self.town.settle(held, self.dice.choice(outcomes))

    async def cancel(self) -> None:
        if line := await truth(self.town.database):
            job = self.dice.choice(line)
            async with self.town.database.transaction() as tx:
                await lifecycle.cancel(tx, self.town.queue, job, public_url=URL)

    async def give_back(self) -> None:
        if self.held:
            async with self.town.database.transaction() as tx:
                await lifecycle.give_back(tx, self.town.queue, self.held.pop())

    async def step(self) -> None:
        often = [self.submit] * 3 + [self.claim] * 2
        await self.dice.choice([*often, self.settle, self.cancel, self.give_back])()


async def test_what_is_known_of_the_line_follows_all_that_happens_to_jobs(
    town: Town, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue_snapshot, "SLICE", 1)  # hardly anything is mended that was missed
    monkeypatch.setattr(queue_snapshot, "MARGIN", timedelta())  # or read again, since nothing runs beside
    life, known = Life(town, await second_team(town, running=None, plan="pro")), Waiting()
    await town.allow(10)
    for _ in range(25):
        for _ in range(life.dice.randrange(4)):
            await life.step()
        assert await look(town.database, known) == await truth(town.database)


async def test_a_look_reads_what_changed_and_not_what_waits(town: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue_snapshot, "SLICE", 50)
    first, read = await town.submit(cost=1), list[int]()
    for copies in (300, 1200):
        await town.count(_COPIES, job=first, copies=copies)
        known = Waiting()
        await look(town.database, known)
        async with town.database.looking() as tx:
            await tx.execute("analyze jobs")
        async with Database(town.database.url, max_size=1) as fresh:
            await look(fresh, known)
            async with fresh.looking() as tx:
                read.append(int(await query.value(tx, "select sum(idx_tup_fetch + seq_tup_read) from"
                                                   " pg_stat_xact_user_tables where relname = 'jobs'")))  # fmt: skip
    assert read[1] <= read[0] + 10 < 200


async def test_what_nobody_told_is_mended_when_its_slice_comes_around(
    town: Town, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue_snapshot, "SLICE", 3)
    known, mine = Waiting(), [await town.submit(cost=0) for _ in range(8)]
    assert await look(town.database, known) == mine
    await town.count(
        "with aside as (update jobs set state = 'CANCELLED', completed_at = now() - interval '1 hour'"
        " where id = any(%(some)s) returning 1) select count(*) from aside",
        some=[mine[1], mine[6]],
    )
    assert set(await look(town.database, known)) > set(await truth(town.database))
    for _ in range(3):
        found = await look(town.database, known)
    assert found == await truth(town.database)
    assert len(found) == 6
