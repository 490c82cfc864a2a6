"""What each step of a job costs the database as the table of jobs grows, and by which plans.

The steps are the product's own functions on a real PostgreSQL, timed one by one around their last commit. Rows are
copies of a job that went through the product, spread over 50 teams and the two months before now, charged for in the
ledger; the plans are those that PostgreSQL really ran (auto_explain), not those it would choose for a copy of the SQL.
"""

from __future__ import annotations

import asyncio
import re
import statistics
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote
from uuid import UUID, uuid4

import psycopg
from rich.console import Console

from benchmarks import stack
from benchmarks.stack import Customer
from hiresfix.models import catalog
from hiresfix.server.accounts import authentication
from hiresfix.server.database.pool import Database
from hiresfix.server.database.task_queue import Queue
from hiresfix.server.jobs import estimates, lifecycle, listing, scheduler
from hiresfix.server.jobs.estimates import Forecasts
from hiresfix.server.jobs.model import Claim, Completed, Result, Source, Submission
from hiresfix.server.jobs.queue_snapshot import Waiting
from hiresfix.server.webhooks import events
from hiresfix.wire import JobQuery

TEAMS = 50
WAITING = 10_000
URL = "http://127.0.0.1:8000"
PLANS = Path(__file__).parent / "results" / "api-plans"
_EXPLAIN = {
    "session_preload_libraries": "auto_explain",
    "auto_explain.log_min_duration": "0",
    "auto_explain.log_analyze": "on",
    "auto_explain.log_buffers": "on",
    "auto_explain.log_timing": "off",
    "client_min_messages": "log",
}

console = Console(stderr=True)


def measure(sizes: Sequence[int], repetitions: int, *, keep_plans: bool) -> list[dict[str, Any]]:
    """Milliseconds and touched blocks of each step at so many finished jobs, then with 10 000 waiting as well."""
    rows = []
    with stack.external_postgres() as postgres, stack.stack(postgres) as service:
        url = service.database_url
        customers = stack.customers(url, TEAMS)
        asyncio.run(_costs(url, customers, 1))
        for size in sizes:
            fill(url, size)
            row, plans = _row(url, customers, repetitions, finished=size, waiting=0)
            rows.append(row)
        if keep_plans:  # of the most finished jobs
            _keep(plans)
        queue_up(url, customers, WAITING)
        row, _ = _row(url, customers, repetitions, finished=sizes[-1], waiting=WAITING)
        rows.append(row)
    return rows


def _row(
    url: str, customers: Sequence[Customer], repetitions: int, *, finished: int, waiting: int
) -> tuple[dict[str, Any], Mapping[str, str]]:
    costs = asyncio.run(_costs(url, customers, repetitions))
    plans = asyncio.run(_plans(url, customers[0]))
    blocks = {step: _blocks(plan) for step, plan in plans.items()}
    row = {"finished": finished, "waiting": waiting, "milliseconds": costs, "blocks": blocks}
    console.print(row)
    return row, plans


# The steps


class Life:
    """One job's life, and what goes on beside it, each step as the product does it."""

    def __init__(self, database: Database, customer: Customer, line: Waiting) -> None:
        """line: what one API process knows, which outlives a job."""
        self.database = database
        self.line = line
        self.queue = Queue("")
        self.customer = customer
        self.new = _submission(customer)
        self.held: Claim | None = None

    async def authenticate(self) -> None:
        await authentication.admit(self.database, api_key=self.customer.key, authorization=None)

    async def room(self) -> None:
        async with self.database.looking() as tx:
            await lifecycle.room_for(tx, self.customer.caller, per_team=10**6, in_total=10**6, waiting=0)

    async def submit(self) -> None:
        async with self.database.pipelined() as tx:
            await lifecycle.submit(tx, self.queue, self.new)

    async def poll(self) -> None:
        async with self.database.looking() as tx:
            await lifecycle.get(tx, self.new.id, caller=self.customer.caller)

    async def page(self) -> None:
        async with self.database.looking() as tx:
            await listing.page(tx, self.customer.caller, JobQuery())

    async def claim(self) -> None:
        self.held = await lifecycle.claim(self.database, worker="benchmark", lease_seconds=60)

    async def renew(self) -> None:
        assert self.held
        async with self.database.transaction() as tx:
            await lifecycle.renew(tx, self.held, progress=50, lease_seconds=60)

    async def settle(self) -> None:
        assert self.held
        async with self.database.transaction() as tx:
            await lifecycle.settle(tx, self.queue, self.held, Completed(result=_result(self.held)), public_url=URL)

    async def sweep(self) -> None:
        async with self.database.transaction() as tx:
            await lifecycle.sweep(tx, self.queue, public_url=URL)
        async with self.database.transaction() as tx:
            await scheduler.reconcile(tx, self.queue)
        async with self.database.transaction() as tx:
            await events.sweep(tx, self.queue)

    async def purge(self) -> None:
        async with self.database.transaction() as tx:
            await lifecycle.expired_results(tx, retention=timedelta(days=90))
        async with self.database.transaction() as tx:
            await lifecycle.finished_sources(tx, retention=timedelta(hours=1))

    async def forecast(self) -> None:
        async with self.database.transaction() as tx:
            paces, running = await estimates.paces(tx), await estimates.running(tx)
            Forecasts(await self.line.look(tx, [job.id for job in running]), running, paces)


STEPS: Mapping[str, Callable[[Life], Awaitable[None]]] = {
    "authenticate": Life.authenticate,
    "room and credits": Life.room,
    "submit": Life.submit,
    "poll": Life.poll,
    "list a page": Life.page,
    "claim": Life.claim,
    "renew": Life.renew,
    "settle": Life.settle,
    "sweep": Life.sweep,
    "look for files to purge": Life.purge,
    "forecast for all": Life.forecast,
}


async def _costs(url: str, customers: Sequence[Customer], repetitions: int) -> dict[str, float]:
    taken: dict[str, list[float]] = {name: [] for name in STEPS}
    async with Database(url, max_size=1) as database:
        line = Waiting()
        for number in range(-6, repetitions):  # statements are prepared at their sixth use
            life = Life(database, customers[number % len(customers)], line)
            for name, step in STEPS.items():
                started = time.perf_counter()
                await step(life)
                if number >= 0:
                    taken[name].append(1000 * (time.perf_counter() - started))
    return {name: statistics.median(times) for name, times in taken.items() if times}


def _submission(customer: Customer) -> Submission:
    new = uuid4()
    model = catalog.FAITHFUL
    return Submission(
        id=new,
        caller=customer.caller,
        request_id=str(uuid4()),
        model=model.id,
        cost=1,
        recipe=model.recipe({}, seed=7),
        input={"image": f"{URL}/p.png", "scaleFactor": 2},
        source=Source(
            key=f"sources/{new}", sha256="0" * 64, media_type="image/png", bytes=10_000, width=512, height=512
        ),
        hook_url=None,
        hook_events=(),
        max_attempts=3,
    )


def _result(held: Claim) -> Result:
    key = f"results/{held.id}/{held.token}"
    return Result(
        key=key, sha256="0" * 64, media_type="image/png", bytes=50_000, width=1024, height=1024, metadata={"steps": 1}
    )


# Many rows


_FINISHED = """
    with template as (
        select * from jobs where state = 'COMPLETED' limit 1
    ), owners as (
        select row_number() over (order by k.id) - 1 as number, k.id as key_id, u.id as user_id, u.team_id
        from api_keys k join users u on u.id = k.user_id
    ), new as (
        insert into jobs ({columns}) select {values}
        from generate_series(1, %(missing)s) as i, template t, owners o
        where o.number = i %% (select count(*) from owners)
        returning id, team_id, created_at
    )
    insert into ledger (team_id, job_id, kind, amount, counterparty, actor, reason, created_at)
    select team_id, id, 'charge', -1, 'revenue', 'benchmark', 'job submitted', created_at from new
"""
_GIVEN = {
    "id": "gen_random_uuid()",
    "team_id": "o.team_id",
    "user_id": "o.user_id",
    "key_id": "o.key_id",
    **dict.fromkeys(("created_at", "queued_at", "started_at"), "now() - i * interval '5 s'"),
    **dict.fromkeys(("completed_at", "source_purged_at"), "now() - i * interval '5 s' + interval '4 s'"),
}
_QUEUED = """
    insert into jobs (id, team_id, user_id, key_id, request_id, model, recipe, input, source, max_attempts, cost)
    select gen_random_uuid(), %(team)s, %(user)s, %(key)s, 'x', t.model, t.recipe, t.input, t.source, 3, 1
    from generate_series(1, %(count)s) i, (select * from jobs limit 1) t returning id
"""


def fill(url: str, size: int) -> None:
    """Copy a finished job until there are `size` of them; indexes are made anew behind them, as a restore would."""
    with psycopg.connect(url, autocommit=True) as connection:
        row = connection.execute("select count(*) from jobs").fetchone()
        assert row
        columns = [
            str(name)
            for (name,) in connection.execute(
                "select column_name from information_schema.columns where table_name = 'jobs'"
                " and table_schema = current_schema()"
            )
        ]
        values = ", ".join(_GIVEN.get(name, f"t.{name}") for name in columns)
        indexes = connection.execute(
            "select indexrelid::regclass::text, pg_get_indexdef(indexrelid) from pg_index where indrelid in"
            " ('jobs'::regclass, 'ledger'::regclass) and indexrelid not in (select conindid from pg_constraint)"
        ).fetchall()
        connection.execute("set session_replication_role = replica")  # no triggers and no foreign keys for copies
        connection.execute("set maintenance_work_mem = '256MB'")
        for name, _ in indexes:
            connection.execute(f"drop index {name}".encode())
        statement = _FINISHED.format(columns=", ".join(columns), values=values)
        connection.execute(statement.encode(), {"missing": max(0, size - row[0])})
        for _, definition in indexes:
            connection.execute(definition.encode())
        connection.execute("vacuum (analyze)")


def queue_up(url: str, customers: Sequence[Customer], count: int) -> list[list[UUID]]:
    """So many waiting jobs, the same number for each customer; returns their ids."""
    asyncio.run(_one_job_and_tasks(url, customers[0], count))
    with psycopg.connect(url) as connection:
        made = []
        for customer in customers:
            caller = customer.caller
            connection.execute("insert into turns (team_id) values (%s) on conflict do nothing", (caller.team,))
            values = {"team": caller.team, "user": caller.user, "key": caller.key, "count": count // len(customers)}
            made.append([job for (job,) in connection.execute(_QUEUED, values)])
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("vacuum (analyze) jobs")
    return made


async def _one_job_and_tasks(url: str, customer: Customer, count: int) -> None:
    """What the others are copied from, and as many tasks as submissions of all would have enqueued."""
    every = "select from generate_series(1, %(count)s)"
    async with Database(url, max_size=1) as database, database.pipelined() as tx:
        await lifecycle.submit(tx, Queue(""), _submission(customer))
        await Queue("").enqueue_for_each(tx, every, {"count": count}, scheduler.TASK, queue=scheduler.QUEUE)


# Plans


async def _plans(url: str, customer: Customer) -> Mapping[str, str]:
    """By step: every statement it ran, and how."""
    options = quote(" ".join(f"-c {name}={value}" for name, value in _EXPLAIN.items()))
    heard: list[str] = []
    plans: dict[str, str] = {}
    async with Database(f"{url}{'&' if '?' in url else '?'}options={options}", max_size=1) as database:
        async with database.looking() as tx:
            tx.add_notice_handler(lambda notice: heard.append(notice.message_primary or ""))
        line = Waiting()
        for _ in range(2):  # what a connection looks up once is not the step's cost: the first time is forgotten
            life = Life(database, customer, line)
            for name, step in STEPS.items():
                heard.clear()
                await step(life)
                plans[name] = "\n\n".join(text for text in heard if "Query Text" in text)
    return plans


def _blocks(plans: str) -> int:
    """Blocks of 8 KiB that all statements of a step touched, by the uppermost line of each plan that tells."""
    total = 0
    for plan in plans.split("Query Text")[1:]:
        if touched := re.search(r"Buffers: shared((?: \w+=\d+)+)", plan):
            total += sum(int(count) for kind, count in re.findall(r"(hit|read)=(\d+)", touched[1]))
    return total


def _keep(plans: Mapping[str, str]) -> None:
    PLANS.mkdir(parents=True, exist_ok=True)
    for step, text in plans.items():
        lines = "\n".join(line.rstrip() for line in text.splitlines())
        (PLANS / f"{step.replace(' ', '-')}.txt").write_text(f"{lines}\n")
