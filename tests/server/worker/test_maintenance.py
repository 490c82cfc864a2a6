"""What upkeep removes, and what it must leave alone."""

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
from hiresfix.server.worker.maintenance import Upkeep
from tests.server.jobs.test_lifecycle import Town, result, town

__all__ = ["town"]


@pytest.fixture
def upkeep(settings: Settings, database: Database, storage: Storage, queue: Queue) -> Upkeep:
    return Upkeep(settings=settings, database=database, storage=storage, queue=queue)


def files(settings: Settings) -> set[str]:
    folder = settings.home / "files"
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


async def test_a_finished_jobs_input_and_losing_pictures_go_and_its_result_stays(
    upkeep: Upkeep, settings: Settings, storage: Storage, town: Town
) -> None:
    running, done = await town.submit(), await town.submit()
    await town.claim(running)
    held = await town.claim(done)
    won = result(held)
    for key in (f"sources/{running}", f"sources/{done}", won.result.key, f"results/{done}/loser.png"):
        await storage.put(key, b"x", "image/png")
    await town.settle(held, won)
    assert await upkeep.purge_sources() == 1
    assert files(settings) == {f"sources/{running}", won.result.key}
    assert await upkeep.purge_sources() == 0


async def test_what_a_dead_worker_stored_after_its_job_was_over_goes_an_hour_later(
    upkeep: Upkeep, settings: Settings, storage: Storage, town: Town
) -> None:
    job = await town.submit()
    dead = await town.claim(job, lease=-1)
    await town.sweep()
    held = await town.claim(job)
    won = Completed(result=replace(result(held).result, key=held.result_key))
    await storage.put(held.result_key, b"x", "image/png")
    await town.settle(held, won)
    assert await upkeep.purge_sources() == 1
    await storage.put(dead.result_key, b"x", "image/png")  # and it dies before it hears that it was too late
    assert await upkeep.purge_strays() == 0
    async with town.database.transaction() as tx:
        await tx.execute("update strays set since = since - interval '1 hour'")
    assert await upkeep.purge_strays() == 1
    assert files(settings) == {held.result_key}
    assert await upkeep.purge_strays() == 0


async def test_results_go_when_their_time_is_up(
    upkeep: Upkeep, settings: Settings, storage: Storage, town: Town
) -> None:
    held = await town.claim(await town.submit())
    won = result(held)
    await storage.put(won.result.key, b"x", "image/png")
    await town.settle(held, won)
    assert await upkeep.purge_results() == 0
    async with town.database.transaction() as tx:
        await tx.execute("update jobs set completed_at = now() - interval '91 days'")
    assert await upkeep.purge_results() == 1
    assert files(settings) == set()
    assert (await town.get(held.id)).expired


async def test_an_old_source_without_a_job_goes(
    upkeep: Upkeep, settings: Settings, storage: Storage, town: Town
) -> None:
    waiting, orphan, fresh = await town.submit(), uuid4(), uuid4()
    for name in (waiting, orphan, fresh):
        await storage.put(f"sources/{name}", b"x", "image/png")
    for name in (waiting, orphan):
        hour_ago = time.time() - 3700
        os.utime(settings.home / "files" / "sources" / str(name), (hour_ago, hour_ago))
    assert await upkeep.purge_orphans() == 1
    assert files(settings) == {f"sources/{waiting}", f"sources/{fresh}"}


async def test_a_full_round_runs_on_an_empty_service(upkeep: Upkeep) -> None:
    found = [await upkeep.hand_on_lapsed(), await upkeep.replace_lost_tasks(), await upkeep.purge_results()]
    assert [*found, await upkeep.purge_sources(), await upkeep.purge_orphans()] == [0] * 5
    await upkeep.forget_old_keys()


async def test_files_that_cannot_be_deleted_keep_no_younger_one_from_going(
    upkeep: Upkeep, settings: Settings, storage: Storage, town: Town
) -> None:
    for key in ("uploads/stuck/inside", "uploads/young"):  # a folder is no file that could be deleted
        await storage.put(key, b"x", "image/png")
    async with town.database.transaction() as tx:
        for count, key, age in ((1001, "uploads/stuck", "2 days"), (1, "uploads/young", "1 day")):
            await tx.execute(
                "insert into uploads (id, user_id, key, extension, media_type, sha256, bytes, expires_at)"
                " select gen_random_uuid(), (select id from users limit 1), %s, 'png', 'image/png', '', 1,"
                " now() - %s::interval from generate_series(1, %s)",
                (key, age, count),
            )
    assert await upkeep.purge_uploads() == 1
    assert files(settings) == {"uploads/stuck/inside"}


async def test_an_old_upload_without_a_row_goes(upkeep: Upkeep, settings: Settings, storage: Storage) -> None:
    orphan, fresh = uuid4(), uuid4()
    for name in (orphan, fresh):
        await storage.put(f"uploads/{name}", b"x", "image/png")
    hour_ago = time.time() - 3700
    os.utime(settings.home / "files" / "uploads" / str(orphan), (hour_ago, hour_ago))
    assert await upkeep.purge_orphans() == 1
    assert files(settings) == {f"uploads/{fresh}"}
