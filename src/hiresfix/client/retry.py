"""Retry policy of the clients: how often a call is tried again, and how long to wait in between. No I/O.

Pauses are random between zero and a limit that doubles with every attempt (full jitter), on top of what `Retry-After`
asks for. A server that asks for more than `RetryPolicy.longest_pause` is given up at once, and no attempt starts later
than `RetryPolicy.longest_call` after the first one.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from random import uniform
from typing import Self

from hiresfix.client.effects import Flow, Sleep
from hiresfix.errors import HiresfixError

RETRYABLE_STATUSES = frozenset({408, 425, 500, 502, 503, 504})
"""Statuses after which another attempt can help. 429 is retried always: it says that nothing was done."""
FIRST_PAUSE, MAX_BACKOFF = 0.5, 8.0
"""Seconds: limit of the first pause, and where the doubling stops."""


def _full_jitter(limit: float) -> float:
    return uniform(0.0, limit)  # noqa: S311  # spreads requests, guards nothing


def _random_key() -> str:
    return str(uuid.uuid4())


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """Retry policy of a client. Times are in seconds.

    Attributes:
        retries: attempts after the first one.
        longest_pause: the longest `Retry-After` to obey; a longer one ends the call at once.
        longest_call: how long after its first attempt a call may still be tried again.
        patience: how long a server may be unreachable while a job is waited for.
        inline_bytes: images up to this size are sent inside the submission, larger ones are uploaded first; 0 uploads
            all of them.
        clock: injectable for tests.
        jitter: injectable for tests; returns a number from 0 to its argument.
        new_key: injectable for tests; creates idempotency keys.
    """

    retries: int = 5
    longest_pause: float = 120.0
    longest_call: float = 900.0
    patience: float = 300.0
    inline_bytes: int = 192 * 1024
    clock: Callable[[], float] = time.monotonic
    jitter: Callable[[float], float] = _full_jitter
    new_key: Callable[[], str] = _random_key

    def pause(self, attempt: int, retry_after: float | None) -> float | None:
        """Return the pause after attempt number `attempt` (from 0); None if the server asks for too long a one."""
        if retry_after is not None and retry_after > self.longest_pause:
            return None
        return (retry_after or 0.0) + self.jitter(min(MAX_BACKOFF, FIRST_PAUSE * 2**attempt))


@dataclass(slots=True)
class Attempts:
    """Count of the failed attempts of one call, and when it started."""

    retry: RetryPolicy
    started: float
    failed: int = 0

    @classmethod
    def start(cls, retry: RetryPolicy) -> Self:
        return cls(retry, retry.clock())

    def restart(self) -> None:
        """Forget earlier failures, after progress was made."""
        self.started, self.failed = self.retry.clock(), 0

    def backoff(self, error: HiresfixError, *, retryable: bool, retry_after: float | None) -> Flow[None]:
        """Sleep until the next attempt. Raises `error` if there must not be one."""
        pause = self.retry.pause(self.failed, retry_after)
        if not retryable or self.failed >= self.retry.retries or pause is None:
            raise error
        if self.retry.clock() + pause - self.started > self.retry.longest_call:
            raise error
        self.failed += 1
        yield Sleep(seconds=pause)
