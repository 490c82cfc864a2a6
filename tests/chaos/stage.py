"""The service as an operator runs it, and everything around it that can be taken away.

Guarantees: the processes are the product's own (`hiresfix worker`, and the API with a fuse, `crashing_api`); whoever
dies is started again a second later and nobody does anything else for it. PostgreSQL is a real server that is really
stopped, the store a mounted disk that is really full or gone, where this machine lets us mount one. It knows no jobs.
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
"""For all who ask the service: to make a client takes longer than most of what they ask."""

SETTINGS = {
    "HIRESFIX_LEASE_SECONDS": str(LEASE_SECONDS),
    "HIRESFIX_SWEEP_SECONDS": "1",
    # The disk is small, and is to become full: the watermark would take in nothing from the start.
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


class Cluster:
    """The PostgreSQL of one home; the service sees it as one that the operator looks after."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._share = embedded.acquire(home)
        self.url = self._share.url

    def stop(self) -> None:
        """As `pg_ctl stop --mode fast` does."""
        self._share.release()

    def crash(self) -> None:
        """As after a power cut: the next start recovers."""
        pid = int((self._home / "postgres" / "data" / "postmaster.pid").read_text().split()[0])
        os.kill(pid, signal.SIGKILL)
        self._share.release()

    def start(self) -> None:
        self._share = embedded.acquire(self._home)


class Disk:
    """Where the store's folder is: a small file system of its own, or a plain folder that can only be moved away."""

    def __init__(self, folder: Path, behind: Path) -> None:
        self.folder = folder
        self._behind = behind
        folder.mkdir()
        behind.mkdir()
        self.is_mounted = self._mount()

    def _mount(self) -> bool:
        size = f"size={DISK_MEBIBYTES}m"
        if not _does("mount", "-t", "tmpfs", "-o", size, "hiresfix-chaos", self._behind):
            return False
        if _does("mount", "--bind", self._behind, self.folder):
            return True
        _does("umount", self._behind)
        return False

    def fill(self) -> None:
        """No byte is left; only where a disk could be mounted."""
        with contextlib.suppress(OSError), (self._behind / "ballast").open("wb", buffering=0) as ballast:
            for size in (2**20, 2**12):
                with contextlib.suppress(OSError):
                    while ballast.write(b"\0" * size):
                        pass

    def empty(self) -> None:
        (self._behind / "ballast").unlink()

    def drop(self) -> None:
        """The mount goes and leaves its empty mount point, as a network file system does."""
        if self.is_mounted:
            _must("umount", "--lazy", self.folder)
        else:
            self.folder.rename(self._behind / "away")

    def bring_back(self) -> None:
        if self.is_mounted:
            _must("mount", "--bind", self._behind, self.folder)
        else:
            (self._behind / "away").rename(self.folder)

    def close(self) -> None:
        if self.is_mounted:
            _does("umount", "--lazy", self.folder)
            _does("umount", "--lazy", self._behind)


def _does(*command: str | Path) -> bool:
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


def _must(*command: str | Path) -> None:
    subprocess.run(command, capture_output=True, check=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    headers: dict[str, str]
    body: bytes


class Receiver:
    """A caller's webhook server; while it is stopped its port refuses connections."""

    def __init__(self) -> None:
        self.received: list[Received] = []
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
                received.append(Received(headers=dict(self.headers), body=body))
                with contextlib.suppress(OSError):  # the worker that asked may be dead by now
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
class Kept:
    """A process that is started again whenever it ends; every life writes into the same log."""

    name: str
    program: Sequence[str]
    log: Path
    process: subprocess.Popen[bytes] | None = None
    lives: int = 0
    dead_since: float = 0.0
    frozen: bool = False
    log_offset: int = 0

    def start(self, environment: dict[str, str]) -> None:
        self.log_offset = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, *self.program], env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        self.lives += 1
        self.frozen = False

    def said(self, words: str) -> bool:
        """Whether this life has logged the words."""
        with self.log.open("rb") as log:
            log.seek(self.log_offset)
            return words.encode() in log.read()

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
class Stage:
    """All of it. `workers` and `api` are kept running by a thread of the stage's own."""

    home: Path
    database: Cluster
    disk: Disk
    receiver: Receiver
    port: int
    api: Kept
    workers: list[Kept]
    settings: Mapping[str, str]
    _closing: threading.Event = field(default_factory=threading.Event)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def fuse(self) -> Path:
        """Where it exists the API dies before its next 202, after the commit."""
        return self.home / "fuse"

    def is_ready(self) -> bool:
        with contextlib.suppress(httpx.TransportError):
            return HTTP.get(f"{self.url}/readyz", timeout=10).status_code == 200
        return False

    def has_open_jobs(self) -> bool:
        """Also if the database cannot tell."""
        with contextlib.suppress(psycopg.OperationalError), psycopg.connect(self.database.url) as connection:
            query = "select 1 from jobs where state in ('QUEUED', 'PROCESSING') limit 1"
            return connection.execute(query).fetchone() is not None
        return True

    def at_work(self) -> list[Kept]:
        """Workers that are up and not frozen."""
        return [kept for kept in self.workers if kept.is_running and not kept.frozen and kept.said("worker.started")]

    def _environment(self) -> dict[str, str]:
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
        """The supervisor's loop; ends with the stage."""
        environment = self._environment()
        while not self._closing.wait(0.1):
            for kept in (self.api, *self.workers):
                if kept.is_running:
                    continue
                now = time.monotonic()
                if kept.process is not None and not kept.dead_since:
                    kept.dead_since = now
                if now - kept.dead_since >= RESTART_SECONDS:
                    kept.start(environment)
                    kept.dead_since = 0.0

    def close(self) -> None:
        self._closing.set()
        time.sleep(0.3)
        for kept in (self.api, *self.workers):
            if kept.process is None or not kept.is_running:
                continue
            with contextlib.suppress(psutil.NoSuchProcess):
                for child in psutil.Process(kept.pid).children(recursive=True):
                    child.kill()
            kept.signal(signal.SIGCONT)
            kept.signal(signal.SIGKILL)
            kept.process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def opened(home: Path, *, workers: int, settings: Mapping[str, str]) -> Iterator[Stage]:
    """The service, started but maybe not ready yet, in a folder that PostgreSQL's user can enter."""
    from hiresfix.server.database import schema

    with contextlib.ExitStack() as undo:
        database = Cluster(home)
        undo.callback(database.stop)
        schema.migrate(database.url)
        disk = Disk(home / "store", home / "disk")
        undo.callback(disk.close)
        receiver = Receiver()
        undo.callback(receiver.stop)
        port = free_port()
        stage = Stage(
            home=home,
            database=database,
            disk=disk,
            receiver=receiver,
            port=port,
            api=Kept("api", [str(CRASHING_API), str(port)], home / "api.log"),
            workers=[
                Kept(f"worker {number}", ["-m", "hiresfix", "worker"], home / f"worker-{number}.log")
                for number in range(1, workers + 1)
            ],
            settings=settings,
        )
        supervisor = threading.Thread(target=stage.keep_running, daemon=True)
        supervisor.start()
        undo.callback(stage.close)
        yield stage


def clear(home: Path) -> None:
    shutil.rmtree(home, ignore_errors=True)
