"""The limiter on its own: in memory, in a real Redis, and without the Redis it was promised."""

from __future__ import annotations

import asyncio
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from structlog.testing import capture_logs

from hiresfix.server.http import rate_limit
from hiresfix.server.http.rate_limit import MemoryCounters, Quota, RateLimiter
from tests.server.conftest import free_port, wait_until

TWO = Quota(name="two", amount=2, seconds=60)


class Redis:
    """A real server, which tests freeze and kill."""

    def __init__(self) -> None:
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.process = self._started()

    def _started(self) -> subprocess.Popen[bytes]:
        command = ["redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--save", ""]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        wait_until(lambda: b"PONG" in self._ping())
        return process

    def _ping(self) -> bytes:
        import socket

        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(64)
        except OSError:
            return b""

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()

    def start_again(self) -> None:
        self.process = self._started()


@pytest.fixture
def redis() -> Iterator[Redis]:
    if not shutil.which("redis-server"):
        pytest.skip("redis-server is not installed: apt-get install redis-server")
    server = Redis()
    yield server
    server.stop()


@pytest.fixture(params=["memory", "redis"])
async def limiter(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[RateLimiter]:
    monkeypatch.setattr(rate_limit, "REDIS_TIMEOUT_SECONDS", 10.0)  # a busy machine is not what these tests are about
    url = request.getfixturevalue("redis").url if request.param == "redis" else None
    opened = RateLimiter(url)
    yield opened
    await opened.aclose()


async def test_quota_is_enforced(limiter: RateLimiter) -> None:
    standings = [await limiter.take(TWO, "a") for _ in range(4)]
    assert [standing.allowed for standing in standings] == [True, True, False, False]
    assert [standing.remaining for standing in standings] == [1, 0, 0, 0]


async def test_clients_and_quotas_count_separately(limiter: RateLimiter) -> None:
    other = Quota(name="other", amount=2, seconds=60)
    for quota, who in ((TWO, "a"), (TWO, "b"), (other, "a")):
        assert (await limiter.take(quota, who)).remaining == 1


async def test_refused_client_is_allowed_after_the_wait(limiter: RateLimiter) -> None:
    quota = Quota(name="short", amount=2, seconds=2)
    first = time.time()
    await limiter.take(quota, "a")
    await asyncio.sleep(0.5)
    await limiter.take(quota, "a")
    refused = await limiter.take(quota, "a")
    assert not refused.allowed
    assert refused.next_at == pytest.approx(first + 2, abs=0.4)  # when the first, not the second, is forgotten
    await asyncio.sleep(refused.seconds_to_wait(time.time()))
    assert (await limiter.take(quota, "a")).allowed


async def test_burst_gets_exactly_the_quota(limiter: RateLimiter) -> None:
    quota = Quota(name="burst", amount=7)
    standings = await asyncio.gather(*(limiter.take(quota, "a") for _ in range(20)))
    assert sum(standing.allowed for standing in standings) == 7


@pytest.mark.parametrize(("next_at", "wait"), [(100.0, 1), (99.0, 1), (101.0, 1), (101.2, 2), (160.0, 60)])
def test_wait_is_whole_seconds(next_at: float, wait: int) -> None:
    standing = rate_limit.QuotaStatus(quota=TWO, allowed=False, remaining=0, next_at=next_at)
    assert standing.seconds_to_wait(100.0) == wait


async def test_processes_share_counts_in_redis(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rate_limit, "REDIS_TIMEOUT_SECONDS", 10.0)
    one, other = RateLimiter(redis.url), RateLimiter(redis.url)
    assert (await one.take(TWO, "a")).remaining == 1
    assert (await other.take(TWO, "a")).remaining == 0
    assert not (await one.take(TWO, "a")).allowed
    await one.aclose()
    await other.aclose()


async def test_redis_outage_falls_back_to_memory() -> None:
    limiter = RateLimiter(f"redis://127.0.0.1:{free_port()}/0")
    with capture_logs() as logs:
        standings = [await limiter.take(TWO, "a") for _ in range(3)]
    assert [standing.allowed for standing in standings] == [True, True, False]
    assert [line["event"] for line in logs] == ["rate_limit.redis_unavailable"]
    await limiter.aclose()


async def test_hanging_redis_delays_one_request(redis: Redis) -> None:
    limiter = RateLimiter(redis.url)
    await limiter.take(TWO, "a")
    redis.process.send_signal(signal.SIGSTOP)
    started = time.monotonic()
    for _ in range(20):
        await limiter.take(Quota(name="many", amount=100), "a")
    # Twenty waits would be five seconds; the margin is for a busy machine.
    assert time.monotonic() - started < 10 * rate_limit.REDIS_TIMEOUT_SECONDS
    redis.process.send_signal(signal.SIGCONT)
    await limiter.aclose()


async def test_recovered_redis_counts_again(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rate_limit, "REDIS_PAUSE_SECONDS", 0.1)
    monkeypatch.setattr(rate_limit, "REDIS_TIMEOUT_SECONDS", 10.0)
    limiter = RateLimiter(redis.url)
    await limiter.take(TWO, "a")
    redis.stop()
    with capture_logs() as logs:
        assert (await limiter.take(TWO, "a")).remaining == 1  # of its own counter
        redis.start_again()
        await asyncio.sleep(0.2)
        assert (await limiter.take(TWO, "a")).remaining == 1  # of Redis, which forgot
        assert (await limiter.take(TWO, "a")).remaining == 0
    assert [line["event"] for line in logs] == ["rate_limit.redis_unavailable", "rate_limit.redis_recovered"]
    await limiter.aclose()


async def test_counting_needs_no_threads() -> None:
    limiter = RateLimiter()
    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(1) as threads:
        loop.set_default_executor(threads)
        done = threading.Event()
        busy = loop.run_in_executor(None, done.wait)
        async with asyncio.timeout(5):
            for _ in range(3):
                await limiter.take(TWO, "a")
                await asyncio.sleep(0.01)
        done.set()
        await busy


def test_idle_clients_are_forgotten() -> None:
    counters = MemoryCounters()
    for at in range(1000):
        counters.take(TWO, f"address {at}", now=float(at))
    counters.take(Quota(name="other", amount=1), "address 0", now=0.0)
    assert len(counters) == 62  # seen in the last minute, its first second included, and another quota's


def test_window_moves_and_refusals_do_not_count() -> None:
    counters = MemoryCounters()
    taken = [counters.take(TWO, "a", now=at) for at in (0.0, 50.0, 59.0, 61.0, 62.0)]
    assert [standing.allowed for standing in taken] == [True, True, False, True, False]
    assert [standing.remaining for standing in taken] == [1, 0, 0, 0, 0]
    assert [standing.next_at for standing in taken] == [60.0, 60.0, 60.0, 110.0, 110.0]
