"""Worker registry: workers that live, drain, die and come back."""

from __future__ import annotations

from dataclasses import replace
from uuid import uuid4

import pytest

from hiresfix.server.database import query
from hiresfix.server.database.pool import Database
from hiresfix.server.jobs import worker_registry
from hiresfix.server.jobs.worker_registry import WorkerInfo

GPU = WorkerInfo(
    id=uuid4(),
    name="a:1",
    host="a",
    device="cuda:0",
    memory_bytes=24 * 2**30,
    most_megapixels=64,
    tags=("cuda",),
    version="0.1.0",
)


async def silence(database: Database, seconds: float) -> None:
    """Move the last heartbeat of every worker this far into the past."""
    async with database.transaction() as tx:
        await query.execute(
            tx,
            "update workers set seen_at = seen_at - make_interval(secs => %(s)s),"
            " alive_until = alive_until - make_interval(secs => %(s)s)",
            s=seconds,
        )


async def test_worker_is_alive_until_heartbeats_are_missed(database: Database) -> None:
    async with database.transaction() as tx:
        assert not await worker_registry.any_alive(tx)
        await worker_registry.heartbeat(tx, GPU, every=5)
        (listed,) = await worker_registry.list_workers(tx)
        assert await worker_registry.any_alive(tx)
        assert listed.alive
        assert (listed.name, listed.device, listed.most_megapixels, tuple(listed.tags)) == (
            "a:1",
            "cuda:0",
            64,
            ("cuda",),
        )
    await silence(database, 19)
    async with database.transaction() as tx:
        assert await worker_registry.any_alive(tx)
    await silence(database, 2)
    async with database.transaction() as tx:
        assert not await worker_registry.any_alive(tx)
        (listed,) = await worker_registry.list_workers(tx)
        assert not listed.alive


async def test_heartbeat_restores_worker_and_keeps_start_time(database: Database) -> None:
    async with database.transaction() as tx:
        await worker_registry.heartbeat(tx, GPU, every=1)
        await query.execute(tx, "update workers set started_at = now() - interval '2 days'")
    await silence(database, 3700)
    async with database.transaction() as tx:
        assert await worker_registry.forget_dead(tx) == 1
        await worker_registry.heartbeat(tx, GPU, every=1)
        assert await worker_registry.any_alive(tx)
    async with database.transaction() as tx:
        await worker_registry.heartbeat(tx, GPU, every=1)
        assert len(await worker_registry.list_workers(tx)) == 1


async def test_dead_workers_are_listed_for_an_hour(database: Database) -> None:
    async with database.transaction() as tx:
        await worker_registry.heartbeat(tx, GPU, every=1)
        await worker_registry.heartbeat(tx, replace(GPU, id=uuid4(), name="b:2"), every=1)
    await silence(database, 3000)
    async with database.transaction() as tx:
        assert await worker_registry.forget_dead(tx) == 0
        assert [worker.name for worker in await worker_registry.list_workers(tx)] == ["a:1", "b:2"]


@pytest.mark.parametrize("ended", ["drains", "leaves"])
async def test_draining_or_unregistered_worker_is_not_alive(database: Database, ended: str) -> None:
    async with database.transaction() as tx:
        await worker_registry.heartbeat(tx, GPU, every=5)
        if ended == "drains":
            await worker_registry.heartbeat(tx, replace(GPU, draining=True), every=5)
        else:
            await worker_registry.unregister(tx, GPU.id)
        assert not await worker_registry.any_alive(tx)
