"""Queue snapshots: their order is the order in which the real scheduler starts jobs, whatever happened before."""

from __future__ import annotations

import random
from dataclasses import replace
from uuid import UUID

import pytest

from hiresfix.server.database import query
from hiresfix.server.database.pool import Database, Tx
from hiresfix.server.jobs import lifecycle, queue_snapshot, scheduler, worker_registry
from hiresfix.server.jobs.model import AttemptOutcome, Claim, Failed
from hiresfix.server.jobs.queue_snapshot import QueueSnapshot
from hiresfix.server.jobs.worker_registry import UNLIMITED, Capacity
from tests.server.conftest import commit
from tests.server.job_steps import PUBLIC_URL, JobSteps, second_team, success
from tests.server.jobs.test_worker_capacity import LARGE_SIDE
from tests.server.jobs.test_worker_registry import GPU

SMALL = replace(GPU, most_megapixels=1)

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


class _RollBack(Exception):
    pass


async def take_snapshot(database: Database) -> QueueSnapshot:
    return await commit(database, queue_snapshot.take)


async def start_order(database: Database, capacity: Capacity = UNLIMITED) -> list[UUID]:
    """Let the real scheduler start one job after the other until nothing waits, and undo it all."""
    order: list[UUID] = []

    async def start_all(tx: Tx) -> None:
        await query.execute(tx, "update jobs set queued_at = created_at where state = 'QUEUED'")
        while job := await scheduler.next_job(tx, capacity):
            order.append(job)
            await query.execute(
                tx, "update jobs set state = 'CANCELLED', completed_at = now() where id = %(job)s", job=job
            )
        raise _RollBack

    with pytest.raises(_RollBack):
        await commit(database, start_all)
    return order


class RandomEvents:
    """Random events in the lives of the jobs of several teams."""

    def __init__(self, teams: list[JobSteps], seed: int) -> None:
        self.teams, self.random = teams, random.Random(seed)
        self.claims: list[Claim] = []

    async def submit(self) -> None:
        side = self.random.choice([4, 4, LARGE_SIDE])
        await self.random.choice(self.teams).submit(cost=0, side=side)

    async def claim(self) -> None:
        if claim := await self.teams[0].claim_next():
            self.claims.append(claim)

    async def settle(self) -> None:
        if self.claims:
            claim = self.claims.pop(self.random.randrange(len(self.claims)))
            outcomes: list[AttemptOutcome] = [success(claim), Failed(error="x", retryable=True)]
            await self.teams[0].settle(claim, self.random.choice(outcomes))

    async def cancel(self) -> None:
        if waiting := (await take_snapshot(self.teams[0].database)).waiting:
            job, steps = self.random.choice(waiting).id, self.teams[0]
            await commit(steps.database, lambda tx: lifecycle.cancel(tx, steps.queue, job, public_url=PUBLIC_URL))

    async def give_back(self) -> None:
        if self.claims:
            await self.teams[0].give_back(self.claims.pop())

    async def one(self) -> None:
        frequent = [self.submit] * 3 + [self.claim] * 2
        await self.random.choice([*frequent, self.settle, self.cancel, self.give_back])()


@pytest.mark.parametrize("seed", range(3))
async def test_listed_order_is_start_order(steps: JobSteps, seed: int) -> None:
    teams = [steps, *[await second_team(steps, running=100, name=f"team {number}") for number in range(3)]]
    events = RandomEvents(teams, seed)
    for _ in range(20):
        for _ in range(events.random.randrange(5)):
            await events.one()
        snapshot = await take_snapshot(steps.database)
        assert [job.id for job in snapshot.waiting] == await start_order(steps.database)
        assert {job.id for job in snapshot.running} == {claim.id for claim in events.claims}


@pytest.mark.parametrize("seed", range(2))
async def test_listed_order_is_start_order_for_limited_workers(steps: JobSteps, seed: int) -> None:
    await commit(steps.database, lambda tx: worker_registry.heartbeat(tx, SMALL, every=600))
    teams = [steps, *[await second_team(steps, running=100, name=f"team {number}") for number in range(2)]]
    events = RandomEvents(teams, seed)
    for _ in range(10):
        for _ in range(4):
            await events.submit()
        await events.one()
        snapshot = await take_snapshot(steps.database)
        runnable = [job.id for job in snapshot.waiting if job.megapixels is not None]
        assert runnable == await start_order(steps.database, SMALL.capacity)
        assert all(job.megapixels is None or job.megapixels <= 1 for job in snapshot.waiting)
    assert len(snapshot.waiting) == await steps.count("select count(*) from jobs where state = 'QUEUED'")


async def test_real_claims_follow_listed_order(steps: JobSteps) -> None:
    other = await second_team(steps, running=100)
    for number in range(9):
        await (steps if number % 3 else other).submit(cost=0)
    listed = [job.id for job in (await take_snapshot(steps.database)).waiting]
    claimed = []
    while claim := await steps.claim_next():
        claimed.append(claim.id)
        await steps.settle(claim, success(claim))
    assert claimed == listed
    assert (await take_snapshot(steps.database)).waiting == []


async def test_a_paused_job_keeps_its_place(steps: JobSteps) -> None:
    first, second = await steps.submit(), await steps.submit()
    await steps.settle(await steps.claim(first), Failed(error="x", retryable=True))
    assert [job.id for job in (await take_snapshot(steps.database)).waiting] == [first, second]


async def test_a_snapshot_reads_each_waiting_job_once(steps: JobSteps) -> None:
    first, rows_read = await steps.submit(cost=1), list[int]()
    for copies in (300, 1200):
        await steps.count(_COPIES, job=first, copies=copies)
        async with steps.database.autocommit() as tx:
            await tx.execute("analyze jobs")
        async with Database(steps.database.url, max_size=1) as fresh, fresh.transaction() as tx:
            snapshot = await queue_snapshot.take(tx)
            total = await query.value(
                tx,
                "select sum(idx_tup_fetch + seq_tup_read) from pg_stat_xact_user_tables where relname = 'jobs'",
            )
            rows_read.append(int(total) - len(snapshot.waiting))
    assert max(rows_read) <= 10


async def test_changes_by_hand_show_in_the_next_snapshot(steps: JobSteps) -> None:
    jobs = [await steps.submit(cost=0) for _ in range(8)]
    assert [job.id for job in (await take_snapshot(steps.database)).waiting] == jobs
    await steps.count(
        "with changed as (update jobs set state = 'CANCELLED', completed_at = now() - interval '1 hour'"
        " where id = any(%(some)s) returning 1) select count(*) from changed",
        some=[jobs[1], jobs[6]],
    )
    left = [job for job in jobs if job not in (jobs[1], jobs[6])]
    assert [job.id for job in (await take_snapshot(steps.database)).waiting] == left
