"""The service in separate processes for `benchmarks.api`: PostgreSQL, API, worker, accounts.

Every part runs as it does for an operator; only limits that would reject the load are raised. CPU time is read per
part, so the share of the client and the database can be separated from that of the API on the same cores.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.request import urlopen

import psutil
import psycopg

from hiresfix.server.accounts import authentication
from hiresfix.server.accounts.authentication import Caller
from hiresfix.server.billing import ledger
from hiresfix.server.database import embedded, query, schema
from hiresfix.server.database.pool import Database, Tx

TIMEOUT_SECONDS = 60.0
NO_LIMIT = "100000000"
NO_LIMITS = {
    "HIRESFIX_RATE_GENERAL": NO_LIMIT,
    "HIRESFIX_RATE_JOB_POLLING": NO_LIMIT,
    "HIRESFIX_RATE_SUBMISSIONS": NO_LIMIT,
    "HIRESFIX_RATE_UPLOADS": NO_LIMIT,
    "HIRESFIX_MAX_QUEUED_JOBS": NO_LIMIT,
    "HIRESFIX_MAX_QUEUED_JOBS_TOTAL": NO_LIMIT,
    "HIRESFIX_ALLOW_PRIVATE_ADDRESSES": "1",
}
DEBIAN = Path("/usr/lib/postgresql")


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    """Create a temporary folder that the system user of PostgreSQL can enter."""
    path = Path(tempfile.mkdtemp(prefix="hiresfix-benchmark-"))
    path.chmod(0o755)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


@dataclass(frozen=True, kw_only=True)
class Postgres:
    """A running server. `name` is used in the tables; `process` is its postmaster."""

    name: str
    url: str
    process: psutil.Process


@contextlib.contextmanager
def embedded_postgres() -> Iterator[Postgres]:
    """Start what `hiresfix serve` starts: a Unix socket and our settings."""
    with folder() as home, embedded.acquire(home) as server:
        yield Postgres(name="embedded", url=server.url, process=_postmaster(home / "postgres" / "data"))


@contextlib.contextmanager
def external_postgres() -> Iterator[Postgres]:
    """Start Debian's newest PostgreSQL with its defaults (fsync and synchronous_commit on), over TCP."""
    binaries = max(DEBIAN.glob("*/bin"), default=None, key=lambda path: int(path.parent.name))
    if binaries is None:
        raise SystemExit("No PostgreSQL below /usr/lib/postgresql. Install Debian's package postgresql.")
    with folder() as home:
        data, port = home / "data", free_port()
        user = _other_user(home)
        _run([binaries / "initdb", "-D", data, "-U", "hiresfix", "-A", "trust", "--no-sync"], user)
        options = f"-p {port} -k {home} -c listen_addresses=127.0.0.1"
        _run([binaries / "pg_ctl", "-D", data, "-l", home / "log", "-w", "-o", options, "start"], user)
        try:
            url = f"postgresql://hiresfix@127.0.0.1:{port}/postgres"
            yield Postgres(name=f"external {binaries.parent.name}", url=url, process=_postmaster(data))
        finally:
            _run([binaries / "pg_ctl", "-D", data, "-m", "immediate", "stop"], user)


def _other_user(home: Path) -> str | None:
    """Return the user to run PostgreSQL as and give it the folder; None if we are not root, whom it refuses."""
    if os.geteuid():
        return None
    account = pwd.getpwnam("postgres")
    os.chown(home, account.pw_uid, account.pw_gid)
    return account.pw_name


def _run(command: Sequence[str | Path], user: str | None) -> None:
    subprocess.run([str(part) for part in command], user=user, check=True, stdout=subprocess.DEVNULL, cwd="/")


def _postmaster(data: Path) -> psutil.Process:
    return psutil.Process(int((data / "postmaster.pid").read_text().splitlines()[0]))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def processor_seconds(root: psutil.Process) -> float:
    """Return user and system time of a process and its descendants, ended ones included."""
    total = 0.0
    with contextlib.suppress(psutil.NoSuchProcess):
        for process in [root, *root.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                total += times.user + times.system + times.children_user + times.children_system
    return total


@dataclass(kw_only=True)
class ServiceStack:
    """A separate database on `postgres`, and the processes that use it."""

    postgres: Postgres
    home: Path
    database_url: str
    port: int = field(default_factory=free_port)
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def api(self, processes: int = 1, environment: Mapping[str, str] | None = None) -> None:
        """Start the API and wait until it answers."""
        arguments = ["-m", "hiresfix", "serve", "--no-worker", "--port", str(self.port), "--processes", str(processes)]
        self.start("api", arguments, environment)
        self._wait(self._answers, "api")

    def worker(self, name: str = "worker") -> None:
        """Start a worker whose engine takes no time (`benchmarks.instant_worker`)."""
        self.start(name, ["-m", "benchmarks.instant_worker"])
        self._wait(lambda: b"worker.started" in self._log(name), name)

    def stop(self, *names: str) -> None:
        """Stop these processes, or all."""
        for name in names or tuple(self.processes):
            process = self.processes.pop(name)
            process.terminate()
            try:
                process.wait(TIMEOUT_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def processor_seconds(self) -> dict[str, float]:
        """Return the CPU seconds of each part since its start."""
        seconds = {name: processor_seconds(psutil.Process(process.pid)) for name, process in self.processes.items()}
        return {**seconds, "postgresql": processor_seconds(self.postgres.process)}

    def start(self, name: str, arguments: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        full_environment = {
            **os.environ,
            **NO_LIMITS,
            "HIRESFIX_HOME": str(self.home),
            "HIRESFIX_DATABASE_URL": self.database_url,
            "HIRESFIX_PUBLIC_URL": f"http://127.0.0.1:{self.port}",
            "OMP_NUM_THREADS": "1",
            **(environment or {}),
        }
        with (self.home / f"{name}.log").open("wb") as log:
            self.processes[name] = subprocess.Popen(
                [sys.executable, *arguments], env=full_environment, stdout=log, stderr=log
            )

    def wait_for_port(self, port: int, name: str) -> None:
        """Wait until this process accepts connections on the port."""

        def accepts() -> bool:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5):
                return True
            return False

        self._wait(accepts, name)

    def _log(self, name: str) -> bytes:
        return (self.home / f"{name}.log").read_bytes()

    def _answers(self) -> bool:
        with contextlib.suppress(OSError), urlopen(f"http://127.0.0.1:{self.port}/healthz", timeout=5) as answer:
            return bool(answer.status == 200)
        return False

    def _wait(self, ready: Callable[[], bool], name: str) -> None:
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while not ready():
            if self.processes[name].poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"{name} did not start:\n{self._log(name)[-2000:].decode(errors='replace')}")
            time.sleep(0.1)


@contextlib.contextmanager
def stack(postgres: Postgres) -> Iterator[ServiceStack]:
    """Create a database and a home directory; delete both at the end."""
    name = f"benchmark_{time.time_ns()}"
    with psycopg.connect(postgres.url, autocommit=True) as admin:
        admin.execute(f"create database {name}".encode())
        url = _database(postgres.url, name)
        with folder() as home:
            schema.migrate(url)
            service = ServiceStack(postgres=postgres, home=home, database_url=url)
            try:
                yield service
            finally:
                service.stop()
        admin.execute(f"drop database {name} with (force)".encode())


def _database(url: str, name: str) -> str:
    base, _, options = url.partition("?")
    return base.rpartition("/")[0] + f"/{name}" + (f"?{options}" if options else "")


@dataclass(frozen=True, kw_only=True)
class Customer:
    """A team with one user, and the key of that user."""

    key: str
    caller: Caller


def customers(url: str, count: int) -> list[Customer]:
    """Create customers who never run out of credits."""

    async def make() -> list[Customer]:
        async with Database(url, max_size=1) as database, database.transaction() as tx:
            return [await _customer(tx, number) for number in range(count)]

    return asyncio.run(make())


async def _customer(tx: Tx, number: int) -> Customer:
    team = await query.value(
        tx,
        "insert into teams (name, max_concurrent_jobs) values (%(name)s, 1000) returning id",
        name=f"team {number}",
    )
    user = await query.value(
        tx,
        "insert into users (team_id, email, role) values (%(team)s, %(email)s, 'OWNER') returning id",
        team=team,
        email=f"{number}@example.com",
    )
    await ledger.grant(tx, team, 10**12, actor="benchmark", reason="plenty")
    _, key = await authentication.create_key(tx, "benchmark", user=user)
    return Customer(key=key, caller=await authentication.authenticate(tx, key))
