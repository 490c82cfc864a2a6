"""Webhooks to a real receiver: signature, retries, giving up (api-contract.md 15)."""

from __future__ import annotations

import hashlib
import json
import socket
from datetime import timedelta
from uuid import UUID

import pytest

from hiresfix import signing
from hiresfix.server import db, webhooks
from hiresfix.server.db import Database
from hiresfix.server.outbound import Policy
from hiresfix.server.queue import Queue
from tests.conftest import Site
from tests.server.conftest import commit
from tests.server.test_jobs import Town, result, town

__all__ = ["town"]

POLICY = Policy(allow_private=True, post_timeout=3)


async def announced(town: Town, url: str) -> tuple[UUID, UUID]:
    """A completed job and its delivery's id."""
    job = await town.submit(hook=url)
    held = await town.claim(job)
    await town.settle(held, result(held))
    delivery = await commit(
        town.database,
        lambda tx: db.value(tx, "select id from webhook_deliveries where job_id = %(j)s", j=job),
    )
    return job, delivery


async def deliver(town: Town, delivery: UUID) -> None:
    await webhooks.deliver(town.database, town.queue, delivery, policy=POLICY)


async def make_due(town: Town) -> None:
    await commit(town.database, lambda tx: tx.execute("update webhook_deliveries set next_attempt_at = now()"))


async def state(town: Town) -> tuple[str, int, int | None]:
    async with town.database.transaction() as tx:
        row = await (await tx.execute("select state, attempt, last_status from webhook_deliveries")).fetchone()
    assert row is not None
    return row


async def test_the_receiver_gets_a_signed_body_it_can_verify(town: Town, site: Site) -> None:
    async with town.database.transaction() as tx:
        await tx.execute("update api_keys set digest = %s", (hashlib.sha256(b"afk_" + b"0" * 40).digest(),))
    job, delivery = await announced(town, site.url + "/hook")
    await deliver(town, delivery)
    ((headers, body),) = site.received
    told = json.loads(body)
    assert (told["event"], told["jobId"], told["status"]) == ("completed", str(job), "COMPLETED")
    assert told["result"]["images"] == [f"http://example.com/files/images/{job}-1.png"]
    assert headers["X-Webhook-Event"] == "completed"
    assert headers["X-Webhook-Attempt"] == "1"
    assert headers["X-Webhook-Id"] == str(delivery)
    digest = signing.digest_api_key("afk_" + "0" * 40)
    assert signing.verify(body, headers["X-Webhook-Signature"], digest)
    assert await state(town) == ("DELIVERED", 1, 200)
    assert (await town.get(job)).webhook_status == "delivered"


async def test_the_key_can_sign_with_its_hexadecimal_digest(town: Town, site: Site) -> None:
    async with town.database.transaction() as tx:
        await tx.execute("update api_keys set signing_mode = 'hex', revoked_at = now()")
        digest = await db.value(tx, "select digest from api_keys")
    _, delivery = await announced(town, site.url + "/hook")
    await deliver(town, delivery)
    ((headers, body),) = site.received
    assert signing.verify(body, headers["X-Webhook-Signature"], digest, mode="hex")


async def test_500_then_200_is_delivered_with_the_same_id(town: Town, site: Site) -> None:
    site.answers[:] = [500, 301]
    job, delivery = await announced(town, site.url + "/hook")
    for expected in (("PENDING", 1, 500), ("PENDING", 2, 301), ("DELIVERED", 3, 200)):
        await deliver(town, delivery)
        assert await state(town) == expected
        await make_due(town)
    assert [headers["X-Webhook-Attempt"] for headers, _ in site.received] == ["1", "2", "3"]
    assert {headers["X-Webhook-Id"] for headers, _ in site.received} == {str(delivery)}
    assert len({body for _, body in site.received}) == 1
    assert (await town.get(job)).webhook_status == "delivered"


async def test_a_delivery_is_not_made_before_it_is_due_or_twice(town: Town, site: Site) -> None:
    site.answers[:] = [500]
    _, delivery = await announced(town, site.url + "/hook")
    await deliver(town, delivery)
    await deliver(town, delivery)
    assert len(site.received) == 1
    await make_due(town)
    await deliver(town, delivery)
    await deliver(town, delivery)
    assert len(site.received) == 2


async def test_410_stops_at_once(town: Town, site: Site) -> None:
    site.answers[:] = [410]
    job, delivery = await announced(town, site.url + "/hook")
    await deliver(town, delivery)
    assert await state(town) == ("FAILED", 1, 410)
    assert (await town.get(job)).webhook_status == "failed"


async def test_after_the_last_attempt_it_has_failed(town: Town) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}/hook"
    job, delivery = await announced(town, url)
    for attempt in range(1, 7):
        await make_due(town)
        await deliver(town, delivery)
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
        await tx.execute("update webhook_deliveries set next_attempt_at = now() - interval '1 minute'")
    assert await commit(town.database, lambda tx: webhooks.sweep(tx, town.queue)) == 1
    assert await commit(town.database, lambda tx: webhooks.sweep(tx, town.queue)) == 0
