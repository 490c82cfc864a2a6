"""Decoding processes that stay for the next picture of the same person: the sockets to them, while nobody uses them.

Guarantees: a process that one person's pictures were decoded in is only ever handed to that person again, and to one
call at a time; of those that wait for another picture there are at most `MOST`. It does not end processes: one ends
by itself when its socket is closed, or when it was left alone for `decoder.STAY_SECONDS`.
"""

from __future__ import annotations

import select
import socket
import threading
import time
from dataclasses import dataclass
from uuid import UUID

from hiresfix.server.sandbox.process import STAY_SECONDS

MOST = 64
"""Processes that wait; each takes 3 MB or so of its own."""
_FRESH_SECONDS = STAY_SECONDS / 2
"""Older ones may be about to leave."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sitting:
    whose: UUID
    desk: socket.socket
    since: float


class Sittings:
    """For any number of threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: list[_Sitting] = []  # the one that was used longest ago comes first

    def take(self, whose: UUID) -> socket.socket | None:
        """The process that this person used last, for the caller alone; None if none waits."""
        with self._lock:
            self._drop_old()
            for at in reversed(range(len(self._waiting))):
                if self._waiting[at].whose == whose:
                    desk = self._waiting.pop(at).desk
                    if _is_silent(desk):
                        return desk
                    desk.close()
        return None

    def put(self, whose: UUID, desk: socket.socket) -> None:
        """It waits for this person's next picture."""
        with self._lock:
            self._waiting.append(_Sitting(whose=whose, desk=desk, since=time.monotonic()))
            self._drop_old()

    def close(self) -> None:
        """Send all of them home."""
        with self._lock:
            for sitting in self._waiting:
                sitting.desk.close()
            self._waiting.clear()

    def _drop_old(self) -> None:
        oldest = time.monotonic() - _FRESH_SECONDS
        while self._waiting and (len(self._waiting) > MOST or self._waiting[0].since < oldest):
            self._waiting.pop(0).desk.close()


def _is_silent(desk: socket.socket) -> bool:
    """Whether nothing came before anything was asked: word of the process's death, or of what it should not say."""
    news = select.poll()
    news.register(desk, select.POLLIN)
    return not news.poll(0)
