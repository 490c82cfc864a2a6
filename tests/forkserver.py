"""Start `hiresfix` processes by forking one that has the heavy imports done; importing torch anew takes seconds.

`python -m tests.forkserver` listens on the Unix socket it inherits as standard input. A client sends one message per
process: JSON of `arguments`, `environment` and `folder`, with the descriptors that become standard output and standard
error.
The server answers on the same connection with the process id, and with its exit code once it has ended.
The forked process runs the same code as `python -m hiresfix ARGUMENTS`, ends the same way and can be killed the same
way; only its imports are shared.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import gc
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import psutil

from tests import ROOT

_MESSAGE_BYTES = 1 << 20


class ForkedProcess:
    """A process of the fork server, with the part of `subprocess.Popen` that tests use."""

    def __init__(self, connection: socket.socket, pid: int, arguments: list[str]) -> None:
        self.pid = pid
        self.args = ["hiresfix", *arguments]
        self.returncode: int | None = None
        self._connection = connection

    def poll(self) -> int | None:
        """Return the exit code, negative for a signal; None while the process runs."""
        return self._read(0)

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end; raise `subprocess.TimeoutExpired` after `timeout` seconds."""
        code = self._read(timeout)
        if code is None:
            raise subprocess.TimeoutExpired("hiresfix", timeout or 0)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _read(self, timeout: float | None) -> int | None:
        if self.returncode is None and select.select([self._connection], [], [], timeout)[0]:
            self.returncode = int(self._connection.recv(64))
            self._connection.close()
        return self.returncode


def start(
    arguments: list[str],
    *,
    environment: Mapping[str, str],
    folder: Path | None,
    output: IO[bytes],
    errors: IO[bytes] | None = None,
) -> ForkedProcess:
    """Run `hiresfix ARGUMENTS` with exactly this environment, in `folder` or where the tests run.

    Standard error goes to `errors`, or where standard output goes.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.connect(_server_address())
    request = {"arguments": arguments, "environment": dict(environment), "folder": str(folder or Path.cwd())}
    socket.send_fds(connection, [json.dumps(request).encode()], [output.fileno(), (errors or output).fileno()])
    return ForkedProcess(connection, int(connection.recv(64)), arguments)


def run(arguments: list[str], *, folder: Path | None = None, timeout: float = 200) -> subprocess.CompletedProcess[str]:
    """Run `hiresfix ARGUMENTS` in the tests' environment to its end, as `subprocess.run` would."""
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        process = start(arguments, environment=os.environ, folder=folder, output=output, errors=errors)
        try:
            code = process.wait(timeout)
        finally:
            process.kill()
        for file in (output, errors):
            file.seek(0)
        return subprocess.CompletedProcess(process.args, code, output.read().decode(), errors.read().decode())


@functools.cache
def _server_address() -> str:
    """Address of this test run's server; the first test process that asks starts it for all."""
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID")
    owner = os.getppid() if run else os.getpid()
    address = Path(tempfile.gettempdir()) / f"hiresfix-forkserver-{run or owner}"
    with address.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not address.exists():
            listening = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            listening.bind(str(address))
            listening.listen(64)
            command = [sys.executable, "-m", "tests.forkserver", str(owner)]
            with listening:  # in a session of its own: Ctrl-C is for the tests
                redirect = [(os.POSIX_SPAWN_DUP2, listening.fileno(), 0)]
                environment = {
                    **os.environ,
                    "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
                }
                os.posix_spawn(sys.executable, command, environment, file_actions=redirect, setsid=True)
    return str(address)


def _preload() -> None:
    """Import what a worker and an API process import; nothing here starts a thread or reads a setting."""

    import hiresfix.cli
    import hiresfix.server.app
    import hiresfix.server.worker.process  # noqa: F401

    gc.collect()
    gc.freeze()  # or each child's collector would copy the pages of everything that is imported


def _serve(listening: socket.socket, owner: int) -> list[str]:
    """Fork for each request and report exit codes; return, in a forked process, with its arguments.

    Ends with the process `owner`, the one that runs the tests.
    """
    address = Path(listening.getsockname())
    children: dict[int, socket.socket] = {}
    while True:
        if not psutil.pid_exists(owner):
            address.unlink(missing_ok=True)
            address.with_suffix(".lock").unlink(missing_ok=True)
            raise SystemExit
        if select.select([listening], [], [], 0.02)[0]:
            connection, _ = listening.accept()
            message, outputs, _, _ = socket.recv_fds(connection, _MESSAGE_BYTES, 2)
            pid = os.fork()
            if pid == 0:
                for inherited in (listening, connection, *children.values()):
                    inherited.close()
                return _become(json.loads(message), outputs)
            for output in outputs:
                os.close(output)
            children[pid] = connection
            connection.send(str(pid).encode())
        for pid, connection in list(children.items()):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                with contextlib.suppress(OSError), children.pop(pid):
                    connection.send(str(os.waitstatus_to_exitcode(status)).encode())


def _become(request: dict[str, Any], outputs: list[int]) -> list[str]:
    """Give this process the environment, folder and descriptors that were asked for; return its arguments."""
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    nothing = os.open(os.devnull, os.O_RDONLY)
    for target, source in enumerate((nothing, *outputs)):
        os.dup2(source, target)
        os.close(source)
    arguments: list[str] = request["arguments"]
    return arguments


if __name__ == "__main__":
    _preload()
    sys.argv = ["hiresfix", *_serve(socket.socket(fileno=os.dup(0)), owner=int(sys.argv[1]))]
    from hiresfix.cli import main

    main()
