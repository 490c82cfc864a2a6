"""Rate limits: at most N requests in any minute, counted in this process or, for several API nodes, in one Redis.

A moving window, so the quota holds for any 60 seconds; a refused request is not counted; the time until the next one is
allowed is exact. While Redis is unavailable each process counts for itself: nobody is refused because of that, nobody
waits longer than `REDIS_TIMEOUT_SECONDS`, and only one request per `REDIS_PAUSE_SECONDS` waits at all. Knows no
accounts and no HTTP: client and purpose are just names.
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

REDIS_TIMEOUT_SECONDS = 0.25
"""How long a request waits for Redis; usually Redis answers in a thousandth of that."""
REDIS_PAUSE_SECONDS = 5.0
"""How long Redis is not asked again after it did not answer."""
MAX_REDIS_CONNECTIONS = 20
PREFIX = "hiresfix"
_OUTAGE_ERRORS = (RedisError, TimeoutError, OSError)


@dataclass(frozen=True, slots=True, kw_only=True)
class Quota:
    """`amount` requests in any `seconds` for each client; quotas with different names are counted separately."""

    name: str
    amount: int
    seconds: int = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class QuotaStatus:
    """A client's quota after a request: whether it was allowed, how many remain, and when one more is allowed."""

    quota: Quota
    allowed: bool
    remaining: int
    next_at: float
    """Unix time at which the oldest counted request leaves the window."""

    def seconds_to_wait(self, now: float) -> int:
        """Return the whole seconds after which a refused request is allowed, at least 1."""
        return max(1, math.ceil(self.next_at - now))


class MemoryCounters:
    """Counts requests in this process, by the times of each client's counted requests.

    Never waits: the library's in-memory store cleans up on threads, and every request had to wait while those were busy
    decoding images. Holds only clients that were counted within the window.
    """

    def __init__(self) -> None:
        # By the quota's name and the client, in the order in which clients were counted last.
        self._counted: defaultdict[str, dict[str, deque[float]]] = defaultdict(dict)

    def take(self, quota: Quota, client: str, *, now: float) -> QuotaStatus:
        """Count one request of `client` at `now` (Unix time) if the quota allows it."""
        clients = self._counted[quota.name]
        self._forget(clients, until=now - quota.seconds)
        times = clients.get(client) or deque()
        while times and times[0] < now - quota.seconds:
            times.popleft()
        if allowed := len(times) < quota.amount:
            times.append(now)
            clients.pop(client, None)
            clients[client] = times
        return QuotaStatus(
            quota=quota, allowed=allowed, remaining=quota.amount - len(times), next_at=times[0] + quota.seconds
        )

    @staticmethod
    def _forget(clients: dict[str, deque[float]], *, until: float) -> None:
        while clients and clients[first := next(iter(clients))][-1] < until:
            del clients[first]

    def __len__(self) -> int:
        """Return the number of clients held."""
        return sum(map(len, self._counted.values()))


class RateLimiter:
    """Counts requests in memory or, with `redis_url`, together with all processes that use the same Redis."""

    def __init__(self, redis_url: str | None = None) -> None:
        self._local = MemoryCounters()
        self._pool: BlockingConnectionPool | None = None
        self._shared: MovingWindowRateLimiter | None = None
        self._retry_at = 0.0  # monotonic; 0: Redis answered the last time
        if redis_url:
            self._pool = BlockingConnectionPool.from_url(
                redis_url,
                max_connections=MAX_REDIS_CONNECTIONS,
                timeout=REDIS_TIMEOUT_SECONDS,
                socket_timeout=REDIS_TIMEOUT_SECONDS,
                socket_connect_timeout=REDIS_TIMEOUT_SECONDS,
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
        """Close the connections to Redis."""
        if self._pool:
            await self._pool.aclose()

    async def take(self, quota: Quota, client: str) -> QuotaStatus:
        """Count one request of `client` if the quota allows it."""
        if self._shared and time.monotonic() >= self._retry_at:
            was_unavailable = self._retry_at > 0
            if was_unavailable:  # other requests do not wait meanwhile
                self._retry_at = time.monotonic() + REDIS_PAUSE_SECONDS
            try:
                async with asyncio.timeout(REDIS_TIMEOUT_SECONDS):
                    status = await _take(self._shared, quota, client)
            except _OUTAGE_ERRORS as error:
                self._retry_at = time.monotonic() + REDIS_PAUSE_SECONDS
                log.warning("rate_limit.redis_unavailable", reason=type(error).__name__)
            else:
                if was_unavailable:
                    self._retry_at = 0.0
                    log.info("rate_limit.redis_recovered")
                return status
        return self._local.take(quota, client, now=time.time())


async def _take(limiter: MovingWindowRateLimiter, quota: Quota, client: str) -> QuotaStatus:
    item = RateLimitItemPerSecond(quota.amount, quota.seconds, namespace=PREFIX)
    allowed = await limiter.hit(item, quota.name, client)
    window = await limiter.get_window_stats(item, quota.name, client)
    return QuotaStatus(quota=quota, allowed=allowed, remaining=max(0, window.remaining), next_at=window.reset_time)


class Bucket(StrEnum):
    """Quota a request is counted in. Job polling has its own: published clients crash on an error in a poll."""

    GENERAL = "general"
    JOB_POLLING = "job-polling"
    SUBMISSIONS = "submissions"
    UPLOADS = "uploads"
    FAILED_AUTH = "failed-auth"
    SIGN_UP = "sign-up"


def quotas(settings: Settings) -> Mapping[Bucket, Quota]:
    """Return the quotas per minute."""
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
    """Return the group that counts as one address: an IPv6 /64 network, or an IPv4 address in its usual form."""
    try:
        address = ipaddress.ip_address(host or "")
    except ValueError:
        return "unknown"  # a Unix socket or an invalid value from a proxy: counted together
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    return str(address.ipv4_mapped or ipaddress.ip_network((int(address), 64), strict=False))
