"""Jobs, turns and caps: any mixture of submissions, workers, failures, crashes and cancellations, checked at each step.

A machine (`Life`) walks real transactions on a real PostgreSQL in the order Hypothesis chooses, and keeps a model of
what must come of them (`Expected`), which knows no SQL; beside it are the races that need several connections at once.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, LiteralString, TypeVar
from uuid import UUID, uuid4

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
from hiresfix.server.billing import ledger
from hiresfix.server.database import query
from hiresfix.server.database.pool import Database, Tx
from hiresfix.server.database.task_queue import Queue
from hiresfix.server.jobs import lifecycle, model, scheduler
from hiresfix.server.jobs.model import Claim, Failed, Hindered, Refused
from hiresfix.states import JobState
from tests.server.conftest import commit
from tests.server.jobs.test_lifecycle import URL, Town, result, submission, town

__all__ = ["town"]

T = TypeVar("T")

CAPS = {"crowded": 1, "usual": 2, "roomy": 3}
GRANTED = 30
_ELIGIBLE = """
    select coalesce(sum(least(ready, greatest(room, 0))), 0) from (
        select count(*) filter (where j.state = 'QUEUED' and j.queued_at <= clock_timestamp()) as ready,
               t.max_concurrent_jobs - count(*) filter (where j.state = 'PROCESSING') as room
        from jobs j join teams t on t.id = j.team_id group by t.id) each_team
"""


async def settle_in(tx: Tx, *, name: str, running: int | None, plan: str = "free") -> Caller:
    """A new team with one user, one key and credits."""
    team = await query.value(
        tx,
        "insert into teams (name, plan, max_concurrent_jobs) values (%(name)s, %(plan)s, %(n)s) returning id",
        name=name,
        plan=plan,
        n=running,
    )
    user = await query.value(
        tx,
        "insert into users (team_id, email, role) values (%(team)s, %(email)s, 'OWNER') returning id",
        team=team,
        email=f"{uuid4()}@example.com",
    )
    key = await query.value(
        tx,
        "insert into api_keys (user_id, name, prefix, digest)"
        " values (%(user)s, 'k', 'afk_0000', sha256(%(id)s::text::bytea)) returning id",
        user=user,
        id=str(user),
    )
    await ledger.grant(tx, team, GRANTED, actor="test", reason="test")
    return Caller(user=user, team=team, key=key, role="OWNER")


@dataclass(slots=True, kw_only=True)
class Expected:
    """What a job must be, by all that was done to it; `token` is the claim that may still write."""

    cost: int
    max_attempts: int
    state: JobState = JobState.QUEUED
    attempt: int = 0
    refused: bool = False
    token: UUID | None = None
    lapsed: bool = False
    lost: set[UUID] = field(default_factory=set)
    """Claims that ended without a result: each may have left a picture."""

    def claimed(self, token: UUID, *, lapsed: bool) -> None:
        assert self.state is JobState.QUEUED
        self.state, self.token, self.lapsed, self.attempt = JobState.PROCESSING, token, lapsed, self.attempt + 1

    def ended(self, state: JobState) -> None:
        """The attempt is over: the job waits again, or is over too."""
        assert self.state in (JobState.QUEUED, JobState.PROCESSING)
        if self.token and state is not JobState.COMPLETED:
            self.lost.add(self.token)
        self.state, self.token, self.lapsed = state, None, False

    def uncounted(self) -> None:
        self.attempt -= 1
        self.ended(JobState.QUEUED)

    def retried(self) -> None:
        self.ended(JobState.QUEUED if self.attempt < self.max_attempts else JobState.FAILED)

    def settled(self, how: str) -> None:
        match how:
            case "completed":
                self.ended(JobState.COMPLETED)
            case "hindered":
                self.uncounted()
            case "retryable":
                self.retried()
            case "refused" if not self.refused and self.attempt < self.max_attempts:
                self.refused = True
                self.ended(JobState.QUEUED)
            case _:
                self.ended(JobState.FAILED)

    @property
    def row(self) -> tuple[str, int, UUID | None, bool]:
        return self.state.value, self.attempt, self.token, self.refused

    @property
    def booked(self) -> list[tuple[str, int]]:
        refund = [("refund", self.cost)] if self.state in (JobState.FAILED, JobState.CANCELLED) else []
        return [("charge", -self.cost), *refund]

    @property
    def told(self) -> list[str]:
        """The events that there must be of it."""
        if self.state not in states.TERMINAL:
            return []
        return ["completed" if self.state is JobState.COMPLETED else "failed"]


def outcome(held: Claim, how: str) -> model.Outcome:
    match how:
        case "completed":
            return result(held)
        case "hindered":
            return Hindered()
        case "refused":
            return Refused(error="e")
        case _:
            return Failed(error="e", retryable=how == "retryable")


HOW = ["completed", "failed", "retryable", "refused", "hindered"]


class Life(RuleBasedStateMachine):
    """Teams, workers and what befalls them. What must hold is in the invariants and in `teardown`."""

    database: Database
    queue: Queue
    run: Callable[[Awaitable[Any]], Any]

    def __init__(self) -> None:
        super().__init__()
        self.callers: dict[str, Caller] = {}
        self.accepted: dict[UUID, str] = {}
        self.model: dict[UUID, Expected] = {}
        self.held: list[Claim] = []
        self.late: list[Claim] = []
        self.keys: dict[str, tuple[bytes, UUID]] = {}
        self.turns: list[str] = []
        self.lost_a_task = False

    def commit(self, work: Callable[[Tx], Awaitable[T]]) -> T:
        found: T = self.run(commit(self.database, work))
        return found

    def value(self, statement: str, **values: object) -> Any:
        async def look(tx: Tx) -> Any:
            row = await (await tx.execute(statement.encode(), values)).fetchone()
            return row[0] if row else None

        return self.commit(look)

    @initialize()
    def found_teams(self) -> None:
        for name, cap in CAPS.items():
            self.callers[name] = self.commit(lambda tx, n=name, c=cap: settle_in(tx, name=n, running=c))  # type: ignore[misc] # mypy cannot type a lambda's default

    @rule(
        team=st.sampled_from(sorted(CAPS)),
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
                await idempotency.remember(tx, caller, route="r", key=key, fingerprint=fingerprint, job=new.id)
            await lifecycle.submit(tx, self.queue, new)

        before = self.keys.get(f"{team}/{key}")
        try:
            self.commit(work)
        except idempotency.Replayed as replayed:
            first = replayed.made
            assert before == (fingerprint, first)
        except Conflict:
            assert before is not None
            assert before[0] != fingerprint
        except InsufficientCredits as poor:
            available = poor.available
            assert available < cost
        else:
            assert key is None or before is None
            self.accepted[new.id] = team
            self.model[new.id] = Expected(cost=cost, max_attempts=attempts)
            if key:
                self.keys[f"{team}/{key}"] = fingerprint, new.id

    def take_task(self) -> bool:
        """What a worker does first: a task it can have, or none."""
        taken: int = self.value(
            "with taken as (delete from procrastinate_jobs where id = (select id from procrastinate_jobs"
            " where task_name = %(task)s and coalesce(scheduled_at, clock_timestamp()) <= clock_timestamp()"
            " order by id limit 1) returning 1) select count(*) from taken",
            task=scheduler.TASK,
        )
        return taken == 1

    @rule(lapsed=st.booleans())
    def work(self, lapsed: bool) -> None:
        if not self.take_task():
            return
        waiting = {
            name
            for name, caller in self.callers.items()
            if self.value(
                "select count(*) filter (where state = 'QUEUED' and queued_at <= clock_timestamp()) > 0"
                " and count(*) filter (where state = 'PROCESSING') < %(cap)s from jobs where team_id = %(team)s",
                cap=CAPS[name],
                team=caller.team,
            )
        }
        held = self.run(lifecycle.claim(self.database, worker="w", lease_seconds=-1 if lapsed else 60))
        assert (held is not None) == bool(waiting)
        if held is None:
            return
        team = self.accepted[held.id]
        longest = min(waiting, key=lambda name: self.turns[::-1].index(name) * -1 if name in self.turns else -1e9)
        assert team == longest or team not in self.turns, (waiting, self.turns, team)
        assert held.id == self.oldest_of(team, held.id)
        self.turns.append(team)
        self.held.append(held)
        self.model[held.id].claimed(held.token, lapsed=lapsed)
        assert held.refused == self.model[held.id].refused

    def oldest_of(self, team: str, taken: UUID) -> UUID:
        """The job that was first in the line before this one left it."""
        found: UUID = self.value(
            "select id from jobs where team_id = %(team)s and (id = %(taken)s or state = 'QUEUED'"
            " and queued_at <= clock_timestamp()) order by created_at, id limit 1",
            team=self.callers[team].team,
            taken=taken,
        )
        return found

    def pick(self, data: st.DataObject, claims: list[Claim]) -> Claim:
        return claims.pop(data.draw(st.integers(0, len(claims) - 1)))

    @precondition(lambda self: self.held)
    @rule(data=st.data(), progress=st.integers(0, 100))
    def renew(self, data: st.DataObject, progress: int) -> None:
        held = self.held[data.draw(st.integers(0, len(self.held) - 1))]
        ours = self.is_ours(held)
        assert self.commit(lambda tx: lifecycle.is_held(tx, held)) == ours
        assert self.commit(lambda tx: lifecycle.renew(tx, held, progress=progress, lease_seconds=60)) == ours
        if ours:
            self.model[held.id].lapsed = False

    def is_ours(self, held: Claim) -> bool:
        return self.model[held.id].token == held.token

    @precondition(lambda self: self.held)
    @rule(data=st.data(), how=st.sampled_from(HOW), comes_back=st.booleans())
    def settle(self, data: st.DataObject, how: str, comes_back: bool) -> None:
        held = self.pick(data, self.held)
        self.settle_one(held, how)
        if comes_back:  # the commit was not acknowledged, so the worker says it again
            self.late.append(held)

    def settle_one(self, held: Claim, how: str) -> None:
        ours = self.is_ours(held)
        state = self.commit(lambda tx: lifecycle.settle(tx, self.queue, held, outcome(held, how), public_url=URL))
        if ours:
            self.model[held.id].settled(how)
        assert state == (self.model[held.id].state if ours else None)

    @precondition(lambda self: self.late)
    @rule(data=st.data(), how=st.sampled_from(HOW))
    def come_back_late(self, data: st.DataObject, how: str) -> None:
        held = self.pick(data, self.late)
        assert not self.is_ours(held)
        self.settle_one(held, how)

    @precondition(lambda self: self.held)
    @rule(data=st.data(), how=st.sampled_from(HOW))
    def die_before_the_commit(self, data: st.DataObject, how: str) -> None:
        """Everything was said, and nothing happened; the claim is as good as it was."""
        held = self.held[data.draw(st.integers(0, len(self.held) - 1))]

        async def die(tx: Tx) -> None:
            await lifecycle.settle(tx, self.queue, held, outcome(held, how), public_url=URL)
            raise ConnectionAbortedError

        with contextlib.suppress(ConnectionAbortedError):
            self.commit(die)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def give_back(self, data: st.DataObject) -> None:
        held = self.pick(data, self.held)
        ours = self.is_ours(held)
        assert self.commit(lambda tx: lifecycle.give_back(tx, self.queue, held)) == ours
        if ours:
            self.model[held.id].uncounted()

    @precondition(lambda self: self.held)
    @rule(data=st.data(), dies=st.booleans())
    def fall_silent(self, data: st.DataObject, dies: bool) -> None:
        """The worker is killed, or frozen and wakes up late: before a sweep finds its lapsed lease, or after."""
        held = self.held[data.draw(st.integers(0, len(self.held) - 1))]
        self.value("update jobs set lease_until = now() where token = %(t)s returning 1", t=held.token)
        if self.is_ours(held):
            self.model[held.id].lapsed = True
        if dies:
            self.held.remove(held)
            self.sweep()
            self.late.append(held)

    @rule()
    def sweep(self) -> None:
        lapsed = {job: expected for job, expected in self.model.items() if expected.lapsed}
        for expected in lapsed.values():
            expected.retried()
        handed_on = {}
        while swept := self.commit(lambda tx: lifecycle.sweep(tx, self.queue, public_url=URL)):
            handed_on[swept.id] = swept.state
        assert handed_on == {job: expected.state for job, expected in lapsed.items()}

    @precondition(lambda self: self.accepted)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        job = data.draw(st.sampled_from(list(self.accepted)))
        over = self.model[job].state in states.TERMINAL
        try:
            after = self.commit(lambda tx: lifecycle.cancel(tx, self.queue, job, public_url=URL))
        except Conflict:
            assert over
        else:
            assert not over
            assert (after.state, after.error) == ("CANCELLED", "Job was cancelled")
            self.model[job].ended(JobState.CANCELLED)

    @rule()
    def die_before_claiming(self) -> None:
        """A task is gone with the worker that had fetched it."""
        self.lost_a_task |= self.take_task()

    @rule()
    def reconcile(self) -> None:
        self.commit(lambda tx: scheduler.reconcile(tx, self.queue))
        self.lost_a_task = False

    @rule()
    def pass_time(self) -> None:
        self.value("with u as (update jobs set queued_at = now() where state = 'QUEUED' returning 1) select 1 from u")
        self.value(
            "with u as (update procrastinate_jobs set scheduled_at = now() where status = 'todo' returning 1)"
            " select 1 from u"
        )

    def rows(self, statement: LiteralString) -> list[tuple[Any, ...]]:
        """Of this example's jobs; those of examples before are on the same database."""

        async def look(tx: Tx) -> list[tuple[Any, ...]]:
            return await (await tx.execute(statement, {"ids": list(self.accepted)})).fetchall()

        return self.commit(look)

    @invariant()
    def every_job_is_what_was_made_of_it(self) -> None:
        found = self.rows("select id, state, attempt, token, refused from jobs where id = any(%(ids)s)")
        assert {job: tuple(row) for job, *row in found} == {job: should.row for job, should in self.model.items()}

    @invariant()
    def every_job_is_booked_and_told_of_once(self) -> None:
        booked, told = defaultdict(list), defaultdict(list)
        for job, kind, amount in self.rows("select job_id, kind, amount from ledger where job_id = any(%(ids)s)"):
            booked[job].append((kind, amount))
        for job, event in self.rows("select job_id, event from webhook_deliveries where job_id = any(%(ids)s)"):
            told[job].append(event)
        for job, should in self.model.items():
            assert (sorted(booked[job]), told[job]) == (should.booked, should.told)

    @invariant()
    def where_lost_attempts_may_have_left_a_picture_is_known(self) -> None:
        found = self.rows("select key from strays where split_part(key, '/', 2)::uuid = any(%(ids)s)")
        lost = {f"results/{job}/{token}" for job, should in self.model.items() for token in should.lost}
        assert {key for (key,) in found} == lost

    @invariant()
    def the_books_are_right(self) -> None:
        for name, caller in self.callers.items():
            booked = self.value("select sum(amount) from ledger where team_id = %(t)s", t=caller.team)
            spent = sum(-amount for job, team in self.accepted.items() if team == name
                        for _, amount in self.model[job].booked)  # fmt: skip
            assert self.value("select credits from teams where id = %(t)s", t=caller.team) == booked == GRANTED - spent

    @invariant()
    def nobody_runs_more_than_allowed(self) -> None:
        assert self.value(
            "select count(*) from teams t where max_concurrent_jobs <"
            " (select count(*) from jobs j where j.team_id = t.id and state = 'PROCESSING')"
        ) == 0  # fmt: skip

    @invariant()
    def every_eligible_job_has_a_task(self) -> None:
        tasks = self.value(
            "select count(*) from procrastinate_jobs where task_name = %(task)s"
            " and coalesce(scheduled_at, clock_timestamp()) <= clock_timestamp()",
            task=scheduler.TASK,
        )
        assert self.lost_a_task or tasks >= self.value(_ELIGIBLE)

    def teardown(self) -> None:
        """From anywhere, with workers that only do what tasks tell them, every job comes to its one end."""
        for held in self.held:
            if self.is_ours(held):
                self.value("update jobs set lease_until = now() where token = %(t)s returning 1", t=held.token)
                self.model[held.id].lapsed = True
        self.held.clear()
        self.sweep()
        self.pass_time()
        self.reconcile()
        while self.take_task():
            if held := self.run(lifecycle.claim(self.database, worker="w", lease_seconds=60)):
                self.model[held.id].claimed(held.token, lapsed=False)
                self.settle_one(held, "completed")
        assert all(should.state in states.TERMINAL for should in self.model.values())
        self.every_job_is_what_was_made_of_it()
        self.every_job_is_booked_and_told_of_once()
        self.the_books_are_right()


@pytest.fixture
def life(database_url: str) -> Iterator[type[Life]]:
    """The machine, on a database of its own and an event loop that lasts as long."""
    with asyncio.Runner() as runner:

        async def open_database() -> Database:
            return await Database(database_url, max_size=2).__aenter__()

        database = runner.run(open_database())

        class Here(Life):
            def __init__(self) -> None:
                self.database, self.queue = database, Queue(database_url)
                self.run = lambda awaitable: runner.get_loop().run_until_complete(awaitable)
                super().__init__()

        yield Here
        runner.run(database.__aexit__(None, None, None))


@pytest.mark.parametrize("number", range(2))
def test_whatever_happens_to_jobs_nothing_is_lost_paid_twice_or_given_out_of_turn(
    life: type[Life], number: int
) -> None:
    walks = settings(
        max_examples=8, stateful_step_count=40, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    run_state_machine_as_test(seed(number)(life), settings=walks)


async def hire(town: Town, count: int, *, seconds: float = 0.0) -> list[Claim]:
    """So many workers that ask at once for as long as they are given work, and what they were given, in order."""
    given: list[Claim] = []

    async def work() -> None:
        while held := await lifecycle.claim(town.database, worker="w", lease_seconds=60):
            given.append(held)
            await asyncio.sleep(seconds)
            await town.settle(held, result(held))

    await asyncio.gather(*(work() for _ in range(count)))
    return given


async def second_team(town: Town, *, running: int | None = 1, plan: str = "free") -> Town:
    caller = await commit(town.database, lambda tx: settle_in(tx, name="second", running=running, plan=plan))
    return Town(town.database, town.queue, caller)


async def test_teams_take_turns_and_in_a_team_the_oldest_job_is_first(town: Town) -> None:
    other = await second_team(town)
    mine = [await town.submit(cost=1) for _ in range(6)]
    theirs = [await other.submit(cost=1) for _ in range(3)]
    order = [held.id for held in await hire(town, 1)]
    assert [job for job in order if job in mine] == mine
    assert [job for job in order if job in theirs] == theirs
    first, _ = (mine, theirs) if order[0] in mine else (theirs, mine)
    assert [job in first for job in order[:6]] == [True, False] * 3


async def test_many_workers_at_once_run_no_more_jobs_of_a_team_than_it_may(town: Town) -> None:
    other = await second_team(town, running=3)
    await town.allow(2)
    for _ in range(8):
        await town.submit(cost=1)
        await other.submit(cost=1)
    most: Counter[UUID] = Counter()

    async def look() -> None:
        while True:
            async with town.database.transaction() as tx:
                rows = await (
                    await tx.execute("select team_id, count(*) from jobs where state = 'PROCESSING' group by 1")
                ).fetchall()
            for team, running in rows:
                most[team] = max(most[team], running)
            await asyncio.sleep(0.002)

    looking = asyncio.create_task(look())
    while await town.count("select count(*) from jobs where state = 'QUEUED'"):
        await hire(town, 10, seconds=0.02)
    looking.cancel()
    assert most == {town.caller.team: 2, other.caller.team: 3}


async def test_workers_that_ask_at_once_are_all_given_work_if_there_is_enough(town: Town) -> None:
    for _ in range(12):
        await town.submit(cost=1)
    claims = await asyncio.gather(*(town.claim_next() for _ in range(12)))
    assert len({held.id for held in claims if held}) == 12


async def test_what_a_plan_allows_counts_unless_the_team_has_a_number_of_its_own(town: Town) -> None:
    free = await second_team(town, running=None)
    for _ in range(4):
        await free.submit(cost=1)
    assert [bool(await town.claim_next()) for _ in range(3)] == [True, True, False]
    await free.count(
        "with u as (update teams set plan = 'pro' where id = %(t)s returning 1) select 1", t=free.caller.team
    )
    assert await town.replace_lost_tasks() == 0  # two of them have a task still: nobody took one here
    assert [bool(await town.claim_next()) for _ in range(3)] == [True, True, False]


async def test_jobs_beyond_the_cap_cost_no_tasks_until_a_place_is_free(town: Town) -> None:
    await town.allow(2)
    first, second, third = [await town.submit() for _ in range(3)]
    assert await town.tasks() == 2
    held = await town.claim(first)
    await town.claim(second)
    assert await town.claim_next() is None
    await town.settle(held, result(held))
    assert await town.tasks() == 3  # nothing here takes them away
    assert (await town.claim(third)).id == third


async def test_a_team_that_was_allowed_more_is_noticed(town: Town) -> None:
    await town.allow(1)
    for _ in range(3):
        await town.submit()
    assert (await town.tasks(), await town.replace_lost_tasks()) == (1, 0)
    await town.allow(3)
    assert (await town.replace_lost_tasks(), await town.tasks()) == (2, 3)


async def test_a_locked_line_is_waited_for_and_not_taken_for_an_empty_one(town: Town) -> None:
    job = await town.submit()
    async with town.database.transaction() as tx:
        await tx.execute("select from turns for update")
        asking = asyncio.create_task(town.claim_next())
        await asyncio.sleep(0.1)
        assert not asking.done()
    held = await asking
    assert held is not None
    assert held.id == job


@pytest.mark.parametrize("rival", ["settle", "sweep", "claim", "give_back", "cancel"])
async def test_cancelling_against_anything_has_one_winner(town: Town, rival: str) -> None:
    """Both in real transactions at once, many times: one end, one refund at most, and books that are right."""
    for _ in range(8):
        job = await town.submit(cost=1)
        held = None if rival == "claim" else await town.claim(job, lease=-1)

        async def compete(held: Claim | None = held, job: UUID = job) -> object:
            match rival:
                case "settle":
                    assert held is not None
                    return await town.settle(held, result(held))
                case "sweep":
                    return await town.sweep()
                case "claim":
                    return await town.claim_next()
                case "give_back":
                    assert held is not None
                    return await commit(town.database, lambda tx: lifecycle.give_back(tx, town.queue, held))
                case _:
                    return await town.cancel(job)

        cancelled, other = await asyncio.gather(town.cancel(job), compete(), return_exceptions=True)
        for answer in (cancelled, other):
            assert not isinstance(answer, BaseException) or isinstance(answer, Conflict)
        end = await town.get(job)
        assert (end.state == "CANCELLED") == (not isinstance(cancelled, Conflict) or rival == "cancel")
        if rival in ("settle", "cancel"):
            assert isinstance(cancelled, Conflict) != (isinstance(other, Conflict) or other is None)
        if isinstance(other, Claim):
            assert await town.settle(other, result(other)) is None
    await town.balance()
    assert await town.count("select count(*) from jobs where state not in ('CANCELLED', 'COMPLETED')") == 0
    assert await town.count("select count(*) from ledger where kind = 'refund'") == await town.count(
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


async def test_what_upkeep_reads_to_find_lost_tasks_does_not_grow_with_what_waits(town: Town) -> None:
    await town.allow(100_000)
    first = await town.submit(cost=1)
    read = []
    for copies in (600, 2400):
        await town.count(_COPIES, job=first, copies=copies)
        await _analyse(town.database)
        # A connection of its own: what others read before is not told yet, and would count.
        async with Database(town.database.url, max_size=1) as fresh, fresh.transaction() as tx:
            assert await scheduler.reconcile(tx, town.queue) == 0
            read.append(int(await query.value(tx, _READ)))
    assert read[1] <= read[0] + 10
    assert read[0] < 4 * scheduler.MOST_AT_ONCE
    await town.count("with gone as (delete from procrastinate_jobs returning 1) select count(*) from gone")
    assert await town.replace_lost_tasks() == scheduler.MOST_AT_ONCE


async def _analyse(database: Database) -> None:
    """As autovacuum does in a table that grew."""
    async with database.looking() as tx:
        await tx.execute("analyze jobs, procrastinate_jobs")
