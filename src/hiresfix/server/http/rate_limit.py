"""Counting requests: so many in any minute, counted in this process or, for several API nodes, in one Redis.

Guarantees: a moving window, so no two halves of a minute add up to more than the quota; a refused request is not
counted; the time until the next one is allowed is exact. While Redis is away each process counts for itself: nobody
is refused for that, nobody waits longer than `PATIENCE_SECONDS`, and only one request in `PAUSE_SECONDS` waits at all.
It knows no accounts and no HTTP: who is counted, and what for, are names to it.
"""

from __future__ import annotations

import asyncio
import ipaddress
import math
import time
from collections import defaultdict, deque
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

import structlog
from limits import RateLimitItemPerSecond
from limits.aio.storage import RedisStorage
from limits.aio.strategies import MovingWindowRateLimiter
from redis.asyncio import BlockingConnectionPool
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from hiresfix.server.settings import Settings

log = structlog.get_logger(__name__)

PATIENCE_SECONDS = 0.25
"""How long a request waits for Redis: usually it answers within a thousandth of that."""
PAUSE_SECONDS = 5.0
"""How long Redis is left alone after it did not answer."""
CONNECTIONS = 20
PREFIX = "hiresfix"
_AWAY = (RedisError, TimeoutError, OSError)


@dataclass(frozen=True, slots=True, kw_only=True)
class Quota:
    """`amount` requests in any `seconds` for each caller; quotas of different names are counted apart."""

    name: str
    amount: int
    seconds: int = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """Where a caller stands after a request: was it allowed, how many more are, and when there is one more."""

    quota: Quota
    allowed: bool
    remaining: int
    next_at: float
    """Unix time at which the oldest counted request leaves the window."""

    def seconds_to_wait(self, now: float) -> int:
        """Whole seconds, rounded up, at least 1: after them a refused request is allowed."""
        return max(1, math.ceil(self.next_at - now))


class Counters:
    """Counting in this process, by when the requests were that a caller's quota was spent on.

    Waits for nothing: the library's store in memory tidies up on threads, and while those were busy decoding
    pictures every request waited for them. Holds who was counted within the window and nobody else.
    """

    def __init__(self) -> None:
        # By the quota's name and the caller, in the order in which callers were counted last.
        self._counted: defaultdict[str, dict[str, deque[float]]] = defaultdict(dict)

    def take(self, quota: Quota, who: str, *, now: float) -> Standing:
        """Count one request of `who` at `now` (Unix time) if the quota allows it."""
        callers = self._counted[quota.name]
        self._forget(callers, until=now - quota.seconds)
        times = callers.get(who) or deque()
        while times and times[0] < now - quota.seconds:
            times.popleft()
        if allowed := len(times) < quota.amount:
            times.append(now)
            callers.pop(who, None)
            callers[who] = times
        return Standing(
            quota=quota, allowed=allowed, remaining=quota.amount - len(times), next_at=times[0] + quota.seconds
        )

    @staticmethod
    def _forget(callers: dict[str, deque[float]], *, until: float) -> None:
        while callers and callers[first := next(iter(callers))][-1] < until:
            del callers[first]

    def __len__(self) -> int:
        """How many callers are held."""
        return sum(map(len, self._counted.values()))


class Limiter:
    """The counters of this process. `redis_url` None: in memory; else shared by all that use the same Redis."""

    def __init__(self, redis_url: str | None = None) -> None:
        self._own = Counters()
        self._pool: BlockingConnectionPool | None = None
        self._shared: MovingWindowRateLimiter | None = None
        self._ask_again = 0.0  # monotonic; 0: Redis answered the last time
        if redis_url:
            self._pool = BlockingConnectionPool.from_url(
                redis_url,
                max_connections=CONNECTIONS,
                timeout=PATIENCE_SECONDS,
                socket_timeout=PATIENCE_SECONDS,
                socket_connect_timeout=PATIENCE_SECONDS,
                retry=Retry(NoBackoff(), 1),  # a connection from before a restart of Redis fails once
            )
            storage = RedisStorage(
                redis_url,
                implementation="redispy",
                key_prefix=PREFIX,
                connection_pool=self._pool,  # type: ignore[arg-type] # documented, but not in its annotation
            )
            self._shared = MovingWindowRateLimiter(storage)

    async def aclose(self) -> None:
        if self._pool:
            await self._pool.aclose()

    async def take(self, quota: Quota, who: str) -> Standing:
        """Count one request of `who` if the quota allows it."""
        if self._shared and time.monotonic() >= self._ask_again:
            was_away = self._ask_again > 0
            if was_away:  # the others go on meanwhile
                self._ask_again = time.monotonic() + PAUSE_SECONDS
            try:
                async with asyncio.timeout(PATIENCE_SECONDS):
                    standing = await _take(self._shared, quota, who)
            except _AWAY as error:
                self._ask_again = time.monotonic() + PAUSE_SECONDS
                log.warning("limiter.away", reason=type(error).__name__)
            else:
                if was_away:
                    self._ask_again = 0.0
                    log.info("limiter.back")
                return standing
        return self._own.take(quota, who, now=time.time())


async def _take(limiter: MovingWindowRateLimiter, quota: Quota, who: str) -> Standing:
    item = RateLimitItemPerSecond(quota.amount, quota.seconds, namespace=PREFIX)
    allowed = await limiter.hit(item, quota.name, who)
    window = await limiter.get_window_stats(item, quota.name, who)
    return Standing(quota=quota, allowed=allowed, remaining=max(0, window.remaining), next_at=window.reset_time)


class Bucket(StrEnum):
    """What a request counts as. Job polling is apart: published loops crash on an error in place of a job."""

    GENERAL = "general"
    JOB_POLLING = "job-polling"
    SUBMISSIONS = "submissions"
    UPLOADS = "uploads"
    FAILED_AUTH = "failed-auth"
    SIGN_UP = "sign-up"


def quotas(settings: Settings) -> Mapping[Bucket, Quota]:
    """How many a minute of each."""
    amounts = {
        Bucket.GENERAL: settings.rate_general,
        Bucket.JOB_POLLING: settings.rate_job_polling,
        Bucket.SUBMISSIONS: settings.rate_submissions,
        Bucket.UPLOADS: settings.rate_uploads,
        Bucket.FAILED_AUTH: settings.rate_failed_auth,
        Bucket.SIGN_UP: settings.rate_signup,
    }
    return {bucket: Quota(name=bucket.value, amount=amount) for bucket, amount in amounts.items()}


def address_group(host: str | None) -> str:
    """What counts as one address: a subscriber's whole IPv6 network (/64), or one IPv4 address however written."""
    try:
        address = ipaddress.ip_address(host or "")
    except ValueError:
        return "unknown"  # a socket file, or nonsense from a proxy: all of those together
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    return str(address.ipv4_mapped or ipaddress.ip_network((int(address), 64), strict=False))
