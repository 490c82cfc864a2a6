"""Who is given what: workers of different capacity over one queue, on a real PostgreSQL."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from typer.testing import CliRunner

from hiresfix.cli import app
from hiresfix.engine import limits
from hiresfix.models.store import Installed
from hiresfix.models.weight_files import Kind
from hiresfix.server.accounts import authentication
from hiresfix.server.database.pool import Database, Tx
from hiresfix.server.database.task_queue import Queue
from hiresfix.server.jobs import lifecycle, queue_snapshot, scheduler, worker_registry
from hiresfix.server.jobs.model import Claim
from hiresfix.server.jobs.worker_registry import ANYTHING, Capacity
from tests.server.conftest import Api, commit
from tests.server.jobs.test_lifecycle import Town, town
from tests.server.jobs.test_worker_registry import GPU, silence

__all__ = ["town"]

LARGE_SIDE = 4_000_000
"""By 3 pixels at twice the sides: 48 megapixels."""
SMALL = replace(GPU, id=uuid4(), name="small:1", device="cpu", most_megapixels=1, tags=("cpu",))
LARGE = replace(GPU, id=uuid4(), name="large:1", most_megapixels=64, tags=("cuda",))


async def up(town: Town, *workers: worker_registry.Worker) -> None:
    for worker in workers:
        await commit(town.database, lambda tx, worker=worker: worker_registry.beat(tx, worker, every=10))  # type: ignore[misc] # mypy cannot infer a lambda's default


async def claim(town: Town, worker: worker_registry.Worker) -> Claim | None:
    return await lifecycle.claim(town.database, worker=worker.name, lease_seconds=60, capacity=worker.capacity)


async def hand_on(town: Town, worker: worker_registry.Worker) -> int:
    return await commit(town.database, lambda tx: scheduler.hand_on(tx, town.queue, worker.capacity))


async def tasks_by_queue(town: Town) -> dict[str, int]:
    async def read(tx: Tx) -> dict[str, int]:
        rows = await tx.execute(
            "select queue_name, count(*) from procrastinate_jobs where task_name = %s and status = 'todo' group by 1",
            (scheduler.TASK,),
        )
        return {str(queue): int(count) for queue, count in await rows.fetchall()}

    return await commit(town.database, read)


async def swallow_a_task(town: Town, queue: str = scheduler.QUEUE) -> None:
    """What a worker does that takes one."""
    assert await town.count(
        "with taken as (delete from procrastinate_jobs where id = (select min(id) from procrastinate_jobs"
        " where queue_name = %(q)s and task_name = %(t)s) returning 1) select count(*) from taken",
        q=queue,
        t=scheduler.TASK,
    ) == 1  # fmt: skip


async def test_a_job_too_large_for_a_worker_is_passed_over_for_the_next_that_fits(town: Town) -> None:
    await up(town, SMALL, LARGE)
    large, small = await town.submit(side=LARGE_SIDE), await town.submit()
    held = await claim(town, SMALL)
    assert held is not None
    assert held.id == small
    assert await claim(town, SMALL) is None
    held = await claim(town, LARGE)
    assert held is not None
    assert held.id == large


async def test_a_job_needs_a_worker_that_has_all_its_tags(town: Town) -> None:
    job = await town.submit(needs=("cuda", "site-2"))
    assert await claim(town, LARGE) is None
    held = await claim(town, replace(LARGE, tags=("a100", "cuda", "site-2")))
    assert held is not None
    assert held.id == job


async def test_jobs_that_nobody_can_hold_take_no_place_of_their_team(town: Town) -> None:
    await up(town, SMALL)
    await town.allow(2)
    for _ in range(3):
        await town.submit(side=LARGE_SIDE)
    assert await town.tasks() == 0  # nobody is called who could not come
    small = await town.submit()
    assert await town.tasks() == 1
    held = await claim(town, SMALL)
    assert held is not None
    assert held.id == small
    assert await commit(town.database, scheduler.stranded) == 3
    line = await commit(town.database, queue_snapshot.in_turn)
    assert list(line.megapixels) == [None, None, None]  # the small one runs


async def test_a_task_that_a_small_worker_took_calls_the_large_one(town: Town) -> None:
    await up(town, SMALL, LARGE)
    large = await town.submit(side=LARGE_SIDE)
    assert await tasks_by_queue(town) == {scheduler.QUEUE: 1}
    await swallow_a_task(town)
    assert await claim(town, SMALL) is None
    assert await hand_on(town, SMALL) == 1
    own = scheduler.queues(LARGE.capacity)[1]
    assert await tasks_by_queue(town) == {own: 1}
    assert await hand_on(town, SMALL) == 0  # called already
    await swallow_a_task(town, own)
    held = await claim(town, LARGE)
    assert held is not None
    assert held.id == large
    assert await hand_on(town, LARGE) == 0


async def test_nobody_is_called_for_what_a_place_is_lacking(town: Town) -> None:
    await up(town, SMALL, LARGE)
    await town.allow(1)
    await town.submit(side=LARGE_SIDE)
    await town.submit(side=LARGE_SIDE)
    assert await claim(town, LARGE) is not None
    await swallow_a_task(town)
    assert await hand_on(town, SMALL) == 0


async def test_a_worker_that_comes_is_called_for_what_waited_for_it(town: Town) -> None:
    await up(town, SMALL)
    await town.submit(side=LARGE_SIDE)
    assert await town.replace_lost_tasks() == 0
    await up(town, LARGE)
    assert await town.replace_lost_tasks() == 1
    assert await tasks_by_queue(town) == {scheduler.queues(LARGE.capacity)[1]: 1}
    assert await town.replace_lost_tasks() == 0


async def test_tasks_for_workers_that_are_gone_are_forgotten_and_counted_for_nobody(town: Town) -> None:
    await up(town, LARGE)
    await town.submit()
    await swallow_a_task(town)
    assert await town.replace_lost_tasks() == 1
    await silence(town.database, 120)
    await up(town, replace(SMALL, id=uuid4()))
    assert await town.replace_lost_tasks() == 1
    assert await tasks_by_queue(town) == {scheduler.queues(SMALL.capacity)[1]: 1}


async def test_while_no_worker_is_known_every_job_calls(town: Town) -> None:
    await town.submit(side=LARGE_SIDE, needs=("nobody-has-this",))
    assert await tasks_by_queue(town) == {scheduler.QUEUE: 1}
    assert await commit(town.database, worker_registry.capacities) == [ANYTHING]
    assert await commit(town.database, scheduler.stranded) == 0


async def test_equal_capacities_count_once_and_those_who_drain_not_at_all(town: Town) -> None:
    await up(town, LARGE, replace(LARGE, id=uuid4(), tags=["cuda"]), replace(SMALL, id=uuid4(), draining=True))
    (known,) = await commit(town.database, worker_registry.capacities)
    assert (known.name, known.most_megapixels) == (LARGE.capacity.name, 64)


async def test_real_workers_of_two_sizes_do_all_jobs_at_once(town: Town) -> None:
    """Two loops over procrastinate, one of which can hold everything: nothing waits for the sweep."""
    await up(town, SMALL, LARGE)
    done: dict[UUID, str] = {}
    all_done = asyncio.Event()

    async def work(worker: worker_registry.Worker) -> None:
        queue = Queue(town.database.url)

        async def take() -> None:
            held = await claim(town, worker)
            if held is None:
                await hand_on(town, worker)
                return
            done[held.id] = worker.name
            await town.cancel(held.id)
            if len(done) == 16:
                all_done.set()

        everybodys, own = scheduler.queues(worker.capacity)
        queue.on(scheduler.TASK, queue=scheduler.QUEUE, run=take)
        await queue.work(queue=everybodys, beside=[own], concurrency=1)

    loops = [asyncio.create_task(work(worker)) for worker in (SMALL, LARGE)]
    try:
        large, small = [], []
        for _ in range(8):
            large.append(await town.submit(cost=0, side=LARGE_SIDE))
            small.append(await town.submit(cost=0))
        async with asyncio.timeout(60):
            await all_done.wait()
    finally:
        for loop in loops:
            loop.cancel()
        await asyncio.gather(*loops, return_exceptions=True)
    assert {done[job] for job in large} == {LARGE.name}
    assert {done[job] for job in small} >= {SMALL.name}


def test_a_models_tags_are_on_its_jobs(start_api: object, photo: str) -> None:
    assert callable(start_api)
    api: Api = start_api(needs={"clarity-upscale": ("cuda",)})
    assert api.submit({"image": photo}).status_code == 202
    assert api.value("select needs from jobs") == ["cuda"]


def installed(folder: Path, *, compact: bool = False) -> list[Installed]:
    """Stable Diffusion 1.5 and its tile ControlNet, by their records; or a compact checkpoint."""
    if compact:
        (folder / "model_index.json").write_text('{"_class_name": "HiresfixCompact"}')
    gigabytes = {Kind.CHECKPOINT: 0.1} if compact else {Kind.CHECKPOINT: 2.1, Kind.CONTROLNET: 0.7, Kind.LORA: 0.2}
    return [
        Installed(
            name=kind, kind=kind, path=folder, sha256="", bytes=int(size * 1e9), licence="", origin="", commercial=None
        )
        for kind, size in gigabytes.items()
    ]


@pytest.mark.parametrize(("gigabytes", "most"), [(0.5, 1), (2, 32), (8, 192)])
def test_a_workers_memory_says_how_large_a_result_it_holds(gigabytes: float, most: float) -> None:
    assert limits.most_megapixels(gigabytes * 1e9, limits.demands([], on_host=True)) == most


@pytest.mark.parametrize(("gigabytes", "on_host", "most"), [(4, True, 1), (8, True, 32), (9, True, 64), (6, False, 64)])
def test_a_worker_that_diffuses_holds_the_weights_and_on_a_cpu_what_the_autoencoder_takes(
    gigabytes: float, on_host: bool, most: float, tmp_path: Path
) -> None:
    demands = limits.demands(installed(tmp_path), on_host=on_host)
    assert limits.most_megapixels(gigabytes * 1e9, demands) == most


def test_a_compact_checkpoint_takes_for_each_pixel_what_others_take_once(tmp_path: Path) -> None:
    demands = limits.demands(installed(tmp_path, compact=True), on_host=True)
    assert [limits.most_megapixels(gigabytes * 1e9, demands) for gigabytes in (2, 8, 16)] == [4, 32, 64]


def test_names_of_capacities_are_the_same_everywhere_and_of_different_ones_differ() -> None:
    one = Capacity(most_megapixels=64.0, tags=("a", "b"))
    assert one.name == Capacity(most_megapixels=64, tags=["b", "a"]).name
    assert len({one.name, replace(one, most_megapixels=48).name, replace(one, tags=("a",)).name, ANYTHING.name}) == 4


def test_an_operator_sees_who_is_up_and_what_nobody_can_hold(
    database_url: str, monkeypatch: pytest.MonkeyPatch, home: Path
) -> None:
    monkeypatch.setenv("HIRESFIX_DATABASE_URL", database_url)
    monkeypatch.setenv("HIRESFIX_HOME", str(home))
    command = CliRunner()
    assert "none is up" in command.invoke(app, ["doctor"]).stdout

    async def prepare() -> None:
        async with Database(database_url, max_size=2) as database:
            key = await commit(database, lambda tx: authentication.bootstrap(tx, free_credits=100, key_name="k"))
            caller = await commit(database, lambda tx: authentication.authenticate(tx, str(key)))
            town = Town(database, Queue(database_url), caller)
            await up(town, replace(SMALL, draining=True), replace(LARGE, most_megapixels=32))
            await town.submit(side=LARGE_SIDE)

    asyncio.run(prepare())
    shown = command.invoke(app, ["workers"])
    assert [line.split()[:3] for line in shown.stdout.splitlines()[1:]] == [
        ["large:1", "up", "cuda:0"],
        ["small:1", "draining", "cpu"],
    ]
    assert "Jobs that none of them can hold: 1." in shown.stderr
    checked = command.invoke(app, ["doctor"])
    assert checked.exit_code == 1
    assert "1 jobs wait that none of them can hold" in checked.stdout
