"""`hiresfix serve` and `worker --devices`: API and workers as processes of their own, started, watched and stopped
together.

Guarantees: a process that dies is started again (at once, then with growing pauses); SIGTERM or Ctrl-C stops
everything in order, workers draining first; a supervisor that is killed takes its children with it, because
each of them watches the pipe it got as standard input. It loads neither torch nor the web framework.
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
from hiresfix.server.settings import Settings

log = structlog.get_logger(__name__)

POLL_SECONDS = 0.2
LONGEST_PAUSE = 30.0
DATABASE_SECONDS = 5.0
"""Between two looks at the embedded database."""
SETTLED_SECONDS = 60.0
"""A child that lived so long starts again without a pause."""
BACKLOG = 2048
"""Connections that may wait to be accepted; the kernel may allow fewer."""
GRACE_SECONDS = 10.0
"""What stopping may take beyond the workers' drain."""


@contextlib.contextmanager
def database(settings: Settings) -> Iterator[str]:
    """The URL of the operator's database, or of the embedded one, kept from stopping for the length of the block."""
    if settings.database_url:
        yield settings.database_url
        return
    with embedded.acquire(settings.home) as server:
        yield server.url


def revive_database(settings: Settings) -> None:
    """Start the embedded PostgreSQL again if it died (an operator's own is the operator's)."""
    if settings.database_url or embedded.is_running(settings.home):
        return
    log.error("database.died")
    try:
        # The share is given back at once: the one that `database` holds keeps the server running.
        embedded.acquire(settings.home).release()
    except HiresfixError as error:
        log.error("database.not_revived", reason=error.message)


@dataclass(slots=True)
class Child:
    """One supervised process."""

    name: str
    arguments: list[str]
    inherits: tuple[int, ...] = ()
    """Descriptors of ours that it gets under the same numbers."""
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    next_start: float = 0.0
    failures: int = 0
    environment: dict[str, str] = field(default_factory=dict)
    """What is set for this child alone."""

    def try_to_start(self, environment: dict[str, str]) -> None:
        """Start it; when the machine has no room for a process, later."""
        self.started = time.monotonic()
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "hiresfix", *self.arguments],
                env={**environment, **self.environment},
                stdin=subprocess.PIPE,  # its end tells the child that we are gone
                pass_fds=self.inherits,
                start_new_session=True,  # Ctrl-C reaches us alone; we stop the children in order
            )
        except OSError as error:
            self.next_start = self.started + LONGEST_PAUSE
            log.error("process.not_started", name=self.name, reason=error.strerror)

    def is_running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def note_death(self) -> None:
        """Choose when to start again."""
        assert self.process is not None
        lived = time.monotonic() - self.started
        self.failures = 0 if lived > SETTLED_SECONDS else self.failures + 1
        pause = min(LONGEST_PAUSE, 2.0 ** min(self.failures, 10)) if self.failures > 1 else 0.0
        self.next_start = time.monotonic() + pause
        log.error("process.died", name=self.name, exit_code=self.process.returncode, restart_in=pause)
        self.process = None


@dataclass(slots=True)
class Supervisor:
    """Runs the children until told to stop."""

    settings: Settings
    database_url: str
    children: list[Child]
    stopping: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        """Blocks until SIGTERM, SIGINT or `stopping`; then stops every child."""
        for number in STOP_SIGNALS:
            signal.signal(number, self._stop)
        environment = {
            **os.environ,
            "HIRESFIX_HOME": str(self.settings.home),
            "HIRESFIX_DATABASE_URL": self.database_url,
            "HIRESFIX_PUBLIC_URL": self.settings.public_url,
            "HIRESFIX_API_PROCESSES": str(sum(child.arguments[0] == "api" for child in self.children) or 1),
            SUPERVISED: "1",
        }
        self._give_ports()
        next_look = time.monotonic() + DATABASE_SECONDS
        try:
            while not self.stopping.is_set():
                if time.monotonic() >= next_look:
                    revive_database(self.settings)
                    next_look = time.monotonic() + DATABASE_SECONDS
                for child in self.children:
                    if child.process is not None and not child.is_running():
                        child.note_death()
                    if child.process is None and time.monotonic() >= child.next_start:
                        child.try_to_start(environment)
                self.stopping.wait(POLL_SECONDS)
        finally:
            self._stop_children()

    def _give_ports(self) -> None:
        """A port for the figures of each process, from the one that is set on: two cannot listen on one."""
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
    """Until `Supervisor.run` takes over: a signal ends the process by an exception, so that what was started stops."""

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    for number in STOP_SIGNALS:
        signal.signal(number, leave)


def follow_supervisor() -> bool:
    """In a child: end like on SIGTERM when the supervisor is gone. False in a process started by hand."""
    if not os.environ.get(SUPERVISED):
        return False

    def wait_for_end() -> None:
        while os.read(0, 1024):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait_for_end, name="follow-supervisor", daemon=True).start()
    return True


def children(settings: Settings, listening: socket.socket, *, processes: int, workers: int) -> list[Child]:
    """So many API processes, which take turns in accepting what arrives at one socket, and worker processes."""
    descriptor = listening.fileno()
    apis = [
        Child(name=f"api-{number}", arguments=["api", "--fd", str(descriptor)], inherits=(descriptor,))
        for number in range(1, processes + 1)
    ]
    return [
        *apis,
        *workers_on([Device(name=str(number), environment={}) for number in range(1, workers + 1)], settings),
    ]


def workers_on(devices: Sequence[Device], settings: Settings) -> list[Child]:
    """One worker process a device. They share the host's memory, unless the operator has said what each may have."""
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
    """A listening socket that outlives the API processes: while one is started again, connections wait in it.

    Raises ConfigurationError if nobody can listen there, before anything is started.
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
            f"Cannot listen on {host}:{port} ({error.strerror}). Choose another with --port."
        ) from error
    return listening
