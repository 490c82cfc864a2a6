"""The server's life: create the cluster, start the server, wait until it answers, stop it.

Callers hold the start lock.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import tempfile
import time
from pathlib import Path

import psutil
import psycopg
from psycopg.pq import PGconn, Ping

from hiresfix.errors import ConfigurationError, Unavailable
from hiresfix.server.database.embedded import programs
from hiresfix.server.database.embedded.cluster import SOCKET, Cluster
from hiresfix.server.database.embedded.constants import MAJOR_VERSION, NAME, POLL_SECONDS, USE_OWN_SERVER

STOP_SECONDS = 60.0
MAX_PAUSE_SECONDS = 1.0
MAX_LOG_AGE_SECONDS = 6 * 86_400
MAX_LOG_BYTES = 10 * 1024 * 1024


def bring_up(cluster: Cluster, deadline: float) -> None:
    """Return when the server answers and the database exists; create, start or wait for them as needed.

    Raises Unavailable when it is not ready at `deadline`, ConfigurationError when the server cannot start.
    """
    if cluster.data.exists():
        _check_version(cluster)
    else:
        _initialise(cluster, programs.provide(cluster))
    started: int | None = None
    pause = POLL_SECONDS
    while (problem := _connection_problem(cluster)) is not None:
        if time.monotonic() >= deadline:
            raise Unavailable(
                f"The embedded PostgreSQL did not get ready in time; a recovery goes on, so try again later. "
                f"It says: {problem}\nIts logs in {cluster.folder} end with:\n{_log_tail(cluster)}"
            )
        if not _is_alive(cluster, started):
            if started is not None and not _has_orphans(cluster):
                raise ConfigurationError(
                    f"The embedded PostgreSQL did not start. Correct what it says, or {USE_OWN_SERVER}. "
                    f"Its logs in {cluster.folder} end with:\n{_log_tail(cluster)}"
                )
            started = _start(cluster, programs.provide(cluster))
        time.sleep(pause)
        pause = min(2 * pause, MAX_PAUSE_SECONDS)  # each attempt to connect leaves a line in the log


def stop(cluster: Cluster) -> None:
    """Shut down fast; without a checkpoint if that takes too long. The next start then recovers."""
    server = _postmaster(cluster)
    if server is None:
        return
    for number, seconds in ((signal.SIGINT, STOP_SECONDS), (signal.SIGQUIT, 10.0)):
        deadline = time.monotonic() + seconds
        with contextlib.suppress(psutil.NoSuchProcess):
            server.send_signal(number)
        while time.monotonic() < deadline:
            if not server.is_running() or _living_process(server.pid) is None:
                return
            time.sleep(POLL_SECONDS)


# Create and start -------------------------------------------------------------------------------------------------


def _check_version(cluster: Cluster) -> None:
    try:
        version = (cluster.data / "PG_VERSION").read_text().strip()
    except FileNotFoundError:
        raise ConfigurationError(f"{cluster.data} holds no data of PostgreSQL. Move it out of the way.") from None
    if version != str(MAJOR_VERSION):
        raise ConfigurationError(
            f"{cluster.data} holds data of PostgreSQL {version}, but PostgreSQL {MAJOR_VERSION} is installed. Dump the "
            f"database with the release of hiresfix that wrote it and restore it into a new HIRESFIX_HOME, or "
            f"{USE_OWN_SERVER}."
        )


def _initialise(cluster: Cluster, bin_folder: Path) -> None:
    """Create the cluster beside its place, then rename it: a process that dies half-way leaves no half cluster."""
    for leftover in cluster.folder.glob("data-new.*"):
        shutil.rmtree(leftover, ignore_errors=True)
    # Always a new name: an initdb that outlived its killed parent must not write into ours.
    new = Path(tempfile.mkdtemp(prefix="data-new.", dir=cluster.folder))
    if os.geteuid() == 0:
        os.chown(new, cluster.uid, cluster.gid, follow_symlinks=False)
    options = ["--encoding=UTF8", "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
    options += ["--data-checksums", f"--username={NAME}", "--auth-local=trust", "--auth-host=reject"]
    process = cluster.run([bin_folder / "initdb", "--pgdata", new, "--no-instructions", *options])
    if process.returncode:
        shutil.rmtree(new, ignore_errors=True)
        output = process.stderr.decode(errors="replace").strip()
        raise ConfigurationError(
            f"The embedded PostgreSQL could not create its data in {cluster.folder}. Correct what it says, choose "
            f"another folder with HIRESFIX_HOME, or {USE_OWN_SERVER}. It said:\n{output}"
        )
    new.rename(cluster.data)
    folder = os.open(cluster.folder, os.O_RDONLY)
    try:
        os.fsync(folder)  # or a power failure could undo the rename after the first commits
    finally:
        os.close(folder)


def _start(cluster: Cluster, bin_folder: Path) -> int:
    """Start the server as nobody's child in a session of its own; return its process id. No other may be alive."""
    cluster.make_private(cluster.socket_folder)
    cluster.make_private(cluster.log)
    _delete_stale_files(cluster)
    _delete_old_logs(cluster)
    options = [part for name, value in _settings(cluster).items() for part in ("-c", f"{name}={value}")]
    # The shell leaves the server to init, which reaps it, and passes the arguments on without reading them.
    orphan = ["/bin/sh", "-c", '"$@" >&2 & echo "$!"', "sh"]
    cluster.startup_log.unlink(missing_ok=True)
    with cluster.startup_log.open("xb") as log:
        process = cluster.run([*orphan, bin_folder / "postgres", "-D", cluster.data, *options], stderr=log)
    return int(process.stdout)


def _settings(cluster: Cluster) -> dict[str, str]:
    inside = cluster.socket_folder == cluster.data
    return {
        "listen_addresses": "",
        "port": "5432",
        "unix_socket_directories": "." if inside else str(cluster.socket_folder),  # relative to the data
        "unix_socket_permissions": "0700",
        "max_connections": "200",
        "hot_standby": "off",  # every connection can write, also after an operator restored an archive
        "fsync": "on",
        "synchronous_commit": "on",
        "timezone": "UTC",
        "log_timezone": "UTC",
        "log_min_duration_statement": "-1",
        "logging_collector": "on",
        "log_directory": str(cluster.log),
        "log_filename": "postgres-%a.log",
        "log_rotation_age": "1d",
        "log_truncate_on_rotation": "on",
        "log_rotation_size": "0",  # it would only reopen the same file; _delete_old_logs bounds the size
    }


def _delete_stale_files(cluster: Cluster) -> None:
    """Delete a dead server's files: PostgreSQL would take any process with its id for that server and refuse."""
    for path in (
        cluster.data / "postmaster.pid",
        cluster.socket_folder / f"{SOCKET}.lock",
        cluster.socket_folder / SOCKET,
    ):
        path.unlink(missing_ok=True)


def _delete_old_logs(cluster: Cluster) -> None:
    """Delete old and huge logs: the server empties a weekday's log only if it runs at midnight."""
    for path in cluster.log.glob("postgres-*.log"):
        status = path.lstat()
        if time.time() - status.st_mtime > MAX_LOG_AGE_SECONDS or status.st_size > MAX_LOG_BYTES:
            path.unlink(missing_ok=True)


# Observe ----------------------------------------------------------------------------------------------------------


def _connection_problem(cluster: Cluster) -> str | None:
    """Return why the server accepts no connection; None if it does. Creates the database the first time."""
    if not cluster.is_private(cluster.socket_folder):
        return f"the folder of its socket, {cluster.socket_folder}, is missing or not private"
    try:
        with psycopg.connect(cluster.url("postgres"), autocommit=True, connect_timeout=5) as connection:
            if connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [NAME]).fetchone() is None:
                connection.execute(f"CREATE DATABASE {NAME}")
    except psycopg.OperationalError as error:
        return str(error).strip()
    return None


def _is_alive(cluster: Cluster, started: int | None) -> bool:
    """Return whether any server works on the data: a silent one, or one that answers, if only "starting up"."""
    if (started is not None and _living_process(started) is not None) or _postmaster(cluster) is not None:
        return True
    if not cluster.is_private(cluster.socket_folder):
        return False
    # The server may be a process that we cannot see: in another container that shares the volume.
    answer = PGconn.ping(f"{cluster.url('postgres')}&connect_timeout=5".encode())
    return answer in (Ping.OK, Ping.REJECT)


def _living_process(pid: int) -> psutil.Process | None:
    """Return the process with that id, unless it is a zombie."""
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process
    except (psutil.NoSuchProcess, ValueError):
        return None


def _postmaster(cluster: Cluster) -> psutil.Process | None:
    """Return the living server that postmaster.pid names; None if another program has that id now."""
    try:
        process = _living_process(int((cluster.data / "postmaster.pid").read_bytes().split(b"\n")[0]))
        if process is None or process.name() != "postgres" or process.uids().real != cluster.uid:
            return None
        return process if _works_on(process, cluster.data) else None
    except (FileNotFoundError, ValueError, OverflowError, psutil.NoSuchProcess):
        return None


def _works_on(process: psutil.Process, data: Path) -> bool:
    try:
        return Path(process.cwd()).samefile(data)
    except (psutil.AccessDenied, FileNotFoundError):  # root in a container may not inspect others' processes
        return str(data) in process.cmdline()


def _has_orphans(cluster: Cluster) -> bool:
    """Return whether the start failed only because processes of a killed server have not ended yet."""
    return b"pre-existing shared memory block" in cluster.startup_log.read_bytes()


def _log_tail(cluster: Cluster) -> str:
    logs = [path for path in cluster.log.glob("postgres-*.log") if path.is_file() and not path.is_symlink()]
    newest = sorted(logs, key=lambda path: path.stat().st_mtime)[-1:]
    tail: list[str] = []
    for path in (cluster.startup_log, *newest):
        with contextlib.suppress(FileNotFoundError):
            lines = path.read_bytes()[-8192:].decode(errors="replace").splitlines()
            # Without the answers to our own connection attempts during a long start.
            tail += [line for line in lines if "FATAL:  the database system is" not in line][-10:]
    return "\n".join(tail)
