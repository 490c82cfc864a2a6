"""Where this installation keeps its data. Loads nothing, so that every part can ask."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def home() -> Path:
    """`HIRESFIX_HOME`, or the default; it need not exist yet."""
    given = os.environ.get("HIRESFIX_HOME")
    return Path(given) if given else default_home()


def default_home() -> Path:
    """Where data lives when `HIRESFIX_HOME` is not set.

    root: /var/lib/hiresfix, because the embedded PostgreSQL refuses to run as root and its own user cannot
    look into /root. Anyone else: the XDG data directory (macOS: Application Support).
    """
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        return Path("/var/lib/hiresfix")
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "hiresfix"
    data = os.environ.get("XDG_DATA_HOME")
    return (Path(data) if data else Path.home() / ".local" / "share") / "hiresfix"
