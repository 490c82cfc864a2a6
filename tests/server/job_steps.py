"""The steps of a job's life as tests write them: submit, claim, renew, settle, cancel, on a real PostgreSQL."""

from __future__ import annotations

from typing import Any
from uuid import UUID, uuid4

from hiresfix.recipe import Recipe
from hiresfix.server.accounts import authentication
from hiresfix.server.accounts.authentication import Caller
from hiresfix.server.billing import ledger
from hiresfix.server.database import query
from hiresfix.server.database.pool import Database, Tx
from hiresfix.server.database.task_queue import Queue
from hiresfix.server.jobs import lifecycle, model, scheduler
from hiresfix.server.jobs.model import Claim, Completed, StoredResult, StoredSource, Submission
from hiresfix.states import JobState

PUBLIC_URL = "http://example.com"
GRANTED_CREDITS = 30
"""Of every team after the first."""


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
    """Return a job on an image of `side` x 3 pixels, upscaled to twice that."""
    job = uuid4()
    return Submission(
        id=job,
        caller=caller,
        request_id="r",
        model="clarity-upscale",
        cost=cost,
        recipe=Recipe(seed=1),
        input={"image": "https://example.com/a.png"},
        source=StoredSource(key=f"sources/{job}", sha256="0", media_type="image/png", bytes=1, width=side, height=3),
        hook_url=hook,
        hook_events=events,
        max_attempts=max_attempts,
        needs=needs,
    )


def success(claim: Claim) -> Completed:
    """Return the outcome of a successful attempt: 8 x 6 pixels."""
    key = f"results/{claim.id}/{claim.token}.png"
    return Completed(
        result=StoredResult(key=key, sha256="1", media_type="image/png", bytes=9, width=8, height=6, metadata={})
    )


class JobSteps:
    """One team, and the steps of its jobs' lives."""

    def __init__(self, database: Database, queue: Queue, caller: Caller) -> None:
        self.database, self.queue, self.caller = database, queue, caller

    async def submit(self, **options: Any) -> UUID:
        new = submission(self.caller, **options)
        async with self.database.transaction() as tx:
            await lifecycle.submit(tx, self.queue, new)
        return new.id

    async def claim(self, job: UUID, *, lease: float = 60) -> Claim:
        """Claim the next job, which must be this one."""
        claim = await self.claim_next(lease=lease)
        assert claim is not None
        assert claim.id == job
        return claim

    async def claim_next(self, *, lease: float = 60) -> Claim | None:
        return await lifecycle.claim(self.database, worker="w", lease_seconds=lease)

    async def cancel(self, job: UUID, *, caller: Caller | None = None) -> model.Job:
        async with self.database.transaction() as tx:
            return await lifecycle.cancel(tx, self.queue, job, public_url=PUBLIC_URL, caller=caller or self.caller)

    async def give_back(self, claim: Claim) -> bool:
        async with self.database.transaction() as tx:
            return await lifecycle.give_back(tx, self.queue, claim)

    async def pass_time(self) -> None:
        """Make jobs that pause before their next attempt due."""
        await self.count(
            "with due as (update jobs set queued_at = now() where state = 'QUEUED' returning 1)"
            " select count(*) from due"
        )

    async def allow(self, running: int | None) -> None:
        """Set how many jobs of the team may run at once; None: the plan's number."""
        await self.count(
            "with changed as (update teams set max_concurrent_jobs = %(running)s where id = %(team)s returning 1)"
            " select count(*) from changed",
            running=running,
            team=self.caller.team,
        )

    async def renew(self, claim: Claim, progress: int = 10) -> bool:
        async with self.database.transaction() as tx:
            return await lifecycle.renew(tx, claim, progress=progress, lease_seconds=60)

    async def settle(self, claim: Claim, outcome: model.AttemptOutcome) -> JobState | None:
        async with self.database.transaction() as tx:
            return await lifecycle.settle(tx, self.queue, claim, outcome, public_url=PUBLIC_URL)

    async def requeue_expired(self) -> int:
        """Requeue or fail all jobs with an expired lease; returns their number."""
        count = 0
        while await self._requeue_one_expired():
            count += 1
        return count

    async def _requeue_one_expired(self) -> model.ExpiredLease | None:
        async with self.database.transaction() as tx:
            return await lifecycle.requeue_expired(tx, self.queue, public_url=PUBLIC_URL)

    async def replace_lost_tasks(self) -> int:
        async with self.database.transaction() as tx:
            return await scheduler.replace_lost_tasks(tx, self.queue)

    async def get(self, job: UUID) -> model.Job:
        async with self.database.transaction() as tx:
            return await lifecycle.get(tx, job)

    async def balance(self) -> int:
        """Return the team's credits, after checking them against the ledger."""
        async with self.database.transaction() as tx:
            balance = await ledger.balance(tx, self.caller.team)
            assert balance == await query.value(
                tx, "select coalesce(sum(amount), 0) from ledger where team_id = %(team)s", team=self.caller.team
            )
        return balance

    async def count(self, statement: str, **values: object) -> int:
        """Run a statement and return the number in its first row."""
        async with self.database.transaction() as tx:
            row = await (await tx.execute(statement.encode(), values)).fetchone()
        assert row is not None
        return int(row[0])

    async def tasks(self, name: str = scheduler.TASK) -> int:
        return await self.count(
            "select count(*) from procrastinate_jobs where task_name = %(name)s and status = 'todo'", name=name
        )


async def first_team(database: Database, queue: Queue) -> JobSteps:
    """Bootstrap the server: one team with 100 credits, which may run 100 jobs at once."""
    async with database.transaction() as tx:
        key = await authentication.bootstrap(tx, free_credits=100, key_name="k")
        caller = await authentication.authenticate(tx, key)
    steps = JobSteps(database, queue, caller)
    await steps.allow(100)
    return steps


async def create_team(tx: Tx, *, name: str, running: int | None, plan: str = "free") -> Caller:
    """Create a team with one user, one key and credits."""
    team = await query.value(
        tx,
        "insert into teams (name, plan, max_concurrent_jobs) values (%(name)s, %(plan)s, %(running)s) returning id",
        name=name,
        plan=plan,
        running=running,
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
    await ledger.grant(tx, team, GRANTED_CREDITS, actor="test", reason="test")
    return Caller(user=user, team=team, key=key, role="OWNER")


async def second_team(
    steps: JobSteps, *, running: int | None = 1, plan: str = "free", name: str = "second"
) -> JobSteps:
    """Create another team on the same server. running: how many of its jobs may run at once; None: the plan's."""
    async with steps.database.transaction() as tx:
        caller = await create_team(tx, name=name, running=running, plan=plan)
    return JobSteps(steps.database, steps.queue, caller)
