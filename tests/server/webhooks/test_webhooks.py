"""Webhooks to a real receiver: signature, retries, giving up (contract.md 15)."""

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

from hiresfix import signing
from hiresfix.errors import Conflict, NotFound
from hiresfix.server.database import pool, query
from hiresfix.server.database.pool import Database, Tx
from hiresfix.server.database.task_queue import Queue
from hiresfix.server.guarded_http import Policy
from hiresfix.server.jobs import lifecycle
from hiresfix.server.jobs.model import Claim
from hiresfix.server.webhooks import delivery, secrets
from hiresfix.server.webhooks import events as webhooks
from tests.conftest import Site
from tests.server.conftest import commit, wait_until
from tests.server.jobs.test_lifecycle import Town, result, town

__all__ = ["town"]

POLICY = Policy(allow_private=True, post_timeout=3)


@dataclass
class Hole:
    """A server that takes connections and never answers."""

    url: str = ""
    asked: int = 0
    open: int = 0
    most_at_once: int = 0

    async def swallow(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.asked += 1
        self.open += 1
        self.most_at_once = max(self.most_at_once, self.open)
        await reader.read()
        self.open -= 1
        writer.close()


@pytest.fixture
async def hole() -> AsyncIterator[Hole]:
    hole = Hole()
    server = await asyncio.start_server(hole.swallow, "127.0.0.1", 0)
    hole.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/hook"
    async with server:
        yield hole


async def announced(town: Town, url: str) -> tuple[UUID, UUID]:
    """A completed job and its delivery's id."""
    job = await town.submit(hook=url)
    held = await town.claim(job)
    await town.settle(held, result(held))
    statement = "select id from webhook_deliveries where job_id = %(j)s"
    return job, await commit(town.database, lambda tx: query.value(tx, statement, j=job))


async def deliver(town: Town, delivery_id: UUID) -> None:
    await delivery.deliver(town.database, town.queue, delivery_id, policy=POLICY)


async def make_due(town: Town) -> None:
    await commit(town.database, lambda tx: tx.execute("update webhook_deliveries set next_attempt_at = now()"))


async def state(town: Town) -> tuple[str, int, int | None]:
    async with town.database.transaction() as tx:
        (told,) = await webhooks.newest(tx, limit=9)
    return told.state, told.attempts, told.last_status


async def test_the_receiver_gets_a_signed_body_it_can_verify(town: Town, site: Site) -> None:
    async with town.database.transaction() as tx:
        await tx.execute("update api_keys set digest = %s", (hashlib.sha256(b"afk_" + b"0" * 40).digest(),))
    job, sent = await announced(town, site.url + "/hook")
    await deliver(town, sent)
    ((headers, body),) = site.received
    told = json.loads(body)
    assert (told["event"], told["jobId"], told["status"]) == ("completed", str(job), "COMPLETED")
    assert told["result"]["images"] == [f"http://example.com/files/images/{job}-1.png"]
    assert headers["X-Webhook-Event"] == "completed"
    assert headers["X-Webhook-Attempt"] == "1"
    assert headers["X-Webhook-Id"] == str(sent)
    digest = signing.digest_api_key("afk_" + "0" * 40)
    assert signing.verify(body, headers["X-Webhook-Signature"], digest)
    assert await state(town) == ("DELIVERED", 1, 200)
    assert (await town.get(job)).webhook_status == "delivered"


async def test_the_key_can_sign_with_its_hexadecimal_digest(town: Town, site: Site) -> None:
    async with town.database.transaction() as tx:
        await tx.execute("update api_keys set signing_mode = 'hex', revoked_at = now()")
        digest = await query.value(tx, "select digest from api_keys")
    _, sent = await announced(town, site.url + "/hook")
    await deliver(town, sent)
    ((headers, body),) = site.received
    assert signing.verify(body, headers["X-Webhook-Signature"], digest, mode="hex")


async def test_500_then_200_is_delivered_with_the_same_id(town: Town, site: Site) -> None:
    site.answers[:] = [500, 301]
    job, sent = await announced(town, site.url + "/hook")
    for expected in (("PENDING", 1, 500), ("PENDING", 2, 301), ("DELIVERED", 3, 200)):
        await deliver(town, sent)
        assert await state(town) == expected
        await make_due(town)
    assert [headers["X-Webhook-Attempt"] for headers, _ in site.received] == ["1", "2", "3"]
    assert {headers["X-Webhook-Id"] for headers, _ in site.received} == {str(sent)}
    assert len({body for _, body in site.received}) == 1
    assert (await town.get(job)).webhook_status == "delivered"


async def test_a_delivery_is_not_made_before_it_is_due_or_twice(town: Town, site: Site) -> None:
    site.answers[:] = [500]
    _, sent = await announced(town, site.url + "/hook")
    await deliver(town, sent)
    await deliver(town, sent)
    assert len(site.received) == 1
    await make_due(town)
    await deliver(town, sent)
    await deliver(town, sent)
    assert len(site.received) == 2


async def test_410_stops_at_once(town: Town, site: Site) -> None:
    site.answers[:] = [410]
    job, sent = await announced(town, site.url + "/hook")
    await deliver(town, sent)
    assert await state(town) == ("FAILED", 1, 410)
    assert (await town.get(job)).webhook_status == "failed"


async def test_after_the_last_attempt_it_has_failed(town: Town) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}/hook"
    job, sent = await announced(town, url)
    for attempt in range(1, 7):
        await make_due(town)
        await deliver(town, sent)
        assert await state(town) == ("FAILED" if attempt == 6 else "PENDING", attempt, None)
    assert (await town.get(job)).webhook_status == "failed"


@pytest.mark.parametrize(("attempt", "seconds"), [(1, 10), (2, 60), (3, 300), (4, 1800), (5, 7200)])
def test_the_schedule_is_the_contracts_give_or_take_a_fifth(attempt: int, seconds: int) -> None:
    pauses = [webhooks.next_pause(attempt, None).total_seconds() for _ in range(200)]
    assert 0.8 * seconds <= min(pauses) < seconds < max(pauses) <= 1.2 * seconds


def test_a_receiver_may_ask_for_more_time_but_not_for_ever() -> None:
    assert webhooks.next_pause(1, 120) == timedelta(seconds=120)
    assert webhooks.next_pause(1, 1e9) == timedelta(hours=2)


async def test_a_delivery_without_a_task_is_found_again(town: Town, database: Database, queue: Queue) -> None:
    await announced(town, "https://example.com/hook")
    async with town.database.transaction() as tx:
        await tx.execute("delete from procrastinate_jobs")
        await tx.execute("update webhook_deliveries set next_attempt_at = now() - interval '6 seconds'")
    assert await commit(town.database, lambda tx: webhooks.sweep(tx, town.queue)) == 1
    assert await commit(town.database, lambda tx: webhooks.sweep(tx, town.queue)) == 0


async def test_what_a_receiver_answered_while_the_database_was_away_is_noted_when_it_is_back(
    town: Town, database_url: str, postgres: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "INSIST_SECONDS", 0.1)
    database = database_url.rpartition("/")[2].partition("?")[0]
    name, asked = sql.Identifier(database), 0

    async def receive(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        asked += 1
        head = await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(int(head.lower().partition(b"content-length: ")[2].split()[0]))
        admin.execute(sql.SQL("alter database {} allow_connections false").format(name))
        admin.execute("select pg_terminate_backend(pid) from pg_stat_activity where datname = %s", (database,))
        writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
        writer.close()

    with psycopg.connect(postgres, autocommit=True) as admin:
        async with await asyncio.start_server(receive, "127.0.0.1", 0) as receiver:
            host, port = receiver.sockets[0].getsockname()
            _, sent = await announced(town, f"http://{host}:{port}/hook")
            monkeypatch.setattr(town.database._pool, "timeout", 0.2)  # as if the outage were longer than that
            delivering = asyncio.create_task(deliver(town, sent))
            await asyncio.sleep(1)
            assert asked == 1
            assert not delivering.done()
            admin.execute(sql.SQL("alter database {} allow_connections true").format(name))
            await asyncio.wait_for(delivering, 30)
    assert await state(town) == ("DELIVERED", 1, 204)


# The whole schedule, with a clock that is turned instead of waited for


async def pass_time(town: Town, seconds: float) -> None:
    """Everything that was planned or noted moves `seconds` towards the past."""
    by = timedelta(seconds=seconds)
    async with town.database.transaction() as tx:
        await tx.execute(
            "update webhook_deliveries set next_attempt_at = next_attempt_at - %(by)s,"
            " sending_until = sending_until - %(by)s, created_at = created_at - %(by)s,"
            " finished_at = finished_at - %(by)s",
            {"by": by},
        )
        await tx.execute("update webhook_attempts set started_at = started_at - %(by)s", {"by": by})
        await tx.execute("update procrastinate_jobs set scheduled_at = scheduled_at - %(by)s", {"by": by})


async def run_due_tasks(town: Town) -> None:
    """What a worker would do now: every delivery task whose time has come, once."""
    async with town.database.transaction() as tx:
        due = await (
            await tx.execute(
                "delete from procrastinate_jobs where task_name = 'webhooks.deliver'"
                " and coalesce(scheduled_at, now()) <= now() returning args ->> 'delivery_id'"
            )
        ).fetchall()
    for (sent,) in due:
        await deliver(town, UUID(sent))


async def test_six_attempts_at_the_times_of_the_contract_then_it_has_failed(town: Town, site: Site) -> None:
    site.answers[:] = [500, 301, 404, 408, 429, 503, 200]
    job, sent = await announced(town, site.url + "/hook")
    await run_due_tasks(town)
    for attempt, pause in enumerate((10, 60, 300, 1800, 7200), start=1):
        await pass_time(town, 0.79 * pause)
        await run_due_tasks(town)
        assert len(site.received) == attempt, "before its time"
        await pass_time(town, 0.42 * pause)
        await run_due_tasks(town)
        assert len(site.received) == attempt + 1, "not when its time had come"
    assert await state(town) == ("FAILED", 6, 503)
    assert (await town.get(job)).webhook_status == "failed"
    await pass_time(town, 1e6)
    await run_due_tasks(town)
    assert len(site.received) == 6
    async with town.database.transaction() as tx:
        _, attempts = await webhooks.get(tx, sent)
    assert [line.status for line in attempts] == [500, 301, 404, 408, 429, 503]
    assert all(line.answer == "thanks" and line.milliseconds is not None for line in attempts)


async def test_a_redelivery_has_the_whole_schedule_again_and_counts_on(town: Town, site: Site) -> None:
    site.answers[:] = [410, 500]
    job, sent = await announced(town, site.url + "/hook")
    await run_due_tasks(town)
    assert (await town.get(job)).webhook_status == "failed"
    await commit(town.database, lambda tx: webhooks.redeliver(tx, town.queue, sent))
    assert (await town.get(job)).webhook_status == "pending"
    await run_due_tasks(town)
    assert await state(town) == ("PENDING", 2, 500)
    await pass_time(town, 12.1)
    await run_due_tasks(town)
    assert await state(town) == ("DELIVERED", 3, 200)
    assert [headers["X-Webhook-Attempt"] for headers, _ in site.received] == ["1", "2", "3"]
    assert {headers["X-Webhook-Id"] for headers, _ in site.received} == {str(sent)}


async def test_what_is_being_sent_is_not_redelivered(town: Town) -> None:
    _, sent = await announced(town, "http://127.0.0.1:9/hook")
    await commit(town.database, lambda tx: webhooks.claim(tx, sent))
    with pytest.raises(Conflict, match="this moment"):
        await commit(town.database, lambda tx: webhooks.redeliver(tx, town.queue, sent))
    with pytest.raises(NotFound):
        await commit(town.database, lambda tx: webhooks.redeliver(tx, town.queue, uuid4()))


async def test_pruning_forgets_attempts_and_keeps_what_a_jobs_status_is_read_from(town: Town, site: Site) -> None:
    site.answers[:] = [410]
    job, sent = await announced(town, site.url + "/hook")
    await run_due_tasks(town)
    month = timedelta(days=30)
    assert await commit(town.database, lambda tx: webhooks.prune(tx, older_than=month)) == 0
    await pass_time(town, 31 * 86400)
    assert await commit(town.database, lambda tx: webhooks.prune(tx, older_than=month)) == 1
    assert (await town.get(job)).webhook_status == "failed"
    await commit(town.database, lambda tx: webhooks.redeliver(tx, town.queue, sent))
    await run_due_tasks(town)
    assert (await town.get(job)).webhook_status == "delivered"


# Progress


async def progressing(town: Town, site: Site, *events: str) -> Claim:
    job = await town.submit(hook=site.url + "/hook", events=events or ("progress", "completed"))
    return await town.claim(job)


async def tell(town: Town, held: Claim, progress: int) -> None:
    """What the worker's loop does beside the engine."""

    async def renew(tx: Tx) -> None:
        assert await lifecycle.renew(tx, held, progress=progress, lease_seconds=60)
        await lifecycle.announce_progress(tx, town.queue, held, public_url="http://example.com")

    await commit(town.database, renew)


def told(site: Site) -> list[tuple[str, int]]:
    bodies = [json.loads(body) for _, body in site.received]
    return [(body["event"], body["progress"]) for body in bodies]


async def test_progress_is_told_on_change_and_every_two_seconds_at_most(town: Town, site: Site) -> None:
    held = await progressing(town, site)
    for progress, seconds in ((5, 1.0), (6, 0.5), (7, 0.6), (7, 9.0), (7, 1.0), (8, 0.0)):
        await tell(town, held, progress)
        await run_due_tasks(town)
        await pass_time(town, seconds)
    assert told(site) == [("progress", 5), ("progress", 7), ("progress", 8)]
    headers, body = site.received[0]
    assert headers["X-Webhook-Event"] == "progress"
    assert json.loads(body) == {
        "event": "progress", "type": "progress", "jobId": str(held.id), "status": "PROCESSING", "progress": 5,
        "model": "clarity-upscale",
    }  # fmt: skip
    assert len({headers["X-Webhook-Id"] for headers, _ in site.received}) == 3


async def test_a_progress_event_that_fails_is_not_tried_again_and_spoils_nothing(town: Town, site: Site) -> None:
    site.answers[:] = [503]
    held = await progressing(town, site)
    await tell(town, held, 5)
    await run_due_tasks(town)
    assert await state(town) == ("FAILED", 1, 503)
    await pass_time(town, 1e5)
    await run_due_tasks(town)
    assert len(site.received) == 1
    await town.settle(held, result(held))
    await run_due_tasks(town)
    assert told(site) == [("progress", 5), ("completed", 100)]
    assert (await town.get(held.id)).webhook_status == "delivered"


async def test_progress_that_was_not_sent_in_time_is_replaced_and_never_follows_the_end(town: Town, site: Site) -> None:
    held = await progressing(town, site)
    for progress in (5, 9):
        await tell(town, held, progress)
        await pass_time(town, 3)
    await run_due_tasks(town)
    assert told(site) == [("progress", 9)]
    await pass_time(town, 3)
    await tell(town, held, 50)
    await town.settle(held, result(held))
    await run_due_tasks(town)
    assert told(site) == [("progress", 9), ("completed", 100)]


async def test_the_end_waits_for_progress_that_is_under_way(town: Town, site: Site) -> None:
    held = await progressing(town, site)
    await tell(town, held, 5)
    statement = "select id from webhook_deliveries where event = %(event)s"
    progress = await commit(town.database, lambda tx: query.value(tx, statement, event="progress"))
    sending = await commit(town.database, lambda tx: webhooks.claim(tx, progress))
    assert sending is not None
    await town.settle(held, result(held))
    await run_due_tasks(town)
    assert site.received == []
    outcome = webhooks.Outcome(status=200, milliseconds=1)
    await commit(town.database, lambda tx: webhooks.record(tx, town.queue, sending, outcome))
    await run_due_tasks(town)
    assert told(site) == [("completed", 100)]


async def test_who_did_not_ask_for_progress_is_not_told(town: Town, site: Site) -> None:
    held = await progressing(town, site, "completed")
    await tell(town, held, 5)
    assert await town.tasks(webhooks.TASK) == 0


# Turns


async def test_a_dead_receiver_holds_two_slots_and_delays_nobody(
    town: Town, database_url: str, site: Site, hole: Hole
) -> None:
    """Thirty events for a host that never answers, then one for a host that does, on a real worker's ten slots."""
    for _ in range(30):
        await announced(town, hole.url)
    queue = Queue(database_url)
    impatient = replace(POLICY, post_timeout=0.5)

    async def run(delivery_id: str) -> None:
        await delivery.deliver(town.database, queue, UUID(delivery_id), policy=impatient)

    queue.on(webhooks.TASK, queue=webhooks.QUEUE, run=run)
    working = asyncio.create_task(queue.work(queue=webhooks.QUEUE, concurrency=10))
    try:
        await asyncio.to_thread(wait_until, lambda: hole.asked >= 2)
        started = time.monotonic()
        await announced(town, site.url + "/hook")
        await asyncio.to_thread(wait_until, lambda: len(site.received) == 1)
        waited = time.monotonic() - started
        # Thirty attempts of half a second, two at a time, are 7.5 s: in turn behind them it would have taken that.
        assert hole.asked < 20, f"the healthy receiver was told after {waited:.1f} s"
        # Everyone has a first turn. Those that had it may be back for their second, on a slow machine.
        for _ in range(600):
            if not await town.count("select count(*) from webhook_deliveries where attempt = 0"):
                break
            await asyncio.sleep(0.1)
    finally:
        working.cancel()
        await asyncio.wait([working])
    assert hole.most_at_once == 2
    assert await town.count("select count(*) from webhook_deliveries where attempt = 0") == 0


async def test_a_team_with_many_dead_receivers_has_four_slots(town: Town) -> None:
    sent = [(await announced(town, f"http://dead-{number}.example/hook"))[1] for number in range(6)]
    taken = [await commit(town.database, lambda tx, one=one: webhooks.claim(tx, one)) for one in sent]  # type: ignore[misc] # mypy cannot type a lambda's default
    assert [claimed is not None for claimed in taken] == [True] * 4 + [False] * 2
    outcome = webhooks.Outcome(error="too slow", milliseconds=1)
    first = taken[0]
    assert first is not None
    await commit(town.database, lambda tx: webhooks.record(tx, town.queue, first, outcome))
    assert await commit(town.database, lambda tx: webhooks.claim(tx, sent[4])) is not None


async def test_of_many_claims_at_once_a_receiver_gets_two(town: Town) -> None:
    sent = [(await announced(town, "http://dead.example/hook"))[1] for _ in range(8)]

    async def claim_and_dawdle(one: UUID) -> bool:
        async with town.database.transaction() as tx:
            claimed = await webhooks.claim(tx, one)
            await tx.execute("select pg_sleep(0.2)")
        return claimed is not None

    assert sum(await asyncio.gather(*map(claim_and_dawdle, sent))) == 2


async def test_who_waits_for_an_attempt_whose_worker_died_is_woken_by_the_sweep(town: Town, site: Site) -> None:
    sent = [(await announced(town, site.url + "/hook"))[1] for _ in range(3)]
    for one in sent[:2]:
        await commit(town.database, lambda tx, one=one: webhooks.claim(tx, one))  # type: ignore[misc] # mypy cannot type a lambda's default
    await run_due_tasks(town)
    assert await commit(town.database, lambda tx: webhooks.sweep(tx, town.queue)) == 0
    await pass_time(town, webhooks.SENDING.total_seconds() + 1)
    assert await commit(town.database, lambda tx: webhooks.sweep(tx, town.queue)) == 1
    await run_due_tasks(town)
    assert len(site.received) == 1


# The team's own secret


async def test_a_team_with_a_secret_gets_headers_its_receivers_library_verifies(town: Town, site: Site) -> None:
    team = town.caller.team
    secret, made = await commit(town.database, lambda tx: secrets.current(tx, team))
    assert made
    assert await commit(town.database, lambda tx: secrets.current(tx, team)) == (secret, False)
    _, sent = await announced(town, site.url + "/hook")
    await deliver(town, sent)
    ((headers, body),) = site.received
    assert Webhook(secret).verify(body, headers)["event"] == "completed"
    assert headers["webhook-id"] == str(sent)
    with pytest.raises(WebhookVerificationError):
        Webhook(secret).verify(body + b" ", headers)


async def test_after_a_rotation_both_secrets_verify_for_a_day(town: Town, site: Site) -> None:
    team = town.caller.team
    old, _ = await commit(town.database, lambda tx: secrets.current(tx, team))
    new = await commit(town.database, lambda tx: secrets.rotate(tx, team))
    _, sent = await announced(town, site.url + "/hook")
    await deliver(town, sent)
    headers, body = site.received[0]
    for secret in (old, new):
        Webhook(secret).verify(body, headers)
    await commit(
        town.database, lambda tx: tx.execute("update webhook_secrets set expires_at = expires_at - interval '25 hours'")
    )
    assert await commit(town.database, lambda tx: secrets.signing(tx, team)) == [new]


async def test_a_team_that_never_asked_for_a_secret_gets_no_such_headers(town: Town, site: Site) -> None:
    _, sent = await announced(town, site.url + "/hook")
    await deliver(town, sent)
    assert not [name for name in site.received[0][0] if name.lower().startswith("webhook-")]
