"""Paths of one cluster, and the user that its server runs as."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from urllib.parse import quote

from hiresfix.errors import ConfigurationError
from hiresfix.server.database.embedded.constants import NAME, USE_OWN_SERVER
from hiresfix.server.database.embedded.system_user import system_user

SOCKET = ".s.PGSQL.5432"
# sun_path of sockaddr_un holds 108 bytes on Linux and 104 on macOS, including its final zero.
MAX_SOCKET_PATH = 103 if sys.platform == "darwin" else 107


def folder_of(home: Path) -> Path:
    """Return the folder of the embedded server of `home`; it need not exist."""
    return (home / "postgres").resolve()


def make_folder(home: Path) -> Path:
    """Create what is missing of `home/postgres`; as root, let the server's user pass through whatever the umask."""
    folder = folder_of(home)
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    for path in reversed(missing):
        with contextlib.suppress(FileExistsError):  # another process was faster
            path.mkdir()
            path.chmod(0o711 if os.geteuid() == 0 else 0o700)
    return folder


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """A cluster's folder, and user and group id of its server."""

    folder: Path
    uid: int
    gid: int

    @classmethod
    def of(cls, folder: Path) -> Cluster:
        """Choose the user: ourselves or, as root, the owner of existing data; a volume may bring other user ids."""
        if os.geteuid() != 0:
            return cls(folder=folder, uid=os.geteuid(), gid=os.getegid())
        try:
            owner = (folder / "data").stat()
        except FileNotFoundError:
            uid, gid = system_user()
            return cls(folder=folder, uid=uid, gid=gid)
        if owner.st_uid == 0:
            raise ConfigurationError(
                f"{folder / 'data'} belongs to root, but PostgreSQL refuses to run as root. "
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
        """Folder of the server's socket: `data` or, if that path is too long, a folder in /tmp.

        It depends on path, user and data alone: processes with different environments must agree on it. A server
        deletes its socket even if its data was removed meanwhile, so another cluster, such as one created later at the
        same path, must never share the folder. The inode of `data` sees to that: it is not reused while a server works
        in it.
        """
        # libpq reads a comma as the separator of two hosts.
        if len(os.fsencode(self.data / SOCKET)) <= MAX_SOCKET_PATH and "," not in str(self.data):
            return self.data
        identity = os.fsencode(self.data) + str(self.data.stat().st_ino).encode()
        digest = hashlib.sha256(identity).hexdigest()[:16]
        return Path("/tmp") / f"{NAME}-{self.uid}-{digest}"  # noqa: S108 - make_private checks owner and mode

    def url(self, database: str) -> str:
        """Return the URL of a database, over the socket."""
        host = quote(os.fsencode(self.socket_folder), safe="")
        return f"postgresql://{NAME}@/{database}?host={host}&port=5432"

    def is_private(self, path: Path) -> bool:
        """Return whether `path` is a folder that only the server's user and root can enter.

        Anybody can create folders in /tmp.
        """
        try:
            status = path.lstat()
        except FileNotFoundError:
            return False
        return stat.S_ISDIR(status.st_mode) and status.st_uid == self.uid and not stat.S_IMODE(status.st_mode) & 0o077

    def make_private(self, path: Path) -> None:
        """Create `path` as a 0700 folder of the server's user.

        Raises ConfigurationError if it exists and is something else.
        """
        with contextlib.suppress(FileExistsError):
            path.mkdir(mode=0o700)
        if os.geteuid() == 0 and path.lstat().st_uid == 0:
            # Just created, or left like this by a process that was killed at this point.
            os.chown(path, self.uid, self.gid, follow_symlinks=False)
        if not self.is_private(path):
            raise ConfigurationError(
                f"{path} is not a private folder of the database's user. Give it owner {self.uid} and mode 0700, "
                f"choose another HIRESFIX_HOME with a short path, or {USE_OWN_SERVER}."
            )

    def run(
        self, command: Sequence[str | Path], *, stderr: int | IO[bytes] = subprocess.PIPE
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a command as the server's user, without our terminal's signals and our environment."""
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
                f"The database's programs cannot be started as user {self.uid} ({error.strerror}). "
                f"Run hiresfix as an ordinary user, or {USE_OWN_SERVER}."
            ) from error
