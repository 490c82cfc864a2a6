"""`hiresfix serve` with the embedded database: starts everything, stops in order and leaves nothing running."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import psutil
import pytest

from tests.conftest import Site, png
from tests.journey.conftest import Service
from tests.server.conftest import wait_until


def cli(service: Service, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HIRESFIX_HOME": str(service.home)}
    environment.pop("HIRESFIX_DATABASE_URL", None)
    return subprocess.run(
        [sys.executable, "-m", "hiresfix", *arguments], env=environment, capture_output=True, text=True, timeout=120
    )


def processes_below(home: Path) -> list[str]:
    """Return all live processes that were started for this home."""
    running = []
    for process in psutil.process_iter(["pid", "name"]):
        try:
            if process.environ().get("HIRESFIX_HOME") == str(home) or str(home) in " ".join(process.cmdline()):
                running.append(f"{process.pid} {process.name()}")
        except psutil.Error:
            continue
    return running


def test_serve_starts_and_stops_everything(home: Path, site: Site) -> None:
    service = Service(home=home, database_url="", key="")  # an empty URL means no URL: use the embedded database
    try:
        serve = service.run("serve", "--port", str(service.port))
        wait_until(lambda: service.is_ready() or serve.poll() is not None, seconds=120)
        log = service.log_of(serve)
        assert "settings.private_addresses_allowed" in log
        (printed_key,) = re.findall(r"afk_[0-9a-f]{40}", log)
        (token,) = re.findall(rf"{service.url}/studio#signin=([0-9a-f]{{40}})\n", log)
        signed_in = httpx.post(f"{service.url}/v2/signin", json={"token": token})
        assert httpx.get(f"{service.url}/v2/me", headers={"X-API-Key": signed_in.json()["apiKey"]}).status_code == 200
        me = {"X-API-Key": printed_key}
        assert httpx.get(f"{service.url}/v2/jobs/{'0' * 8}-0000-4000-8000-{'0' * 12}", headers=me).status_code == 404

        created = cli(service, "keys", "create", "beside")
        assert re.fullmatch(r"afk_[0-9a-f]{40}\n", created.stdout), created
        service.key = created.stdout.strip()
        assert service.finished(service.submit(site.add("/p.png", png(16, 16))))["status"] == "COMPLETED"
        assert cli(service, "credits", "balance").stdout == "99\n"
        assert cli(service, "credits", "grant", "5").stdout == "104\n"
        assert "COMPLETED" in cli(service, "jobs", "list").stdout
        assert "charge" in cli(service, "credits", "ledger").stdout
        assert "embedded PostgreSQL, running" in cli(service, "doctor").stdout
        assert cli(service, "keys", "revoke", "beside").returncode == 0
        assert httpx.get(f"{service.url}/v2/jobs/x", headers={"X-API-Key": service.key}).status_code == 401

        worker = next(child for child in psutil.Process(serve.pid).children() if "worker" in child.cmdline())
        worker.kill()
        wait_until(lambda: service.log_of(serve).count("worker.started") == 2)

        postmaster = int((home / "postgres" / "data" / "postmaster.pid").read_text().split()[0])
        os.kill(postmaster, signal.SIGKILL)
        wait_until(lambda: "database.died" in service.log_of(serve))
        wait_until(service.is_ready)
        service.key = cli(service, "keys", "create", "after the crash").stdout.strip()
        assert service.finished(service.submit(site.add("/p.png", png(16, 16))))["status"] == "COMPLETED"

        serve.send_signal(signal.SIGTERM)
        assert serve.wait(60) == 0
        assert processes_below(home) == []

        again = service.run("serve", "--port", str(service.port), "--no-worker")
        wait_until(service.is_ready, seconds=120)
        assert "afk_" not in service.log_of(again)
        again.kill()
        again.wait()
        # The children stop when their supervisor is killed; PostgreSQL keeps running until the next start.
        wait_until(lambda: not any("python" in process for process in processes_below(home)))
        assert cli(service, "credits", "balance").stdout == "103\n"
        assert processes_below(home) == []
    finally:
        service.stop_all()


def test_taken_port_is_a_clear_error(home: Path, site: Site) -> None:
    service = Service(home=home, database_url="", key="")
    port = site.url.rpartition(":")[2]
    answer = cli(service, "serve", "--port", port)
    assert answer.returncode == 1
    assert "Choose another port with --port" in answer.stderr
    assert "Traceback" not in answer.stderr


def test_api_processes_share_a_port_and_restart(service: Service) -> None:
    serve = service.run("serve", "--port", str(service.port), "--no-worker", "--processes", "2")
    wait_until(lambda: service.is_ready() or serve.poll() is not None)
    supervisor = psutil.Process(serve.pid)

    def apis() -> list[psutil.Process]:
        running = []
        for child in supervisor.children():
            with contextlib.suppress(psutil.NoSuchProcess):  # or a zombie, which raises a subclass
                if "api" in child.cmdline():
                    running.append(child)
        return running

    wait_until(lambda: len(apis()) == 2)
    killed = apis()[0]
    killed.kill()
    for _ in range(20):
        assert httpx.get(f"{service.url}/healthz", timeout=60).status_code == 200
    wait_until(lambda: len(apis()) == 2 and killed.pid not in [api.pid for api in apis()])
    serve.send_signal(signal.SIGTERM)
    assert serve.wait(60) == 0
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{service.url}/healthz")
