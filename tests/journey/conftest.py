"""The service as it really runs: processes of their own, which tests kill."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import httpx
import psutil
import psycopg
import pytest

from hiresfix.server.accounts import authentication
from hiresfix.server.database.pool import Database
from tests import forkserver
from tests.forkserver import ForkedProcess
from tests.server.conftest import free_port, wait_until

FAST = {
    "HIRESFIX_LEASE_SECONDS": "2",
    "HIRESFIX_MAINTENANCE_SECONDS": "0.5",
    "HIRESFIX_DRAIN_SECONDS": "1",
    "HIRESFIX_SELF_TEST": "0",
}
HIRESFIX = ("-m", "hiresfix")
Process: TypeAlias = subprocess.Popen[bytes] | ForkedProcess


@dataclass(kw_only=True)
class Service:
    """Processes on one database and one home; `logs` has a file for each of them."""

    home: Path
    database_url: str
    key: str
    port: int = field(default_factory=free_port)
    environment: dict[str, str] = field(default_factory=dict)
    folder: Path | None = None
    """Where its processes run; None: where the tests do."""
    processes: list[Process] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def run(self, *arguments: str, program: Sequence[str] = HIRESFIX) -> Process:
        environment = {
            **os.environ,
            **FAST,
            "HIRESFIX_HOME": str(self.home),
            "HIRESFIX_DATABASE_URL": self.database_url,
            "HIRESFIX_ALLOW_PRIVATE_ADDRESSES": "1",
            "HIRESFIX_PUBLIC_URL": self.url,
            **self.environment,
        }
        process: Process
        with (self.home / f"process-{len(self.processes)}.log").open("wb") as log:
            if program == HIRESFIX and arguments[0] in ("api", "worker"):
                process = forkserver.start(list(arguments), environment=environment, folder=self.folder, output=log)
            else:
                process = subprocess.Popen(
                    [sys.executable, *program, *arguments],
                    env=environment,
                    cwd=self.folder,
                    stdout=log,
                    stderr=log,
                    stdin=subprocess.DEVNULL,
                )
        self.processes.append(process)
        return process

    def log_of(self, process: Process) -> str:
        return (self.home / f"process-{self.processes.index(process)}.log").read_text()

    def api(self, program: Sequence[str] = HIRESFIX) -> Process:
        process = self.run("api", "--port", str(self.port), program=program)
        self.wait_for_api(process)
        return process

    def wait_for_api(self, process: Process) -> None:
        wait_until(lambda: self.is_ready() or process.poll() is not None, seconds=120)
        assert process.poll() is None, self.log_of(process)

    def worker(self) -> Process:
        process = self.run("worker")
        self.wait_for_worker(process)
        return process

    def wait_for_worker(self, process: Process) -> None:
        wait_until(lambda: "worker.started" in self.log_of(process) or process.poll() is not None, seconds=120)
        assert process.poll() is None, self.log_of(process)

    def is_ready(self) -> bool:
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(f"{self.url}/readyz").status_code == 200
        return False

    def submit(self, image: str, *, headers: dict[str, str] | None = None, **more: Any) -> str:
        body = {"model": "faithful-upscale", "faithfulUpscaleParams": {"image": image, "content": "anime"}, **more}
        response = httpx.post(
            f"{self.url}/v2/images/upscale", json=body, headers={"X-API-Key": self.key, **(headers or {})}, timeout=60
        )
        assert response.status_code == 202, response.text
        return str(response.json()["jobId"])

    def job(self, job_id: str) -> dict[str, Any]:
        response = httpx.get(f"{self.url}/v2/jobs/{job_id}", headers={"X-API-Key": self.key}, timeout=30)
        assert response.status_code == 200, response.text
        job: dict[str, Any] = response.json()
        return job

    def wait_for(self, job_id: str, *statuses: str, seconds: float = 240) -> dict[str, Any]:
        wait_until(lambda: self.job(job_id)["status"] in statuses, seconds=seconds)
        return self.job(job_id)

    def finished(self, job_id: str) -> dict[str, Any]:
        return self.wait_for(job_id, "COMPLETED", "FAILED")

    def value(self, query: str, *args: Any) -> Any:
        with psycopg.connect(self.database_url) as connection:
            row = connection.execute(query.encode(), args or None).fetchone()
            return row[0] if row else None

    def assert_books_are_right(self) -> None:
        assert self.value("select credits from teams") == self.value("select sum(amount) from ledger")
        assert self.value(
            "select count(*) from jobs j where (state = 'FAILED')"
            " <> exists (select from ledger l where l.job_id = j.id and l.kind = 'refund')"
        ) == 0  # fmt: skip

    def stop_all(self) -> None:
        for process in self.processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                for child in psutil.Process(process.pid).children(recursive=True):
                    child.kill()
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.kill()
                process.wait()


@pytest.fixture
def service(home: Path, database_url: str) -> Iterator[Service]:
    async def bootstrap() -> str:
        async with Database(database_url, max_size=1) as database, database.transaction() as tx:
            key = await authentication.bootstrap(tx, free_credits=100, key_name="journey")
        assert key is not None
        return key

    started = Service(home=home, database_url=database_url, key=asyncio.run(bootstrap()))
    yield started
    started.stop_all()
