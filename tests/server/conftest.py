"""Fixtures of the server's tests: the API on a real port, a database behind it, and its first key."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx
import psycopg
import pytest
from fastapi import FastAPI

from hiresfix.server.accounts import authentication
from hiresfix.server.app import Server, create_app
from hiresfix.server.database.pool import Database, Tx
from hiresfix.server.database.task_queue import Queue
from hiresfix.server.settings import Settings
from hiresfix.server.storage import Storage
from tests.conftest import Site, png
from tests.server.job_steps import JobSteps, first_team

T = TypeVar("T")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path, allow_private_addresses=True)


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    async with Database(database_url, max_size=30) as opened:
        yield opened


@pytest.fixture
def queue(database_url: str) -> Queue:
    return Queue(database_url)


@pytest.fixture
def storage(settings: Settings) -> Storage:
    return Storage.open(settings.storage_location)


@pytest.fixture
async def steps(database: Database, queue: Queue) -> JobSteps:
    return await first_team(database, queue)


@dataclass(frozen=True, kw_only=True)
class Api:
    """A running API process's worth of server, in a thread, and what a test asks about it."""

    url: str
    key: str
    database_url: str
    settings: Settings
    app: FastAPI

    def client(self, **headers: str) -> httpx.Client:
        return httpx.Client(base_url=self.url, headers={"X-API-Key": self.key, **headers}, timeout=30)

    def submit(self, params: dict[str, Any], *, headers: dict[str, str] | None = None, **more: Any) -> httpx.Response:
        body = {"model": "clarity-upscale", "clarityUpscaleParams": params, **more}
        with self.client() as client:
            return client.post("/v2/images/upscale", json=body, headers=headers)

    def value(self, query: str, *args: Any) -> Any:
        with psycopg.connect(self.database_url) as connection:
            row = connection.execute(query.encode(), args or None).fetchone()
            return row[0] if row else None

    def do(self, query: str, *args: Any) -> None:
        with psycopg.connect(self.database_url) as connection:
            connection.execute(query.encode(), args or None)

    @property
    def balance(self) -> int:
        credits, entries = self.value("select credits from teams"), self.value("select sum(amount) from ledger")
        assert credits == entries
        return int(credits)

    @property
    def jobs(self) -> int:
        return int(self.value("select count(*) from jobs"))

    @property
    def files(self) -> list[str]:
        folder = self.settings.home / "files"
        return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())

    def assert_untouched(self) -> None:
        """Nothing charged, nothing queued, nothing left behind."""
        assert (self.balance, self.jobs, self.files) == (100, 0, [])
        assert self.value("select count(*) from procrastinate_jobs") == 0
        assert self.value("select count(*) from idempotency_keys") == 0


class PromptServer(Server):
    """Server that notices within milliseconds that it should exit; uvicorn looks ten times a second."""

    async def main_loop(self) -> None:
        counter = 0
        while not await self.on_tick(counter):
            counter = (counter + 1) % 864_000
            await asyncio.sleep(0.01)


@pytest.fixture
def start_api(database_url: str, settings: Settings) -> Iterator[Callable[..., Api]]:
    stops: list[Callable[[], None]] = []

    def start(**changes: Any) -> Api:
        port = free_port()
        url = f"http://127.0.0.1:{port}"
        changed = settings.model_copy(update={"public_url": url, **changes})
        key = asyncio.run(_bootstrap(database_url))
        app = create_app(changed, database_url=database_url)
        server = PromptServer(app, host="127.0.0.1", port=port)
        thread = threading.Thread(target=server.run)
        thread.start()
        wait_until(lambda: server.started)

        def stop() -> None:
            server.should_exit = True
            thread.join()

        stops.append(stop)
        return Api(url=url, key=key, database_url=database_url, settings=changed, app=app)

    yield start
    for stop in stops:
        stop()


@pytest.fixture
def api(start_api: Callable[..., Api]) -> Api:
    return start_api()


@pytest.fixture
def photo(site: Site) -> str:
    return site.add("/photo.png", png(24, 17))


async def _bootstrap(url: str) -> str:
    async with Database(url, max_size=1) as database, database.transaction() as tx:
        key = await authentication.bootstrap(tx, free_credits=100, key_name="test")
    assert key is not None
    return key


async def commit(database: Database, work: Callable[[Tx], Awaitable[T]]) -> T:
    async with database.transaction() as tx:
        return await work(tx)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(condition: Callable[[], object], *, seconds: float = 60) -> None:
    """Poll until the condition holds; fails the test if it does not come true."""
    import time

    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.05)
