"""Webhooks to a real receiver: signature, retries, final failure (contract.md 15)."""

from __future__ import annotations

import asyncio
import hashlib
import json
import socket
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from datetime import timedelta
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg import sql
from standardwebhooks import Webhook, WebhookVerificationError

from hiresfix import webhook_signing
from hiresfix.errors import Conflict, NotFound
from hiresfix.server.database import pool, query
from hiresfix.server.database.pool import Database, Tx
from hiresfix.server.database.task_queue import Queue
from hiresfix.server.guarded_http import HttpPolicy
from hiresfix.server.jobs import lifecycle
from hiresfix.server.jobs.model import Claim
from hiresfix.server.webhooks import delivery, secrets
from hiresfix.server.webhooks import events as webhooks
from tests.conftest import Site
from tests.server.conftest import commit, wait_until
from tests.server.job_steps import JobSteps, success

POLICY = HttpPolicy(allow_private=True, post_timeout=3)


@dataclass
class SilentServer:
    """A server that accepts connections and never responds."""

    url: str = ""
    request_count: int = 0
    open_count: int = 0
    max_open: int = 0

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.request_count += 1
        self.open_count += 1
        self.max_open = max(self.max_open, self.open_count)
        await reader.read()
        self.open_count -= 1
        writer.close()


@pytest.fixture
async def silent_server() -> AsyncIterator[SilentServer]:
    silent_server = SilentServer()
    server = await asyncio.start_server(silent_server.accept, "127.0.0.1", 0)
    silent_server.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/hook"
    async with server:
        yield silent_server


async def announce_completed(steps: JobSteps, url: str) -> tuple[UUID, UUID]:
    """Complete a job; return its id and its delivery's."""
    job = await steps.submit(hook=url)
    claim = await steps.claim(job)
    await steps.settle(claim, success(claim))
    statement = "select id from webhook_deliveries where job_id = %(j)s"
    return job, await commit(steps.database, lambda tx: query.value(tx, statement, j=job))


async def deliver(steps: JobSteps, delivery_id: UUID) -> None:
    await delivery.deliver(steps.database, steps.queue, delivery_id, policy=POLICY)


async def make_due(steps: JobSteps) -> None:
    await commit(steps.database, lambda tx: tx.execute("update webhook_deliveries set next_attempt_at = now()"))


async def state(steps: JobSteps) -> tuple[str, int, int | None]:
    async with steps.database.transaction() as tx:
        (record,) = await webhooks.newest(tx, limit=9)
    return record.state, record.attempts, record.last_status


async def test_delivery_is_signed_and_verifiable(steps: JobSteps, site: Site) -> None:
    async with steps.database.transaction() as tx:
        await tx.execute("update api_keys set digest = %s", (hashlib.sha256(b"afk_" + b"0" * 40).digest(),))
    job, delivery_id = await announce_completed(steps, site.url + "/hook")
    await deliver(steps, delivery_id)
    ((headers, body),) = site.received
    event = json.loads(body)
    assert (event["event"], event["jobId"], event["status"]) == ("completed", str(job), "COMPLETED")
    assert event["result"]["images"] == [f"http://example.com/files/images/{job}-1.png"]
    assert headers["X-Webhook-Event"] == "completed"
    assert headers["X-Webhook-Attempt"] == "1"
    assert headers["X-Webhook-Id"] == str(delivery_id)
    digest = webhook_signing.digest_api_key("afk_" + "0" * 40)
    assert webhook_signing.verify(body, headers["X-Webhook-Signature"], digest)
    assert await state(steps) == ("DELIVERED", 1, 200)
    assert (await steps.get(job)).webhook_status == "delivered"


async def test_hex_signing_mode_verifies(steps: JobSteps, site: Site) -> None:
    async with steps.database.transaction() as tx:
        await tx.execute("update api_keys set signing_mode = 'hex', revoked_at = now()")
        digest = await query.value(tx, "select digest from api_keys")
    _, delivery_id = await announce_completed(steps, site.url + "/hook")
    await deliver(steps, delivery_id)
    ((headers, body),) = site.received
    assert webhook_signing.verify(body, headers["X-Webhook-Signature"], digest, mode="hex")


async def test_retries_keep_the_delivery_id(steps: JobSteps, site: Site) -> None:
    site.answers[:] = [500, 301]
    job, delivery_id = await announce_completed(steps, site.url + "/hook")
    for expected in (("PENDING", 1, 500), ("PENDING", 2, 301), ("DELIVERED", 3, 200)):
        await deliver(steps, delivery_id)
        assert await state(steps) == expected
        await make_due(steps)
    assert [headers["X-Webhook-Attempt"] for headers, _ in site.received] == ["1", "2", "3"]
    assert {headers["X-Webhook-Id"] for headers, _ in site.received} == {str(delivery_id)}
    assert len({body for _, body in site.received}) == 1
    assert (await steps.get(job)).webhook_status == "delivered"


async def test_delivery_waits_until_due_and_runs_once(steps: JobSteps, site: Site) -> None:
    site.answers[:] = [500]
    _, delivery_id = await announce_completed(steps, site.url + "/hook")
    await deliver(steps, delivery_id)
    await deliver(steps, delivery_id)
    assert len(site.received) == 1
    await make_due(steps)
    await deliver(steps, delivery_id)
    await deliver(steps, delivery_id)
    assert len(site.received) == 2


async def test_410_stops_retries(steps: JobSteps, site: Site) -> None:
    site.answers[:] = [410]
    job, delivery_id = await announce_completed(steps, site.url + "/hook")
    await deliver(steps, delivery_id)
    assert await state(steps) == ("FAILED", 1, 410)
    assert (await steps.get(job)).webhook_status == "failed"


async def test_delivery_fails_after_last_attempt(steps: JobSteps) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}/hook"
    job, delivery_id = await announce_completed(steps, url)
    for attempt in range(1, 7):
        await make_due(steps)
        await deliver(steps, delivery_id)
        assert await state(steps) == ("FAILED" if attempt == 6 else "PENDING", attempt, None)
    assert (await steps.get(job)).webhook_status == "failed"


@pytest.mark.parametrize(("attempt", "seconds"), [(1, 10), (2, 60), (3, 300), (4, 1800), (5, 7200)])
def test_pauses_follow_schedule_with_jitter(attempt: int, seconds: int) -> None:
    pauses = [webhooks.next_pause(attempt, None).total_seconds() for _ in range(200)]
    assert 0.8 * seconds <= min(pauses) < seconds < max(pauses) <= 1.2 * seconds


def test_retry_after_extends_pause_within_bounds() -> None:
    assert webhooks.next_pause(1, 120) == timedelta(seconds=120)
    assert webhooks.next_pause(1, 1e9) == timedelta(hours=2)


async def test_delivery_without_task_is_enqueued_again(steps: JobSteps, database: Database, queue: Queue) -> None:
    await announce_completed(steps, "https://example.com/hook")
    async with steps.database.transaction() as tx:
        await tx.execute("delete from procrastinate_jobs")
        await tx.execute("update webhook_deliveries set next_attempt_at = now() - interval '6 seconds'")
    assert await commit(steps.database, lambda tx: webhooks.requeue_lost(tx, steps.queue)) == 1
    assert await commit(steps.database, lambda tx: webhooks.requeue_lost(tx, steps.queue)) == 0


async def test_outcome_is_recorded_after_database_outage(
    steps: JobSteps, database_url: str, postgres: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "RETRY_SECONDS", 0.1)
    database = database_url.rpartition("/")[2].partition("?")[0]
    name, requests = sql.Identifier(database), 0

    async def receive(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal requests
        requests += 1
        head = await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(int(head.lower().partition(b"content-length: ")[2].split()[0]))
        admin.execute(sql.SQL("alter database {} allow_connections false").format(name))
        admin.execute("select pg_terminate_backend(pid) from pg_stat_activity where datname = %s", (database,))
        writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
        writer.close()

    with psycopg.connect(postgres, autocommit=True) as admin:
        async with await asyncio.start_server(receive, "127.0.0.1", 0) as receiver:
            host, port = receiver.sockets[0].getsockname()
            _, delivery_id = await announce_completed(steps, f"http://{host}:{port}/hook")
            monkeypatch.setattr(steps.database._pool, "timeout", 0.2)  # shorter than the outage
            delivering = asyncio.create_task(deliver(steps, delivery_id))
            await asyncio.sleep(1)
            assert requests == 1
            assert not delivering.done()
            admin.execute(sql.SQL("alter database {} allow_connections true").format(name))
            await asyncio.wait_for(delivering, 30)
    assert await state(steps) == ("DELIVERED", 1, 204)


# The whole schedule, by moving timestamps instead of waiting


async def pass_time(steps: JobSteps, seconds: float) -> None:
    """Move all timestamps `seconds` into the past."""
    by = timedelta(seconds=seconds)
    async with steps.database.transaction() as tx:
        await tx.execute(
            "update webhook_deliveries set next_attempt_at = next_attempt_at - %(by)s,"
            " sending_until = sending_until - %(by)s, created_at = created_at - %(by)s,"
            " finished_at = finished_at - %(by)s",
            {"by": by},
        )
        await tx.execute("update webhook_attempts set started_at = started_at - %(by)s", {"by": by})
        await tx.execute("update procrastinate_jobs set scheduled_at = scheduled_at - %(by)s", {"by": by})


async def run_due_tasks(steps: JobSteps) -> None:
    """Run every due delivery task once, as a worker would."""
    async with steps.database.transaction() as tx:
        due = await (
            await tx.execute(
                "delete from procrastinate_jobs where task_name = 'webhooks.deliver'"
                " and coalesce(scheduled_at, now()) <= now() returning args ->> 'delivery_id'"
            )
        ).fetchall()
    for (delivery_id,) in due:
        await deliver(steps, UUID(delivery_id))


async def test_six_scheduled_attempts_then_failed(steps: JobSteps, site: Site) -> None:
    site.answers[:] = [500, 301, 404, 408, 429, 503, 200]
    job, delivery_id = await announce_completed(steps, site.url + "/hook")
    await run_due_tasks(steps)
    for attempt, pause in enumerate((10, 60, 300, 1800, 7200), start=1):
        await pass_time(steps, 0.79 * pause)
        await run_due_tasks(steps)
        assert len(site.received) == attempt, "too early"
        await pass_time(steps, 0.42 * pause)
        await run_due_tasks(steps)
        assert len(site.received) == attempt + 1, "not sent when due"
    assert await state(steps) == ("FAILED", 6, 503)
    assert (await steps.get(job)).webhook_status == "failed"
    await pass_time(steps, 1e6)
    await run_due_tasks(steps)
    assert len(site.received) == 6
    async with steps.database.transaction() as tx:
        _, attempts = await webhooks.get(tx, delivery_id)
    assert [attempt.status for attempt in attempts] == [500, 301, 404, 408, 429, 503]
    assert all(attempt.answer == "thanks" and attempt.milliseconds is not None for attempt in attempts)


async def test_redelivery_restarts_schedule_and_keeps_counting(steps: JobSteps, site: Site) -> None:
    site.answers[:] = [410, 500]
    job, delivery_id = await announce_completed(steps, site.url + "/hook")
    await run_due_tasks(steps)
    assert (await steps.get(job)).webhook_status == "failed"
    await commit(steps.database, lambda tx: webhooks.redeliver(tx, steps.queue, delivery_id))
    assert (await steps.get(job)).webhook_status == "pending"
    await run_due_tasks(steps)
    assert await state(steps) == ("PENDING", 2, 500)
    await pass_time(steps, 12.1)
    await run_due_tasks(steps)
    assert await state(steps) == ("DELIVERED", 3, 200)
    assert [headers["X-Webhook-Attempt"] for headers, _ in site.received] == ["1", "2", "3"]
    assert {headers["X-Webhook-Id"] for headers, _ in site.received} == {str(delivery_id)}


async def test_running_delivery_is_not_redelivered(steps: JobSteps) -> None:
    _, delivery_id = await announce_completed(steps, "http://127.0.0.1:9/hook")
    await commit(steps.database, lambda tx: webhooks.claim(tx, delivery_id))
    with pytest.raises(Conflict, match="this moment"):
        await commit(steps.database, lambda tx: webhooks.redeliver(tx, steps.queue, delivery_id))
    with pytest.raises(NotFound):
        await commit(steps.database, lambda tx: webhooks.redeliver(tx, steps.queue, uuid4()))


async def test_pruning_keeps_webhook_status(steps: JobSteps, site: Site) -> None:
    site.answers[:] = [410]
    job, delivery_id = await announce_completed(steps, site.url + "/hook")
    await run_due_tasks(steps)
    month = timedelta(days=30)
    assert await commit(steps.database, lambda tx: webhooks.prune(tx, older_than=month)) == 0
    await pass_time(steps, 31 * 86400)
    assert await commit(steps.database, lambda tx: webhooks.prune(tx, older_than=month)) == 1
    assert (await steps.get(job)).webhook_status == "failed"
    await commit(steps.database, lambda tx: webhooks.redeliver(tx, steps.queue, delivery_id))
    await run_due_tasks(steps)
    assert (await steps.get(job)).webhook_status == "delivered"


# Progress


async def claim_with_progress(steps: JobSteps, site: Site, *events: str) -> Claim:
    job = await steps.submit(hook=site.url + "/hook", events=events or ("progress", "completed"))
    return await steps.claim(job)


async def report_progress(steps: JobSteps, claim: Claim, progress: int) -> None:
    """Renew the lease with new progress, as the worker does while the engine runs."""

    async def renew(tx: Tx) -> None:
        assert await lifecycle.renew(tx, claim, progress=progress, lease_seconds=60)
        await lifecycle.announce_progress(tx, steps.queue, claim, public_url="http://example.com")

    await commit(steps.database, renew)


def received_events(site: Site) -> list[tuple[str, int]]:
    bodies = [json.loads(body) for _, body in site.received]
    return [(body["event"], body["progress"]) for body in bodies]


async def test_progress_is_sent_every_two_seconds_at_most(steps: JobSteps, site: Site) -> None:
    claim = await claim_with_progress(steps, site)
    for progress, seconds in ((5, 1.0), (6, 0.5), (7, 0.6), (7, 9.0), (7, 1.0), (8, 0.0)):
        await report_progress(steps, claim, progress)
        await run_due_tasks(steps)
        await pass_time(steps, seconds)
    assert received_events(site) == [("progress", 5), ("progress", 7), ("progress", 8)]
    headers, body = site.received[0]
    assert headers["X-Webhook-Event"] == "progress"
    assert json.loads(body) == {
        "event": "progress", "type": "progress", "jobId": str(claim.id), "status": "PROCESSING", "progress": 5,
        "model": "clarity-upscale",
    }  # fmt: skip
    assert len({headers["X-Webhook-Id"] for headers, _ in site.received}) == 3


async def test_failed_progress_event_is_not_retried(steps: JobSteps, site: Site) -> None:
    site.answers[:] = [503]
    claim = await claim_with_progress(steps, site)
    await report_progress(steps, claim, 5)
    await run_due_tasks(steps)
    assert await state(steps) == ("FAILED", 1, 503)
    await pass_time(steps, 1e5)
    await run_due_tasks(steps)
    assert len(site.received) == 1
    await steps.settle(claim, success(claim))
    await run_due_tasks(steps)
    assert received_events(site) == [("progress", 5), ("completed", 100)]
    assert (await steps.get(claim.id)).webhook_status == "delivered"


async def test_unsent_progress_is_replaced_and_never_follows_end(steps: JobSteps, site: Site) -> None:
    claim = await claim_with_progress(steps, site)
    for progress in (5, 9):
        await report_progress(steps, claim, progress)
        await pass_time(steps, 3)
    await run_due_tasks(steps)
    assert received_events(site) == [("progress", 9)]
    await pass_time(steps, 3)
    await report_progress(steps, claim, 50)
    await steps.settle(claim, success(claim))
    await run_due_tasks(steps)
    assert received_events(site) == [("progress", 9), ("completed", 100)]


async def test_end_waits_for_progress_being_sent(steps: JobSteps, site: Site) -> None:
    claim = await claim_with_progress(steps, site)
    await report_progress(steps, claim, 5)
    statement = "select id from webhook_deliveries where event = %(event)s"
    progress = await commit(steps.database, lambda tx: query.value(tx, statement, event="progress"))
    sending = await commit(steps.database, lambda tx: webhooks.claim(tx, progress))
    assert sending is not None
    await steps.settle(claim, success(claim))
    await run_due_tasks(steps)
    assert site.received == []
    outcome = webhooks.DeliveryOutcome(status=200, milliseconds=1)
    await commit(steps.database, lambda tx: webhooks.record(tx, steps.queue, sending, outcome))
    await run_due_tasks(steps)
    assert received_events(site) == [("completed", 100)]


async def test_progress_needs_a_subscription(steps: JobSteps, site: Site) -> None:
    claim = await claim_with_progress(steps, site, "completed")
    await report_progress(steps, claim, 5)
    assert await steps.tasks(webhooks.TASK) == 0


# Slots


async def test_dead_receiver_occupies_two_slots(
    steps: JobSteps, database_url: str, site: Site, silent_server: SilentServer
) -> None:
    """Send thirty events to a silent host, then one to a healthy host, on a real worker with ten slots."""
    for _ in range(30):
        await announce_completed(steps, silent_server.url)
    queue = Queue(database_url)
    short_policy = replace(POLICY, post_timeout=0.5)

    async def run(delivery_id: str) -> None:
        await delivery.deliver(steps.database, queue, UUID(delivery_id), policy=short_policy)

    queue.register(webhooks.TASK, queue=webhooks.QUEUE, run=run)
    working = asyncio.create_task(queue.work(queue=webhooks.QUEUE, concurrency=10))
    try:
        await asyncio.to_thread(wait_until, lambda: silent_server.request_count >= 2)
        started = time.monotonic()
        await announce_completed(steps, site.url + "/hook")
        await asyncio.to_thread(wait_until, lambda: len(site.received) == 1)
        waited = time.monotonic() - started
        # Thirty attempts of half a second, two at a time, take 7.5 s: behind them it would have taken that long.
        assert silent_server.request_count < 20, f"the healthy receiver was called after {waited:.1f} s"
        # Every delivery gets its first attempt. On a slow machine some may already have had a second.
        for _ in range(600):
            if not await steps.count("select count(*) from webhook_deliveries where attempt = 0"):
                break
            await asyncio.sleep(0.1)
    finally:
        working.cancel()
        await asyncio.wait([working])
    assert silent_server.max_open == 2
    assert await steps.count("select count(*) from webhook_deliveries where attempt = 0") == 0


async def test_team_with_dead_receivers_occupies_four_slots(steps: JobSteps) -> None:
    delivery_ids = [(await announce_completed(steps, f"http://dead-{number}.example/hook"))[1] for number in range(6)]
    taken = [await commit(steps.database, lambda tx, one=one: webhooks.claim(tx, one)) for one in delivery_ids]  # type: ignore[misc] # mypy cannot type a lambda's default
    assert [claimed is not None for claimed in taken] == [True] * 4 + [False] * 2
    outcome = webhooks.DeliveryOutcome(error="too slow", milliseconds=1)
    first = taken[0]
    assert first is not None
    await commit(steps.database, lambda tx: webhooks.record(tx, steps.queue, first, outcome))
    assert await commit(steps.database, lambda tx: webhooks.claim(tx, delivery_ids[4])) is not None


async def test_racing_claims_fill_two_slots(steps: JobSteps) -> None:
    delivery_ids = [(await announce_completed(steps, "http://dead.example/hook"))[1] for _ in range(8)]

    async def claim_slowly(one: UUID) -> bool:
        async with steps.database.transaction() as tx:
            claimed = await webhooks.claim(tx, one)
            await tx.execute("select pg_sleep(0.2)")
        return claimed is not None

    assert sum(await asyncio.gather(*map(claim_slowly, delivery_ids))) == 2


async def test_waiting_delivery_is_enqueued_after_worker_death(steps: JobSteps, site: Site) -> None:
    delivery_ids = [(await announce_completed(steps, site.url + "/hook"))[1] for _ in range(3)]
    for one in delivery_ids[:2]:
        await commit(steps.database, lambda tx, one=one: webhooks.claim(tx, one))  # type: ignore[misc] # mypy cannot type a lambda's default
    await run_due_tasks(steps)
    assert await commit(steps.database, lambda tx: webhooks.requeue_lost(tx, steps.queue)) == 0
    await pass_time(steps, webhooks.ATTEMPT_TIMEOUT.total_seconds() + 1)
    assert await commit(steps.database, lambda tx: webhooks.requeue_lost(tx, steps.queue)) == 1
    await run_due_tasks(steps)
    assert len(site.received) == 1


# The team's own secret


async def test_standard_webhooks_headers_verify(steps: JobSteps, site: Site) -> None:
    team = steps.caller.team
    secret, created = await commit(steps.database, lambda tx: secrets.get_or_create(tx, team))
    assert created
    assert await commit(steps.database, lambda tx: secrets.get_or_create(tx, team)) == (secret, False)
    _, delivery_id = await announce_completed(steps, site.url + "/hook")
    await deliver(steps, delivery_id)
    ((headers, body),) = site.received
    assert Webhook(secret).verify(body, headers)["event"] == "completed"
    assert headers["webhook-id"] == str(delivery_id)
    with pytest.raises(WebhookVerificationError):
        Webhook(secret).verify(body + b" ", headers)


async def test_both_secrets_sign_for_a_day_after_rotation(steps: JobSteps, site: Site) -> None:
    team = steps.caller.team
    old, _ = await commit(steps.database, lambda tx: secrets.get_or_create(tx, team))
    new = await commit(steps.database, lambda tx: secrets.rotate(tx, team))
    _, delivery_id = await announce_completed(steps, site.url + "/hook")
    await deliver(steps, delivery_id)
    headers, body = site.received[0]
    for secret in (old, new):
        Webhook(secret).verify(body, headers)
    await commit(
        steps.database,
        lambda tx: tx.execute("update webhook_secrets set expires_at = expires_at - interval '25 hours'"),
    )
    assert await commit(steps.database, lambda tx: secrets.active_secrets(tx, team)) == [new]


async def test_team_without_secret_gets_no_standard_headers(steps: JobSteps, site: Site) -> None:
    _, delivery_id = await announce_completed(steps, site.url + "/hook")
    await deliver(steps, delivery_id)
    assert not [name for name in site.received[0][0] if name.lower().startswith("webhook-")]
