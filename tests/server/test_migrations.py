"""The schema's way from release to release, with what the earlier one left in its tables."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator

import psycopg
import pytest
from psycopg import sql

from hiresfix.server import accounts, credits, db, gate, jobs, turns, webhooks
from hiresfix.server.db import Database
from hiresfix.server.jobs import State
from hiresfix.server.queue import Queue
from tests.conftest import database_named
from tests.server.conftest import commit

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
    with psycopg.connect(postgres, autocommit=True) as admin:
        name = f"hiresfix_upgraded_{os.getpid()}"
        admin.execute(sql.SQL("create database {}").format(sql.Identifier(name)))
        url = database_named(postgres, name)
        db.migrate(url, to="0001")
        with psycopg.connect(url) as first_release:
            first_release.execute(LEFT_BEHIND.encode())
        assert db.migrate(url)[0] == "0001"
        yield url
        admin.execute(sql.SQL("drop database {} with (force)").format(sql.Identifier(name)))


async def test_what_an_earlier_release_left_goes_on_in_this_one(upgraded: str) -> None:
    queue = Queue(upgraded)
    async with Database(upgraded, max_size=2) as database:
        caller = await commit(database, lambda tx: accounts.authenticate(tx, OLD_KEY))
        assert await commit(database, lambda tx: credits.balance(tx, caller.team)) == 91

        found = {job.state: job for job in await commit(database, lambda tx: jobs.newest(tx, limit=9))}
        assert {state: job.webhook_status for state, job in found.items()} == {
            "QUEUED": "pending",
            "PROCESSING": "pending",
            "COMPLETED": "delivered",
            "FAILED": "pending",
            "CANCELLED": "pending",
        }
        replayed = await commit(
            database,
            lambda tx: gate.recall(
                tx, caller, route="/v2/images/upscale", key="old", fingerprint=hashlib.sha256(b"x").digest()
            ),
        )
        assert replayed == found["COMPLETED"].id

        told = {one.job_id: one for one in await commit(database, lambda tx: webhooks.newest(tx, limit=9))}
        tried = told[found["FAILED"].id]
        assert (tried.receiver, tried.attempts, tried.last_status) == ("hooks.example:8443", 2, 500)
        third = await commit(database, lambda tx: webhooks.claim(tx, tried.id))
        assert third is not None
        assert (third.attempt, third.team_id) == (3, caller.team)

        swept = await commit(database, lambda tx: jobs.sweep(tx, queue, public_url="http://127.0.0.1"))
        assert swept is not None
        assert swept.state is State.QUEUED

        assert await commit(database, lambda tx: turns.reconcile(tx, queue)) == 1  # the other has its task of the sweep
        claims = [await jobs.claim(database, worker="w", lease_seconds=60) for _ in range(3)]
        assert {held.id for held in claims if held} == {found["QUEUED"].id, found["PROCESSING"].id}
