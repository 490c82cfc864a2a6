"""Maintenance: which files it deletes, and which it must keep."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from uuid import uuid4

import pytest

from hiresfix.server.database.pool import Database
from hiresfix.server.database.task_queue import Queue
from hiresfix.server.jobs.model import Completed
from hiresfix.server.settings import Settings
from hiresfix.server.storage import Storage
from hiresfix.server.worker.maintenance import Maintenance
from tests.server.job_steps import JobSteps, success


@pytest.fixture
def maintenance(settings: Settings, database: Database, storage: Storage, queue: Queue) -> Maintenance:
    return Maintenance(settings=settings, database=database, storage=storage, queue=queue)


def files(settings: Settings) -> set[str]:
    folder = settings.home / "files"
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


async def test_purge_sources_keeps_result(
    maintenance: Maintenance, settings: Settings, storage: Storage, steps: JobSteps
) -> None:
    running, done = await steps.submit(), await steps.submit()
    await steps.claim(running)
    claim = await steps.claim(done)
    outcome = success(claim)
    for key in (f"sources/{running}", f"sources/{done}", outcome.result.key, f"results/{done}/loser.png"):
        await storage.put(key, b"x", "image/png")
    await steps.settle(claim, outcome)
    assert await maintenance.purge_sources() == 1
    assert files(settings) == {f"sources/{running}", outcome.result.key}
    assert await maintenance.purge_sources() == 0


async def test_orphaned_result_is_purged_after_an_hour(
    maintenance: Maintenance, settings: Settings, storage: Storage, steps: JobSteps
) -> None:
    job = await steps.submit()
    late = await steps.claim(job, lease=-1)
    await steps.requeue_expired()
    claim = await steps.claim(job)
    outcome = Completed(result=replace(success(claim).result, key=claim.result_key))
    await storage.put(claim.result_key, b"x", "image/png")
    await steps.settle(claim, outcome)
    assert await maintenance.purge_sources() == 1
    await storage.put(late.result_key, b"x", "image/png")  # and dies before it notices that it was too late
    assert await maintenance.purge_orphaned_results() == 0
    async with steps.database.transaction() as tx:
        await tx.execute("update strays set since = since - interval '1 hour'")
    assert await maintenance.purge_orphaned_results() == 1
    assert files(settings) == {claim.result_key}
    assert await maintenance.purge_orphaned_results() == 0


async def test_results_are_purged_after_retention(
    maintenance: Maintenance, settings: Settings, storage: Storage, steps: JobSteps
) -> None:
    claim = await steps.claim(await steps.submit())
    outcome = success(claim)
    await storage.put(outcome.result.key, b"x", "image/png")
    await steps.settle(claim, outcome)
    assert await maintenance.purge_results() == 0
    async with steps.database.transaction() as tx:
        await tx.execute("update jobs set completed_at = now() - interval '91 days'")
    assert await maintenance.purge_results() == 1
    assert files(settings) == set()
    assert (await steps.get(claim.id)).expired


async def test_old_source_without_job_is_purged(
    maintenance: Maintenance, settings: Settings, storage: Storage, steps: JobSteps
) -> None:
    waiting, orphan, fresh = await steps.submit(), uuid4(), uuid4()
    for name in (waiting, orphan, fresh):
        await storage.put(f"sources/{name}", b"x", "image/png")
    for name in (waiting, orphan):
        hour_ago = time.time() - 3700
        os.utime(settings.home / "files" / "sources" / str(name), (hour_ago, hour_ago))
    assert await maintenance.purge_unclaimed_files() == 1
    assert files(settings) == {f"sources/{waiting}", f"sources/{fresh}"}


async def test_full_sweep_of_empty_service(maintenance: Maintenance) -> None:
    counts = [
        await maintenance.requeue_expired_jobs(),
        await maintenance.replace_lost_tasks(),
        await maintenance.purge_results(),
    ]
    assert [*counts, await maintenance.purge_sources(), await maintenance.purge_unclaimed_files()] == [0] * 5
    await maintenance.forget_old_keys()


async def test_undeletable_files_do_not_block_others(
    maintenance: Maintenance, settings: Settings, storage: Storage, steps: JobSteps
) -> None:
    for key in ("uploads/stuck/inside", "uploads/young"):  # a folder cannot be deleted as a file
        await storage.put(key, b"x", "image/png")
    async with steps.database.transaction() as tx:
        for count, key, age in ((1001, "uploads/stuck", "2 days"), (1, "uploads/young", "1 day")):
            await tx.execute(
                "insert into uploads (id, user_id, key, extension, media_type, sha256, bytes, expires_at)"
                " select gen_random_uuid(), (select id from users limit 1), %s, 'png', 'image/png', '', 1,"
                " now() - %s::interval from generate_series(1, %s)",
                (key, age, count),
            )
    assert await maintenance.purge_uploads() == 1
    assert files(settings) == {"uploads/stuck/inside"}


async def test_old_upload_without_row_is_purged(maintenance: Maintenance, settings: Settings, storage: Storage) -> None:
    orphan, fresh = uuid4(), uuid4()
    for name in (orphan, fresh):
        await storage.put(f"uploads/{name}", b"x", "image/png")
    hour_ago = time.time() - 3700
    os.utime(settings.home / "files" / "uploads" / str(orphan), (hour_ago, hour_ago))
    assert await maintenance.purge_unclaimed_files() == 1
    assert files(settings) == {f"uploads/{fresh}"}
