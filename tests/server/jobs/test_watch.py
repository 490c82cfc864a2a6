"""Waiting for a job: notifications, `Prefer: wait`, event streams; nobody holds a connection meanwhile."""

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
from hiresfix.server.database import notifications as changing
from hiresfix.server.database.notifications import Changes
from hiresfix.server.database.pool import Database
from hiresfix.server.database.task_queue import Queue
from hiresfix.server.jobs import lifecycle, model
from hiresfix.server.jobs import watch as following
from hiresfix.server.jobs.model import Completed, Failed, Outcome, Result
from tests.server.conftest import Api, wait_until
from tests.server.jobs.test_lifecycle import Town, result, town

__all__ = ["town"]


# Notifications ------------------------------------------------------------------------------------------------------


@pytest.fixture
def slow_poll(monkeypatch: pytest.MonkeyPatch) -> None:
    """The net under the notifications is taken away: only they can wake anybody."""
    monkeypatch.setattr(changing, "POLL_SECONDS", 3600.0)
    monkeypatch.setattr(following, "POLL_SECONDS", 3600.0)


@pytest.mark.usefixtures("slow_poll")
async def test_a_waiter_is_woken_by_the_end_of_its_job_and_by_nobody_elses(town: Town, database_url: str) -> None:
    changes = Changes(database_url)
    mine, other = await town.submit(), await town.submit()
    async with changes.listening():
        await changes.listens.wait()
        with changes.watch(mine) as watch, changes.watch(other) as bystander:
            woken = asyncio.create_task(watch.wait(3600))
            held = await town.claim(mine)
            assert await asyncio.wait_for(woken, 20)
            bystanding = asyncio.create_task(bystander.wait(3600))
            await town.settle(held, result(held))
            assert await asyncio.wait_for(watch.wait(3600), 20)
            assert not bystanding.done()
            bystanding.cancel()
    assert changes.watched == 0


@pytest.mark.usefixtures("slow_poll")
async def test_what_changes_between_look_and_wait_is_not_missed(town: Town, database_url: str) -> None:
    changes = Changes(database_url)
    job = await town.submit()
    async with changes.listening():
        await changes.listens.wait()
        with changes.watch(job) as watch:
            await town.claim(job)
            await asyncio.sleep(0.5)  # the notification arrives while nobody waits for it
            started = time.monotonic()
            assert await watch.wait(60)
            assert time.monotonic() - started < 10


@pytest.mark.usefixtures("slow_poll")
async def test_a_listener_whose_connection_fell_comes_back_and_wakes_everybody(town: Town, database_url: str) -> None:
    changes = Changes(database_url)
    job = await town.submit()
    async with changes.listening():
        await changes.listens.wait()
        with changes.watch(job) as watch:
            await town.count(
                "select count(pg_terminate_backend(pid)) from pg_stat_activity"
                " where application_name = 'hiresfix-changes' and datname = current_database()"
            )
            assert await asyncio.wait_for(watch.wait(3600), 30)  # by coming back: nothing else has happened
        await changes.listens.wait()
        with changes.watch(job) as watch:
            await town.claim(job)
            assert await asyncio.wait_for(watch.wait(3600), 30)


async def test_without_notifications_the_poll_finds_the_end(town: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "POLL_SECONDS", 0.05)
    deaf = Changes("postgresql://nowhere.invalid/none")
    job = await town.submit()
    waiting = asyncio.create_task(following.finished(town.database, deaf, job, seconds=30))
    held = await town.claim(job)
    await town.settle(held, result(held))
    found = await waiting
    assert found is not None
    assert found.state == "COMPLETED"


async def test_waiters_are_sent_home_when_the_process_stops(town: Town, database_url: str) -> None:
    changes = Changes(database_url)
    job = await town.submit()
    waiting = asyncio.create_task(following.finished(town.database, changes, job, seconds=60))
    while not changes.watched:  # noqa: ASYNC110  # nothing else needs to know of this moment
        await asyncio.sleep(0.01)
    changes.close()
    assert await asyncio.wait_for(waiting, 10) is None
    assert await following.finished(town.database, changes, job, seconds=60) is None


# Over HTTP ----------------------------------------------------------------------------------------------------------


def work(api: Api, job: str, outcome: Callable[[model.Claim], Outcome] | None = None, *, progress: int = 0) -> None:
    """What a worker does: claim, note progress and, with an outcome, settle."""

    async def run() -> None:
        async with Database(api.database_url, max_size=1) as database:
            held = await lifecycle.claim(database, worker="w", lease_seconds=600)
            assert held is not None
            assert str(held.id) == job
            async with database.transaction() as tx:
                if progress:
                    assert await lifecycle.renew(tx, held, progress=progress, lease_seconds=600)
                if outcome:
                    await lifecycle.settle(tx, Queue(api.database_url), held, outcome(held), public_url=api.url)

    asyncio.run(run())


def completed(held: model.Claim) -> Completed:
    return Completed(
        result=Result(
            key=f"results/{held.id}/{held.token}",
            sha256="0" * 64,
            media_type="image/png",
            bytes=9,
            width=48,
            height=34,
            metadata={"engine": "test"},
        )
    )


def failed(held: model.Claim) -> Failed:
    return Failed(error="It broke. Try another picture.", retryable=False)


def only_job(api: Api) -> str:
    wait_until(lambda: api.jobs == 1)
    return str(api.value("select id from jobs"))


@contextmanager
def pending(api: Api, photo: str, **headers: str) -> Iterator[Callable[[], httpx.Response]]:
    """A submission under way in a thread; call it for its answer."""
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(api.submit, {"image": photo}, headers=headers)
        yield lambda: answer.result(60)


def test_who_prefers_to_wait_gets_the_finished_job_in_the_answer(api: Api, photo: str) -> None:
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


def test_a_failed_job_ends_the_wait_too(api: Api, photo: str) -> None:
    with pending(api, photo, Prefer="wait=20") as answer:
        work(api, only_job(api), failed)
        response = answer()
    assert (response.status_code, response.json()["status"]) == (200, "FAILED")
    assert response.json()["error"] == "It broke. Try another picture."


def test_when_the_time_is_up_the_answer_is_the_usual_one(api: Api, photo: str) -> None:
    response = api.submit({"image": photo}, headers={"Prefer": "wait=1"})
    assert (response.status_code, set(response.json())) == (202, {"jobId", "status"})
    assert response.json()["status"] == "QUEUED"
    assert response.headers["preference-applied"] == "wait=1"


def test_the_operator_bounds_the_wait(start_api: Callable[..., Api], photo: str) -> None:
    api = start_api(max_wait_seconds=1)
    assert api.submit({"image": photo}, headers={"Prefer": "wait=3600"}).headers["preference-applied"] == "wait=1"


@pytest.mark.parametrize("header", ["", "respond-async", "wait=soon", "wait=0"])
def test_without_a_wait_that_can_be_read_nothing_is_different(api: Api, photo: str, header: str) -> None:
    response = api.submit({"image": photo}, headers={"Prefer": header})
    assert (response.status_code, set(response.json())) == (202, {"jobId", "status"})
    assert "preference-applied" not in response.headers


def test_a_replay_that_prefers_to_wait_gets_the_job_as_well(api: Api, photo: str) -> None:
    first = api.submit({"image": photo}, headers={"Idempotency-Key": "k"}).json()["jobId"]
    work(api, first, completed)
    again = api.submit({"image": photo}, headers={"Idempotency-Key": "k", "Prefer": "wait=5"})
    assert (again.status_code, again.json()["jobId"], again.json()["id"]) == (200, first, first)
    assert again.headers["idempotency-replayed"] == "true"


def test_thirty_waiting_submissions_leave_the_server_free_for_others(api: Api, photo: str) -> None:
    """More than the pool has connections: a waiter that held one would starve them all."""
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
    """Server-sent events as their standard reads them; comments as the field `:`."""
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
        found = blocks(response.iter_lines())
        assert next(found) == {"retry": "2000"}
        yield found


def submitted(api: Api, photo: str) -> str:
    return str(api.submit({"image": photo}).json()["jobId"])


def facts(event: dict[str, str]) -> tuple[str, str, Any, Any]:
    body = json.loads(event["data"])
    return event["event"], event["id"], body["status"], body["progress"]


def test_a_stream_tells_the_state_every_change_and_the_end(api: Api, photo: str) -> None:
    job = submitted(api, photo)
    with stream(api, job) as told:
        assert facts(next(told)) == ("progress", "QUEUED-0", "QUEUED", 0)
        work(api, job, progress=40)
        claimed_or_renewed = facts(next(told))
        if claimed_or_renewed[3] == 1:
            claimed_or_renewed = facts(next(told))
        assert claimed_or_renewed == ("progress", "PROCESSING-40", "PROCESSING", 40)
        api.do("update jobs set progress = 70")
        assert facts(next(told)) == ("progress", "PROCESSING-70", "PROCESSING", 70)
        api.do("update jobs set state = 'QUEUED', lease_until = null, token = null")
        assert facts(next(told))[2:] == ("QUEUED", 70)
        work(api, job, completed)
        last = next(event for event in told if event["event"] != "progress")
        assert facts(last) == ("completed", "COMPLETED-100", "COMPLETED", 100)
        assert list(told) == []
    with api.client() as client:
        whole = client.get(f"/v2/jobs/{job}").json()
    del whole["input"]
    assert json.loads(last["data"]) == whole


@pytest.mark.parametrize("state", ["FAILED", "CANCELLED"])
def test_a_stream_of_a_finished_job_is_its_last_event(api: Api, photo: str, state: str) -> None:
    job = submitted(api, photo)
    api.do("update jobs set state = %s, completed_at = now()", state)
    with stream(api, job, **{"Last-Event-ID": "anything"}) as told:
        (event,) = told
    assert facts(event) == ("failed", f"{state}-0", state, 0)


def test_who_has_seen_the_end_is_told_not_to_come_back(api: Api, photo: str) -> None:
    job = submitted(api, photo)
    work(api, job, completed)
    with api.client(**{"Last-Event-ID": "COMPLETED-100"}) as client:
        response = client.get(f"/v2/jobs/{job}/events")
    assert (response.status_code, response.content) == (204, b"")


def test_a_silent_stream_beats(api: Api, photo: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "POLL_SECONDS", 0.1)
    monkeypatch.setattr(events, "HEARTBEAT_SECONDS", 0.1)
    with stream(api, submitted(api, photo)) as told:
        next(told)
        assert next(told) == {":": ""}
        assert next(told) == {":": ""}


@pytest.mark.parametrize(("job", "status"), [("not-a-uuid", 400), ("00000000-0000-4000-8000-000000000000", 404)])
def test_a_stream_of_no_job_is_an_error_as_everywhere(api: Api, job: str, status: int) -> None:
    with api.client() as client:
        response = client.get(f"/v2/jobs/{job}/events")
    assert response.status_code == status
    assert response.headers["content-type"] == "application/json"


def test_strangers_get_no_stream(api: Api, photo: str) -> None:
    assert httpx.get(f"{api.url}/v2/jobs/{submitted(api, photo)}/events").status_code == 401


def test_a_key_has_so_many_streams_and_each_that_is_left_makes_room(start_api: Callable[..., Api], photo: str) -> None:
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
        with stream(api, job) as told:
            next(told)
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


def test_a_client_that_goes_away_leaves_nothing_behind(api: Api, photo: str) -> None:
    job = submitted(api, photo)
    for _ in range(3):
        with stream(api, job) as told:
            next(told)
    service = api.app.state.service
    wait_until(lambda: service.changes.watched == 0 and not service.streams, seconds=20)


def test_a_missing_job_is_not_followed(database_url: str) -> None:
    from hiresfix.errors import NotFound

    async def run() -> None:
        async with Database(database_url, max_size=1) as database:
            await following.finished(database, Changes(database_url), uuid4(), seconds=5)

    with pytest.raises(NotFound):
        asyncio.run(run())
