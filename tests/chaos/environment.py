"""The service as an operator runs it, with everything around it that can fail.

Guarantees: the processes are the product's own (`hiresfix worker`, and the API with a fuse, `crashing_api`); a process
that dies is restarted a second later, and nothing else helps it. PostgreSQL is a real server that is really
stopped, the store a mounted file system that is really full or gone, where mounting is allowed. It knows no jobs.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import psutil
import psycopg

from hiresfix.server.database import embedded

LEASE_SECONDS = 4.0
RESTART_SECONDS = 1.0
DISK_MEBIBYTES = 64
CRASHING_API = Path(__file__).parents[1] / "journey" / "crashing_api.py"

HTTP = httpx.Client(verify=False, timeout=60)
"""Shared by all callers: creating a client takes longer than most requests."""

SETTINGS = {
    "HIRESFIX_LEASE_SECONDS": str(LEASE_SECONDS),
    "HIRESFIX_MAINTENANCE_SECONDS": "1",
    # The disk is small and meant to fill up: the default would stop all submissions from the start.
    "HIRESFIX_MIN_FREE_BYTES": "0",
    "HIRESFIX_ALLOW_PRIVATE_ADDRESSES": "1",
    "HIRESFIX_SIGNUP": "open",
    "HIRESFIX_FREE_CREDITS": "1000",
    "HIRESFIX_RATE_SIGNUP": "1000",
    "HIRESFIX_RATE_SUBMISSIONS": "100000",
    "HIRESFIX_RATE_GENERAL": "100000",
    "HIRESFIX_RATE_JOB_POLLING": "100000",
    "OMP_NUM_THREADS": "1",
}


class PostgresServer:
    """The embedded PostgreSQL of one home; the service uses it like an external one."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._share = embedded.acquire(home)
        self.url = self._share.url

    def stop(self) -> None:
        """Stop it as `pg_ctl stop --mode fast` does."""
        self._share.release()

    def crash(self) -> None:
        """Kill it as a power cut would; the next start recovers."""
        pid = int((self._home / "postgres" / "data" / "postmaster.pid").read_text().split()[0])
        os.kill(pid, signal.SIGKILL)
        self._share.release()

    def start(self) -> None:
        self._share = embedded.acquire(self._home)


class Disk:
    """The store's folder: a small file system of its own, or a plain folder that can only be moved away."""

    def __init__(self, folder: Path, backing_folder: Path) -> None:
        self.folder = folder
        self._backing_folder = backing_folder
        folder.mkdir()
        backing_folder.mkdir()
        self.is_mounted = self._mount()

    def _mount(self) -> bool:
        size = f"size={DISK_MEBIBYTES}m"
        if not _run("mount", "-t", "tmpfs", "-o", size, "hiresfix-chaos", self._backing_folder):
            return False
        if _run("mount", "--bind", self._backing_folder, self.folder):
            return True
        _run("umount", self._backing_folder)
        return False

    def fill(self) -> None:
        """Fill it to the last byte; only if it could be mounted."""
        with contextlib.suppress(OSError), (self._backing_folder / "ballast").open("wb", buffering=0) as ballast:
            for size in (2**20, 2**12):
                with contextlib.suppress(OSError):
                    while ballast.write(b"\0" * size):
                        pass

    def empty(self) -> None:
        (self._backing_folder / "ballast").unlink()

    def drop(self) -> None:
        """Unmount it, leaving an empty mount point, as a network file system does."""
        if self.is_mounted:
            _run_or_fail("umount", "--lazy", self.folder)
        else:
            self.folder.rename(self._backing_folder / "away")

    def bring_back(self) -> None:
        if self.is_mounted:
            _run_or_fail("mount", "--bind", self._backing_folder, self.folder)
        else:
            (self._backing_folder / "away").rename(self.folder)

    def close(self) -> None:
        if self.is_mounted:
            _run("umount", "--lazy", self.folder)
            _run("umount", "--lazy", self._backing_folder)


def _run(*command: str | Path) -> bool:
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


def _run_or_fail(*command: str | Path) -> None:
    subprocess.run(command, capture_output=True, check=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceivedWebhook:
    headers: dict[str, str]
    body: bytes


class WebhookReceiver:
    """A caller's webhook server; while stopped, its port refuses connections."""

    def __init__(self) -> None:
        self.received: list[ReceivedWebhook] = []
        self._port = free_port()
        self._server: ThreadingHTTPServer | None = None
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}/hook"

    def start(self) -> None:
        received = self.received

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                received.append(ReceivedWebhook(headers=dict(self.headers), body=body))
                with contextlib.suppress(OSError):  # the worker that sent it may be dead by now
                    self.send_response(200)
                    self.send_header("Content-Length", "0")
                    self.end_headers()

            def log_message(self, *args: object) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", self._port), Handler)
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def stop(self) -> None:
        assert self._server is not None
        self._server.shutdown()
        self._server.server_close()


@dataclass(slots=True)
class SupervisedProcess:
    """A process that is restarted whenever it ends; all its runs write to the same log."""

    name: str
    program: Sequence[str]
    log: Path
    process: subprocess.Popen[bytes] | None = None
    starts: int = 0
    dead_since: float = 0.0
    frozen: bool = False
    log_offset: int = 0

    def start(self, environment: dict[str, str]) -> None:
        self.log_offset = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, *self.program], env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        self.starts += 1
        self.frozen = False

    def has_logged(self, text: str) -> bool:
        """Return True if the current run has logged this text."""
        with self.log.open("rb") as log:
            log.seek(self.log_offset)
            return text.encode() in log.read()

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    @property
    def is_running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)


@dataclass(kw_only=True)
class Environment:
    """The whole service. A thread of its own keeps `api` and `workers` running."""

    home: Path
    database: PostgresServer
    disk: Disk
    receiver: WebhookReceiver
    port: int
    api: SupervisedProcess
    workers: list[SupervisedProcess]
    settings: Mapping[str, str]
    _closing: threading.Event = field(default_factory=threading.Event)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def fuse(self) -> Path:
        """While this file exists, the API dies before its next 202, after the commit."""
        return self.home / "fuse"

    def is_ready(self) -> bool:
        with contextlib.suppress(httpx.TransportError):
            return HTTP.get(f"{self.url}/readyz", timeout=10).status_code == 200
        return False

    def has_open_jobs(self) -> bool:
        """Return True if a job is unfinished, or if the database does not answer."""
        with contextlib.suppress(psycopg.OperationalError), psycopg.connect(self.database.url) as connection:
            query = "select 1 from jobs where state in ('QUEUED', 'PROCESSING') limit 1"
            return connection.execute(query).fetchone() is not None
        return True

    def active_workers(self) -> list[SupervisedProcess]:
        """Return the workers that are up and not frozen."""
        return [
            process
            for process in self.workers
            if process.is_running and not process.frozen and process.has_logged("worker.started")
        ]

    def _variables(self) -> dict[str, str]:
        return {
            **os.environ,
            **SETTINGS,
            **self.settings,
            "HIRESFIX_HOME": str(self.home),
            "HIRESFIX_DATABASE_URL": self.database.url,
            "HIRESFIX_STORAGE_URL": self.disk.folder.as_uri(),
            "HIRESFIX_PUBLIC_URL": self.url,
            "CRASH_FUSE": str(self.fuse),
        }

    def keep_running(self) -> None:
        """Restart dead processes until `close`; runs in a thread."""
        environment = self._variables()
        while not self._closing.wait(0.1):
            for process in (self.api, *self.workers):
                if process.is_running:
                    continue
                now = time.monotonic()
                if process.process is not None and not process.dead_since:
                    process.dead_since = now
                if now - process.dead_since >= RESTART_SECONDS:
                    process.start(environment)
                    process.dead_since = 0.0

    def close(self) -> None:
        self._closing.set()
        time.sleep(0.3)
        for process in (self.api, *self.workers):
            if process.process is None or not process.is_running:
                continue
            with contextlib.suppress(psutil.NoSuchProcess):
                for child in psutil.Process(process.pid).children(recursive=True):
                    child.kill()
            process.signal(signal.SIGCONT)
            process.signal(signal.SIGKILL)
            process.process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def start(home: Path, *, workers: int, settings: Mapping[str, str]) -> Iterator[Environment]:
    """Start the service, which may not be ready yet. PostgreSQL's user must be able to enter `home`."""
    from hiresfix.server.database import schema

    with contextlib.ExitStack() as stack:
        database = PostgresServer(home)
        stack.callback(database.stop)
        schema.migrate(database.url)
        disk = Disk(home / "store", home / "disk")
        stack.callback(disk.close)
        receiver = WebhookReceiver()
        stack.callback(receiver.stop)
        port = free_port()
        service = Environment(
            home=home,
            database=database,
            disk=disk,
            receiver=receiver,
            port=port,
            api=SupervisedProcess("api", [str(CRASHING_API), str(port)], home / "api.log"),
            workers=[
                SupervisedProcess(f"worker {number}", ["-m", "hiresfix", "worker"], home / f"worker-{number}.log")
                for number in range(1, workers + 1)
            ],
            settings=settings,
        )
        supervisor = threading.Thread(target=service.keep_running, daemon=True)
        supervisor.start()
        stack.callback(service.close)
        yield service


def clear(home: Path) -> None:
    shutil.rmtree(home, ignore_errors=True)
