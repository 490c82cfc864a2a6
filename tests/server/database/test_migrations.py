"""The schema's way from release to release, with what the earlier one left in its tables."""

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
from hiresfix.server.database import pool as db
from hiresfix.server.database import schema
from hiresfix.server.database.pool import Database
from hiresfix.server.database.task_queue import Queue
from hiresfix.server.jobs import lifecycle, scheduler
from hiresfix.server.webhooks import events
from hiresfix.states import JobState
from tests.conftest import own_database
from tests.server.conftest import commit, wait_until

OLD_KEY = f"afk_{'0' * 40}"

# A team as the first release leaves it: a job in every state, their charges and refunds, a delivery that went through,
# one that waits for its third attempt and one that was never tried, a key of idempotency, and tasks.
LEFT_BEHIND = """
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
            first_release.execute(LEFT_BEHIND.encode())
        assert schema.migrate(url)[0] == "0001"
        yield url


async def test_what_an_earlier_release_left_goes_on_in_this_one(upgraded: str) -> None:
    queue = Queue(upgraded)
    async with Database(upgraded, max_size=2) as database:
        caller = await commit(database, lambda tx: authentication.authenticate(tx, OLD_KEY))
        assert await commit(database, lambda tx: ledger.balance(tx, caller.team)) == 91

        found = {job.state: job for job in await commit(database, lambda tx: lifecycle.newest(tx, limit=9))}
        assert {state: job.webhook_status for state, job in found.items()} == {
            "QUEUED": "pending",
            "PROCESSING": "pending",
            "COMPLETED": "delivered",
            "FAILED": "pending",
            "CANCELLED": "pending",
        }
        replayed = await commit(
            database,
            lambda tx: idempotency.recall(
                tx, caller, route="/v2/images/upscale", key="old", fingerprint=hashlib.sha256(b"x").digest()
            ),
        )
        assert replayed == found["COMPLETED"].id

        told = {one.job_id: one for one in await commit(database, lambda tx: events.newest(tx, limit=9))}
        tried = told[found["FAILED"].id]
        assert (tried.receiver, tried.attempts, tried.last_status) == ("hooks.example:8443", 2, 500)
        third = await commit(database, lambda tx: events.claim(tx, tried.id))
        assert third is not None
        assert (third.attempt, third.team_id) == (3, caller.team)

        swept = await commit(database, lambda tx: lifecycle.sweep(tx, queue, public_url="http://127.0.0.1"))
        assert swept is not None
        assert swept.state is JobState.QUEUED

        assert (
            await commit(database, lambda tx: scheduler.reconcile(tx, queue)) == 1
        )  # the other has its task of the sweep
        claims = [await lifecycle.claim(database, worker="w", lease_seconds=60) for _ in range(3)]
        assert {held.id for held in claims if held} == {found["QUEUED"].id, found["PROCESSING"].id}


# Beside processes at work ------------------------------------------------------------------------------------------


@pytest.fixture
def before(postgres: str) -> Iterator[str]:
    """A database of the revision before the newest one that needs the jobs to itself."""
    revisions = sorted(schema.MIGRATIONS.glob("[0-9]*_*.sql"))
    newest = max(n for n, file in enumerate(revisions) if "alter table jobs " in file.read_text())
    with own_database(postgres) as url:
        schema.migrate(url, to=revisions[newest - 1].name.partition("_")[0])
        yield url


def test_a_migration_that_meets_a_long_transaction_lets_everybody_else_pass_and_goes_through_after_it(
    before: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schema, "MIGRATION_LOCK_TIMEOUT", "200ms")
    monkeypatch.setattr(schema, "MIGRATION_PAUSE", 0.1)
    monkeypatch.setattr(schema, "MIGRATION_TRIES", 1000)
    stop, passed = threading.Event(), 0

    def live() -> None:
        """What everybody else does meanwhile."""
        nonlocal passed
        with psycopg.connect(before, autocommit=True) as connection:
            connection.execute(f"set lock_timeout = '{db.LOCK_TIMEOUT}'".encode())
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
        long.execute("select count(*) from jobs")  # holds the table as long as its transaction lasts
        migrating = pool.submit(schema.migrate, before)
        wait_until(lambda: waits(admin))
        living = pool.submit(live)
        try:
            wait_until(lambda: passed > 20 or living.done())
            assert passed > 20, "somebody waits behind the migration for as long as the transaction lasts"
            assert not migrating.done()
        finally:
            long.rollback()
            stop.set()
        assert migrating.result(timeout=60)[1] == schema.newest_revision()
        living.result(timeout=60)


def test_locks_that_stay_are_a_clear_error_and_nothing_is_changed(before: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema, "MIGRATION_LOCK_TIMEOUT", "50ms")
    monkeypatch.setattr(schema, "MIGRATION_TRIES", 2)
    monkeypatch.setattr(schema, "MIGRATION_PAUSE", 0.0)
    with psycopg.connect(before) as long:
        revision = long.execute("select version_num from alembic_version").fetchone()
        long.execute("lock table jobs")
        with pytest.raises(ConfigurationError, match="pg_stat_activity"):
            schema.migrate(before)
        assert long.execute("select version_num from alembic_version").fetchone() == revision


def revise(url: str, *, found: str, oldest: str) -> None:
    with psycopg.connect(url) as connection:
        connection.execute("update alembic_version set version_num = %s", (found,))
        connection.execute("update schema_support set oldest = %s", (oldest,))


def test_a_release_works_on_the_schema_of_the_next_one_as_long_as_that_allows_it(database_url: str) -> None:
    ours = schema.newest_revision()
    schema.require_schema(database_url)
    revise(database_url, found="9999", oldest=ours)
    schema.require_schema(database_url)
    revise(database_url, found="9999", oldest="9998")
    with pytest.raises(ConfigurationError, match="9998 is the oldest"):
        schema.require_schema(database_url)
    revise(database_url, found="0001", oldest="0001")
    with pytest.raises(ConfigurationError, match="hiresfix migrate"):
        schema.require_schema(database_url)
    with psycopg.connect(database_url) as connection:
        connection.execute("drop table alembic_version")
    with pytest.raises(ConfigurationError, match="no schema yet"):
        schema.require_schema(database_url)


TAKES_AWAY = re.compile(
    r"\bdrop\s+(table|column|function|view)\b|\brename\b|\bset\s+not\s+null\b|\balter\s+column\s+\w+\s+(set\s+data\s+)?type\b",
    re.IGNORECASE,
)


def test_a_migration_that_takes_something_away_says_which_releases_it_leaves_behind() -> None:
    """The release before is still at work when a migration runs: see "Upgrading" in docs/operator.md."""
    for file in schema.MIGRATIONS.glob("[0-9]*.sql"):
        statements = re.sub(r"--[^\n]*", "", file.read_text())
        if file.name.partition("_")[0] > "0013" and TAKES_AWAY.search(statements):
            assert "schema_support" in statements, f"{file.name}: keep it until the next release, or raise the oldest"
