"""Data directory of this installation. Imports nothing of hiresfix, so every module can use it."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def home() -> Path:
    """Return `HIRESFIX_HOME` or the default directory; it may not exist yet."""
    directory = os.environ.get("HIRESFIX_HOME")
    return Path(directory) if directory else default_home()


def default_home() -> Path:
    """Return the data directory that is used when `HIRESFIX_HOME` is not set.

    For root it is /var/lib/hiresfix: the embedded PostgreSQL refuses to run as root, and the system user it runs as
    cannot read /root. For other users it is the XDG data directory (on macOS: Application Support).
    """
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        return Path("/var/lib/hiresfix")
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "hiresfix"
    data = os.environ.get("XDG_DATA_HOME")
    return (Path(data) if data else Path.home() / ".local" / "share") / "hiresfix"
