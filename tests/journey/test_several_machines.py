"""API nodes and workers that share only an external PostgreSQL and an external object store."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from PIL import Image

from hiresfix.server.accounts import authentication
from hiresfix.server.database import schema
from hiresfix.server.database.pool import Database
from tests.conftest import Bucket, Site, png, reachable_folder
from tests.journey.conftest import Service
from tests.journey.test_life_of_a_job import LARGE
from tests.server.conftest import free_port, wait_until

DEBIAN = Path("/usr/lib/postgresql")
PASSWORD = "correct-horse"
SMALL_NODE = 0.01
"""Megapixels that the second machine's worker can hold: enough for 16x16 to 32x32, not for 160x160 to 320x320."""


def binaries() -> Path:
    """Return the programs of the newest PostgreSQL that Debian installed."""
    candidates = sorted(DEBIAN.glob("*/bin/postgres"), key=lambda path: float(path.parts[-3]))
    if not candidates:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    return candidates[-1].parent


@pytest.fixture(scope="module")
def external() -> Iterator[str]:
    """Start Debian's PostgreSQL and yield a migrated database, over TCP with a password."""
    programs, port = binaries(), free_port()
    user = "postgres" if os.geteuid() == 0 else None  # it refuses to run as root
    folder = Path(tempfile.mkdtemp(prefix="hiresfix-external-"))
    password = folder / "password"
    password.write_text(PASSWORD)
    if user:
        for path in (folder, password):
            shutil.chown(path, user)
    data = folder / "data"
    make = [programs / "initdb", "-D", data, "-U", "hiresfix", "--auth=scram-sha-256", f"--pwfile={password}", "-N"]
    subprocess.run([*map(str, make), "--encoding=UTF8"], user=user, cwd=folder, check=True, capture_output=True)
    run = [programs / "postgres", "-D", data, "-p", port, "-c", "listen_addresses=127.0.0.1", "-c", "fsync=off"]
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(
            [*map(str, run), "-c", "unix_socket_directories="], user=user, cwd=folder, stdout=log, stderr=log
        )
    url = f"postgresql://hiresfix:{PASSWORD}@127.0.0.1:{port}/postgres"
    try:
        wait_until(lambda: answers(url) or server.poll() is not None)
        assert server.poll() is None, (folder / "log").read_text()
        schema.migrate(url)
        yield url
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(60)
        shutil.rmtree(folder)


def answers(url: str) -> bool:
    with contextlib.suppress(psycopg.OperationalError):
        psycopg.connect(url, connect_timeout=5).close()
        return True
    return False


@pytest.fixture(scope="module")
def pair(external: str, object_store: str) -> Iterator[tuple[Service, Service]]:
    """Start two machines with an API and a worker each; the second redirects to the store and holds small jobs only."""

    async def bootstrap() -> str:
        async with Database(external, max_size=1) as database, database.transaction() as tx:
            key = await authentication.bootstrap(tx, free_credits=100, key_name="several")
        assert key is not None
        return key

    bucket = Bucket(endpoint=object_store, name="fleet")
    httpx.put(f"{bucket.endpoint}/{bucket.name}", timeout=60).raise_for_status()
    key, machines = asyncio.run(bootstrap()), []
    for _ in range(2):
        home = reachable_folder()
        machine = Service(home=home, folder=home, database_url=external, key=key)
        machine.environment |= {**bucket.environment, "HIRESFIX_STORAGE_URL": bucket.url}
        machines.append(machine)
    first, second = machines
    second.environment["HIRESFIX_PUBLIC_URL"] = first.url  # one public URL for both, as behind a load balancer
    second.environment |= {"HIRESFIX_RESULT_URLS": "signed", "HIRESFIX_WORKER_MEGAPIXELS": str(SMALL_NODE)}
    try:
        started = [
            (machine, machine.run("api", "--port", str(machine.port)), machine.run("worker")) for machine in machines
        ]
        for machine, api, worker in started:
            machine.wait_for_api(api)
            machine.wait_for_worker(worker)
        yield first, second
    finally:
        for machine in machines:
            machine.stop_all()
            shutil.rmtree(machine.home, ignore_errors=True)


def at(machine: Service, url: str) -> str:
    """Return the same address at this machine."""
    return machine.url + httpx.URL(url).raw_path.decode()


def request(machine: Service, method: str, path: str, **more: Any) -> httpx.Response:
    return httpx.request(method, machine.url + path, headers={"X-API-Key": machine.key}, timeout=60, **more)


def test_machines_share_uploads_and_results(pair: tuple[Service, Service], site: Site) -> None:
    first, second = pair
    uploaded = request(second, "POST", "/v2/uploads", files={"file": ("a.png", png(16, 16))}).json()["url"]
    job = second.finished(first.submit(uploaded, webhookUrl=site.url + "/hook"))
    assert job["status"] == "COMPLETED"
    (url,) = job["result"]["images"]
    served = httpx.get(at(first, url), timeout=60)
    assert served.status_code == 200
    assert Image.open(io.BytesIO(served.content)).size == (32, 32)
    sent = httpx.get(at(second, url), timeout=60)
    assert sent.status_code == 302
    signed = httpx.get(sent.headers["location"], timeout=60)
    assert signed.content == served.content
    assert signed.headers["content-type"] == served.headers["content-type"] == "image/png"
    assert signed.headers["content-disposition"] == served.headers["content-disposition"]
    wait_until(lambda: site.received)
    assert json.loads(site.received[0][1])["jobId"] == job["id"]


def test_any_machine_cancels_and_deletes(pair: tuple[Service, Service], site: Site) -> None:
    first, second = pair
    before = first.value("select credits from teams")
    long = first.submit(site.add("/p.png", png(*LARGE)))
    second.wait_for(long, "PROCESSING")
    assert request(second, "POST", f"/v2/jobs/{long}/cancel").json()["status"] == "CANCELLED"
    assert first.job(long)["status"] == "CANCELLED"
    assert first.value("select credits from teams") == before
    short = second.submit(site.add("/q.png", png(16, 16)))
    (url,) = second.finished(short)["result"]["images"]
    assert httpx.get(at(first, url), timeout=60).status_code == 200
    assert request(first, "DELETE", f"/v2/jobs/{short}/files").status_code in (200, 204)
    for machine in pair:
        assert httpx.get(at(machine, url), timeout=60, follow_redirects=True).status_code == 410
    assert first.value("select credits from teams") == first.value("select sum(amount) from ledger")


def test_large_job_waits_while_small_ones_pass(pair: tuple[Service, Service], site: Site) -> None:
    first, second = pair
    large = site.add("/p.png", png(160, 160))
    busy, waiting = first.submit(large), second.submit(large)
    first.wait_for(busy, "PROCESSING")
    small = second.submit(site.add("/q.png", png(16, 16)))
    assert first.finished(small)["status"] == "COMPLETED"
    assert {first.finished(job)["status"] for job in (busy, waiting)} == {"COMPLETED"}
    done_by = [first.value("select worker from jobs where id = %s", job) for job in (busy, waiting, small)]
    roomy, narrow = (machine.processes[1].pid for machine in pair)
    assert [int(name.rpartition(":")[2]) for name in done_by] == [roomy, roomy, narrow]


def test_machines_keep_nothing_but_logs(pair: tuple[Service, Service]) -> None:
    for machine in pair:
        left = [
            path.name for path in machine.home.rglob("*") if path.is_file() and not path.name.startswith("process-")
        ]
        assert left == []
