"""Worker process: rejected results, unsupported jobs, store outages. Everything else is in tests/journey."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
import torch

from hiresfix import messages
from hiresfix.errors import BadResult
from hiresfix.server import uploads
from hiresfix.server.database.pool import Database
from hiresfix.server.database.task_queue import Queue
from hiresfix.server.sandbox.client import ABORTED, Sandbox
from hiresfix.server.settings import Settings
from hiresfix.server.storage import Storage
from hiresfix.server.worker import process
from hiresfix.server.worker.process import WorkerProcess
from tests.conftest import png
from tests.server.conftest import Api, wait_until


async def attempt(
    api: Api, *, upscaler: Any = None, times: int = 1, stop: asyncio.Event | None = None, **sandbox_options: Any
) -> None:
    """Let a worker on the API's database and store run the next job without a pause, `times` times.

    Args:
        api: the running API.
        upscaler: in place of the worker's own.
        times: number of attempts.
        stop: set it to stop the worker.
        sandbox_options: of the worker's `Sandbox`.
    """
    settings: Settings = api.settings
    with Sandbox(uploads.image_limits(settings), **sandbox_options) as sandbox:
        async with Database(api.database_url, max_size=5) as database:
            worker = WorkerProcess(
                settings,
                database=database,
                storage=uploads.open_storage(settings, database),
                queue=Queue(api.database_url),
                sandbox=sandbox,
            )
            worker._stop = stop or worker._stop
            if upscaler is not None:
                worker._upscaler = upscaler
            for _ in range(times):
                await asyncio.to_thread(api.do, "update jobs set queued_at = now()")  # no pause before a retry
                await worker._run_task()


class Broken:
    """Upscaler whose results always fail the quality check."""

    def __init__(self) -> None:
        self.runs = 0
        self.device = torch.device("cpu")
        self.exact: list[bool] = []
        self.compiled: list[bool] = []

    def create(self, device: str, *, exact: bool = False, compiled: bool = False) -> Broken:
        self.exact.append(exact)
        self.compiled.append(compiled)
        return self

    def run(self, *_: Any) -> None:
        self.runs += 1
        raise BadResult("The result came out in one colour.")


async def test_rejected_result_gets_one_more_attempt(
    start_api: Callable[..., Api], photo: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    api = await asyncio.to_thread(start_api, compile=True)
    assert api.settings.max_attempts > 2
    assert (await asyncio.to_thread(api.submit, {"image": photo})).status_code == 202
    broken = Broken()
    monkeypatch.setattr(process, "Upscaler", broken.create)
    await attempt(api, times=1)
    assert api.value("select state from jobs") == "QUEUED"
    await attempt(api, times=3)
    assert broken.runs == 2
    assert broken.exact == [False, False, True]  # each of the two workers starts with the usual precision
    assert broken.compiled == [True, True, False]  # compiling is not worth it for one job
    assert api.value("select state from jobs") == "FAILED"
    assert api.value("select error from jobs") == process.REJECTED
    assert api.balance == 100


async def test_earlier_crash_keeps_attempt_after_rejection(api: Api, photo: str) -> None:
    assert (await asyncio.to_thread(api.submit, {"image": photo})).status_code == 202
    await asyncio.to_thread(api.do, "update jobs set attempt = 1")
    await attempt(api, upscaler=Broken())
    assert api.value("select state from jobs") == "QUEUED"
    await attempt(api)
    assert api.value("select state from jobs") == "COMPLETED"
    assert api.value("select result -> 'metadata' ->> 'dtype' from jobs") == "float32"


async def test_good_second_attempt_is_charged(api: Api, photo: str) -> None:
    assert (await asyncio.to_thread(api.submit, {"image": photo})).status_code == 202
    await attempt(api, upscaler=Broken())
    await attempt(api)
    assert api.value("select state from jobs") == "COMPLETED"
    assert api.value("select attempt from jobs") == 2
    assert api.balance == 97


async def test_image_that_stops_sandbox_fails_with_refund(api: Api, photo: str) -> None:
    assert (await asyncio.to_thread(api.submit, {"image": photo})).status_code == 202
    await attempt(api, wall_seconds=0)
    assert api.value("select state from jobs") == "FAILED"
    assert api.value("select error from jobs") == ABORTED["timed_out"]
    assert api.value("select error_message from jobs") == {"reason": "decoding_too_slow", "params": {}}
    assert api.value("select attempt from jobs") == 1
    assert api.balance == 100


async def test_damaged_source_keeps_params_of_its_error(api: Api, photo: str) -> None:
    """Damage the stored source after its submission."""
    job = (await asyncio.to_thread(api.submit, {"image": photo})).json()["jobId"]
    (source,) = (api.settings.home / "files" / "sources").iterdir()
    source.write_bytes(png(30, 30)[:60])
    await attempt(api)
    with api.client() as client:
        failed = (await asyncio.to_thread(client.get, f"/v2/jobs/{job}")).json()
    assert (failed["status"], failed["errorReason"], failed["errorParams"]) == (
        "FAILED",
        "image_damaged",
        {"kind": "PNG"},
    )
    assert failed["error"] == messages.IMAGE_DAMAGED(kind="PNG")


async def test_result_of_wrong_size_is_rejected(api: Api, photo: str) -> None:
    """Replace the stored source after its submission."""
    assert (await asyncio.to_thread(api.submit, {"image": photo})).status_code == 202
    (source,) = (api.settings.home / "files" / "sources").iterdir()
    source.write_bytes(png(30, 30))
    await attempt(api, times=2)
    assert api.value("select state from jobs") == "FAILED"
    assert api.value("select error from jobs") == process.REJECTED
    assert api.balance == 100


async def test_unsupported_job_waits_without_counting_attempts(api: Api, photo: str) -> None:
    assert (await asyncio.to_thread(api.submit, {"image": photo})).status_code == 202
    await asyncio.to_thread(api.do, "update jobs set recipe = recipe || '{\"grain\": 0.5}'")
    await attempt(api, times=5)  # more than `max_attempts`
    assert api.value("select state from jobs") == "QUEUED"
    assert api.value("select attempt from jobs") == 0
    assert api.value("select queued_at > now() from jobs")  # other workers are offered it
    await asyncio.to_thread(api.do, "update jobs set recipe = recipe - 'grain'")  # this worker supports it
    await attempt(api)
    assert api.value("select state from jobs") == "COMPLETED"
    assert api.value("select attempt from jobs") == 1


async def test_job_unsupported_too_long_is_refunded(api: Api, photo: str) -> None:
    assert (await asyncio.to_thread(api.submit, {"image": photo})).status_code == 202
    await asyncio.to_thread(api.do, 'update jobs set recipe = recipe || \'{"engine": "next"}\'')
    await attempt(api)
    assert api.value("select state from jobs") == "QUEUED"
    await asyncio.to_thread(api.do, "update jobs set not_understood_since = now() - interval '61 minutes'")
    await attempt(api)
    assert api.value("select state from jobs") == "FAILED"
    assert api.balance == 100


async def test_task_of_first_release_is_accepted(api: Api) -> None:
    with Sandbox(uploads.image_limits(api.settings)) as sandbox:
        async with Database(api.database_url, max_size=5) as database:
            worker = WorkerProcess(
                api.settings,
                database=database,
                storage=Storage.open(api.settings.storage_location),
                queue=Queue(api.database_url),
                sandbox=sandbox,
            )
            await worker._run_task(job_id="00000000-0000-0000-0000-000000000000")


async def test_store_outage_costs_no_attempt(api: Api, photo: str) -> None:
    for _ in range(2):
        assert (await asyncio.to_thread(api.submit, {"image": photo})).status_code == 202
    folder = api.settings.home / "files"
    moved = await asyncio.to_thread(folder.rename, folder.with_name("away"))
    await asyncio.to_thread(folder.mkdir)
    running = asyncio.create_task(attempt(api))
    requeued = "select count(*) from jobs where started_at is not null and state = 'QUEUED' and attempt = 0"
    await asyncio.to_thread(wait_until, lambda: api.value(requeued) == 1)
    await asyncio.sleep(2 * process.RETRY_SECONDS)
    assert api.value("select count(*) from jobs where started_at is null and state = 'QUEUED'") == 1
    assert not running.done()
    await asyncio.to_thread(moved.rename, folder)
    await running
    await attempt(api, times=2)
    assert api.value("select count(*) from jobs where state = 'COMPLETED' and attempt = 1") == 2


async def test_waiting_for_store_stops_at_once(api: Api, photo: str) -> None:
    assert (await asyncio.to_thread(api.submit, {"image": photo})).status_code == 202
    await asyncio.to_thread((api.settings.home / "files").rename, api.settings.home / "away")
    stop = asyncio.Event()
    running = asyncio.create_task(attempt(api, stop=stop))
    await asyncio.to_thread(wait_until, lambda: api.value("select started_at from jobs where state = 'QUEUED'"))
    stop.set()
    async with asyncio.timeout(30):
        await running
