"""Schema migrations from release to release, with rows of earlier releases."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest

from hiresfix.errors import ConfigurationError
from hiresfix.server import idempotency
from hiresfix.server.accounts import authentication
from hiresfix.server.billing import ledger
from hiresfix.server.database import pool as database_pool
from hiresfix.server.database import schema
from hiresfix.server.database.pool import Database
from hiresfix.server.database.task_queue import Queue
from hiresfix.server.jobs import lifecycle, scheduler
from hiresfix.server.webhooks import events
from hiresfix.states import JobState
from tests.conftest import own_database
from tests.server.conftest import commit, wait_until

OLD_KEY = f"afk_{'0' * 40}"

# Rows of the first release: a team with a job in every state, their charges and refunds, a delivered delivery, one
# that waits for its third attempt and one that was never failed_twice, an idempotency key, and tasks.
FIRST_RELEASE_ROWS = """
    insert into teams (id, name, credits) values ('00000000-0000-4000-8000-000000000001', 'Default', 91);
    insert into users (id, team_id, email, role) values
        ('00000000-0000-4000-8000-000000000002', '00000000-0000-4000-8000-000000000001', 'owner@localhost', 'OWNER');
    insert into api_keys (id, user_id, name, prefix, digest) values
        ('00000000-0000-4000-8000-000000000003', '00000000-0000-4000-8000-000000000002', 'Default', 'afk_0000',
         sha256(convert_to('afk_' || repeat('0', 40), 'UTF8')));
    insert into jobs (id, team_id, user_id, key_id, request_id, model, recipe, input, source, hook_url, hook_events,
                      state, max_attempts, attempt, token, lease_until, cost, result, error, completed_at)
    select ('00000000-0000-4000-8000-00000000010' || n)::uuid, '00000000-0000-4000-8000-000000000001',
           '00000000-0000-4000-8000-000000000002', '00000000-0000-4000-8000-000000000003', 'r', 'clarity-upscale',
           '{"scale": 2, "seed": 7, "output_format": "png"}', '{}',
           '{"key": "sources/x", "sha256": "", "media_type": "image/png", "bytes": 1, "width": 8, "height": 8}',
           'https://Hooks.example:8443/told?x=1', '{completed,failed}', state, 3, 1,
           case when state = 'PROCESSING' then gen_random_uuid() end,
           case when state = 'PROCESSING' then now() - interval '1 hour' end, 3,
           case when state = 'COMPLETED' then '{"key": "results/x", "sha256": "", "media_type": "image/png",
               "bytes": 1, "width": 16, "height": 16, "metadata": {}}'::jsonb end,
           case when state = 'FAILED' then 'The engine failed.' end,
           case when state in ('COMPLETED', 'FAILED', 'CANCELLED') then now() end
    from unnest(array['QUEUED', 'PROCESSING', 'COMPLETED', 'FAILED', 'CANCELLED']) with ordinality as kinds (state, n);
    insert into ledger (team_id, kind, amount, counterparty, actor, reason)
    values ('00000000-0000-4000-8000-000000000001', 'grant', 100, 'issued', 'system', 'free credits');
    insert into ledger (team_id, job_id, kind, amount, counterparty, actor, reason)
    select team_id, id, 'charge', -cost, 'revenue', 'key', 'job submitted' from jobs
    union all
    select team_id, id, 'refund', cost, 'revenue', 'system', '' from jobs where state in ('FAILED', 'CANCELLED');
    insert into idempotency_keys (user_id, route, key, fingerprint, job_id)
    select user_id, '/v2/images/upscale', 'old', sha256('x'), id from jobs where state = 'COMPLETED';
    insert into webhook_deliveries (job_id, key_id, event, url, body, state, attempt, last_status, last_answer,
                                    finished_at, next_attempt_at)
    select id, key_id, case state when 'COMPLETED' then 'completed' else 'failed' end, hook_url, '{}',
           case state when 'COMPLETED' then 'DELIVERED' else 'PENDING' end,
           case state when 'COMPLETED' then 1 when 'FAILED' then 2 else 0 end,
           case state when 'COMPLETED' then 200 when 'FAILED' then 500 end, 'an answer',
           case state when 'COMPLETED' then now() end, now() - interval '5 minutes'
    from jobs where completed_at is not null;
    select procrastinate_defer_jobs_v1(array[row('engine', 'jobs.run', 0, null, null,
        '{"job_id": "00000000-0000-4000-8000-000000000101"}', null)::procrastinate_job_to_defer_v1]);
"""


@pytest.fixture
def upgraded(postgres: str) -> Iterator[str]:
    """A database of the first release with its rows, brought to this release."""
    with own_database(postgres) as url:
        schema.migrate(url, to="0001")
        with psycopg.connect(url) as first_release:
            first_release.execute(FIRST_RELEASE_ROWS.encode())
        assert schema.migrate(url)[0] == "0001"
        yield url


async def test_rows_of_first_release_work_after_upgrade(upgraded: str) -> None:
    queue = Queue(upgraded)
    async with Database(upgraded, max_size=2) as database:
        caller = await commit(database, lambda tx: authentication.authenticate(tx, OLD_KEY))
        assert await commit(database, lambda tx: ledger.balance(tx, caller.team)) == 91

        jobs = {job.state: job for job in await commit(database, lambda tx: lifecycle.newest(tx, limit=9))}
        assert {state: job.webhook_status for state, job in jobs.items()} == {
            "QUEUED": "pending",
            "PROCESSING": "pending",
            "COMPLETED": "delivered",
            "FAILED": "pending",
            "CANCELLED": "pending",
        }
        failed = jobs[JobState.FAILED]
        assert (failed.error, failed.error_reason, failed.error_params) == ("The engine failed.", None, None)
        replayed = await commit(
            database,
            lambda tx: idempotency.find_result(
                tx, caller, route="/v2/images/upscale", key="old", fingerprint=hashlib.sha256(b"x").digest()
            ),
        )
        assert replayed == jobs[JobState.COMPLETED].id

        deliveries = {
            delivery.job_id: delivery for delivery in await commit(database, lambda tx: events.newest(tx, limit=9))
        }
        failed_twice = deliveries[jobs[JobState.FAILED].id]
        assert (failed_twice.receiver, failed_twice.attempts, failed_twice.last_status) == (
            "hooks.example:8443",
            2,
            500,
        )
        third = await commit(database, lambda tx: events.claim(tx, failed_twice.id))
        assert third is not None
        assert (third.attempt, third.team_id) == (3, caller.team)

        requeued = await commit(
            database, lambda tx: lifecycle.requeue_expired(tx, queue, public_url="http://127.0.0.1")
        )
        assert requeued is not None
        assert requeued.state is JobState.QUEUED

        assert (
            await commit(database, lambda tx: scheduler.replace_lost_tasks(tx, queue)) == 1
        )  # requeue_expired made the other task
        claims = [await lifecycle.claim(database, worker="w", lease_seconds=60) for _ in range(3)]
        assert {claim.id for claim in claims if claim} == {jobs[JobState.QUEUED].id, jobs[JobState.PROCESSING].id}


# While other processes work ------------------------------------------------------------------------------------------


@pytest.fixture
def before(postgres: str) -> Iterator[str]:
    """A database of the revision before the newest one that needs the jobs to itself."""
    revisions = sorted(schema.MIGRATIONS.glob("[0-9]*_*.sql"))
    newest = max(n for n, file in enumerate(revisions) if "alter table jobs " in file.read_text())
    with own_database(postgres) as url:
        schema.migrate(url, to=revisions[newest - 1].name.partition("_")[0])
        yield url


def test_migration_does_not_block_others_behind_long_transaction(before: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema, "MIGRATION_LOCK_TIMEOUT", "200ms")
    monkeypatch.setattr(schema, "MIGRATION_PAUSE", 0.1)
    monkeypatch.setattr(schema, "MIGRATION_ATTEMPTS", 1000)
    stop, passed = threading.Event(), 0

    def work() -> None:
        """Do what other processes do meanwhile."""
        nonlocal passed
        with psycopg.connect(before, autocommit=True) as connection:
            connection.execute(f"set lock_timeout = '{database_pool.LOCK_TIMEOUT}'".encode())
            while not stop.is_set():
                connection.execute("update jobs set progress = progress where state = 'QUEUED'")
                passed += 1

    def waits(admin: psycopg.Connection[Any]) -> bool:
        query = "select exists (select from pg_locks where not granted and mode = 'AccessExclusiveLock')"
        return admin.execute(query).fetchone() == (True,)

    with (
        psycopg.connect(before) as long,
        psycopg.connect(before, autocommit=True) as admin,
        ThreadPoolExecutor() as pool,
    ):
        long.execute("select count(*) from jobs")  # locks the table until its transaction ends
        migrating = pool.submit(schema.migrate, before)
        wait_until(lambda: waits(admin))
        working = pool.submit(work)
        try:
            wait_until(lambda: passed > 20 or working.done())
            assert passed > 20, "others wait behind the migration as long as the transaction lasts"
            assert not migrating.done()
        finally:
            long.rollback()
            stop.set()
        assert migrating.result(timeout=60)[1] == schema.newest_revision()
        working.result(timeout=60)


def test_permanent_lock_is_a_clear_error(before: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema, "MIGRATION_LOCK_TIMEOUT", "50ms")
    monkeypatch.setattr(schema, "MIGRATION_ATTEMPTS", 2)
    monkeypatch.setattr(schema, "MIGRATION_PAUSE", 0.0)
    with psycopg.connect(before) as long:
        revision = long.execute("select version_num from alembic_version").fetchone()
        long.execute("lock table jobs")
        with pytest.raises(ConfigurationError, match="pg_stat_activity"):
            schema.migrate(before)
        assert long.execute("select version_num from alembic_version").fetchone() == revision


def revise(url: str, *, revision: str, oldest: str) -> None:
    with psycopg.connect(url) as connection:
        connection.execute("update alembic_version set version_num = %s", (revision,))
        connection.execute("update schema_support set oldest = %s", (oldest,))


def test_release_accepts_next_schema_while_supported(database_url: str) -> None:
    ours = schema.newest_revision()
    schema.require_schema(database_url)
    revise(database_url, revision="9999", oldest=ours)
    schema.require_schema(database_url)
    revise(database_url, revision="9999", oldest="9998")
    with pytest.raises(ConfigurationError, match="9998 is the oldest"):
        schema.require_schema(database_url)
    revise(database_url, revision="0001", oldest="0001")
    with pytest.raises(ConfigurationError, match="hiresfix migrate"):
        schema.require_schema(database_url)
    with psycopg.connect(database_url) as connection:
        connection.execute("drop table alembic_version")
    with pytest.raises(ConfigurationError, match="no schema yet"):
        schema.require_schema(database_url)


DESTRUCTIVE = re.compile(
    r"\bdrop\s+(table|column|function|view)\b|\brename\b|\bset\s+not\s+null\b|\balter\s+column\s+\w+\s+(set\s+data\s+)?type\b",
    re.IGNORECASE,
)


def test_destructive_migration_raises_oldest_release() -> None:
    """The previous release still works when a migration runs: see "Upgrading" in docs/operator.md."""
    for file in schema.MIGRATIONS.glob("[0-9]*.sql"):
        statements = re.sub(r"--[^\n]*", "", file.read_text())
        if file.name.partition("_")[0] > "0013" and DESTRUCTIVE.search(statements):
            assert "schema_support" in statements, f"{file.name}: keep it until the next release, or raise the oldest"
