"""Metrics of a worker: expired leases, lost tasks, webhooks, maintenance, device memory."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
import torch

from hiresfix.engine import devices
from hiresfix.errors import StorageFailed
from hiresfix.server.database.pool import Database
from hiresfix.server.database.task_queue import Queue
from hiresfix.server.platform import metrics
from hiresfix.server.settings import Settings
from hiresfix.server.storage import Storage
from hiresfix.server.worker.maintenance import Maintenance, repeat
from tests.conftest import Site
from tests.server.job_steps import JobSteps
from tests.server.webhooks.test_webhooks import announce_completed, deliver, make_due


class Increase:
    """Call it for the increase of a series since it was created."""

    def __init__(self) -> None:
        self._before = dict(self._now())

    def __call__(self, name: str, **labels: str) -> float:
        series = (name, frozenset(labels.items()))
        return dict(self._now()).get(series, 0.0) - self._before.get(series, 0.0)

    @staticmethod
    def _now() -> Iterator[tuple[tuple[str, frozenset[tuple[str, str]]], float]]:
        for family in metrics.REGISTRY.collect():
            for sample in family.samples:
                yield (sample.name, frozenset(sample.labels.items())), sample.value


async def test_expired_leases_and_lost_tasks_are_counted(
    steps: JobSteps, settings: Settings, database: Database, storage: Storage, queue: Queue
) -> None:
    maintenance = Maintenance(settings=settings, database=database, storage=storage, queue=queue)
    again, last, waiting = await steps.submit(), await steps.submit(max_attempts=1), await steps.submit()
    await steps.claim(again, lease=-1)
    await steps.claim(last, lease=-1)
    increase = Increase()
    assert await maintenance.requeue_expired_jobs() == 2
    assert increase("hiresfix_job_leases_expired_total", became="requeued") == 1
    assert increase("hiresfix_job_leases_expired_total", became="failed") == 1
    await steps.count("with lost as (delete from procrastinate_jobs returning 1) select count(*) from lost")
    assert await maintenance.replace_lost_tasks() == 2  # for the requeued job and for `waiting`
    assert increase("hiresfix_queue_tasks_replaced_total") == 2
    assert (await steps.get(waiting)).state == "QUEUED"


async def test_webhook_outcomes_are_counted(steps: JobSteps, site: Site) -> None:
    increase = Increase()
    site.answers[:] = [500, 200, 410]
    _, sent = await announce_completed(steps, site.url + "/hook")
    await deliver(steps, sent)
    await make_due(steps)
    await deliver(steps, sent)
    _, rejected = await announce_completed(steps, site.url + "/hook")
    await deliver(steps, rejected)
    for outcome in ("retried", "delivered", "failed"):
        assert increase("hiresfix_webhook_attempts_total", outcome=outcome) == 1
    assert increase("hiresfix_webhook_seconds_count") == 3


async def test_failed_maintenance_is_counted_and_repeated() -> None:
    increase, tries = Increase(), asyncio.Semaphore(0)

    async def purge_results() -> None:
        tries.release()
        raise StorageFailed("The file store could not delete a file. Try again later.")

    loop = asyncio.create_task(repeat(0.01, purge_results))
    for _ in range(2):
        await asyncio.wait_for(tries.acquire(), 60)
    loop.cancel()
    assert increase("hiresfix_maintenance_failures_total", step="purge_results") >= 1


def test_memory_is_reported_for_gpus_only(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("mem_get_info", (60, 100)), ("memory_reserved", 30), ("max_memory_reserved", 35)):
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    for device, expected in (("cuda", {"total": 100, "free": 60, "used": 30, "peak": 35}), ("cpu", {})):
        monkeypatch.setattr(
            metrics.DEVICE_MEMORY,
            "read",
            lambda device=device: devices.memory_usage(torch.device(device)),
            raising=True,
        )
        samples = metrics.families()["hiresfix_device_memory_bytes"].samples
        assert {sample.labels["kind"]: sample.value for sample in samples} == expected
