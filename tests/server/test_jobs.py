"""The life of a job against a real PostgreSQL: claims, leases, tokens, settlement, sweeping, the ledger."""

from __future__ import annotations

import asyncio
import random
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from hiresfix.errors import HiresfixError, InsufficientCredits, NotFound, OverBudget
from hiresfix.recipe import Recipe
from hiresfix.server import accounts, credits, db, gate, jobs, queue
from hiresfix.server.accounts import Caller
from hiresfix.server.db import Database, Tx
from hiresfix.server.jobs import Claim, Completed, Failed, Result, Source, State, Submission
from hiresfix.server.queue import Queue
from tests.server.conftest import commit

URL = "http://example.com"


def submission(
    caller: Caller,
    *,
    cost: int = 3,
    hook: str | None = None,
    events: tuple[str, ...] = ("completed", "failed"),
    max_attempts: int = 3,
) -> Submission:
    job = uuid4()
    return Submission(
        id=job,
        caller=caller,
        request_id="r",
        model="clarity-upscale",
        cost=cost,
        recipe=Recipe(seed=1),
        input={"image": "https://example.com/a.png"},
        source=Source(key=f"sources/{job}", sha256="0", media_type="image/png", bytes=1, width=4, height=3),
        hook_url=hook,
        hook_events=events,
        max_attempts=max_attempts,
    )


def result(held: Claim) -> Completed:
    key = f"results/{held.id}/{held.token}.png"
    return Completed(
        result=Result(key=key, sha256="1", media_type="image/png", bytes=9, width=8, height=6, metadata={})
    )


class Town:
    """One team with 100 credits, and the steps of a job's life as a test says them."""

    def __init__(self, database: Database, queue: Queue, caller: Caller) -> None:
        self.database, self.queue, self.caller = database, queue, caller

    async def submit(self, **wanted: Any) -> UUID:
        new = submission(self.caller, **wanted)
        await commit(self.database, lambda tx: jobs.submit(tx, self.queue, new))
        return new.id

    async def claim(self, job: UUID, *, lease: float = 60) -> Claim:
        held = await self.try_claim(job, lease=lease)
        assert held is not None
        return held

    async def try_claim(self, job: UUID, *, lease: float = 60) -> Claim | None:
        return await commit(self.database, lambda tx: jobs.claim(tx, job, worker="w", lease_seconds=lease))

    async def renew(self, held: Claim, progress: int = 10) -> bool:
        return await commit(self.database, lambda tx: jobs.renew(tx, held, progress=progress, lease_seconds=60))

    async def settle(self, held: Claim, outcome: jobs.Outcome) -> State | None:
        return await commit(self.database, lambda tx: jobs.settle(tx, self.queue, held, outcome, public_url=URL))

    async def sweep(self) -> int:
        """How many lapsed leases were found."""
        found = 0
        while await commit(self.database, lambda tx: jobs.sweep(tx, self.queue, public_url=URL)):
            found += 1
        return found

    async def enqueue_forgotten(self) -> int:
        return await commit(self.database, lambda tx: jobs.enqueue_forgotten(tx, self.queue))

    async def get(self, job: UUID) -> jobs.Job:
        return await commit(self.database, lambda tx: jobs.get(tx, job))

    async def balance(self) -> int:
        """What the team has; checked against the ledger."""

        async def both(tx: Tx) -> tuple[int, int]:
            total = await db.value(
                tx, "select coalesce(sum(amount), 0) from ledger where team_id = %(t)s", t=self.caller.team
            )
            return await credits.balance(tx, self.caller.team), int(total)

        stored, summed = await commit(self.database, both)
        assert stored == summed
        return stored

    async def count(self, query: str, **values: object) -> int:
        async def run(tx: Tx) -> int:
            row = await (await tx.execute(query.encode(), values)).fetchone()
            assert row is not None
            return int(row[0])

        return await commit(self.database, run)

    async def tasks(self, name: str = jobs.TASK) -> int:
        return await self.count(
            "select count(*) from procrastinate_jobs where task_name = %(n)s and status = 'todo'", n=name
        )


@pytest.fixture
async def town(database: Database, queue: Queue) -> Town:
    async def settle_down(tx: Tx) -> Caller:
        key = await accounts.bootstrap(tx, free_credits=100, key_name="k")
        return await accounts.authenticate(tx, key)

    return Town(database, queue, await commit(database, settle_down))


async def test_a_submission_is_one_transaction(town: Town) -> None:
    async def fail_after(tx: Tx) -> None:
        await jobs.submit(tx, town.queue, submission(town.caller))
        raise RuntimeError("the process dies here")

    with pytest.raises(RuntimeError):
        await commit(town.database, fail_after)
    assert (await town.balance(), await town.tasks(), await town.count("select count(*) from jobs")) == (100, 0, 0)
    await town.submit()
    assert (await town.balance(), await town.tasks()) == (97, 1)


async def test_without_credits_nothing_happens(town: Town) -> None:
    with pytest.raises(InsufficientCredits) as caught:
        await town.submit(cost=101)
    assert (caught.value.required, caught.value.available) == (101, 100)
    assert (await town.balance(), await town.tasks()) == (100, 0)


async def test_while_one_submission_spends_of_a_budget_another_waits_for_its_end(town: Town) -> None:
    await commit(town.database, lambda tx: db.execute(tx, "update api_keys set monthly_budget = 5"))
    async with town.database.transaction() as tx:
        await jobs.submit(tx, town.queue, submission(town.caller))
        other = asyncio.create_task(town.submit())
        await asyncio.sleep(0.3)
        assert not other.done()
    with pytest.raises(OverBudget) as caught:
        await other
    assert (caught.value.budget, caught.value.spent, caught.value.required) == (5, 3, 3)


async def test_of_many_claims_one_wins(town: Town) -> None:
    job = await town.submit()
    claims = await asyncio.gather(*(town.try_claim(job) for _ in range(20)))
    assert sum(claim is not None for claim in claims) == 1
    assert (await town.get(job)).attempt == 1


async def test_a_completed_job_has_its_result_and_keeps_its_price(town: Town) -> None:
    job = await town.submit()
    held = await town.claim(job)
    assert await town.settle(held, result(held)) is State.COMPLETED
    done = await town.get(job)
    assert (done.state, done.progress, done.width, done.height) == ("COMPLETED", 100, 8, 6)
    assert done.completed_at is not None
    assert await town.balance() == 97


async def test_a_settlement_counts_once(town: Town) -> None:
    held = await town.claim(await town.submit())
    assert await town.settle(held, result(held)) is State.COMPLETED
    assert await town.settle(held, result(held)) is None
    assert await town.settle(held, Failed(error="late", retryable=False)) is None
    assert (await town.get(held.id)).state == "COMPLETED"
    assert await town.balance() == 97


async def test_a_permanent_failure_gives_the_credits_back_once(town: Town) -> None:
    held = await town.claim(await town.submit())
    await town.renew(held, 50)
    assert await town.settle(held, Failed(error="The picture is damaged.", retryable=False)) is State.FAILED
    assert await town.settle(held, Failed(error="again", retryable=False)) is None
    failed = await town.get(held.id)
    assert (failed.state, failed.progress, failed.error) == ("FAILED", 0, "The picture is damaged.")
    assert await town.balance() == 100
    assert await town.count("select count(*) from ledger where kind = 'refund'") == 1


async def test_a_retryable_failure_is_invisible_until_the_attempts_are_used_up(town: Town) -> None:
    job = await town.submit(max_attempts=2)
    first = await town.claim(job)
    assert await town.settle(first, Failed(error="store away", retryable=True)) is State.QUEUED
    waiting = await town.get(job)
    assert (waiting.state, waiting.error) == ("QUEUED", None)
    assert await town.count("select count(*) from procrastinate_jobs where scheduled_at > now()") == 1
    second = await town.claim(job)
    assert second.token != first.token
    assert await town.settle(second, Failed(error="store away", retryable=True)) is State.FAILED
    assert await town.balance() == 100


async def test_progress_never_goes_backwards_even_over_attempts(town: Town) -> None:
    job = await town.submit()
    held = await town.claim(job)
    for progress, seen in ((40, 40), (30, 40), (100, 99)):
        assert await town.renew(held, progress)
        assert (await town.get(job)).progress == seen
    await town.settle(held, Failed(error="x", retryable=True))
    again = await town.claim(job)
    await town.renew(again, 5)
    assert (await town.get(job)).progress == 99


async def test_a_lapsed_lease_hands_the_job_on_and_fences_the_late_worker(town: Town) -> None:
    job = await town.submit()
    late = await town.claim(job, lease=-1)
    assert await town.sweep() == 1
    assert await town.tasks() == 2  # the first, which some worker had fetched in real life, and a fresh one
    assert not await town.renew(late)
    assert await town.settle(late, result(late)) is None
    assert (await town.get(job)).state == "QUEUED"
    held = await town.claim(job)
    assert held.attempt == 2
    assert await town.settle(late, Failed(error="late", retryable=False)) is None
    assert await town.settle(held, result(held)) is State.COMPLETED


async def test_a_living_lease_is_not_swept(town: Town) -> None:
    held = await town.claim(await town.submit(), lease=60)
    assert await town.sweep() == 0
    assert await town.renew(held)


async def test_a_job_that_kills_its_workers_is_stopped_and_refunded(town: Town) -> None:
    job = await town.submit(max_attempts=2)
    for _ in range(2):
        await town.claim(job, lease=-1)
        await town.sweep()
    failed = await town.get(job)
    assert (failed.state, failed.error) == ("FAILED", jobs.INTERRUPTED)
    assert await town.balance() == 100
    assert await town.try_claim(job) is None


async def test_many_sweeps_at_once_hand_a_job_on_once(town: Town) -> None:
    for _ in range(5):
        await town.claim(await town.submit(), lease=-1)
    before = await town.tasks()
    swept = await asyncio.gather(*(town.sweep() for _ in range(10)))
    assert sum(swept) == 5
    assert await town.tasks() == before + 5


async def test_a_job_whose_task_was_lost_gets_a_new_one(town: Town) -> None:
    job = await town.submit()
    await town.count("with gone as (delete from procrastinate_jobs returning 1) select count(*) from gone")
    assert await town.enqueue_forgotten() == 0  # too fresh: its worker may be just about to claim it
    await town.count("with u as (update jobs set queued_at = now() - interval '1 minute' returning 1) select 1 from u")
    assert await town.enqueue_forgotten() == 1
    assert await town.enqueue_forgotten() == 0
    assert (await town.claim(job)).attempt == 1


async def test_giving_back_does_not_cost_an_attempt(town: Town) -> None:
    job = await town.submit(max_attempts=1)
    held = await town.claim(job)
    assert await commit(town.database, lambda tx: jobs.give_back(tx, town.queue, held))
    assert not await commit(town.database, lambda tx: jobs.give_back(tx, town.queue, held))
    again = await town.claim(job)
    assert again.attempt == 1
    assert await town.settle(again, result(again)) is State.COMPLETED


async def test_the_end_announces_itself_to_the_callers_webhook(town: Town) -> None:
    done, failed = await town.submit(hook="https://example.com/h"), await town.submit(hook="https://example.com/h")
    held = await town.claim(done)
    assert (await town.get(done)).webhook_status == "pending"
    await town.settle(held, result(held))
    await town.settle(await town.claim(failed), Failed(error="no", retryable=False))
    assert await town.count("select count(*) from webhook_deliveries where event = 'completed'") == 1
    assert await town.count("select count(*) from webhook_deliveries where event = 'failed'") == 1
    assert await town.tasks("webhooks.deliver") == 2
    assert (await town.get(done)).webhook_status == "pending"


async def test_tasks_of_workers_that_are_gone_are_buried(town: Town) -> None:
    await town.submit()
    await town.count(
        "with w as (insert into procrastinate_workers (last_heartbeat)"
        " values (now() - interval '1 hour') returning id),"
        " t as (update procrastinate_jobs set status = 'doing', worker_id = w.id from w returning 1)"
        " select count(*) from t"
    )
    assert await commit(town.database, queue.bury_orphans) == 1


async def test_only_the_owner_and_the_teams_heads_see_a_job(town: Town) -> None:
    job = await town.submit()
    stranger, colleague = uuid4(), uuid4()
    for user, team, role, visible in (
        (town.caller.user, town.caller.team, "MEMBER", True),
        (colleague, town.caller.team, "ADMIN", True),
        (colleague, town.caller.team, "MEMBER", False),
        (stranger, uuid4(), "OWNER", False),
    ):
        caller = Caller(user=user, team=team, key=uuid4(), role=role)
        see = commit(town.database, lambda tx, who=caller: jobs.get(tx, job, caller=who))  # type: ignore[misc] # mypy cannot type a lambda's default
        if visible:
            assert (await see).id == job
        else:
            with pytest.raises(NotFound):
                await see


@pytest.mark.parametrize("statement", ["update ledger set amount = 0", "delete from ledger", "truncate ledger"])
async def test_the_ledger_cannot_be_rewritten(town: Town, statement: str) -> None:
    with pytest.raises(psycopg.errors.RaiseException, match="append-only"):
        await commit(town.database, lambda tx: tx.execute(statement.encode()))


async def test_purging_waits_for_the_retention(town: Town) -> None:
    held = await town.claim(await town.submit())
    await town.settle(held, result(held))
    for retention, due in ((timedelta(days=1), 0), (timedelta(0), 1)):
        results = await commit(town.database, lambda tx, r=retention: jobs.expired_results(tx, retention=r))  # type: ignore[misc] # as above
        assert len(results) == due
    await commit(town.database, lambda tx: jobs.mark_result_purged(tx, held.id))
    assert (await town.get(held.id)).expired
    assert await commit(town.database, lambda tx: jobs.expired_results(tx, retention=timedelta(0))) == []


class Walk:
    """Random steps of clients and workers, some of them late, from one seed."""

    def __init__(self, town: Town, seed: int) -> None:
        self.town, self.chance = town, random.Random(seed)
        self.held: list[Claim] = []
        self.queued: list[UUID] = []
        self.keys = 6

    async def submit(self) -> None:
        new = submission(self.town.caller, cost=self.chance.choice([1, 3, 40]), max_attempts=2)
        key, fingerprint = f"key-{self.chance.randrange(self.keys)}", self.chance.choice([b"a", b"a", b"b"])

        async def work(tx: Tx) -> None:
            await gate.remember(tx, self.town.caller, route="r", key=key, fingerprint=fingerprint, job=new.id)
            await jobs.submit(tx, self.town.queue, new)

        try:
            await commit(self.town.database, work)
        except (gate.Replayed, HiresfixError):
            self.keys += 1
        else:
            self.queued.append(new.id)

    async def claim(self) -> None:
        if self.queued:
            job = self.queued.pop(self.chance.randrange(len(self.queued)))
            if (got := await self.town.try_claim(job, lease=self.chance.choice([-1, 60]))) is not None:
                self.held.append(got)

    async def settle(self) -> None:
        if not self.held:
            return
        mine = self.held.pop(self.chance.randrange(len(self.held)))
        outcomes: list[jobs.Outcome] = [result(mine), *(Failed(error="e", retryable=again) for again in (True, False))]
        if await self.town.settle(mine, self.chance.choice(outcomes)) is State.QUEUED:
            self.queued.append(mine.id)
        if self.chance.random() < 0.5:
            self.held.append(mine)  # comes back late and tries again

    async def sweep(self) -> None:
        await self.town.sweep()
        async with self.town.database.transaction() as tx:
            rows = await (await tx.execute("select id from jobs where state = 'QUEUED'")).fetchall()
        self.queued[:] = [job for (job,) in rows]

    async def step(self) -> None:
        steps = [self.submit] * 3 + [self.claim] * 2 + [self.settle] * 2 + [self.sweep]
        await self.chance.choice(steps)()


@pytest.mark.parametrize("seed", range(3))
async def test_after_any_walk_of_submissions_failures_and_replays_the_books_are_right(town: Town, seed: int) -> None:
    """The balance is the ledger's sum, no failed job cost anything, no finished one was free."""
    walk = Walk(town, seed)
    for _ in range(150):
        await walk.step()
        await town.balance()
    paid_for = await town.count("select coalesce(sum(cost), 0) from jobs where state <> 'FAILED'")
    assert await town.balance() == 100 - paid_for
    failed = await town.count("select count(*) from jobs where state = 'FAILED'")
    assert failed == await town.count("select count(*) from ledger where kind = 'refund'") > 0
    assert await town.count("select count(*) from jobs where state = 'COMPLETED'") > 0
