"""Database cost of each step of a job as the jobs table grows, with the query plans.

The steps are the product's own functions on a real PostgreSQL, timed one by one with their last commit. Rows are copies
of a job that went through the product, spread over 50 teams and the two months before now, with their ledger entries.
The plans are those that PostgreSQL really ran (auto_explain), not those it would choose for a copy of the SQL.
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

from benchmarks import service_stack
from benchmarks.service_stack import Customer
from hiresfix.models import catalog
from hiresfix.server.accounts import authentication
from hiresfix.server.database.pool import Database
from hiresfix.server.database.task_queue import Queue
from hiresfix.server.jobs import estimates, headroom, lifecycle, listing, queue_snapshot, retention, scheduler
from hiresfix.server.jobs.estimates import QueueEstimates
from hiresfix.server.jobs.model import Claim, Completed, StoredResult, StoredSource, Submission
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
    """Measure milliseconds and blocks read by each step at each number of finished jobs, then with 10 000 waiting."""
    rows = []
    with service_stack.external_postgres() as postgres, service_stack.stack(postgres) as service:
        url = service.database_url
        customers = service_stack.customers(url, TEAMS)
        asyncio.run(_costs(url, customers, 1))
        for size in sizes:
            fill(url, size)
            row, plans = _row(url, customers, repetitions, finished=size, waiting=0)
            rows.append(row)
        if keep_plans:  # at the largest number of finished jobs
            _save_plans(plans)
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


# --- steps ---


class JobSteps:
    """Every step of a job, and of the maintenance around it, as the product does it."""

    def __init__(self, database: Database, customer: Customer) -> None:
        self.database = database
        self.queue = Queue("")
        self.customer = customer
        self.submission = _submission(customer)
        self.claimed: Claim | None = None

    async def authenticate(self) -> None:
        await authentication.authenticate_headers(self.database, api_key=self.customer.key, authorization=None)

    async def room(self) -> None:
        async with self.database.autocommit() as tx:
            await headroom.check(tx, self.customer.caller, per_team=10**6, in_total=10**6, waiting=0)

    async def submit(self) -> None:
        async with self.database.pipelined() as tx:
            await lifecycle.submit(tx, self.queue, self.submission)

    async def poll(self) -> None:
        async with self.database.autocommit() as tx:
            await lifecycle.get(tx, self.submission.id, caller=self.customer.caller)

    async def page(self) -> None:
        async with self.database.autocommit() as tx:
            await listing.list_page(tx, self.customer.caller, JobQuery())

    async def claim(self) -> None:
        self.claimed = await lifecycle.claim(self.database, worker="benchmark", lease_seconds=60)

    async def renew(self) -> None:
        assert self.claimed
        async with self.database.transaction() as tx:
            await lifecycle.renew(tx, self.claimed, progress=50, lease_seconds=60)

    async def settle(self) -> None:
        assert self.claimed
        async with self.database.transaction() as tx:
            await lifecycle.settle(
                tx, self.queue, self.claimed, Completed(result=_result(self.claimed)), public_url=URL
            )

    async def sweep(self) -> None:
        async with self.database.transaction() as tx:
            await lifecycle.requeue_expired(tx, self.queue, public_url=URL)
        async with self.database.transaction() as tx:
            await scheduler.replace_lost_tasks(tx, self.queue)
        async with self.database.transaction() as tx:
            await events.requeue_lost(tx, self.queue)

    async def purge(self) -> None:
        async with self.database.transaction() as tx:
            await retention.expired_results(tx, retention=timedelta(days=90))
        async with self.database.transaction() as tx:
            await retention.finished_sources(tx, retention=timedelta(hours=1))

    async def forecast(self) -> None:
        async with self.database.transaction() as tx:
            paces = await estimates.paces(tx)
        async with self.database.transaction() as tx:
            QueueEstimates(await queue_snapshot.take(tx), paces)


STEPS: Mapping[str, Callable[[JobSteps], Awaitable[None]]] = {
    "authenticate": JobSteps.authenticate,
    "room and credits": JobSteps.room,
    "submit": JobSteps.submit,
    "poll": JobSteps.poll,
    "list a page": JobSteps.page,
    "claim": JobSteps.claim,
    "renew": JobSteps.renew,
    "settle": JobSteps.settle,
    "sweep": JobSteps.sweep,
    "look for files to purge": JobSteps.purge,
    "forecast for all": JobSteps.forecast,
}


async def _costs(url: str, customers: Sequence[Customer], repetitions: int) -> dict[str, float]:
    times_by_step: dict[str, list[float]] = {name: [] for name in STEPS}
    async with Database(url, max_size=1) as database:
        for number in range(-6, repetitions):  # statements are prepared at their sixth use
            steps = JobSteps(database, customers[number % len(customers)])
            for name, step in STEPS.items():
                started = time.perf_counter()
                await step(steps)
                if number >= 0:
                    times_by_step[name].append(1000 * (time.perf_counter() - started))
    return {name: statistics.median(times) for name, times in times_by_step.items() if times}


def _submission(customer: Customer) -> Submission:
    job_id = uuid4()
    model = catalog.FAITHFUL
    return Submission(
        id=job_id,
        caller=customer.caller,
        request_id=str(uuid4()),
        model=model.id,
        cost=1,
        recipe=model.recipe({}, seed=7),
        input={"image": f"{URL}/p.png", "scaleFactor": 2},
        source=StoredSource(
            key=f"sources/{job_id}", sha256="0" * 64, media_type="image/png", bytes=10_000, width=512, height=512
        ),
        hook_url=None,
        hook_events=(),
        max_attempts=3,
    )


def _result(claimed: Claim) -> StoredResult:
    key = f"results/{claimed.id}/{claimed.token}"
    return StoredResult(
        key=key, sha256="0" * 64, media_type="image/png", bytes=50_000, width=1024, height=1024, metadata={"steps": 1}
    )


# --- many rows ---


_COPY_FINISHED_JOBS = """
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
_COLUMN_VALUES = {
    "id": "gen_random_uuid()",
    "team_id": "o.team_id",
    "user_id": "o.user_id",
    "key_id": "o.key_id",
    **dict.fromkeys(("created_at", "queued_at", "started_at"), "now() - i * interval '5 s'"),
    **dict.fromkeys(("completed_at", "source_purged_at"), "now() - i * interval '5 s' + interval '4 s'"),
}
_INSERT_WAITING_JOBS = """
    insert into jobs (id, team_id, user_id, key_id, request_id, model, recipe, input, source, max_attempts, cost)
    select gen_random_uuid(), %(team)s, %(user)s, %(key)s, 'x', t.model, t.recipe, t.input, t.source, 3, 1
    from generate_series(1, %(count)s) i, (select * from jobs limit 1) t returning id
"""


def fill(url: str, size: int) -> None:
    """Copy a finished job until there are `size` of them; indexes are rebuilt afterwards, as in a restore."""
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
        values = ", ".join(_COLUMN_VALUES.get(name, f"t.{name}") for name in columns)
        indexes = connection.execute(
            "select indexrelid::regclass::text, pg_get_indexdef(indexrelid) from pg_index where indrelid in"
            " ('jobs'::regclass, 'ledger'::regclass) and indexrelid not in (select conindid from pg_constraint)"
        ).fetchall()
        connection.execute("set session_replication_role = replica")  # no triggers and no foreign keys for copies
        connection.execute("set maintenance_work_mem = '256MB'")
        for name, _ in indexes:
            connection.execute(f"drop index {name}".encode())
        statement = _COPY_FINISHED_JOBS.format(columns=", ".join(columns), values=values)
        connection.execute(statement.encode(), {"missing": max(0, size - row[0])})
        for _, definition in indexes:
            connection.execute(definition.encode())
        connection.execute("vacuum (analyze)")


def queue_up(url: str, customers: Sequence[Customer], count: int) -> list[list[UUID]]:
    """Insert waiting jobs, the same number for each customer, and return their ids."""
    asyncio.run(_one_job_and_tasks(url, customers[0], count))
    with psycopg.connect(url) as connection:
        job_ids = []
        for customer in customers:
            caller = customer.caller
            connection.execute("insert into turns (team_id) values (%s) on conflict do nothing", (caller.team,))
            values = {"team": caller.team, "user": caller.user, "key": caller.key, "count": count // len(customers)}
            job_ids.append([job for (job,) in connection.execute(_INSERT_WAITING_JOBS, values)])
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("vacuum (analyze) jobs")
    return job_ids


async def _one_job_and_tasks(url: str, customer: Customer, count: int) -> None:
    """Submit the job that is copied, and enqueue as many tasks as all submissions would."""
    every = "select from generate_series(1, %(count)s)"
    async with Database(url, max_size=1) as database, database.pipelined() as tx:
        await lifecycle.submit(tx, Queue(""), _submission(customer))
        await Queue("").enqueue_for_each(tx, every, {"count": count}, scheduler.TASK, queue=scheduler.QUEUE)


# --- plans ---


async def _plans(url: str, customer: Customer) -> Mapping[str, str]:
    """Return by step every statement it ran, with its plan."""
    options = quote(" ".join(f"-c {name}={value}" for name, value in _EXPLAIN.items()))
    notices: list[str] = []
    plans: dict[str, str] = {}
    async with Database(f"{url}{'&' if '?' in url else '?'}options={options}", max_size=1) as database:
        async with database.autocommit() as tx:
            tx.add_notice_handler(lambda notice: notices.append(notice.message_primary or ""))
        for _ in range(2):  # ignore the first round: catalogue lookups of a new connection are not the cost of a step
            steps = JobSteps(database, customer)
            for name, step in STEPS.items():
                notices.clear()
                await step(steps)
                plans[name] = "\n\n".join(text for text in notices if "Query Text" in text)
    return plans


def _blocks(plans: str) -> int:
    """Return the 8 KiB blocks that all statements of a step touched, from the top line of each plan."""
    total = 0
    for plan in plans.split("Query Text")[1:]:
        if touched := re.search(r"Buffers: shared((?: \w+=\d+)+)", plan):
            total += sum(int(count) for kind, count in re.findall(r"(hit|read)=(\d+)", touched[1]))
    return total


def _save_plans(plans: Mapping[str, str]) -> None:
    PLANS.mkdir(parents=True, exist_ok=True)
    for step, text in plans.items():
        lines = "\n".join(line.rstrip() for line in text.splitlines())
        (PLANS / f"{step.replace(' ', '-')}.txt").write_text(f"{lines}\n")
