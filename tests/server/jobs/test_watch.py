"""Watching a job: notifications, `Prefer: wait` and event streams, none of which holds a connection."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

import httpx
import pytest

from hiresfix.server.api import events
from hiresfix.server.database import notifications
from hiresfix.server.database.notifications import Notifications
from hiresfix.server.database.pool import Database
from hiresfix.server.database.task_queue import Queue
from hiresfix.server.jobs import lifecycle, model, watch
from hiresfix.server.jobs.model import AttemptOutcome, Completed, Failed, StoredResult
from tests.server.conftest import Api, wait_until
from tests.server.job_steps import JobSteps, success

# Notifications ------------------------------------------------------------------------------------------------------


@pytest.fixture
def slow_poll(monkeypatch: pytest.MonkeyPatch) -> None:
    """Disable polling, so that only notifications can wake a watcher."""
    monkeypatch.setattr(notifications, "POLL_SECONDS", 3600.0)
    monkeypatch.setattr(watch, "POLL_SECONDS", 3600.0)


@pytest.mark.usefixtures("slow_poll")
async def test_watcher_is_woken_by_its_own_job_only(steps: JobSteps, database_url: str) -> None:
    notifications = Notifications(database_url)
    own, other = await steps.submit(), await steps.submit()
    async with notifications.listening():
        await notifications.connected.wait()
        with notifications.subscribe(own) as watcher, notifications.subscribe(other) as bystander:
            woken = asyncio.create_task(watcher.wait(3600))
            claim = await steps.claim(own)
            assert await asyncio.wait_for(woken, 20)
            bystander_wait = asyncio.create_task(bystander.wait(3600))
            await steps.settle(claim, success(claim))
            assert await asyncio.wait_for(watcher.wait(3600), 20)
            assert not bystander_wait.done()
            bystander_wait.cancel()
    assert notifications.subscriber_count == 0


@pytest.mark.usefixtures("slow_poll")
async def test_change_between_read_and_wait_is_noticed(steps: JobSteps, database_url: str) -> None:
    notifications = Notifications(database_url)
    job = await steps.submit()
    async with notifications.listening():
        await notifications.connected.wait()
        with notifications.subscribe(job) as watcher:
            await steps.claim(job)
            await asyncio.sleep(0.5)  # the notification arrives while nothing waits for it
            started = time.monotonic()
            assert await watcher.wait(60)
            assert time.monotonic() - started < 10


@pytest.mark.usefixtures("slow_poll")
async def test_listener_reconnects_and_wakes_all_watchers(steps: JobSteps, database_url: str) -> None:
    notifications = Notifications(database_url)
    job = await steps.submit()
    async with notifications.listening():
        await notifications.connected.wait()
        with notifications.subscribe(job) as watcher:
            await steps.count(
                "select count(pg_terminate_backend(pid)) from pg_stat_activity"
                " where application_name = 'hiresfix-notifications' and datname = current_database()"
            )
            # Woken by the reconnection: nothing else has happened.
            assert await asyncio.wait_for(watcher.wait(3600), 30)
        await notifications.connected.wait()
        with notifications.subscribe(job) as watcher:
            await steps.claim(job)
            assert await asyncio.wait_for(watcher.wait(3600), 30)


async def test_polling_works_without_notifications(steps: JobSteps, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "POLL_SECONDS", 0.05)
    deaf = Notifications("postgresql://nowhere.invalid/none")
    job = await steps.submit()
    waiting = asyncio.create_task(watch.wait_until_finished(steps.database, deaf, job, seconds=30))
    claim = await steps.claim(job)
    await steps.settle(claim, success(claim))
    job_seen = await waiting
    assert job_seen is not None
    assert job_seen.state == "COMPLETED"


async def test_waiting_ends_when_the_process_stops(steps: JobSteps, database_url: str) -> None:
    notifications = Notifications(database_url)
    job = await steps.submit()
    waiting = asyncio.create_task(watch.wait_until_finished(steps.database, notifications, job, seconds=60))
    while not notifications.subscriber_count:  # noqa: ASYNC110  # nothing else has to know this moment
        await asyncio.sleep(0.01)
    notifications.close()
    assert await asyncio.wait_for(waiting, 10) is None
    assert await watch.wait_until_finished(steps.database, notifications, job, seconds=60) is None


# Over HTTP ----------------------------------------------------------------------------------------------------------


def work(
    api: Api, job: str, outcome: Callable[[model.Claim], AttemptOutcome] | None = None, *, progress: int = 0
) -> None:
    """Do a worker's work: claim, renew with this progress and, with an outcome, settle."""

    async def run() -> None:
        async with Database(api.database_url, max_size=1) as database:
            claim = await lifecycle.claim(database, worker="w", lease_seconds=600)
            assert claim is not None
            assert str(claim.id) == job
            async with database.transaction() as tx:
                if progress:
                    assert await lifecycle.renew(tx, claim, progress=progress, lease_seconds=600)
                if outcome:
                    await lifecycle.settle(tx, Queue(api.database_url), claim, outcome(claim), public_url=api.url)

    asyncio.run(run())


def completed(claim: model.Claim) -> Completed:
    return Completed(
        result=StoredResult(
            key=f"results/{claim.id}/{claim.token}",
            sha256="0" * 64,
            media_type="image/png",
            bytes=9,
            width=48,
            height=34,
            metadata={"engine": "test"},
        )
    )


def failed(claim: model.Claim) -> Failed:
    return Failed(error="It broke. Try another image.", retryable=False)


def only_job(api: Api) -> str:
    wait_until(lambda: api.jobs == 1)
    return str(api.value("select id from jobs"))


@contextmanager
def pending(api: Api, photo: str, **headers: str) -> Iterator[Callable[[], httpx.Response]]:
    """Submit in a thread; call the result for the response."""
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(api.submit, {"image": photo}, headers=headers)
        yield lambda: answer.result(60)


def test_prefer_wait_returns_finished_job(api: Api, photo: str) -> None:
    with pending(api, photo, Prefer="wait=20") as answer:
        job = only_job(api)
        work(api, job, completed)
        response = answer()
    assert response.status_code == 200
    assert response.headers["preference-applied"] == "wait=20"
    assert response.headers["location"] == f"/v2/jobs/{job}"
    body = response.json()
    assert (body.pop("jobId"), body["status"], body["progress"]) == (job, "COMPLETED", 100)
    with api.client() as client:
        assert client.get(f"/v2/jobs/{job}").json() == body
        assert httpx.URL(body["result"]["images"][0]).path == f"/files/images/{job}-1.png"


def test_prefer_wait_returns_failed_job(api: Api, photo: str) -> None:
    with pending(api, photo, Prefer="wait=20") as answer:
        work(api, only_job(api), failed)
        response = answer()
    assert (response.status_code, response.json()["status"]) == (200, "FAILED")
    assert response.json()["error"] == "It broke. Try another image."


def test_prefer_wait_times_out_with_202(api: Api, photo: str) -> None:
    response = api.submit({"image": photo}, headers={"Prefer": "wait=1"})
    assert (response.status_code, set(response.json())) == (202, {"jobId", "status"})
    assert response.json()["status"] == "QUEUED"
    assert response.headers["preference-applied"] == "wait=1"


def test_wait_is_limited_by_setting(start_api: Callable[..., Api], photo: str) -> None:
    api = start_api(max_wait_seconds=1)
    assert api.submit({"image": photo}, headers={"Prefer": "wait=3600"}).headers["preference-applied"] == "wait=1"


@pytest.mark.parametrize("header", ["", "respond-async", "wait=soon", "wait=0"])
def test_unreadable_prefer_header_is_ignored(api: Api, photo: str, header: str) -> None:
    response = api.submit({"image": photo}, headers={"Prefer": header})
    assert (response.status_code, set(response.json())) == (202, {"jobId", "status"})
    assert "preference-applied" not in response.headers


def test_replay_with_prefer_wait_returns_job(api: Api, photo: str) -> None:
    first = api.submit({"image": photo}, headers={"Idempotency-Key": "k"}).json()["jobId"]
    work(api, first, completed)
    again = api.submit({"image": photo}, headers={"Idempotency-Key": "k", "Prefer": "wait=5"})
    assert (again.status_code, again.json()["jobId"], again.json()["id"]) == (200, first, first)
    assert again.headers["idempotency-replayed"] == "true"


def test_waiting_submissions_hold_no_connections(api: Api, photo: str) -> None:
    """Thirty are more than the pool has connections: requests that held one would starve the others."""
    with ThreadPoolExecutor(30) as pool:
        answers = [pool.submit(api.submit, {"image": photo}, headers={"Prefer": "wait=20"}) for _ in range(30)]
        wait_until(lambda: api.jobs == 30)
        with api.client() as client:
            for _ in range(5):
                assert client.get("/v2/me").status_code == 200
        assert not any(answer.done() for answer in answers)
        api.do("update jobs set state = 'FAILED', completed_at = now()")
        assert {answer.result(60).status_code for answer in answers} == {200}


# Event streams ------------------------------------------------------------------------------------------------------


def blocks(lines: Iterator[str]) -> Iterator[dict[str, str]]:
    """Parse server-sent events as their standard says; comments are the field `:`."""
    block: dict[str, str] = {}
    for line in lines:
        if line:
            name, _, value = line.partition(":")
            block[name or ":"] = value.removeprefix(" ")
        else:
            yield block
            block = {}


@contextmanager
def stream(api: Api, job: str, **headers: str) -> Iterator[Iterator[dict[str, str]]]:
    with api.client() as client, client.stream("GET", f"/v2/jobs/{job}/events", headers=headers) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        assert "x-request-id" in response.headers
        stream_blocks = blocks(response.iter_lines())
        assert next(stream_blocks) == {"retry": "2000"}
        yield stream_blocks


def submitted(api: Api, photo: str) -> str:
    return str(api.submit({"image": photo}).json()["jobId"])


def facts(event: dict[str, str]) -> tuple[str, str, Any, Any]:
    body = json.loads(event["data"])
    return event["event"], event["id"], body["status"], body["progress"]


def test_stream_reports_state_changes_and_end(api: Api, photo: str) -> None:
    job = submitted(api, photo)
    with stream(api, job) as events_seen:
        assert facts(next(events_seen)) == ("progress", "QUEUED-0", "QUEUED", 0)
        work(api, job, progress=40)
        claimed_or_renewed = facts(next(events_seen))
        if claimed_or_renewed[3] == 1:
            claimed_or_renewed = facts(next(events_seen))
        assert claimed_or_renewed == ("progress", "PROCESSING-40", "PROCESSING", 40)
        api.do("update jobs set progress = 70")
        assert facts(next(events_seen)) == ("progress", "PROCESSING-70", "PROCESSING", 70)
        api.do("update jobs set state = 'QUEUED', lease_until = null, token = null")
        assert facts(next(events_seen))[2:] == ("QUEUED", 70)
        work(api, job, completed)
        last = next(event for event in events_seen if event["event"] != "progress")
        assert facts(last) == ("completed", "COMPLETED-100", "COMPLETED", 100)
        assert list(events_seen) == []
    with api.client() as client:
        whole = client.get(f"/v2/jobs/{job}").json()
    del whole["input"]
    assert json.loads(last["data"]) == whole


@pytest.mark.parametrize("state", ["FAILED", "CANCELLED"])
def test_stream_of_finished_job_has_one_event(api: Api, photo: str, state: str) -> None:
    job = submitted(api, photo)
    api.do("update jobs set state = %s, completed_at = now()", state)
    with stream(api, job, **{"Last-Event-ID": "anything"}) as events_seen:
        (event,) = events_seen
    assert facts(event) == ("failed", f"{state}-0", state, 0)


def test_reconnect_after_last_event_gets_204(api: Api, photo: str) -> None:
    job = submitted(api, photo)
    work(api, job, completed)
    with api.client(**{"Last-Event-ID": "COMPLETED-100"}) as client:
        response = client.get(f"/v2/jobs/{job}/events")
    assert (response.status_code, response.content) == (204, b"")


def test_silent_stream_sends_heartbeats(api: Api, photo: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "POLL_SECONDS", 0.1)
    monkeypatch.setattr(events, "HEARTBEAT_SECONDS", 0.1)
    with stream(api, submitted(api, photo)) as events_seen:
        next(events_seen)
        assert next(events_seen) == {":": ""}
        assert next(events_seen) == {":": ""}


@pytest.mark.parametrize(("job", "status"), [("not-a-uuid", 400), ("00000000-0000-4000-8000-000000000000", 404)])
def test_stream_of_unknown_job_is_an_error(api: Api, job: str, status: int) -> None:
    with api.client() as client:
        response = client.get(f"/v2/jobs/{job}/events")
    assert response.status_code == status
    assert response.headers["content-type"] == "application/json"


def test_stream_requires_a_key(api: Api, photo: str) -> None:
    assert httpx.get(f"{api.url}/v2/jobs/{submitted(api, photo)}/events").status_code == 401


def test_streams_per_key_are_limited(start_api: Callable[..., Api], photo: str) -> None:
    api = start_api(max_event_streams=2)
    job = submitted(api, photo)

    def status() -> int:
        with api.client() as client, client.stream("GET", f"/v2/jobs/{job}/events") as response:
            if response.status_code == 429:
                assert int(response.headers["retry-after"]) >= 1
                assert "2 event streams" in json.loads(response.read())["error"]
            return response.status_code

    with stream(api, job), stream(api, job):
        assert status() == 429
    wait_until(lambda: status() == 200)


def test_open_streams_hold_no_connection(api: Api, photo: str) -> None:
    job = submitted(api, photo)
    opened, leave = threading.Barrier(21), threading.Event()

    def look() -> None:
        with stream(api, job) as events_seen:
            next(events_seen)
            opened.wait(60)
            leave.wait(60)

    with ThreadPoolExecutor(20) as pool:
        for _ in range(20):
            pool.submit(look)
        opened.wait(60)
        busy = "select count(*) from pg_stat_activity where application_name = 'hiresfix-api' and state <> 'idle'"
        wait_until(lambda: api.value(busy + " and datname = current_database()") == 0, seconds=20)
        with api.client() as client:
            assert client.get("/v2/me").status_code == 200
        leave.set()


def test_disconnected_stream_leaves_nothing_behind(api: Api, photo: str) -> None:
    job = submitted(api, photo)
    for _ in range(3):
        with stream(api, job) as events_seen:
            next(events_seen)
    service = api.app.state.services
    wait_until(lambda: service.notifications.subscriber_count == 0 and not service.streams, seconds=20)


def test_unknown_job_cannot_be_watched(database_url: str) -> None:
    from hiresfix.errors import NotFound

    async def run() -> None:
        async with Database(database_url, max_size=1) as database:
            await watch.wait_until_finished(database, Notifications(database_url), uuid4(), seconds=5)

    with pytest.raises(NotFound):
        asyncio.run(run())
