"""Position, expected seconds and pace: arithmetic without, and measurement with a real PostgreSQL."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from uuid import UUID, uuid4

import pytest

from hiresfix.server.database.pool import Tx
from hiresfix.server.jobs import estimates
from hiresfix.server.jobs.estimates import Ahead, Forecast, Forecasts, Outlook, Pace
from hiresfix.server.jobs.queue_snapshot import Line, Waiting
from tests.server.conftest import Api, commit
from tests.server.jobs.test_lifecycle import Town, result, town

__all__ = ["town"]

CLARITY = "clarity-upscale"
PACES = {CLARITY: Pace(model=CLARITY, seconds=12, seconds_per_megapixel=10)}


def ahead(megapixels: float, *, progress: int = 0, model: str = CLARITY) -> Ahead:
    return Ahead(id=uuid4(), model=model, megapixels=megapixels, progress=progress)


def line(*jobs: Ahead) -> Line:
    return Line(
        ids=b"".join(job.id.bytes for job in jobs),
        models=[job.model for job in jobs],
        megapixels=[job.megapixels for job in jobs],
    )


def test_waiting_jobs_expect_what_is_before_them_and_their_own_time() -> None:
    first, second = ahead(1), ahead(2)
    known = Forecasts(line(first, second), [], PACES)
    assert known.of_waiting(first.id) == Forecast(position=1, seconds=10)
    assert known.of_waiting(second.id) == Forecast(position=2, seconds=30)
    assert known.of_running(first.id) == known.of_waiting(uuid4()) == estimates.UNKNOWN


def test_running_jobs_expect_what_is_left_and_share_the_queue_between_them() -> None:
    nearly, half, waits = ahead(1, progress=90), ahead(3, progress=50), ahead(1)
    known = Forecasts(line(waits), [nearly, half], PACES)
    assert (known.of_running(nearly.id), known.of_running(half.id)) == (Forecast(seconds=1), Forecast(seconds=15))
    assert known.of_waiting(waits.id) == Forecast(position=1, seconds=8 + 10)


def test_a_job_of_unknown_length_makes_what_is_behind_it_unknown_but_not_its_position() -> None:
    jobs = ahead(1), ahead(1, model="faithful-upscale"), ahead(1)
    known = Forecasts(line(*jobs), [], PACES)
    assert [known.of_waiting(job.id) for job in jobs] == [
        Forecast(position=1, seconds=10),
        Forecast(position=2, seconds=None),
        Forecast(position=3, seconds=None),
    ]


def test_a_job_that_no_worker_can_hold_expects_nothing_and_keeps_nobody_waiting() -> None:
    large, behind = ahead(64), ahead(1)
    known = Forecasts(replace(line(large, behind), megapixels=[None, 1]), [], PACES)
    assert known.of_waiting(large.id) == Forecast(position=1, seconds=None)
    assert known.of_waiting(behind.id) == Forecast(position=2, seconds=10)


async def finish(town: Town, job: UUID, *, seconds: float) -> None:
    """Completed, 8x6 pixels, `seconds` after its start."""
    held = await town.claim(job)
    await town.settle(held, result(held))
    await town.count(
        "with u as (update jobs set queued_at = completed_at - make_interval(secs => %(s)s + 1),"
        " started_at = completed_at - make_interval(secs => %(s)s) where id = %(job)s returning 1)"
        " select count(*) from u",
        s=seconds,
        job=job,
    )


async def test_pace_is_measured_on_what_was_finished(town: Town) -> None:
    assert await commit(town.database, estimates.paces) == {}
    for seconds in (3.0, 5.0):
        await finish(town, await town.submit(), seconds=seconds)
    paces = await commit(town.database, estimates.paces)
    assert set(paces) == {CLARITY}
    assert paces[CLARITY].seconds == pytest.approx(4)
    assert paces[CLARITY].seconds_per_megapixel == pytest.approx(4 / 48e-6)


async def test_jobs_that_were_interrupted_or_are_long_past_are_no_measure(town: Town) -> None:
    again, old = await town.submit(), await town.submit()
    for job in (again, old):
        await finish(town, job, seconds=3)
    await town.count("with u as (update jobs set attempt = 2 where id = %(j)s) select 1", j=again)
    await town.count(
        "with u as (update jobs set started_at = started_at - interval '8 days', completed_at ="
        " completed_at - interval '8 days', queued_at = queued_at - interval '8 days' where id = %(j)s) select 1",
        j=old,
    )
    assert await commit(town.database, estimates.paces) == {}


async def test_a_jobs_outlook_follows_it_through_the_queue(town: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimates, "REST", 0.0)
    view = Outlook(town.database)
    first, second = await town.submit(), await town.submit()
    assert await view.of(await town.get(second)) == Forecast(position=2, seconds=None)
    assert await view.of(await town.get(first)) == Forecast(position=1, seconds=None)
    held = await town.claim(first)
    assert await view.of(await town.get(first)) == Forecast(position=None, seconds=None)
    assert await view.of(await town.get(second)) == Forecast(position=1, seconds=None)
    await town.settle(held, result(held))
    assert await view.of(await town.get(first)) == estimates.UNKNOWN


async def test_however_often_it_is_asked_the_queue_is_read_once_in_a_while(
    town: Town, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = 0
    read = Waiting.look

    async def counted(self: Waiting, tx: Tx, running: Collection[UUID]) -> Line:
        nonlocal looks
        looks += 1
        return await read(self, tx, running)

    monkeypatch.setattr(Waiting, "look", counted)
    monkeypatch.setattr(estimates, "QUEUE_SECONDS", 3600)
    monkeypatch.setattr(estimates, "REST", 0.0)
    view = Outlook(town.database)
    jobs = [await town.get(await town.submit()) for _ in range(3)]
    for _ in range(20):
        assert [(await view.of(job)).position for job in jobs] == [1, 2, 3]
    assert looks == 1
    await view.of(await town.get(await town.submit()))
    assert looks == 2
    monkeypatch.setattr(estimates, "REST", 1e9)
    assert (await view.of(await town.get(await town.submit()))).position == 5  # looks, and rests from now on
    assert await view.of(await town.get(await town.submit())) == estimates.UNKNOWN
    assert looks == 3


async def test_a_measured_pace_makes_the_wait_a_number(town: Town) -> None:
    await finish(town, await town.submit(), seconds=4)
    job = await town.submit()  # 4x3 at 2x: as large as the one that took four seconds
    assert await Outlook(town.database).of(await town.get(job)) == Forecast(position=1, seconds=4)
    held = await town.claim(job)
    await town.renew(held, progress=75)
    assert await Outlook(town.database).of(await town.get(job)) == Forecast(seconds=1)


def test_the_api_shows_position_and_average(api: Api, photo: str) -> None:
    job = api.submit({"image": photo}).json()["jobId"]
    with api.client() as client:
        shown = client.get(f"/v2/jobs/{job}").json()
    assert (shown["queuePosition"], shown["etaSeconds"]) == (1, None)
