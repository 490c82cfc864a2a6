"""Capacities: workers of different sizes on one queue, on a real PostgreSQL."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from typer.testing import CliRunner

from hiresfix.cli import app
from hiresfix.engine import limits
from hiresfix.models.store import InstalledModel
from hiresfix.models.weight_files import WeightKind
from hiresfix.server.accounts import authentication
from hiresfix.server.database.pool import Database, Tx
from hiresfix.server.database.task_queue import Queue
from hiresfix.server.jobs import lifecycle, queue_snapshot, scheduler, worker_registry
from hiresfix.server.jobs.model import Claim
from hiresfix.server.jobs.worker_registry import UNLIMITED, Capacity
from tests.server.conftest import Api, commit
from tests.server.job_steps import JobSteps
from tests.server.jobs.test_worker_registry import GPU, silence

LARGE_SIDE = 4_000_000
"""Times 3 pixels, upscaled to twice the sides: 48 megapixels."""
SMALL = replace(GPU, id=uuid4(), name="small:1", device="cpu", most_megapixels=1, tags=("cpu",))
LARGE = replace(GPU, id=uuid4(), name="large:1", most_megapixels=64, tags=("cuda",))


async def register(steps: JobSteps, *workers: worker_registry.WorkerInfo) -> None:
    for worker in workers:
        await commit(steps.database, lambda tx, worker=worker: worker_registry.heartbeat(tx, worker, every=10))  # type: ignore[misc] # mypy cannot infer a lambda's default


async def claim_for(steps: JobSteps, worker: worker_registry.WorkerInfo) -> Claim | None:
    return await lifecycle.claim(steps.database, worker=worker.name, lease_seconds=60, capacity=worker.capacity)


async def wake_others(steps: JobSteps, worker: worker_registry.WorkerInfo) -> int:
    return await commit(steps.database, lambda tx: scheduler.wake_capable_workers(tx, steps.queue, worker.capacity))


async def tasks_by_queue(steps: JobSteps) -> dict[str, int]:
    async def read(tx: Tx) -> dict[str, int]:
        rows = await tx.execute(
            "select queue_name, count(*) from procrastinate_jobs where task_name = %s and status = 'todo' group by 1",
            (scheduler.TASK,),
        )
        return {str(queue): int(count) for queue, count in await rows.fetchall()}

    return await commit(steps.database, read)


async def take_task(steps: JobSteps, queue: str = scheduler.QUEUE) -> None:
    """Take a task as a worker does."""
    assert await steps.count(
        "with taken as (delete from procrastinate_jobs where id = (select min(id) from procrastinate_jobs"
        " where queue_name = %(q)s and task_name = %(t)s) returning 1) select count(*) from taken",
        q=queue,
        t=scheduler.TASK,
    ) == 1  # fmt: skip


async def test_too_large_job_is_skipped(steps: JobSteps) -> None:
    await register(steps, SMALL, LARGE)
    large, small = await steps.submit(side=LARGE_SIDE), await steps.submit()
    claim = await claim_for(steps, SMALL)
    assert claim is not None
    assert claim.id == small
    assert await claim_for(steps, SMALL) is None
    claim = await claim_for(steps, LARGE)
    assert claim is not None
    assert claim.id == large


async def test_job_needs_worker_with_all_tags(steps: JobSteps) -> None:
    job = await steps.submit(needs=("cuda", "site-2"))
    assert await claim_for(steps, LARGE) is None
    claim = await claim_for(steps, replace(LARGE, tags=("a100", "cuda", "site-2")))
    assert claim is not None
    assert claim.id == job


async def test_unholdable_jobs_take_no_slot(steps: JobSteps) -> None:
    await register(steps, SMALL)
    await steps.allow(2)
    for _ in range(3):
        await steps.submit(side=LARGE_SIDE)
    assert await steps.tasks() == 0  # no worker could run them
    small = await steps.submit()
    assert await steps.tasks() == 1
    claim = await claim_for(steps, SMALL)
    assert claim is not None
    assert claim.id == small
    assert await commit(steps.database, scheduler.count_stranded) == 3
    snapshot = await commit(steps.database, queue_snapshot.take)
    assert [job.megapixels for job in snapshot.waiting] == [None, None, None]  # the small job runs


async def test_small_worker_wakes_large_one(steps: JobSteps) -> None:
    await register(steps, SMALL, LARGE)
    large = await steps.submit(side=LARGE_SIDE)
    assert await tasks_by_queue(steps) == {scheduler.QUEUE: 1}
    await take_task(steps)
    assert await claim_for(steps, SMALL) is None
    assert await wake_others(steps, SMALL) == 1
    own = scheduler.queue_names(LARGE.capacity)[1]
    assert await tasks_by_queue(steps) == {own: 1}
    assert await wake_others(steps, SMALL) == 0  # woken already
    await take_task(steps, own)
    claim = await claim_for(steps, LARGE)
    assert claim is not None
    assert claim.id == large
    assert await wake_others(steps, LARGE) == 0


async def test_no_wake_up_without_free_slot(steps: JobSteps) -> None:
    await register(steps, SMALL, LARGE)
    await steps.allow(1)
    await steps.submit(side=LARGE_SIDE)
    await steps.submit(side=LARGE_SIDE)
    assert await claim_for(steps, LARGE) is not None
    await take_task(steps)
    assert await wake_others(steps, SMALL) == 0


async def test_new_worker_is_woken_for_waiting_job(steps: JobSteps) -> None:
    await register(steps, SMALL)
    await steps.submit(side=LARGE_SIDE)
    assert await steps.replace_lost_tasks() == 0
    await register(steps, LARGE)
    assert await steps.replace_lost_tasks() == 1
    assert await tasks_by_queue(steps) == {scheduler.queue_names(LARGE.capacity)[1]: 1}
    assert await steps.replace_lost_tasks() == 0


async def test_tasks_of_gone_capacities_are_deleted(steps: JobSteps) -> None:
    await register(steps, LARGE)
    await steps.submit()
    await take_task(steps)
    assert await steps.replace_lost_tasks() == 1
    await silence(steps.database, 120)
    await register(steps, replace(SMALL, id=uuid4()))
    assert await steps.replace_lost_tasks() == 1
    assert await tasks_by_queue(steps) == {scheduler.queue_names(SMALL.capacity)[1]: 1}


async def test_every_job_gets_task_without_workers(steps: JobSteps) -> None:
    await steps.submit(side=LARGE_SIDE, needs=("nobody-has-this",))
    assert await tasks_by_queue(steps) == {scheduler.QUEUE: 1}
    assert await commit(steps.database, worker_registry.capacities) == [UNLIMITED]
    assert await commit(steps.database, scheduler.count_stranded) == 0


async def test_capacities_are_distinct_and_skip_draining_workers(steps: JobSteps) -> None:
    await register(steps, LARGE, replace(LARGE, id=uuid4(), tags=["cuda"]), replace(SMALL, id=uuid4(), draining=True))
    (known,) = await commit(steps.database, worker_registry.capacities)
    assert (known.name, known.most_megapixels) == (LARGE.capacity.name, 64)


async def test_two_capacities_finish_all_jobs(steps: JobSteps) -> None:
    """Two procrastinate loops, one of which can hold every job: no job waits for `replace_lost_tasks`."""
    await register(steps, SMALL, LARGE)
    done: dict[UUID, str] = {}
    all_done = asyncio.Event()

    async def work(worker: worker_registry.WorkerInfo) -> None:
        queue = Queue(steps.database.url)

        async def take() -> None:
            claim = await claim_for(steps, worker)
            if claim is None:
                await wake_others(steps, worker)
                return
            done[claim.id] = worker.name
            await steps.cancel(claim.id)
            if len(done) == 16:
                all_done.set()

        common, own = scheduler.queue_names(worker.capacity)
        queue.register(scheduler.TASK, queue=scheduler.QUEUE, run=take)
        await queue.work(queue=common, extra_queues=[own], concurrency=1)

    loops = [asyncio.create_task(work(worker)) for worker in (SMALL, LARGE)]
    try:
        large, small = [], []
        for _ in range(8):
            large.append(await steps.submit(cost=0, side=LARGE_SIDE))
            small.append(await steps.submit(cost=0))
        async with asyncio.timeout(60):
            await all_done.wait()
    finally:
        for loop in loops:
            loop.cancel()
        await asyncio.gather(*loops, return_exceptions=True)
    assert {done[job] for job in large} == {LARGE.name}
    assert {done[job] for job in small} >= {SMALL.name}


def test_jobs_carry_tags_of_their_model(start_api: object, photo: str) -> None:
    assert callable(start_api)
    api: Api = start_api(required_tags={"clarity-upscale": ("cuda",)})
    assert api.submit({"image": photo}).status_code == 202
    assert api.value("select needs from jobs") == ["cuda"]


def installed(folder: Path, *, compact: bool = False) -> list[InstalledModel]:
    """Stable Diffusion 1.5 and its tile ControlNet, by their records; or a compact checkpoint."""
    if compact:
        (folder / "model_index.json").write_text('{"_class_name": "HiresfixCompact"}')
    gigabytes = (
        {WeightKind.CHECKPOINT: 0.1}
        if compact
        else {WeightKind.CHECKPOINT: 2.1, WeightKind.CONTROLNET: 0.7, WeightKind.LORA: 0.2}
    )
    return [
        InstalledModel(
            name=kind, kind=kind, path=folder, sha256="", bytes=int(size * 1e9), licence="", origin="", commercial=None
        )
        for kind, size in gigabytes.items()
    ]


@pytest.mark.parametrize(("gigabytes", "megapixels"), [(0.5, 1), (2, 32), (8, 192)])
def test_memory_determines_largest_result(gigabytes: float, megapixels: float) -> None:
    assert limits.max_megapixels(gigabytes * 1e9, limits.memory_demands([], on_host=True)) == megapixels


@pytest.mark.parametrize(
    ("gigabytes", "on_host", "megapixels"), [(4, True, 1), (8, True, 32), (9, True, 64), (6, False, 64)]
)
def test_diffusion_needs_memory_for_weights_and_vae(
    gigabytes: float, on_host: bool, megapixels: float, tmp_path: Path
) -> None:
    demands = limits.memory_demands(installed(tmp_path), on_host=on_host)
    assert limits.max_megapixels(gigabytes * 1e9, demands) == megapixels


def test_compact_checkpoint_needs_memory_per_pixel(tmp_path: Path) -> None:
    demands = limits.memory_demands(installed(tmp_path, compact=True), on_host=True)
    assert [limits.max_megapixels(gigabytes * 1e9, demands) for gigabytes in (2, 8, 16)] == [4, 32, 64]


def test_capacity_names_are_stable_and_distinct() -> None:
    one = Capacity(most_megapixels=64.0, tags=("a", "b"))
    assert one.name == Capacity(most_megapixels=64, tags=["b", "a"]).name
    assert len({one.name, replace(one, most_megapixels=48).name, replace(one, tags=("a",)).name, UNLIMITED.name}) == 4


def test_operator_sees_workers_and_stranded_jobs(
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
            steps = JobSteps(database, Queue(database_url), caller)
            await register(steps, replace(SMALL, draining=True), replace(LARGE, most_megapixels=32))
            await steps.submit(side=LARGE_SIDE)

    asyncio.run(prepare())
    shown = command.invoke(app, ["workers"])
    assert [line.split()[:3] for line in shown.stdout.splitlines()[1:]] == [
        ["large:1", "up", "cuda:0"],
        ["small:1", "draining", "cpu"],
    ]
    assert "Waiting jobs that no running worker can take: 1." in shown.stderr
    checked = command.invoke(app, ["doctor"])
    assert checked.exit_code == 1
    assert "1 jobs wait that no running worker can take" in checked.stdout
