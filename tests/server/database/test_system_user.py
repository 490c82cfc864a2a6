"""Creating the system user: only one process runs `useradd`, and the others find its user."""

from __future__ import annotations

import pwd
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from hiresfix.errors import ConfigurationError
from hiresfix.server.database.embedded import system_user

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no system users")

CREATE = """
import pwd, sys
from pathlib import Path
from hiresfix.server.database.embedded import system_user

folder = Path(sys.argv[1])

def getpwnam(name):
    file = folder / "passwd"
    ids = [line.split(":") for line in file.read_text().splitlines()] if file.exists() else []
    if not ids:
        raise KeyError(name)
    return pwd.struct_passwd((name, "x", int(ids[-1][1]), int(ids[-1][1]), "", "/", ""))

system_user.pwd.getpwnam = getpwnam
system_user.LOCK_FOLDERS = (folder / "missing", folder)
system_user.USERADD_PATH = str(folder)
print("ready", flush=True)
sys.stdin.readline()
print(*system_user.system_user(), flush=True)
"""

SLOW_USERADD = """#!/bin/sh
# As shadow's: whether the name exists is checked before the entry is written. Each call has another user id.
[ -e {folder}/passwd ] && exit 9
sleep 1
echo "hiresfix:$$" >> {folder}/passwd
echo call >> {folder}/calls
"""


def fake_useradd(folder: Path, script: str) -> None:
    program = folder / "useradd"
    program.write_text(script.format(folder=folder))
    program.chmod(0o755)


def test_racing_processes_create_the_user_once(tmp_path: Path) -> None:
    fake_useradd(tmp_path, SLOW_USERADD)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", CREATE, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    with ThreadPoolExecutor() as pool:  # all at once
        outputs = list(pool.map(lambda process: process.communicate("\n", timeout=60)[0], processes))
    assert (tmp_path / "calls").read_text() == "call\n"
    assert len(set(outputs)) == 1
    assert [process.returncode for process in processes] == [0, 0, 0]


@pytest.fixture
def unknown_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Hide the system user, and install a `useradd` with this script."""

    def getpwnam(name: str) -> pwd.struct_passwd:
        raise KeyError(name)

    def install(script: str) -> None:
        monkeypatch.setattr(pwd, "getpwnam", getpwnam)
        monkeypatch.setattr(system_user, "LOCK_FOLDERS", (tmp_path,))
        monkeypatch.setattr(system_user, "USERADD_PATH", str(tmp_path))
        monkeypatch.setattr(system_user, "USERADD_TRIES", 2)
        if script:
            fake_useradd(tmp_path, script)

    return install


def test_failed_creation_shows_useradds_message(unknown_user: Callable[[str], None]) -> None:
    unknown_user("#!/bin/sh\necho 'no space left' >&2\nexit 1\n")
    with pytest.raises(ConfigurationError, match=r"could not be created \(no space left\).*HIRESFIX_DATABASE_URL"):
        system_user.system_user()


def test_missing_useradd_is_named(unknown_user: Callable[[str], None]) -> None:
    unknown_user("")
    with pytest.raises(ConfigurationError, match="useradd is not installed"):
        system_user.system_user()
