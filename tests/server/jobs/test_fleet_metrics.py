"""What workers count of what goes wrong around them, as Prometheus reads it."""

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
from hiresfix.server.worker.maintenance import Upkeep, every
from tests.conftest import Site
from tests.server.jobs.test_lifecycle import Town, town
from tests.server.webhooks.test_webhooks import announced, deliver, make_due

__all__ = ["town"]


class Grown:
    """By how much a series has grown since this was made."""

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


async def test_lapsed_leases_and_lost_tasks_are_counted(
    town: Town, settings: Settings, database: Database, storage: Storage, queue: Queue
) -> None:
    upkeep = Upkeep(settings=settings, database=database, storage=storage, queue=queue)
    again, last, waiting = await town.submit(), await town.submit(max_attempts=1), await town.submit()
    await town.claim(again, lease=-1)
    await town.claim(last, lease=-1)
    grown = Grown()
    assert await upkeep.hand_on_lapsed() == 2
    assert grown("hiresfix_job_leases_lapsed_total", became="requeued") == 1
    assert grown("hiresfix_job_leases_lapsed_total", became="failed") == 1
    await town.count("with lost as (delete from procrastinate_jobs returning 1) select count(*) from lost")
    assert await upkeep.replace_lost_tasks() == 2  # for the one that was handed on, and for `waiting`
    assert grown("hiresfix_queue_tasks_replaced_total") == 2
    assert (await town.get(waiting)).state == "QUEUED"


async def test_each_outcome_of_a_webhook_is_counted(town: Town, site: Site) -> None:
    grown = Grown()
    site.answers[:] = [500, 200, 410]
    _, sent = await announced(town, site.url + "/hook")
    await deliver(town, sent)
    await make_due(town)
    await deliver(town, sent)
    _, refused = await announced(town, site.url + "/hook")
    await deliver(town, refused)
    for outcome in ("retried", "delivered", "failed"):
        assert grown("hiresfix_webhook_attempts_total", outcome=outcome) == 1
    assert grown("hiresfix_webhook_seconds_count") == 3


async def test_a_step_of_upkeep_that_fails_is_counted_and_tried_again() -> None:
    grown, tries = Grown(), asyncio.Semaphore(0)

    async def purge_results() -> None:
        tries.release()
        raise StorageFailed("The file store could not delete a file. Try again later.")

    loop = asyncio.create_task(every(0.01, purge_results))
    for _ in range(2):
        await asyncio.wait_for(tries.acquire(), 60)
    loop.cancel()
    assert grown("hiresfix_upkeep_failures_total", step="purge_results") >= 1


def test_the_memory_of_a_device_is_told_and_the_hosts_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, found in (("mem_get_info", (60, 100)), ("memory_reserved", 30), ("max_memory_reserved", 35)):
        monkeypatch.setattr(torch.cuda, name, lambda device, found=found: found)
    for device, told in (("cuda", {"total": 100, "free": 60, "used": 30, "peak": 35}), ("cpu", {})):
        monkeypatch.setattr(
            metrics.DEVICE_MEMORY, "read", lambda device=device: devices.usage(torch.device(device)), raising=True
        )
        samples = metrics.families()["hiresfix_device_memory_bytes"].samples
        assert {sample.labels["kind"]: sample.value for sample in samples} == told
