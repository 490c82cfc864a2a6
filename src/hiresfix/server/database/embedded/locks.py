"""File locks between processes (flock). The kernel releases them when their process dies."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from hiresfix.errors import Unavailable
from hiresfix.server.database.embedded.constants import POLL_SECONDS

if sys.platform != "win32":
    import fcntl


def open_lock(path: Path) -> int:
    """Open a lock file, created if missing.

    Child processes do not inherit the descriptor, so none of them can hold the lock.
    """
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)


def try_exclusive(lock: int) -> bool:
    """Take the lock alone if nobody else holds it."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextlib.contextmanager
def exclusive(lock: int, deadline: float, *, busy: str) -> Iterator[None]:
    """Hold the lock alone for the block, and close the descriptor afterwards.

    Raises Unavailable with the text `busy` when it is not free at `deadline` (in time.monotonic() seconds).
    """
    try:
        while not try_exclusive(lock):
            if time.monotonic() >= deadline:
                raise Unavailable(busy)
            time.sleep(POLL_SECONDS)
        yield
        fcntl.flock(lock, fcntl.LOCK_UN)
    finally:
        os.close(lock)
