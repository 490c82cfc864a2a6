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
from hiresfix.server.http.rate_limit import Counters, Limiter, Quota
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
async def limiter(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Limiter]:
    monkeypatch.setattr(rate_limit, "PATIENCE_SECONDS", 10.0)  # a busy machine is not what these tests are about
    url = request.getfixturevalue("redis").url if request.param == "redis" else None
    opened = Limiter(url)
    yield opened
    await opened.aclose()


async def test_so_many_are_allowed_and_no_more(limiter: Limiter) -> None:
    standings = [await limiter.take(TWO, "a") for _ in range(4)]
    assert [standing.allowed for standing in standings] == [True, True, False, False]
    assert [standing.remaining for standing in standings] == [1, 0, 0, 0]


async def test_callers_and_names_are_counted_apart(limiter: Limiter) -> None:
    other = Quota(name="other", amount=2, seconds=60)
    for quota, who in ((TWO, "a"), (TWO, "b"), (other, "a")):
        assert (await limiter.take(quota, who)).remaining == 1


async def test_after_the_time_it_names_a_refused_caller_is_allowed(limiter: Limiter) -> None:
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


async def test_a_burst_at_the_same_moment_gets_exactly_the_quota(limiter: Limiter) -> None:
    quota = Quota(name="burst", amount=7)
    standings = await asyncio.gather(*(limiter.take(quota, "a") for _ in range(20)))
    assert sum(standing.allowed for standing in standings) == 7


@pytest.mark.parametrize(("next_at", "wait"), [(100.0, 1), (99.0, 1), (101.0, 1), (101.2, 2), (160.0, 60)])
def test_the_wait_is_whole_seconds_rounded_up_and_at_least_one(next_at: float, wait: int) -> None:
    standing = rate_limit.Standing(quota=TWO, allowed=False, remaining=0, next_at=next_at)
    assert standing.seconds_to_wait(100.0) == wait


async def test_two_processes_with_one_redis_count_together(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rate_limit, "PATIENCE_SECONDS", 10.0)
    one, other = Limiter(redis.url), Limiter(redis.url)
    assert (await one.take(TWO, "a")).remaining == 1
    assert (await other.take(TWO, "a")).remaining == 0
    assert not (await one.take(TWO, "a")).allowed
    await one.aclose()
    await other.aclose()


async def test_without_redis_each_counts_for_itself_and_says_so_once() -> None:
    limiter = Limiter(f"redis://127.0.0.1:{free_port()}/0")
    with capture_logs() as logs:
        standings = [await limiter.take(TWO, "a") for _ in range(3)]
    assert [standing.allowed for standing in standings] == [True, True, False]
    assert [line["event"] for line in logs] == ["limiter.away"]
    await limiter.aclose()


async def test_a_redis_that_hangs_holds_up_one_request_for_a_moment(redis: Redis) -> None:
    limiter = Limiter(redis.url)
    await limiter.take(TWO, "a")
    redis.process.send_signal(signal.SIGSTOP)
    started = time.monotonic()
    for _ in range(20):
        await limiter.take(Quota(name="many", amount=100), "a")
    # Twenty waits would be five seconds; the margin is for a busy machine.
    assert time.monotonic() - started < 10 * rate_limit.PATIENCE_SECONDS
    redis.process.send_signal(signal.SIGCONT)
    await limiter.aclose()


async def test_when_redis_is_back_it_counts_again(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rate_limit, "PAUSE_SECONDS", 0.1)
    monkeypatch.setattr(rate_limit, "PATIENCE_SECONDS", 10.0)
    limiter = Limiter(redis.url)
    await limiter.take(TWO, "a")
    redis.stop()
    with capture_logs() as logs:
        assert (await limiter.take(TWO, "a")).remaining == 1  # of its own counter
        redis.start_again()
        await asyncio.sleep(0.2)
        assert (await limiter.take(TWO, "a")).remaining == 1  # of Redis, which forgot
        assert (await limiter.take(TWO, "a")).remaining == 0
    assert [line["event"] for line in logs] == ["limiter.away", "limiter.back"]
    await limiter.aclose()


async def test_nobody_waits_for_threads_to_be_counted() -> None:
    limiter = Limiter()
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


def test_who_stopped_asking_is_forgotten() -> None:
    counters = Counters()
    for at in range(1000):
        counters.take(TWO, f"address {at}", now=float(at))
    counters.take(Quota(name="other", amount=1), "address 0", now=0.0)
    assert len(counters) == 62  # seen in the last minute, its first second included, and another quota's


def test_the_window_moves_and_a_refusal_is_not_counted() -> None:
    counters = Counters()
    taken = [counters.take(TWO, "a", now=at) for at in (0.0, 50.0, 59.0, 61.0, 62.0)]
    assert [standing.allowed for standing in taken] == [True, True, False, True, False]
    assert [standing.remaining for standing in taken] == [1, 0, 0, 0, 0]
    assert [standing.next_at for standing in taken] == [60.0, 60.0, 60.0, 110.0, 110.0]
