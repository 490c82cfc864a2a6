"""What a worker does with results that are not worth returning; everything else about it is in tests/journey."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
import torch

from hiresfix.errors import BadResult
from hiresfix.server import uploads
from hiresfix.server.database.pool import Database
from hiresfix.server.database.task_queue import Queue
from hiresfix.server.sandbox.client import STOPPED, Sandbox
from hiresfix.server.settings import Settings
from hiresfix.server.storage import Storage
from hiresfix.server.worker import process
from hiresfix.server.worker.process import Worker
from tests.conftest import png
from tests.server.conftest import Api, wait_until


async def attempt(
    api: Api, *, upscaler: Any = None, times: int = 1, stop: asyncio.Event | None = None, **terms: Any
) -> None:
    """Let a worker of the API's own database and store take the next job, at once, so many times.

    terms: of its quarantine.
    """
    settings: Settings = api.settings
    with Sandbox(uploads.limits(settings), **terms) as quarantine:
        async with Database(api.database_url, max_size=5) as database:
            made = Worker(
                settings,
                database=database,
                storage=uploads.store(settings, database),
                queue=Queue(api.database_url),
                quarantine=quarantine,
            )
            made._stop = stop or made._stop
            if upscaler is not None:
                made._upscaler = upscaler
            for _ in range(times):
                await asyncio.to_thread(api.do, "update jobs set queued_at = now()")  # no pause before a retry
                await made._run_task()


class Broken:
    """Makes pictures that fail their own check."""

    def __init__(self) -> None:
        self.runs = 0
        self.device = torch.device("cpu")
        self.exact: list[bool] = []
        self.compiled: list[bool] = []

    def in_place_of_an_upscaler(self, device: str, *, exact: bool = False, compiled: bool = False) -> Broken:
        self.exact.append(exact)
        self.compiled.append(compiled)
        return self

    def run(self, *_: Any) -> None:
        self.runs += 1
        raise BadResult("The result came out in one colour.")


async def test_a_bad_result_gets_one_more_attempt_and_is_then_refunded(
    start_api: Callable[..., Api], photo: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    api = await asyncio.to_thread(start_api, compile=True)
    assert api.settings.max_attempts > 2
    assert (await asyncio.to_thread(api.submit, {"image": photo})).status_code == 202
    broken = Broken()
    monkeypatch.setattr(process, "Upscaler", broken.in_place_of_an_upscaler)
    await attempt(api, times=1)
    assert api.value("select state from jobs") == "QUEUED"
    await attempt(api, times=3)
    assert broken.runs == 2
    assert broken.exact == [False, False, True]  # each of the two workers begins with the usual precision
    assert broken.compiled == [True, True, False]  # which is not worth it for one job
    assert api.value("select state from jobs") == "FAILED"
    assert api.value("select error from jobs") == process.REFUSED
    assert api.balance == 100


async def test_a_worker_that_died_before_does_not_take_the_second_chance_away(api: Api, photo: str) -> None:
    assert (await asyncio.to_thread(api.submit, {"image": photo})).status_code == 202
    await asyncio.to_thread(api.do, "update jobs set attempt = 1")
    await attempt(api, upscaler=Broken())
    assert api.value("select state from jobs") == "QUEUED"
    await attempt(api)
    assert api.value("select state from jobs") == "COMPLETED"
    assert api.value("select result -> 'metadata' ->> 'dtype' from jobs") == "float32"


async def test_a_job_whose_second_attempt_is_good_is_paid_for(api: Api, photo: str) -> None:
    assert (await asyncio.to_thread(api.submit, {"image": photo})).status_code == 202
    await attempt(api, upscaler=Broken())
    await attempt(api)
    assert api.value("select state from jobs") == "COMPLETED"
    assert api.value("select attempt from jobs") == 2
    assert api.balance == 97


async def test_a_picture_that_stops_its_decoder_is_a_failed_job_and_refunded(api: Api, photo: str) -> None:
    assert (await asyncio.to_thread(api.submit, {"image": photo})).status_code == 202
    await attempt(api, wall_seconds=0)
    assert api.value("select state from jobs") == "FAILED"
    assert api.value("select error from jobs") == STOPPED["time"]
    assert api.value("select attempt from jobs") == 1
    assert api.balance == 100


async def test_a_result_of_the_wrong_size_is_refused(api: Api, photo: str) -> None:
    """The picture in the store is not the one that was probed."""
    assert (await asyncio.to_thread(api.submit, {"image": photo})).status_code == 202
    (source,) = (api.settings.home / "files" / "sources").iterdir()
    source.write_bytes(png(30, 30))
    await attempt(api, times=2)
    assert api.value("select state from jobs") == "FAILED"
    assert api.value("select error from jobs") == process.REFUSED
    assert api.balance == 100


async def test_a_job_of_a_newer_release_waits_for_a_worker_of_it_and_costs_no_attempt(api: Api, photo: str) -> None:
    assert (await asyncio.to_thread(api.submit, {"image": photo})).status_code == 202
    await asyncio.to_thread(api.do, "update jobs set recipe = recipe || '{\"grain\": 0.5}'")
    await attempt(api, times=5)  # more than there are attempts
    assert api.value("select state from jobs") == "QUEUED"
    assert api.value("select attempt from jobs") == 0
    assert api.value("select queued_at > now() from jobs")  # others get to look at it
    await asyncio.to_thread(api.do, "update jobs set recipe = recipe - 'grain'")  # this worker understands it
    await attempt(api)
    assert api.value("select state from jobs") == "COMPLETED"
    assert api.value("select attempt from jobs") == 1


async def test_a_job_that_nobody_understands_is_refunded_in_the_end(api: Api, photo: str) -> None:
    assert (await asyncio.to_thread(api.submit, {"image": photo})).status_code == 202
    await asyncio.to_thread(api.do, 'update jobs set recipe = recipe || \'{"engine": "next"}\'')
    await attempt(api)
    assert api.value("select state from jobs") == "QUEUED"
    await asyncio.to_thread(api.do, "update jobs set not_understood_since = now() - interval '61 minutes'")
    await attempt(api)
    assert api.value("select state from jobs") == "FAILED"
    assert api.balance == 100


async def test_a_task_of_the_first_release_names_a_job_and_is_understood(api: Api) -> None:
    with Sandbox(uploads.limits(api.settings)) as quarantine:
        async with Database(api.database_url, max_size=5) as database:
            made = Worker(
                api.settings,
                database=database,
                storage=Storage.open(api.settings.storage_location),
                queue=Queue(api.database_url),
                quarantine=quarantine,
            )
            await made._run_task(job_id="00000000-0000-0000-0000-000000000000")


async def test_while_the_store_is_away_no_attempt_is_lost_and_no_other_job_taken(api: Api, photo: str) -> None:
    for _ in range(2):
        assert (await asyncio.to_thread(api.submit, {"image": photo})).status_code == 202
    folder = api.settings.home / "files"
    away = await asyncio.to_thread(folder.rename, folder.with_name("away"))
    await asyncio.to_thread(folder.mkdir)
    working = asyncio.create_task(attempt(api))
    given_back = "select count(*) from jobs where started_at is not null and state = 'QUEUED' and attempt = 0"
    await asyncio.to_thread(wait_until, lambda: api.value(given_back) == 1)
    await asyncio.sleep(2 * process.RETRY_SECONDS)
    assert api.value("select count(*) from jobs where started_at is null and state = 'QUEUED'") == 1
    assert not working.done()
    await asyncio.to_thread(away.rename, folder)
    await working
    await attempt(api, times=2)
    assert api.value("select count(*) from jobs where state = 'COMPLETED' and attempt = 1") == 2


async def test_who_waits_for_the_store_is_stopped_at_once(api: Api, photo: str) -> None:
    assert (await asyncio.to_thread(api.submit, {"image": photo})).status_code == 202
    await asyncio.to_thread((api.settings.home / "files").rename, api.settings.home / "away")
    stop = asyncio.Event()
    working = asyncio.create_task(attempt(api, stop=stop))
    await asyncio.to_thread(wait_until, lambda: api.value("select started_at from jobs where state = 'QUEUED'"))
    stop.set()
    async with asyncio.timeout(30):
        await working
