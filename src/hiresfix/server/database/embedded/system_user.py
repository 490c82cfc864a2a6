"""The system user that runs PostgreSQL when hiresfix runs as root: find it, or create it once.

Only one process at a time creates it. `useradd` checks the name before it takes the lock of /etc/passwd, so of two that
run at once the second replaces the first's entry with another user id, and a server started in between loses its user.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path

from hiresfix.errors import ConfigurationError
from hiresfix.server.database.embedded import locks
from hiresfix.server.database.embedded.constants import NAME, USE_OWN_SERVER

if sys.platform != "win32":
    import pwd

USERADD_PATH = "/usr/sbin:/sbin:/usr/bin:/bin"
USERADD_TRIES = 10
LOCK_FOLDERS = (Path("/run"), Path("/var/lib"), Path("/etc"))
"""Where the lock file may go, best first. Only root can write there, so nobody else can hold or replace the lock."""
LOCK_NAME = "hiresfix-useradd.lock"
LOCK_SECONDS = 60.0


def system_user() -> tuple[int, int]:
    """Return user and group id of the system user `hiresfix`, which is created if missing. Only root may call this."""
    if (ids := _look_up()) is not None:
        return ids
    busy = f"Another process has been creating the system user {NAME} for long; try again."
    with locks.exclusive(_open_lock(), time.monotonic() + LOCK_SECONDS, busy=busy):
        return _look_up() or _create()


def _look_up() -> tuple[int, int] | None:
    try:
        entry = pwd.getpwnam(NAME)
    except KeyError:
        return None
    return entry.pw_uid, entry.pw_gid


def _create() -> tuple[int, int]:
    problem = "useradd is not installed"
    program = shutil.which("useradd", path=USERADD_PATH)
    for _ in range(USERADD_TRIES if program else 0):
        process = subprocess.run(
            [str(program), "--system", "--no-create-home", "--user-group", "--shell", "/usr/sbin/nologin", NAME],
            capture_output=True,
            text=True,
            check=False,
        )
        if (ids := _look_up()) is not None:
            return ids
        problem = process.stderr.strip()
        time.sleep(0.2)  # another program may hold the lock of /etc/passwd
    raise _not_created(problem)


def _open_lock() -> int:
    problem = "no folder for a lock file"
    for folder in LOCK_FOLDERS:
        try:
            return locks.open_lock(folder / LOCK_NAME)
        except OSError as error:
            problem = str(error)
    raise _not_created(problem)


def _not_created(problem: str) -> ConfigurationError:
    return ConfigurationError(
        f"PostgreSQL refuses to run as root, and the system user {NAME} could not be created ({problem}). "
        f"Create it, run hiresfix as an ordinary user, or {USE_OWN_SERVER}."
    )
