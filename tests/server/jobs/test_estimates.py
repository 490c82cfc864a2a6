"""Queue position, remaining seconds and pace: the arithmetic alone, and measured on a real PostgreSQL."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from uuid import UUID, uuid4

import pytest

from hiresfix.server.database.pool import Tx
from hiresfix.server.jobs import estimates, queue_snapshot
from hiresfix.server.jobs.estimates import Estimate, Estimator, Pace, QueueEstimates
from hiresfix.server.jobs.queue_snapshot import QueueSnapshot, RunningJob
from hiresfix.server.jobs.scheduler import QueuedJob
from tests.server.conftest import Api, commit
from tests.server.job_steps import JobSteps, success

CLARITY = "clarity-upscale"
PACES = {CLARITY: Pace(model=CLARITY, seconds=12, seconds_per_megapixel=10)}


def running(megapixels: float, *, progress: int = 0) -> RunningJob:
    return RunningJob(id=uuid4(), model=CLARITY, megapixels=megapixels, progress=progress)


def queued(megapixels: float | None, *, model: str = CLARITY) -> QueuedJob:
    return QueuedJob(uuid4(), model, megapixels)


def estimates_of(waiting: Sequence[QueuedJob], running: Sequence[RunningJob] = ()) -> QueueEstimates:
    return QueueEstimates(QueueSnapshot(taken_at=datetime.now(UTC), waiting=waiting, running=running), PACES)


def test_waiting_time_is_queue_ahead_plus_own() -> None:
    first, second = queued(1), queued(2)
    known = estimates_of([first, second])
    assert known.of_waiting(first.id) == Estimate(position=1, seconds=10)
    assert known.of_waiting(second.id) == Estimate(position=2, seconds=30)
    assert known.of_running(first.id) == known.of_waiting(uuid4()) == estimates.UNKNOWN


def test_running_jobs_share_the_queue() -> None:
    nearly, half, waits = running(1, progress=90), running(3, progress=50), queued(1)
    known = estimates_of([waits], [nearly, half])
    assert (known.of_running(nearly.id), known.of_running(half.id)) == (Estimate(seconds=1), Estimate(seconds=15))
    assert known.of_waiting(waits.id) == Estimate(position=1, seconds=8 + 10)


def test_unknown_pace_hides_seconds_but_not_position() -> None:
    jobs = queued(1), queued(1, model="faithful-upscale"), queued(1)
    known = estimates_of(jobs)
    assert [known.of_waiting(job.id) for job in jobs] == [
        Estimate(position=1, seconds=10),
        Estimate(position=2, seconds=None),
        Estimate(position=3, seconds=None),
    ]


def test_a_job_no_worker_can_hold_delays_nobody() -> None:
    large, behind = queued(None), queued(1)
    known = estimates_of([large, behind])
    assert known.of_waiting(large.id) == Estimate(position=1, seconds=None)
    assert known.of_waiting(behind.id) == Estimate(position=2, seconds=10)


async def finish(steps: JobSteps, job: UUID, *, seconds: float) -> None:
    """Complete the job `seconds` after its start, with 8x6 pixels."""
    claim = await steps.claim(job)
    await steps.settle(claim, success(claim))
    await steps.count(
        "with u as (update jobs set queued_at = completed_at - make_interval(secs => %(s)s + 1),"
        " started_at = completed_at - make_interval(secs => %(s)s) where id = %(job)s returning 1)"
        " select count(*) from u",
        s=seconds,
        job=job,
    )


async def test_pace_is_measured_on_finished_jobs(steps: JobSteps) -> None:
    assert await commit(steps.database, estimates.paces) == {}
    for seconds in (3.0, 5.0):
        await finish(steps, await steps.submit(), seconds=seconds)
    paces = await commit(steps.database, estimates.paces)
    assert set(paces) == {CLARITY}
    assert paces[CLARITY].seconds == pytest.approx(4)
    assert paces[CLARITY].seconds_per_megapixel == pytest.approx(4 / 48e-6)


async def test_pace_ignores_retried_and_old_jobs(steps: JobSteps) -> None:
    again, old = await steps.submit(), await steps.submit()
    for job in (again, old):
        await finish(steps, job, seconds=3)
    await steps.count("with u as (update jobs set attempt = 2 where id = %(j)s) select 1", j=again)
    await steps.count(
        "with u as (update jobs set started_at = started_at - interval '8 days', completed_at ="
        " completed_at - interval '8 days', queued_at = queued_at - interval '8 days' where id = %(j)s) select 1",
        j=old,
    )
    assert await commit(steps.database, estimates.paces) == {}


async def test_an_estimate_follows_the_job_through_the_queue(steps: JobSteps, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimates, "SNAPSHOT_REST", 0.0)
    estimator = Estimator(steps.database)
    first, second = await steps.submit(), await steps.submit()
    assert await estimator.estimate(await steps.get(second)) == Estimate(position=2, seconds=None)
    assert await estimator.estimate(await steps.get(first)) == Estimate(position=1, seconds=None)
    claim = await steps.claim(first)
    assert await estimator.estimate(await steps.get(first)) == Estimate(position=None, seconds=None)
    assert await estimator.estimate(await steps.get(second)) == Estimate(position=1, seconds=None)
    await steps.settle(claim, success(claim))
    assert await estimator.estimate(await steps.get(first)) == estimates.UNKNOWN


async def test_snapshots_are_cached_and_limited_in_rate(steps: JobSteps, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshots = 0
    take = queue_snapshot.take

    async def counted(tx: Tx) -> QueueSnapshot:
        nonlocal snapshots
        snapshots += 1
        return await take(tx)

    monkeypatch.setattr(queue_snapshot, "take", counted)
    monkeypatch.setattr(estimates, "QUEUE_SECONDS", 3600)
    monkeypatch.setattr(estimates, "SNAPSHOT_REST", 0.0)
    estimator = Estimator(steps.database)
    jobs = [await steps.get(await steps.submit()) for _ in range(3)]
    for _ in range(20):
        assert [(await estimator.estimate(job)).position for job in jobs] == [1, 2, 3]
    assert snapshots == 1
    await estimator.estimate(await steps.get(await steps.submit()))
    assert snapshots == 2
    monkeypatch.setattr(estimates, "SNAPSHOT_REST", 1e9)
    # Takes one more snapshot, and none for a long time after it.
    assert (await estimator.estimate(await steps.get(await steps.submit()))).position == 5
    assert await estimator.estimate(await steps.get(await steps.submit())) == estimates.UNKNOWN
    assert snapshots == 3


async def test_a_measured_pace_gives_seconds(steps: JobSteps) -> None:
    await finish(steps, await steps.submit(), seconds=4)
    job = await steps.submit()  # 4x3 at 2x: the size of the job that took four seconds
    assert await Estimator(steps.database).estimate(await steps.get(job)) == Estimate(position=1, seconds=4)
    claim = await steps.claim(job)
    await steps.renew(claim, progress=75)
    assert await Estimator(steps.database).estimate(await steps.get(job)) == Estimate(seconds=1)


def test_the_api_shows_position(api: Api, photo: str) -> None:
    job = api.submit({"image": photo}).json()["jobId"]
    with api.client() as client:
        shown = client.get(f"/v2/jobs/{job}").json()
    assert (shown["queuePosition"], shown["etaSeconds"]) == (1, None)
