"""The life of a job against a real PostgreSQL: claims, leases, tokens, settlement, sweeping, the ledger."""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from hiresfix.errors import Conflict, InsufficientCredits, NotFound, OverBudget, RateLimited, Unavailable
from hiresfix.recipe import Recipe
from hiresfix.server.accounts import authentication
from hiresfix.server.accounts.authentication import Caller
from hiresfix.server.billing import ledger
from hiresfix.server.database import query, task_queue
from hiresfix.server.database.pool import Database, Tx
from hiresfix.server.database.task_queue import Queue
from hiresfix.server.jobs import lifecycle, model, scheduler
from hiresfix.server.jobs.model import Claim, Completed, Failed, Result, Source, Submission
from hiresfix.states import JobState
from tests.server.conftest import commit

URL = "http://example.com"


def submission(
    caller: Caller,
    *,
    cost: int = 3,
    hook: str | None = None,
    events: tuple[str, ...] = ("completed", "failed"),
    max_attempts: int = 3,
    side: int = 4,
    needs: tuple[str, ...] = (),
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
        source=Source(key=f"sources/{job}", sha256="0", media_type="image/png", bytes=1, width=side, height=3),
        hook_url=hook,
        hook_events=events,
        max_attempts=max_attempts,
        needs=needs,
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
        await commit(self.database, lambda tx: lifecycle.submit(tx, self.queue, new))
        return new.id

    async def claim(self, job: UUID, *, lease: float = 60) -> Claim:
        """The job, whose turn it must be."""
        held = await self.claim_next(lease=lease)
        assert held is not None
        assert held.id == job
        return held

    async def claim_next(self, *, lease: float = 60) -> Claim | None:
        return await lifecycle.claim(self.database, worker="w", lease_seconds=lease)

    async def cancel(self, job: UUID, *, caller: Caller | None = None) -> model.Job:
        return await commit(
            self.database,
            lambda tx: lifecycle.cancel(tx, self.queue, job, public_url=URL, caller=caller or self.caller),
        )

    async def pass_time(self) -> None:
        """Jobs that wait for their next attempt are ready."""
        await self.count(
            "with ready as (update jobs set queued_at = now() where state = 'QUEUED' returning 1)"
            " select count(*) from ready"
        )

    async def allow(self, running: int | None) -> None:
        """How many jobs of the team may run at once; None: what its plan says."""
        await self.count(
            "with allowed as (update teams set max_concurrent_jobs = %(n)s where id = %(t)s returning 1)"
            " select count(*) from allowed",
            n=running,
            t=self.caller.team,
        )

    async def renew(self, held: Claim, progress: int = 10) -> bool:
        return await commit(self.database, lambda tx: lifecycle.renew(tx, held, progress=progress, lease_seconds=60))

    async def settle(self, held: Claim, outcome: model.Outcome) -> JobState | None:
        return await commit(self.database, lambda tx: lifecycle.settle(tx, self.queue, held, outcome, public_url=URL))

    async def sweep(self) -> int:
        """How many lapsed leases were found."""
        found = 0
        while await commit(self.database, lambda tx: lifecycle.sweep(tx, self.queue, public_url=URL)):
            found += 1
        return found

    async def replace_lost_tasks(self) -> int:
        return await commit(self.database, lambda tx: scheduler.reconcile(tx, self.queue))

    async def get(self, job: UUID) -> model.Job:
        return await commit(self.database, lambda tx: lifecycle.get(tx, job))

    async def balance(self) -> int:
        """What the team has; checked against the ledger."""

        async def both(tx: Tx) -> tuple[int, int]:
            total = await query.value(
                tx, "select coalesce(sum(amount), 0) from ledger where team_id = %(t)s", t=self.caller.team
            )
            return await ledger.balance(tx, self.caller.team), int(total)

        stored, summed = await commit(self.database, both)
        assert stored == summed
        return stored

    async def count(self, statement: str, **values: object) -> int:
        async def run(tx: Tx) -> int:
            row = await (await tx.execute(statement.encode(), values)).fetchone()
            assert row is not None
            return int(row[0])

        return await commit(self.database, run)

    async def tasks(self, name: str = scheduler.TASK) -> int:
        return await self.count(
            "select count(*) from procrastinate_jobs where task_name = %(n)s and status = 'todo'", n=name
        )


@pytest.fixture
async def town(database: Database, queue: Queue) -> Town:
    async def settle_down(tx: Tx) -> Caller:
        key = await authentication.bootstrap(tx, free_credits=100, key_name="k")
        return await authentication.authenticate(tx, key)

    town = Town(database, queue, await commit(database, settle_down))
    await town.allow(100)
    return town


async def test_a_submission_is_one_transaction(town: Town) -> None:
    async def fail_after(tx: Tx) -> None:
        await lifecycle.submit(tx, town.queue, submission(town.caller))
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
    await commit(town.database, lambda tx: query.execute(tx, "update api_keys set monthly_budget = 5"))
    async with town.database.transaction() as tx:
        await lifecycle.submit(tx, town.queue, submission(town.caller))
        other = asyncio.create_task(town.submit())
        await asyncio.sleep(0.3)
        assert not other.done()
    with pytest.raises(OverBudget) as caught:
        await other
    assert (caught.value.budget, caught.value.spent, caught.value.required) == (5, 3, 3)


async def test_of_many_claims_one_wins(town: Town) -> None:
    job = await town.submit()
    claims = await asyncio.gather(*(town.claim_next() for _ in range(20)))
    assert sum(claim is not None for claim in claims) == 1
    assert (await town.get(job)).attempt == 1


async def test_a_completed_job_has_its_result_and_keeps_its_price(town: Town) -> None:
    job = await town.submit()
    held = await town.claim(job)
    assert await town.settle(held, result(held)) is JobState.COMPLETED
    done = await town.get(job)
    assert (done.state, done.progress, done.width, done.height) == ("COMPLETED", 100, 8, 6)
    assert done.completed_at is not None
    assert await town.balance() == 97


async def test_a_settlement_counts_once(town: Town) -> None:
    held = await town.claim(await town.submit())
    assert await town.settle(held, result(held)) is JobState.COMPLETED
    assert await town.settle(held, result(held)) is None
    assert await town.settle(held, Failed(error="late", retryable=False)) is None
    assert (await town.get(held.id)).state == "COMPLETED"
    assert await town.balance() == 97


async def test_a_permanent_failure_gives_the_credits_back_once(town: Town) -> None:
    held = await town.claim(await town.submit())
    await town.renew(held, 50)
    assert await town.settle(held, Failed(error="The picture is damaged.", retryable=False)) is JobState.FAILED
    assert await town.settle(held, Failed(error="again", retryable=False)) is None
    failed = await town.get(held.id)
    assert (failed.state, failed.progress, failed.error) == ("FAILED", 0, "The picture is damaged.")
    assert await town.balance() == 100
    assert await town.count("select count(*) from ledger where kind = 'refund'") == 1


async def test_a_retryable_failure_is_invisible_until_the_attempts_are_used_up(town: Town) -> None:
    job = await town.submit(max_attempts=2)
    first = await town.claim(job)
    assert await town.settle(first, Failed(error="store away", retryable=True)) is JobState.QUEUED
    assert await town.claim_next() is None
    waiting = await town.get(job)
    assert (waiting.state, waiting.error) == ("QUEUED", None)
    assert await town.count("select count(*) from procrastinate_jobs where scheduled_at > now()") == 1
    await town.pass_time()
    second = await town.claim(job)
    assert second.token != first.token
    assert await town.settle(second, Failed(error="store away", retryable=True)) is JobState.FAILED
    assert await town.balance() == 100


async def test_progress_never_goes_backwards_even_over_attempts(town: Town) -> None:
    job = await town.submit()
    held = await town.claim(job)
    for progress, seen in ((40, 40), (30, 40), (100, 99)):
        assert await town.renew(held, progress)
        assert (await town.get(job)).progress == seen
    await town.settle(held, Failed(error="x", retryable=True))
    await town.pass_time()
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
    assert await town.settle(held, result(held)) is JobState.COMPLETED


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
    assert (failed.state, failed.error) == ("FAILED", lifecycle.INTERRUPTED)
    assert await town.balance() == 100
    assert await town.claim_next() is None


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
    assert await town.replace_lost_tasks() == 1
    assert await town.replace_lost_tasks() == 0
    assert (await town.claim(job)).attempt == 1


async def test_giving_back_does_not_cost_an_attempt(town: Town) -> None:
    job = await town.submit(max_attempts=1)
    held = await town.claim(job)
    assert await commit(town.database, lambda tx: lifecycle.give_back(tx, town.queue, held))
    assert not await commit(town.database, lambda tx: lifecycle.give_back(tx, town.queue, held))
    again = await town.claim(job)
    assert again.attempt == 1
    assert await town.settle(again, result(again)) is JobState.COMPLETED


@pytest.mark.parametrize("running", [False, True])
async def test_a_cancelled_job_is_over_refunded_and_announced(town: Town, running: bool) -> None:
    job = await town.submit(hook="https://example.com/h")
    held = await town.claim(job) if running else None
    cancelled = await town.cancel(job)
    assert (cancelled.state, cancelled.error, cancelled.progress) == ("CANCELLED", "Job was cancelled", 0)
    assert cancelled.completed_at is not None
    assert await town.balance() == 100
    body = await commit(town.database, lambda tx: query.value(tx, "select body from webhook_deliveries"))
    sent = json.loads(body)
    assert (sent["event"], sent["status"], sent["error"]) == ("failed", "CANCELLED", "Job was cancelled")
    assert sent["creditCost"] == 0
    if held:
        assert not await town.renew(held)
        assert await town.settle(held, result(held)) is None
    with pytest.raises(Conflict, match="CANCELLED already"):
        await town.cancel(job)
    assert await town.claim_next() is None
    assert await town.balance() == 100


async def test_a_job_can_be_cancelled_by_whom_may_see_it_only(town: Town) -> None:
    job = await town.submit()
    stranger = Caller(user=uuid4(), team=town.caller.team, key=uuid4(), role="MEMBER")
    with pytest.raises(NotFound):
        await town.cancel(job, caller=stranger)
    assert (await town.get(job)).state == "QUEUED"
    head = Caller(user=uuid4(), team=town.caller.team, key=uuid4(), role="ADMIN")
    assert (await town.cancel(job, caller=head)).state == "CANCELLED"


async def test_a_full_line_says_when_a_place_will_be_free(town: Town) -> None:
    for _ in range(3):
        await town.submit()

    async def ask(seconds: float | None, *, per_team: int = 3, in_total: int = 9) -> int:
        with pytest.raises((RateLimited, Unavailable)) as caught:
            await commit(
                town.database,
                lambda tx: lifecycle.room_for(
                    tx, town.caller, per_team=per_team, in_total=in_total, seconds_a_job=seconds
                ),
            )
        error = caught.value
        assert isinstance(error, RateLimited | Unavailable)
        assert isinstance(error, RateLimited) == (in_total == 9)
        return error.retry_after

    assert (await ask(None), await ask(45.2), await ask(0.1)) == (lifecycle.UNKNOWN_WAIT, 46, 1)
    for _ in range(2):
        await town.claim_next()
        await town.submit()
    assert await ask(45.2) == 23
    assert await ask(45.2, per_team=9, in_total=3) == 23
    await town.count("with u as (update teams set max_queued_jobs = 4 returning 1) select 1")
    await commit(town.database, lambda tx: lifecycle.room_for(tx, town.caller, per_team=3, in_total=9))


async def test_renewing_a_lease_writes_no_index(town: Town) -> None:
    """It happens every few seconds for every running job, and the table of jobs has a dozen indexes."""
    held = await town.claim(await town.submit())

    async def renew(tx: Tx) -> int:
        assert await lifecycle.renew(tx, held, progress=50, lease_seconds=15)
        return int(await query.value(tx, "select pg_stat_get_xact_tuples_hot_updated('jobs'::regclass)"))

    assert await commit(town.database, renew) == 1


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
    assert await commit(town.database, task_queue.bury_orphans) == 1


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
        see = commit(town.database, lambda tx, who=caller: lifecycle.get(tx, job, caller=who))  # type: ignore[misc] # mypy cannot type a lambda's default
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
        results = await commit(town.database, lambda tx, r=retention: lifecycle.expired_results(tx, retention=r))  # type: ignore[misc] # as above
        assert len(results) == due
    await commit(town.database, lambda tx: lifecycle.mark_result_purged(tx, held.id))
    assert (await town.get(held.id)).expired
    assert await commit(town.database, lambda tx: lifecycle.expired_results(tx, retention=timedelta(0))) == []
