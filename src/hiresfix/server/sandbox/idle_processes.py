"""Idle decoding processes, kept for the next image of the same user: the sockets to them while nobody uses them.

A process that decoded one user's images is only used for that user again, and by one call at a time. At most
`MAX_IDLE_PROCESSES` wait for another image. This module does not end processes: a process exits when its socket is
closed, or after `process.IDLE_SECONDS` without an image.
"""

from __future__ import annotations

import select
import socket
import threading
import time
from dataclasses import dataclass
from uuid import UUID

from hiresfix.server.sandbox.process import IDLE_SECONDS

MAX_IDLE_PROCESSES = 64
"""Each takes about 3 MB of its own."""
_MAX_IDLE_SECONDS = IDLE_SECONDS / 2
"""Processes that waited longer may be about to exit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _IdleProcess:
    user: UUID
    connection: socket.socket
    since: float


class IdleProcesses:
    """Thread-safe pool of idle processes by user."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: list[_IdleProcess] = []  # least recently used first

    def take(self, user: UUID) -> socket.socket | None:
        """Remove and return the process that this user used last; None if there is none."""
        with self._lock:
            self._drop_old()
            for index in reversed(range(len(self._waiting))):
                if self._waiting[index].user == user:
                    connection = self._waiting.pop(index).connection
                    if _is_quiet(connection):
                        return connection
                    connection.close()
        return None

    def put(self, user: UUID, connection: socket.socket) -> None:
        """Keep the process for this user's next image."""
        with self._lock:
            self._waiting.append(_IdleProcess(user=user, connection=connection, since=time.monotonic()))
            self._drop_old()

    def close(self) -> None:
        """Close all sockets, which ends the processes."""
        with self._lock:
            for process in self._waiting:
                process.connection.close()
            self._waiting.clear()

    def _drop_old(self) -> None:
        oldest = time.monotonic() - _MAX_IDLE_SECONDS
        while self._waiting and (len(self._waiting) > MAX_IDLE_PROCESSES or self._waiting[0].since < oldest):
            self._waiting.pop(0).connection.close()


def _is_quiet(connection: socket.socket) -> bool:
    """Return whether the socket is quiet; pending data means that the process exited or misbehaves."""
    poll = select.poll()
    poll.register(connection, select.POLLIN)
    return not poll.poll(0)
