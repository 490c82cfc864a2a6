"""Jobs, fair scheduling and limits: any mix of submissions, workers, failures, crashes and cancellations.

The state machine `JobLives` runs real transactions on a real PostgreSQL in the order that Hypothesis chooses, and
compares each step with a model (`ExpectedJob`) that knows no SQL. The other tests are races between connections.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, LiteralString, TypeVar
from uuid import UUID

import pytest
from hypothesis import HealthCheck, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from hiresfix import states
from hiresfix.errors import Conflict, InsufficientCredits
from hiresfix.server import idempotency
from hiresfix.server.accounts.authentication import Caller
from hiresfix.server.database import query
from hiresfix.server.database.pool import Database, Tx
from hiresfix.server.database.task_queue import Queue
from hiresfix.server.jobs import lifecycle, model, scheduler
from hiresfix.server.jobs.model import Claim, Failed, RejectedResult, StoreUnavailable
from hiresfix.states import JobState
from tests.server.conftest import commit
from tests.server.job_steps import GRANTED_CREDITS, PUBLIC_URL, JobSteps, create_team, second_team, submission, success

T = TypeVar("T")

TEAM_LIMITS = {"crowded": 1, "usual": 2, "roomy": 3}
_ELIGIBLE = """
    select coalesce(sum(least(ready, greatest(slots, 0))), 0) from (
        select count(*) filter (where j.state = 'QUEUED' and j.queued_at <= clock_timestamp()) as ready,
               t.max_concurrent_jobs - count(*) filter (where j.state = 'PROCESSING') as slots
        from jobs j join teams t on t.id = j.team_id group by t.id) each_team
"""


@dataclass(slots=True, kw_only=True)
class ExpectedJob:
    """Expected state of a job after everything done to it; `token` belongs to the claim that may still write."""

    cost: int
    max_attempts: int
    state: JobState = JobState.QUEUED
    attempt: int = 0
    rejected: bool = False
    token: UUID | None = None
    lease_expired: bool = False
    orphaned: set[UUID] = field(default_factory=set)
    """Tokens of claims that ended without a result: each may have stored an image."""

    def claimed(self, token: UUID, *, lease_expired: bool) -> None:
        assert self.state is JobState.QUEUED
        self.state, self.token, self.lease_expired, self.attempt = (
            JobState.PROCESSING,
            token,
            lease_expired,
            self.attempt + 1,
        )

    def ended(self, state: JobState) -> None:
        """End the attempt: the job waits again or is finished."""
        assert self.state in (JobState.QUEUED, JobState.PROCESSING)
        if self.token and state is not JobState.COMPLETED:
            self.orphaned.add(self.token)
        self.state, self.token, self.lease_expired = state, None, False

    def uncounted(self) -> None:
        self.attempt -= 1
        self.ended(JobState.QUEUED)

    def retried(self) -> None:
        self.ended(JobState.QUEUED if self.attempt < self.max_attempts else JobState.FAILED)

    def settled(self, how: str) -> None:
        match how:
            case "completed":
                self.ended(JobState.COMPLETED)
            case "store unavailable":
                self.uncounted()
            case "retryable":
                self.retried()
            case "rejected" if not self.rejected and self.attempt < self.max_attempts:
                self.rejected = True
                self.ended(JobState.QUEUED)
            case _:
                self.ended(JobState.FAILED)

    @property
    def row(self) -> tuple[str, int, UUID | None, bool]:
        return self.state.value, self.attempt, self.token, self.rejected

    @property
    def booked(self) -> list[tuple[str, int]]:
        refund = [("refund", self.cost)] if self.state in (JobState.FAILED, JobState.CANCELLED) else []
        return [("charge", -self.cost), *refund]

    @property
    def announced(self) -> list[str]:
        """Webhook events that must exist for the job."""
        if self.state not in states.TERMINAL:
            return []
        return ["completed" if self.state is JobState.COMPLETED else "failed"]


def outcome(claim: Claim, how: str) -> model.AttemptOutcome:
    match how:
        case "completed":
            return success(claim)
        case "store unavailable":
            return StoreUnavailable()
        case "rejected":
            return RejectedResult(error="e")
        case _:
            return Failed(error="e", retryable=how == "retryable")


OUTCOMES = ["completed", "failed", "retryable", "rejected", "store unavailable"]


class JobLives(RuleBasedStateMachine):
    """Teams and workers, and everything that can happen to their jobs; checks are in the invariants and `teardown`."""

    database: Database
    queue: Queue
    run: Callable[[Awaitable[Any]], Any]

    def __init__(self) -> None:
        super().__init__()
        self.callers: dict[str, Caller] = {}
        self.accepted: dict[UUID, str] = {}
        self.model: dict[UUID, ExpectedJob] = {}
        self.claims: list[Claim] = []
        self.late_claims: list[Claim] = []
        self.keys: dict[str, tuple[bytes, UUID]] = {}
        self.scheduled_teams: list[str] = []
        self.lost_a_task = False

    def commit(self, work: Callable[[Tx], Awaitable[T]]) -> T:
        result: T = self.run(commit(self.database, work))
        return result

    def value(self, statement: str, **values: object) -> Any:
        async def read(tx: Tx) -> Any:
            row = await (await tx.execute(statement.encode(), values)).fetchone()
            return row[0] if row else None

        return self.commit(read)

    @initialize()
    def create_teams(self) -> None:
        for name, limit in TEAM_LIMITS.items():
            self.callers[name] = self.commit(lambda tx, n=name, c=limit: create_team(tx, name=n, running=c))  # type: ignore[misc] # mypy cannot type a lambda's default

    @rule(
        team=st.sampled_from(sorted(TEAM_LIMITS)),
        cost=st.sampled_from([1, 3, 20]),
        attempts=st.integers(1, 3),
        key=st.none() | st.sampled_from(["a", "b"]),
        fingerprint=st.sampled_from([b"x", b"y"]),
    )
    def submit(self, team: str, cost: int, attempts: int, key: str | None, fingerprint: bytes) -> None:
        caller = self.callers[team]
        new = submission(caller, cost=cost, max_attempts=attempts, hook="https://example.com/h")

        async def work(tx: Tx) -> None:
            if key:
                await idempotency.bind(tx, caller, route="r", key=key, fingerprint=fingerprint, job=new.id)
            await lifecycle.submit(tx, self.queue, new)

        before = self.keys.get(f"{team}/{key}")
        try:
            self.commit(work)
        except idempotency.Replayed as replayed:
            first = replayed.result_id
            assert before == (fingerprint, first)
        except Conflict:
            assert before is not None
            assert before[0] != fingerprint
        except InsufficientCredits as error:
            available = error.available
            assert available < cost
        else:
            assert key is None or before is None
            self.accepted[new.id] = team
            self.model[new.id] = ExpectedJob(cost=cost, max_attempts=attempts)
            if key:
                self.keys[f"{team}/{key}"] = fingerprint, new.id

    def take_task(self) -> bool:
        """Take one due task as a worker does; True if there was one."""
        taken: int = self.value(
            "with taken as (delete from procrastinate_jobs where id = (select id from procrastinate_jobs"
            " where task_name = %(task)s and coalesce(scheduled_at, clock_timestamp()) <= clock_timestamp()"
            " order by id limit 1) returning 1) select count(*) from taken",
            task=scheduler.TASK,
        )
        return taken == 1

    @rule(lease_expired=st.booleans())
    def work(self, lease_expired: bool) -> None:
        if not self.take_task():
            return
        waiting = {
            name
            for name, caller in self.callers.items()
            if self.value(
                "select count(*) filter (where state = 'QUEUED' and queued_at <= clock_timestamp()) > 0"
                " and count(*) filter (where state = 'PROCESSING') < %(limit)s from jobs where team_id = %(team)s",
                limit=TEAM_LIMITS[name],
                team=caller.team,
            )
        }
        claim = self.run(lifecycle.claim(self.database, worker="w", lease_seconds=-1 if lease_expired else 60))
        assert (claim is not None) == bool(waiting)
        if claim is None:
            return
        team = self.accepted[claim.id]
        longest = min(
            waiting,
            key=lambda name: self.scheduled_teams[::-1].index(name) * -1 if name in self.scheduled_teams else -1e9,
        )
        assert team == longest or team not in self.scheduled_teams, (waiting, self.scheduled_teams, team)
        assert claim.id == self.oldest_of(team, claim.id)
        self.scheduled_teams.append(team)
        self.claims.append(claim)
        self.model[claim.id].claimed(claim.token, lease_expired=lease_expired)
        assert claim.rejected_before == self.model[claim.id].rejected

    def oldest_of(self, team: str, taken: UUID) -> UUID:
        """Return the job that was first in its team before this one was claimed."""
        job: UUID = self.value(
            "select id from jobs where team_id = %(team)s and (id = %(taken)s or state = 'QUEUED'"
            " and queued_at <= clock_timestamp()) order by created_at, id limit 1",
            team=self.callers[team].team,
            taken=taken,
        )
        return job

    def pick(self, data: st.DataObject, claims: list[Claim]) -> Claim:
        return claims.pop(data.draw(st.integers(0, len(claims) - 1)))

    @precondition(lambda self: self.claims)
    @rule(data=st.data(), progress=st.integers(0, 100))
    def renew(self, data: st.DataObject, progress: int) -> None:
        claim = self.claims[data.draw(st.integers(0, len(self.claims) - 1))]
        current = self.is_current(claim)
        assert self.commit(lambda tx: lifecycle.is_current(tx, claim)) == current
        assert self.commit(lambda tx: lifecycle.renew(tx, claim, progress=progress, lease_seconds=60)) == current
        if current:
            self.model[claim.id].lease_expired = False

    def is_current(self, claim: Claim) -> bool:
        return self.model[claim.id].token == claim.token

    @precondition(lambda self: self.claims)
    @rule(data=st.data(), how=st.sampled_from(OUTCOMES), repeated=st.booleans())
    def settle(self, data: st.DataObject, how: str, repeated: bool) -> None:
        claim = self.pick(data, self.claims)
        self.settle_and_compare(claim, how)
        if repeated:  # the commit was not acknowledged, so the worker settles again
            self.late_claims.append(claim)

    def settle_and_compare(self, claim: Claim, how: str) -> None:
        current = self.is_current(claim)
        state = self.commit(
            lambda tx: lifecycle.settle(tx, self.queue, claim, outcome(claim, how), public_url=PUBLIC_URL)
        )
        if current:
            self.model[claim.id].settled(how)
        assert state == (self.model[claim.id].state if current else None)

    @precondition(lambda self: self.late_claims)
    @rule(data=st.data(), how=st.sampled_from(OUTCOMES))
    def settle_late(self, data: st.DataObject, how: str) -> None:
        claim = self.pick(data, self.late_claims)
        assert not self.is_current(claim)
        self.settle_and_compare(claim, how)

    @precondition(lambda self: self.claims)
    @rule(data=st.data(), how=st.sampled_from(OUTCOMES))
    def die_before_the_commit(self, data: st.DataObject, how: str) -> None:
        """Roll back a settlement: nothing happened, and the claim is still valid."""
        claim = self.claims[data.draw(st.integers(0, len(self.claims) - 1))]

        async def die(tx: Tx) -> None:
            await lifecycle.settle(tx, self.queue, claim, outcome(claim, how), public_url=PUBLIC_URL)
            raise ConnectionAbortedError

        with contextlib.suppress(ConnectionAbortedError):
            self.commit(die)

    @precondition(lambda self: self.claims)
    @rule(data=st.data())
    def give_back(self, data: st.DataObject) -> None:
        claim = self.pick(data, self.claims)
        current = self.is_current(claim)
        assert self.commit(lambda tx: lifecycle.give_back(tx, self.queue, claim)) == current
        if current:
            self.model[claim.id].uncounted()

    @precondition(lambda self: self.claims)
    @rule(data=st.data(), dies=st.booleans())
    def fall_silent(self, data: st.DataObject, dies: bool) -> None:
        """Kill or freeze the worker: it comes back before its expired lease is found, or after."""
        claim = self.claims[data.draw(st.integers(0, len(self.claims) - 1))]
        self.value("update jobs set lease_until = now() where token = %(t)s returning 1", t=claim.token)
        if self.is_current(claim):
            self.model[claim.id].lease_expired = True
        if dies:
            self.claims.remove(claim)
            self.requeue_expired()
            self.late_claims.append(claim)

    @rule()
    def requeue_expired(self) -> None:
        expired = {job: expected for job, expected in self.model.items() if expected.lease_expired}
        for expected in expired.values():
            expected.retried()
        requeued = {}
        while lease := self.commit(lambda tx: lifecycle.requeue_expired(tx, self.queue, public_url=PUBLIC_URL)):
            requeued[lease.id] = lease.state
        assert requeued == {job: expected.state for job, expected in expired.items()}

    @precondition(lambda self: self.accepted)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        job = data.draw(st.sampled_from(list(self.accepted)))
        over = self.model[job].state in states.TERMINAL
        try:
            after = self.commit(lambda tx: lifecycle.cancel(tx, self.queue, job, public_url=PUBLIC_URL))
        except Conflict:
            assert over
        else:
            assert not over
            assert (after.state, after.error) == ("CANCELLED", "Job was cancelled")
            self.model[job].ended(JobState.CANCELLED)

    @rule()
    def die_before_claiming(self) -> None:
        """Lose a task with the worker that had fetched it."""
        self.lost_a_task |= self.take_task()

    @rule()
    def replace_lost_tasks(self) -> None:
        self.commit(lambda tx: scheduler.replace_lost_tasks(tx, self.queue))
        self.lost_a_task = False

    @rule()
    def pass_time(self) -> None:
        self.value("with u as (update jobs set queued_at = now() where state = 'QUEUED' returning 1) select 1 from u")
        self.value(
            "with u as (update procrastinate_jobs set scheduled_at = now() where status = 'todo' returning 1)"
            " select 1 from u"
        )

    def rows(self, statement: LiteralString) -> list[tuple[Any, ...]]:
        """Return rows of this example's jobs; jobs of earlier examples are in the same database."""

        async def read(tx: Tx) -> list[tuple[Any, ...]]:
            return await (await tx.execute(statement, {"ids": list(self.accepted)})).fetchall()

        return self.commit(read)

    @invariant()
    def jobs_are_as_expected(self) -> None:
        rows = self.rows("select id, state, attempt, token, refused from jobs where id = any(%(ids)s)")
        assert {job: tuple(row) for job, *row in rows} == {job: expected.row for job, expected in self.model.items()}

    @invariant()
    def jobs_are_booked_and_announced_once(self) -> None:
        booked, announced = defaultdict(list), defaultdict(list)
        for job, kind, amount in self.rows("select job_id, kind, amount from ledger where job_id = any(%(ids)s)"):
            booked[job].append((kind, amount))
        for job, event in self.rows("select job_id, event from webhook_deliveries where job_id = any(%(ids)s)"):
            announced[job].append(event)
        for job, expected in self.model.items():
            assert (sorted(booked[job]), announced[job]) == (expected.booked, expected.announced)

    @invariant()
    def orphaned_results_are_recorded(self) -> None:
        rows = self.rows("select key from strays where split_part(key, '/', 2)::uuid = any(%(ids)s)")
        orphaned = {f"results/{job}/{token}" for job, expected in self.model.items() for token in expected.orphaned}
        assert {key for (key,) in rows} == orphaned

    @invariant()
    def balances_match_the_ledger(self) -> None:
        for name, caller in self.callers.items():
            booked = self.value("select sum(amount) from ledger where team_id = %(t)s", t=caller.team)
            spent = sum(-amount for job, team in self.accepted.items() if team == name
                        for _, amount in self.model[job].booked)  # fmt: skip
            assert (
                self.value("select credits from teams where id = %(t)s", t=caller.team)
                == booked
                == GRANTED_CREDITS - spent
            )

    @invariant()
    def team_limits_are_respected(self) -> None:
        assert self.value(
            "select count(*) from teams t where max_concurrent_jobs <"
            " (select count(*) from jobs j where j.team_id = t.id and state = 'PROCESSING')"
        ) == 0  # fmt: skip

    @invariant()
    def eligible_jobs_have_tasks(self) -> None:
        tasks = self.value(
            "select count(*) from procrastinate_jobs where task_name = %(task)s"
            " and coalesce(scheduled_at, clock_timestamp()) <= clock_timestamp()",
            task=scheduler.TASK,
        )
        assert self.lost_a_task or tasks >= self.value(_ELIGIBLE)

    def teardown(self) -> None:
        """From any state, workers that only react to tasks finish every job exactly once."""
        for claim in self.claims:
            if self.is_current(claim):
                self.value("update jobs set lease_until = now() where token = %(t)s returning 1", t=claim.token)
                self.model[claim.id].lease_expired = True
        self.claims.clear()
        self.requeue_expired()
        self.pass_time()
        self.replace_lost_tasks()
        while self.take_task():
            if claim := self.run(lifecycle.claim(self.database, worker="w", lease_seconds=60)):
                self.model[claim.id].claimed(claim.token, lease_expired=False)
                self.settle_and_compare(claim, "completed")
        assert all(expected.state in states.TERMINAL for expected in self.model.values())
        self.jobs_are_as_expected()
        self.jobs_are_booked_and_announced_once()
        self.balances_match_the_ledger()


@pytest.fixture
def job_lives(database_url: str) -> Iterator[type[JobLives]]:
    """Return the state machine, on a database of its own and an event loop that lives as long."""
    with asyncio.Runner() as runner:

        async def open_database() -> Database:
            return await Database(database_url, max_size=2).__aenter__()

        database = runner.run(open_database())

        class BoundJobLives(JobLives):
            def __init__(self) -> None:
                self.database, self.queue = database, Queue(database_url)
                self.run = lambda awaitable: runner.get_loop().run_until_complete(awaitable)
                super().__init__()

        yield BoundJobLives
        runner.run(database.__aexit__(None, None, None))


@pytest.mark.parametrize("number", range(2))
def test_random_job_lives_keep_all_invariants(job_lives: type[JobLives], number: int) -> None:
    walks = settings(
        max_examples=8, stateful_step_count=40, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    run_state_machine_as_test(seed(number)(job_lives), settings=walks)


async def run_workers(steps: JobSteps, count: int, *, seconds: float = 0.0) -> list[Claim]:
    """Run `count` workers at once until no job may start; returns their claims in order."""
    claims: list[Claim] = []

    async def work() -> None:
        while claim := await lifecycle.claim(steps.database, worker="w", lease_seconds=60):
            claims.append(claim)
            await asyncio.sleep(seconds)
            await steps.settle(claim, success(claim))

    await asyncio.gather(*(work() for _ in range(count)))
    return claims


async def test_round_robin_over_teams_oldest_job_first(steps: JobSteps) -> None:
    other = await second_team(steps)
    mine = [await steps.submit(cost=1) for _ in range(6)]
    theirs = [await other.submit(cost=1) for _ in range(3)]
    order = [claim.id for claim in await run_workers(steps, 1)]
    assert [job for job in order if job in mine] == mine
    assert [job for job in order if job in theirs] == theirs
    first, _ = (mine, theirs) if order[0] in mine else (theirs, mine)
    assert [job in first for job in order[:6]] == [True, False] * 3


async def test_concurrent_claims_respect_team_limits(steps: JobSteps) -> None:
    other = await second_team(steps, running=3)
    await steps.allow(2)
    for _ in range(8):
        await steps.submit(cost=1)
        await other.submit(cost=1)
    most_running: Counter[UUID] = Counter()

    async def watch() -> None:
        while True:
            async with steps.database.transaction() as tx:
                rows = await (
                    await tx.execute("select team_id, count(*) from jobs where state = 'PROCESSING' group by 1")
                ).fetchall()
            for team, running in rows:
                most_running[team] = max(most_running[team], running)
            await asyncio.sleep(0.002)

    watching = asyncio.create_task(watch())
    while await steps.count("select count(*) from jobs where state = 'QUEUED'"):
        await run_workers(steps, 10, seconds=0.02)
    watching.cancel()
    assert most_running == {steps.caller.team: 2, other.caller.team: 3}


async def test_concurrent_claims_all_get_a_job(steps: JobSteps) -> None:
    for _ in range(12):
        await steps.submit(cost=1)
    claims = await asyncio.gather(*(steps.claim_next() for _ in range(12)))
    assert len({claim.id for claim in claims if claim}) == 12


async def test_plan_limit_applies_without_team_limit(steps: JobSteps) -> None:
    free = await second_team(steps, running=None)
    for _ in range(4):
        await free.submit(cost=1)
    assert [bool(await steps.claim_next()) for _ in range(3)] == [True, True, False]
    await free.count(
        "with u as (update teams set plan = 'pro' where id = %(t)s returning 1) select 1", t=free.caller.team
    )
    assert await steps.replace_lost_tasks() == 0  # two jobs still have a task: nothing in this test takes one
    assert [bool(await steps.claim_next()) for _ in range(3)] == [True, True, False]


async def test_jobs_beyond_limit_have_no_task_yet(steps: JobSteps) -> None:
    await steps.allow(2)
    first, second, third = [await steps.submit() for _ in range(3)]
    assert await steps.tasks() == 2
    claim = await steps.claim(first)
    await steps.claim(second)
    assert await steps.claim_next() is None
    await steps.settle(claim, success(claim))
    assert await steps.tasks() == 3  # nothing in this test takes tasks
    assert (await steps.claim(third)).id == third


async def test_raised_team_limit_enqueues_tasks(steps: JobSteps) -> None:
    await steps.allow(1)
    for _ in range(3):
        await steps.submit()
    assert (await steps.tasks(), await steps.replace_lost_tasks()) == (1, 0)
    await steps.allow(3)
    assert (await steps.replace_lost_tasks(), await steps.tasks()) == (2, 3)


async def test_claim_waits_for_locked_team(steps: JobSteps) -> None:
    job = await steps.submit()
    async with steps.database.transaction() as tx:
        await tx.execute("select from turns for update")
        claiming = asyncio.create_task(steps.claim_next())
        await asyncio.sleep(0.1)
        assert not claiming.done()
    claim = await claiming
    assert claim is not None
    assert claim.id == job


@pytest.mark.parametrize("rival", ["settle", "requeue_expired", "claim", "give_back", "cancel"])
async def test_cancel_race_has_one_winner(steps: JobSteps, rival: str) -> None:
    """Race both in real transactions, several times: one end, at most one refund, correct balances."""
    for _ in range(8):
        job = await steps.submit(cost=1)
        claim = None if rival == "claim" else await steps.claim(job, lease=-1)

        async def compete(claim: Claim | None = claim, job: UUID = job) -> object:
            match rival:
                case "settle":
                    assert claim is not None
                    return await steps.settle(claim, success(claim))
                case "requeue_expired":
                    return await steps.requeue_expired()
                case "claim":
                    return await steps.claim_next()
                case "give_back":
                    assert claim is not None
                    return await steps.give_back(claim)
                case _:
                    return await steps.cancel(job)

        cancelled, other = await asyncio.gather(steps.cancel(job), compete(), return_exceptions=True)
        for answer in (cancelled, other):
            assert not isinstance(answer, BaseException) or isinstance(answer, Conflict)
        end = await steps.get(job)
        assert (end.state == "CANCELLED") == (not isinstance(cancelled, Conflict) or rival == "cancel")
        if rival in ("settle", "cancel"):
            assert isinstance(cancelled, Conflict) != (isinstance(other, Conflict) or other is None)
        if isinstance(other, Claim):
            assert await steps.settle(other, success(other)) is None
    await steps.balance()
    assert await steps.count("select count(*) from jobs where state not in ('CANCELLED', 'COMPLETED')") == 0
    assert await steps.count("select count(*) from ledger where kind = 'refund'") == await steps.count(
        "select count(*) from jobs where state = 'CANCELLED'"
    )


_COPIES = """
    with copied as (
        insert into jobs (id, team_id, user_id, key_id, request_id, model, recipe, input, source, max_attempts, cost)
        select gen_random_uuid(), team_id, user_id, key_id, request_id, model, recipe, input, source, max_attempts, 0
        from jobs, generate_series(1, %(copies)s) where id = %(job)s returning 1
    ), called as (
        insert into procrastinate_jobs (queue_name, task_name) select 'engine', 'jobs.run' from copied returning 1
    )
    select count(*) from called
"""
_READ = """
    select sum(coalesce(seq_tup_read, 0) + coalesce(idx_tup_fetch, 0)) from pg_stat_xact_user_tables
    where relname in ('jobs', 'procrastinate_jobs')
"""


async def test_finding_lost_tasks_reads_constant_rows(steps: JobSteps) -> None:
    await steps.allow(100_000)
    first = await steps.submit(cost=1)
    read = []
    for copies in (600, 2400):
        await steps.count(_COPIES, job=first, copies=copies)
        await _analyse(steps.database)
        # A connection of its own: rows that others read before are not in the statistics yet, and would count.
        async with Database(steps.database.url, max_size=1) as fresh, fresh.transaction() as tx:
            assert await scheduler.replace_lost_tasks(tx, steps.queue) == 0
            read.append(int(await query.value(tx, _READ)))
    assert read[1] <= read[0] + 10
    assert read[0] < 4 * scheduler.MAX_TASKS_AT_ONCE
    await steps.count("with gone as (delete from procrastinate_jobs returning 1) select count(*) from gone")
    assert await steps.replace_lost_tasks() == scheduler.MAX_TASKS_AT_ONCE


async def _analyse(database: Database) -> None:
    """Update the statistics, as autovacuum does in a table that grew."""
    async with database.autocommit() as tx:
        await tx.execute("analyze jobs, procrastinate_jobs")
