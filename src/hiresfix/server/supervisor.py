"""Supervise the processes of `hiresfix serve` and `worker --devices`: start, watch and stop API and workers together.

A process that dies is started again, at once and then with growing pauses. SIGTERM or Ctrl-C stops everything in order,
workers draining first. A supervisor that is killed takes its children with it, because each of them watches the pipe on
its standard input. This module loads neither torch nor the web framework.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from types import FrameType

import structlog

from hiresfix.errors import ConfigurationError, HiresfixError
from hiresfix.server.database import embedded
from hiresfix.server.platform import hardware
from hiresfix.server.platform.hardware import Device
from hiresfix.server.settings import Settings, with_current_names

log = structlog.get_logger(__name__)

POLL_SECONDS = 0.2
MAX_RESTART_PAUSE = 30.0
DATABASE_CHECK_SECONDS = 5.0
"""Time between two checks of the embedded database."""
STABLE_SECONDS = 60.0
"""A child that ran this long restarts without a pause."""
BACKLOG = 2048
"""Connections that may wait to be accepted; the kernel may allow fewer."""
GRACE_SECONDS = 10.0
"""Time that stopping may take after the workers have drained."""


@contextlib.contextmanager
def database(settings: Settings) -> Iterator[str]:
    """Yield the URL of the operator's database, or of the embedded one, which keeps running during the block."""
    if settings.database_url:
        yield settings.database_url
        return
    with embedded.acquire(settings.home) as server:
        yield server.url


def revive_database(settings: Settings) -> None:
    """Restart the embedded PostgreSQL if it died; a database of the operator is left alone."""
    if settings.database_url or embedded.is_running(settings.home):
        return
    log.error("database.died")
    try:
        # Released at once: the share that `database` holds keeps the server running.
        embedded.acquire(settings.home).release()
    except HiresfixError as error:
        log.error("database.not_revived", reason=error.message)


@dataclass(slots=True)
class Child:
    """One supervised process."""

    name: str
    arguments: list[str]
    inherits: tuple[int, ...] = ()
    """Our file descriptors that it gets under the same numbers."""
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    next_start: float = 0.0
    failures: int = 0
    environment: dict[str, str] = field(default_factory=dict)
    """Environment variables for this child alone."""

    def try_to_start(self, environment: dict[str, str]) -> None:
        """Start it; if the machine cannot start a process now, try again later."""
        self.started = time.monotonic()
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "hiresfix", *self.arguments],
                env={**environment, **self.environment},
                stdin=subprocess.PIPE,  # its end tells the child that the supervisor is gone
                pass_fds=self.inherits,
                start_new_session=True,  # Ctrl-C reaches only the supervisor, which stops the children in order
            )
        except OSError as error:
            self.next_start = self.started + MAX_RESTART_PAUSE
            log.error("process.not_started", name=self.name, reason=error.strerror)

    def is_running(self) -> bool:
        """Return whether the process is alive."""
        return self.process is not None and self.process.poll() is None

    def note_death(self) -> None:
        """Schedule the restart of a process that died."""
        assert self.process is not None
        uptime = time.monotonic() - self.started
        self.failures = 0 if uptime > STABLE_SECONDS else self.failures + 1
        pause = min(MAX_RESTART_PAUSE, 2.0 ** min(self.failures, 10)) if self.failures > 1 else 0.0
        self.next_start = time.monotonic() + pause
        log.error("process.died", name=self.name, exit_code=self.process.returncode, restart_in=pause)
        self.process = None


@dataclass(slots=True)
class Supervisor:
    """Runs the children until it is told to stop."""

    settings: Settings
    database_url: str
    children: list[Child]
    stopping: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        """Block until SIGTERM, SIGINT or `stopping`; then stop every child."""
        for number in STOP_SIGNALS:
            signal.signal(number, self._stop)
        environment = {
            **with_current_names(os.environ),
            "HIRESFIX_HOME": str(self.settings.home),
            "HIRESFIX_DATABASE_URL": self.database_url,
            "HIRESFIX_PUBLIC_URL": self.settings.public_url,
            "HIRESFIX_API_PROCESSES": str(sum(child.arguments[0] == "api" for child in self.children) or 1),
            SUPERVISED: "1",
        }
        self._assign_metrics_ports()
        next_check = time.monotonic() + DATABASE_CHECK_SECONDS
        try:
            while not self.stopping.is_set():
                if time.monotonic() >= next_check:
                    revive_database(self.settings)
                    next_check = time.monotonic() + DATABASE_CHECK_SECONDS
                for child in self.children:
                    if child.process is not None and not child.is_running():
                        child.note_death()
                    if child.process is None and time.monotonic() >= child.next_start:
                        child.try_to_start(environment)
                self.stopping.wait(POLL_SECONDS)
        finally:
            self._stop_children()

    def _assign_metrics_ports(self) -> None:
        """Give each process a metrics port of its own, counting up from the configured one."""
        first = self.settings.metrics_port
        if first is not None:
            for port, child in enumerate(self.children, first):
                child.environment["HIRESFIX_METRICS_PORT"] = str(port)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self.stopping.set()

    def _stop_children(self) -> None:
        deadline = time.monotonic() + self.settings.drain_seconds + GRACE_SECONDS
        running = [child.process for child in self.children if child.process is not None]
        for process in running:
            process.terminate()
        for process in running:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                log.error("process.killed", pid=process.pid)
                process.kill()
                process.wait()
            assert process.stdin is not None
            process.stdin.close()


SUPERVISED = "HIRESFIX_SUPERVISED"
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def stop_on_signals() -> None:
    """Make signals end the process by an exception, so that cleanup runs, until `Supervisor.run` takes over."""

    def exit_process(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    for number in STOP_SIGNALS:
        signal.signal(number, exit_process)


def follow_supervisor() -> bool:
    """In a child process, stop as on SIGTERM when the supervisor is gone; return False in one started by hand."""
    if not os.environ.get(SUPERVISED):
        return False

    def wait_for_end() -> None:
        while os.read(0, 1024):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait_for_end, name="follow-supervisor", daemon=True).start()
    return True


def child_processes(settings: Settings, listening: socket.socket, *, processes: int, workers: int) -> list[Child]:
    """Return the API processes, which accept connections on one shared socket, and the worker processes."""
    descriptor = listening.fileno()
    apis = [
        Child(name=f"api-{number}", arguments=["api", "--fd", str(descriptor)], inherits=(descriptor,))
        for number in range(1, processes + 1)
    ]
    return [
        *apis,
        *worker_processes([Device(name=str(number), environment={}) for number in range(1, workers + 1)], settings),
    ]


def worker_processes(devices: Sequence[Device], settings: Settings) -> list[Child]:
    """Return one worker process per device. They share the host's memory equally, unless the operator set a limit."""
    share = settings.worker_memory_bytes or hardware.host_bytes() // max(1, len(devices))
    return [
        Child(
            name=f"worker-{device.name}",
            arguments=["worker"],
            environment={**device.environment, "HIRESFIX_WORKER_MEMORY_BYTES": str(share)},
        )
        for device in devices
    ]


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket that outlives the API processes: connections wait in it while one restarts.

    Raises ConfigurationError if the address cannot be used, before anything is started.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen(BACKLOG)
    except OSError as error:
        listening.close()
        raise ConfigurationError(
            f"Cannot listen on {host}:{port} ({error.strerror}). Choose another port with --port."
        ) from error
    return listening
