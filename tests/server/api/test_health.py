"""What machines ask that run this one: alive, ready, figures; and a disk that fills up."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import psycopg
import pytest
from prometheus_client.parser import text_string_to_metric_families
from psycopg import sql

from hiresfix.server.accounts import authentication
from hiresfix.server.database import query
from hiresfix.server.database.pool import Database
from hiresfix.server.http import metrics_server
from hiresfix.server.jobs import worker_registry
from hiresfix.server.jobs.fleet_metrics import FleetMetrics
from hiresfix.server.platform import health as healths
from hiresfix.server.platform.health import Health
from hiresfix.server.settings import Settings
from tests.conftest import png
from tests.server.conftest import Api, free_port, wait_until
from tests.server.worker.test_process import Broken, attempt

Start = Callable[..., Api]


def figures(api: Api) -> dict[str, float]:
    """Every series by how Prometheus writes it: `name{label="value"}`."""
    answer = httpx.get(f"{api.url}/metrics", timeout=30)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    samples = {}
    for family in text_string_to_metric_families(answer.text):
        for sample in family.samples:
            labels = ",".join(f'{name}="{value}"' for name, value in sorted(sample.labels.items()))
            samples[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return samples


def grown(before: dict[str, float], after: dict[str, float], series: str) -> float:
    return after.get(series, 0.0) - before.get(series, 0.0)


def readiness(api: Api) -> tuple[int, Any]:
    answer = httpx.get(f"{api.url}/readyz", timeout=30)
    return answer.status_code, answer.json()


# Ready --------------------------------------------------------------------------------------------------------------


def test_broken_store_is_not_ready(start_api: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hiresfix.server.app.STORE_CHECK_SECONDS", 0.1)
    api = start_api()
    status, body = readiness(api)
    assert (status, body["checks"]["store"]["status"]) == (200, "ok")
    folder, away = api.settings.home / "files", api.settings.home / "away"
    folder.rename(away)
    folder.write_text("not a folder")
    wait_until(lambda: readiness(api)[0] == 503)
    status, body = readiness(api)
    assert body["status"] == "unavailable"
    assert body["checks"]["store"]["problem"] == "does not keep files"
    assert body["checks"]["database"]["status"] == "ok"
    assert str(folder) not in str(body)
    assert httpx.get(f"{api.url}/healthz").status_code == 200
    folder.unlink()
    away.rename(folder)
    wait_until(lambda: readiness(api)[0] == 200)


def test_unavailable_database_is_not_ready(api: Api, postgres: str) -> None:
    assert readiness(api)[0] == 200
    name = api.database_url.rpartition("/")[2].partition("?")[0]
    with psycopg.connect(postgres, autocommit=True) as admin:
        admin.execute(sql.SQL("alter database {} allow_connections false").format(sql.Identifier(name)))
        admin.execute("select pg_terminate_backend(pid) from pg_stat_activity where datname = %s", (name,))
        wait_until(lambda: readiness(api)[0] == 503)
        started = time.monotonic()
        status, body = readiness(api)
        assert (status, body["checks"]["database"]["status"]) == (503, "failed")
        assert time.monotonic() - started < 9  # the pool alone would wait for ten seconds
        assert httpx.get(f"{api.url}/healthz").status_code == 200
        assert "hiresfix_fleet_metrics_up 0" in httpx.get(f"{api.url}/metrics", timeout=60).text
        admin.execute(sql.SQL("alter database {} allow_connections true").format(sql.Identifier(name)))
    wait_until(lambda: readiness(api)[0] == 200)


def test_worker_can_be_required_for_readiness(start_api: Start) -> None:
    api = start_api(ready_requires=("database", "store", "worker"))
    status, body = readiness(api)
    assert (status, body["checks"]["worker"]["status"]) == (503, "failed")
    worker = worker_registry.WorkerInfo(
        id=uuid4(), name="w", host="h", device="cpu", memory_bytes=1, most_megapixels=64, tags=(), version="1"
    )

    async def come(**changes: Any) -> None:
        async with Database(api.database_url, max_size=1) as database, database.transaction() as tx:
            await worker_registry.heartbeat(tx, replace(worker, **changes), every=60)

    asyncio.run(come())
    wait_until(lambda: readiness(api) == (200, {**readiness(api)[1], "status": "ok"}))
    asyncio.run(come(draining=True))
    wait_until(lambda: readiness(api)[0] == 503)


async def test_hanging_check_fails_and_starts_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(healths, "TIMEOUT_SECONDS", 0.2)
    started, released = 0, asyncio.Event()

    async def hang() -> None:
        nonlocal started
        started += 1
        await released.wait()

    async def fine() -> None:
        return None

    health = Health({"hangs": hang, "fine": fine}, required=("fine",), max_age={"hangs": 0.0})
    for _ in range(3):
        async with asyncio.timeout(60):
            results = await health.results()
        assert results["hangs"].problem == "does not answer in time"
        assert results["fine"].problem is None
        assert health.can_serve(results)
    assert started == 1
    released.set()
    await asyncio.sleep(0)
    assert (await health.results())["hangs"].problem is None
    await health.aclose()


async def test_concurrent_requests_share_one_check() -> None:
    runs = 0

    async def count() -> str | None:
        nonlocal runs
        runs += 1
        await asyncio.sleep(0.01)
        raise RuntimeError("whatever it is")

    health = Health({"counted": count}, required=("counted",))
    answers = await asyncio.gather(*(health.results() for _ in range(50)))
    assert runs == 1
    assert {results["counted"].problem for results in answers} == {"failed"}
    assert not health.can_serve(answers[0])


# Figures ------------------------------------------------------------------------------------------------------------


def test_job_is_counted_in_metrics(start_api: Start, photo: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hiresfix.server.jobs.fleet_metrics.REFRESH_SECONDS", 0.0)
    api = start_api()
    before = figures(api)
    assert before['hiresfix_jobs{state="QUEUED"}'] == before["hiresfix_workers_needed"] == 0

    for _ in range(3):
        assert api.submit({"image": photo}).status_code == 202
    waiting = figures(api)
    assert waiting['hiresfix_jobs{state="QUEUED"}'] == 3
    assert waiting["hiresfix_queue_oldest_seconds"] > 0
    assert waiting["hiresfix_workers_needed"] == 2  # what the free plan runs at once
    assert waiting['hiresfix_credits_total{kind="charge"}'] == 9

    asyncio.run(attempt(api, upscaler=Broken()))
    asyncio.run(attempt(api, times=3))
    after = figures(api)
    ended = {state: after[f'hiresfix_jobs{{state="{state}"}}'] for state in ("COMPLETED", "QUEUED", "PROCESSING")}
    assert ended["COMPLETED"] >= 1
    assert sum(ended.values()) + after['hiresfix_jobs{state="FAILED"}'] == 3
    assert grown(before, after, 'hiresfix_job_attempts_total{model="clarity-upscale",outcome="retried"}') >= 1
    done = grown(before, after, 'hiresfix_job_attempts_total{model="clarity-upscale",outcome="completed"}')
    for stage in ("decode", "engine", "encode", "store", "total"):
        labels = f'megapixels="0-1",model="clarity-upscale",stage="{stage}"'
        assert grown(before, after, f"hiresfix_job_stage_seconds_count{{{labels}}}") >= done, stage
    assert grown(before, after, 'hiresfix_job_engine_seconds_per_megapixel_count{model="clarity-upscale"}') >= done
    assert grown(before, after, 'hiresfix_sandbox_images_total{outcome="ok"}') >= 3 + done
    assert after['hiresfix_database_pool_connections{pool="hiresfix-api"}'] >= 1


def test_requests_are_counted_by_route(api: Api) -> None:
    before = figures(api)
    with api.client() as client:
        for number in range(3):
            client.get(f"/v2/jobs/00000000-0000-4000-8000-00000000000{number}")
            client.get(f"/nowhere/{number}")
            client.request("BREW", f"/pot/{number}")
    after = figures(api)

    def counted(method: str, route: str, status: int) -> float:
        labels = f'method="{method}",route="{route}",status="{status}"'
        return grown(before, after, f"hiresfix_http_requests_total{{{labels}}}")

    assert counted("GET", "/v2/jobs/{job_id}", 404) == 3
    assert counted("GET", "none", 404) == 3
    assert counted("other", "none", 404) == 3
    new = {series for series in after if series.startswith("hiresfix_http_requests_total")} - set(before)
    assert not [series for series in new if "0000" in series or "pot" in series or "BREW" in series]


async def test_credits_are_counted_once(database: Database, database_url: str) -> None:
    async with database.transaction() as tx:
        await authentication.bootstrap(tx, free_credits=100, key_name="k")
    fleet = FleetMetrics(database)

    async def granted() -> float:
        fleet._fresh_until = 0.0
        families = {family.name: family for family in await fleet.collect()}
        return {s.labels["kind"]: s.value for s in families["hiresfix_credits"].samples}["grant"]

    assert await granted() == 0  # what was there before belongs to nobody's rate
    insert = (
        "insert into ledger (team_id, kind, amount, counterparty, actor, reason, created_at)"
        " select id, 'grant', %(amount)s, 'issued', 'test', '', now() - %(age)s::interval from teams"
    )
    async with await psycopg.AsyncConnection.connect(database_url) as slow:
        async with database.transaction() as tx:
            await query.execute(tx, insert, amount=1, age="90 seconds")
        await slow.execute(insert, {"amount": 10, "age": "50 seconds"})  # the lower number, committed later
        async with database.transaction() as tx:
            await query.execute(tx, insert, amount=2, age="20 seconds")
        assert await granted() == 3
        assert await granted() == 3
        await slow.commit()
    assert await granted() == 13
    async with database.transaction() as tx:
        await query.execute(tx, insert, amount=4, age="0 seconds")
    assert await granted() == 17


def test_metrics_need_the_operator(start_api: Start) -> None:
    token = "operators-only-0123"
    api = start_api(metrics_token=token)
    for headers in ({}, {"Authorization": "Bearer wrong-wrong-wrong-1"}, {"Authorization": f"Basic {token}"}):
        refused = httpx.get(f"{api.url}/metrics", headers=headers)
        assert (refused.status_code, refused.json()["code"]) == (403, "forbidden")
    allowed = httpx.get(f"{api.url}/metrics", headers={"Authorization": f"Bearer {token}"})
    assert "hiresfix_build_info" in allowed.text


def test_shared_port_refuses_metrics(start_api: Start) -> None:
    port = free_port()
    api = start_api(api_processes=2, metrics_port=port)
    shared = httpx.get(f"{api.url}/metrics")
    assert (shared.status_code, shared.json()["code"]) == (409, "conflict")
    wait_until(lambda: "hiresfix_fleet_metrics_up 1" in httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=30).text)


def test_proxy_cannot_read_metrics_without_token(start_api: Start) -> None:
    api = start_api(public_url="https://images.example.com")
    refused = httpx.get(f"{api.url}/metrics")
    assert refused.status_code == 403
    assert "HIRESFIX_METRICS_TOKEN" in refused.json()["error"]


async def test_worker_serves_metrics_with_token(
    settings: Settings,
) -> None:
    port, token = free_port(), "operators-only-0123"
    watched = settings.model_copy(update={"metrics_port": port, "metrics_token": token})
    url, allowed = f"http://127.0.0.1:{port}", {"Authorization": f"Bearer {token}"}
    async with metrics_server.serving(watched), httpx.AsyncClient(timeout=30) as client:
        for _ in range(600):
            with contextlib.suppress(httpx.TransportError):
                alive = await client.get(f"{url}/healthz")
                break
            await asyncio.sleep(0.1)
        assert (alive.status_code, alive.json()) == (200, {"status": "ok"})
        assert (await client.get(f"{url}/metrics")).status_code == 403
        answer = await client.get(f"{url}/metrics", headers=allowed)
        assert "hiresfix_worker_up" in answer.text
        async with metrics_server.serving(watched):  # a second worker on the same port works, without figures
            assert (await client.get(f"{url}/metrics", headers=allowed)).status_code == 200
    async with httpx.AsyncClient() as client:
        with pytest.raises(httpx.ConnectError):
            await client.get(f"{url}/healthz")


# A disk that fills up -------------------------------------------------------------------------------------------------


@pytest.fixture
def ballast(tmp_path: Path) -> Iterator[Path]:
    """A file that takes a quarter of what is free, at once."""
    file = tmp_path / "ballast"
    yield file
    file.unlink(missing_ok=True)


def test_full_disk_refuses_images_before_any_charge(
    start_api: Start, photo: str, tmp_path: Path, ballast: Path
) -> None:
    free = shutil.disk_usage(tmp_path).free
    api = start_api(min_free_bytes=free - free // 8)
    first = api.submit({"image": photo}, headers={"Idempotency-Key": "first"})
    assert first.status_code == 202
    files = set(api.files)

    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, free // 4)
    wait_until(lambda: figures(api)["hiresfix_accepting_images"] == 0)
    refused = api.submit({"image": photo}, headers={"Idempotency-Key": "second"})
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "60")
    assert "disk is nearly full" in refused.json()["error"]
    with api.client() as client:
        upload = client.post("/v2/uploads", files={"file": ("p.png", png(8, 8))})
        assert upload.status_code == 503
        assert client.get("/v2/jobs").status_code == 200
    again = api.submit({"image": photo}, headers={"Idempotency-Key": "first"})
    assert (again.status_code, again.json()["jobId"]) == (202, first.json()["jobId"])
    assert (api.balance, api.jobs, set(api.files) - {"ballast"}) == (97, 1, files - {"ballast"})
    assert readiness(api)[1]["checks"]["disk"]["status"] == "failed"
    assert figures(api)["hiresfix_accepting_images"] == 0
    assert readiness(api)[0] == 200  # results can still be fetched

    ballast.unlink()
    wait_until(lambda: figures(api)["hiresfix_accepting_images"] == 1)
    assert api.submit({"image": photo}, headers={"Idempotency-Key": "second"}).status_code == 202
