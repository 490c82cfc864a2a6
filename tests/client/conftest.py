"""One suite for both clients: a blocking face on the asynchronous one, a server, and what comes between them."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import inspect
import json
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, TypeAlias, cast

import httpx
import psycopg
import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal

from hiresfix.client import AsyncClient, AsyncJobHandle, Client, Terms
from hiresfix.client.async_client import AsyncImages, AsyncJobs, AsyncUploads
from hiresfix.server.app import Server, create_app
from hiresfix.server.settings import Settings
from hiresfix.server.storage import Storage
from tests.conftest import own_database, png, reachable_folder
from tests.server.conftest import Api, _bootstrap, free_port, settings, start_api, wait_until

__all__ = ["settings", "start_api"]

Connect: TypeAlias = Callable[..., Client]

HASTY = Terms(jitter=lambda most: most / 100)
"""Pauses a hundredth as long, but for what a server asks for."""


class Awaited:
    """An asynchronous client, handle or the like, called as if it blocked."""

    def __init__(self, portal: BlockingPortal, target: object) -> None:
        self._portal, self._target = portal, target

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._target, name)
        if isinstance(found, AsyncImages | AsyncJobs | AsyncUploads):
            return Awaited(self._portal, found)
        return partial(self._call, found) if inspect.ismethod(found) else found

    def _call(self, method: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        async def call() -> Any:
            made = method(*arguments, **options)
            return await made if inspect.isawaitable(made) else made

        return self._shown(self._portal.call(call))

    def _shown(self, found: Any) -> Any:
        if inspect.isasyncgen(found):
            return self._each(found)
        return Awaited(self._portal, found) if isinstance(found, AsyncJobHandle) else found

    def _each(self, items: Any) -> Iterator[Any]:
        async def following() -> Any:
            return await anext(items)

        try:
            while True:
                try:
                    yield self._shown(self._portal.call(following))
                except StopAsyncIteration:
                    return
        finally:
            self._portal.call(items.aclose)


@pytest.fixture(params=["blocking", "awaited"])
def connect(request: pytest.FixtureRequest) -> Iterator[Connect]:
    """Makes a client; of the asynchronous one, a blocking face."""
    with contextlib.ExitStack() as stack:
        if request.param == "blocking":
            yield lambda **options: stack.enter_context(Client(**{"terms": HASTY, **options}))
            return
        portal = stack.enter_context(start_blocking_portal())

        def made(**options: Any) -> Client:
            client = portal.call(partial(_made, **{"terms": HASTY, **options}))
            stack.callback(portal.call, client.aclose)
            return cast("Client", Awaited(portal, client))

        yield made


async def _made(**options: Any) -> AsyncClient:
    return AsyncClient(**options)


@dataclass(frozen=True, kw_only=True)
class Town(Api):
    """A server that many tests share, and its worker's hand."""

    def finish(self, job: str, picture: bytes | None = None, *, kind: str = "png") -> bytes:
        """What a worker's success leaves behind."""
        data = picture or png(48, 34)
        key, media_type = f"results/{job}/test", f"image/{kind}"
        result = {
            "key": key, "sha256": hashlib.sha256(data).hexdigest(), "media_type": media_type,
            "bytes": len(data), "width": 48, "height": 34, "metadata": {"engine": "test", "warnings": []},
        }  # fmt: skip
        asyncio.run(Storage.open(self.settings.storage_location).put(key, data, media_type))
        self.do(
            "update jobs set state = 'COMPLETED', completed_at = now(), token = null, lease_until = null,"
            " result = %s where id = %s",
            json.dumps(result), job,
        )  # fmt: skip
        return data

    def fail(self, job: str, error: str = "It broke. Try another picture.") -> None:
        self.do(
            "update jobs set state = 'FAILED', completed_at = now(), token = null, lease_until = null, error = %s"
            " where id = %s",
            error, job,
        )  # fmt: skip

    def progress(self, job: str, percent: int) -> None:
        self.do(
            "update jobs set state = 'PROCESSING', progress = %s, token = gen_random_uuid(),"
            " lease_until = now() + interval '1 hour' where id = %s",
            percent, job,
        )  # fmt: skip

    @contextlib.contextmanager
    def working(self, *, model: str | None = None) -> Iterator[None]:
        """Every job that waits, of `model` if that is given, is seen half done and then finished."""
        stop = threading.Event()

        def work() -> None:
            while not stop.wait(0.05):
                if job := self.value(waiting, model):
                    self.progress(str(job), 50)
                    self.finish(str(job))

        waiting = "select id from jobs where state = 'QUEUED' and model = coalesce(%s, model) limit 1"
        thread = threading.Thread(target=work)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def keys_of(self, route: str) -> int:
        return int(self.value("select count(*) from idempotency_keys where route = %s", route))


@pytest.fixture(scope="module")
def town(postgres: str, template_database: str) -> Iterator[Town]:
    """One API process's worth of server for a module; no worker runs."""
    home, port = reachable_folder(), free_port()
    settings = Settings(
        home=home, public_url=f"http://127.0.0.1:{port}", allow_private_addresses=True, rate_submissions=10_000,
        rate_uploads=10_000, rate_general=10_000, max_queued_jobs=10_000,
    )  # fmt: skip
    with own_database(postgres, template=template_database) as url:
        key = asyncio.run(_bootstrap(url))
        with psycopg.connect(url) as connection:
            connection.execute("update teams set credits = 1000000")
        app = create_app(settings, database_url=url)
        server = Server(app, host="127.0.0.1", port=port)
        thread = threading.Thread(target=server.run)
        thread.start()
        wait_until(lambda: server.started)
        yield Town(url=settings.public_url, key=key, database_url=url, settings=settings, app=app)
        server.should_exit = True
        thread.join()


@pytest.fixture
def client(connect: Connect, town: Town) -> Client:
    return connect(url=town.url, api_key=town.key)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "in.png"
    path.write_bytes(png(24, 17))
    return path


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """A picture that is uploaded before it is submitted."""
    path = tmp_path / "large.png"
    path.write_bytes(png(500, 300))
    assert path.stat().st_size > Terms().inline_bytes
    return path


@dataclass
class Line:
    """A cable to a server that can be cut: forwards bytes, and drops a connection after `cut_after` bytes, once."""

    server_port: int
    port: int = 0
    cut_after: int | None = None
    """Bytes from the client after which the next connection that sends as many is cut."""
    cuts: int = 0
    connections: list[socket.socket] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def drop_all(self) -> None:
        for connection in self.connections:
            _cut(connection)
        self.connections.clear()


def _cut(connection: socket.socket) -> None:
    """As a cable does: no goodbye."""
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()


def _forward(line: Line, here: socket.socket, there: socket.socket, *, counts: bool) -> None:
    passed = 0
    with contextlib.suppress(OSError):
        while data := here.recv(65536):
            passed += len(data)
            if counts and line.cut_after is not None and passed > line.cut_after:
                line.cut_after, line.cuts = None, line.cuts + 1
                break
            there.sendall(data)
    _cut(here)
    _cut(there)


@pytest.fixture
def lay(town: Town) -> Iterator[Callable[..., Line]]:
    """Lays a line to a server, by default the town's."""
    listeners: list[socket.socket] = []

    def laid(port: int | None = None) -> Line:
        line = Line(server_port=port or int(town.url.rpartition(":")[2]))
        listener = socket.create_server(("127.0.0.1", 0))
        line.port = listener.getsockname()[1]
        listeners.append(listener)

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    here, _ = listener.accept()
                    try:
                        there = socket.create_connection(("127.0.0.1", line.server_port))
                    except OSError:
                        _cut(here)
                        continue
                    line.connections += [here, there]
                    for one, other, counts in ((here, there, True), (there, here, False)):
                        threading.Thread(
                            target=_forward, args=(line, one, other), kwargs={"counts": counts}, daemon=True
                        ).start()

        threading.Thread(target=accept, daemon=True).start()
        return line

    yield laid
    for listener in listeners:
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()


Answer: TypeAlias = tuple[int, dict[str, str], bytes]


@dataclass
class Stranger:
    """Somebody else's server, or what stands before ours: answers by a function of the request."""

    url: str = ""
    answer: Callable[[Asked], Answer | None] = field(default=lambda asked: (404, {}, b'{"error": "Not found"}'))
    asked: list[Asked] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Asked:
    method: str
    path: str
    headers: httpx.Headers
    body: bytes


def told(status: int, body: object, **headers: str) -> Answer:
    return status, {"Content-Type": "application/json", **headers}, json.dumps(body).encode()


def passed_on(town: Town, asked: Asked) -> Answer:
    headers = {name: asked.headers[name] for name in ("x-api-key", "content-type", "idempotency-key")
               if name in asked.headers}  # fmt: skip
    answer = httpx.request(asked.method, town.url + asked.path, content=asked.body, headers=headers, timeout=60)
    return answer.status_code, {"Content-Type": answer.headers["content-type"]}, answer.content


@pytest.fixture
def stranger() -> Iterator[Stranger]:
    found = Stranger()

    class Handler(BaseHTTPRequestHandler):
        def _serve(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            asked = Asked(method=self.command, path=self.path, headers=httpx.Headers(dict(self.headers)), body=body)
            found.asked.append(asked)
            answer = found.answer(asked)
            if answer is None:
                self.connection.shutdown(socket.SHUT_RDWR)
                return
            status, headers, content = answer
            self.send_response(status)
            for name, value in {"Content-Length": str(len(content)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            with contextlib.suppress(OSError):
                self.wfile.write(content)
            self.close_connection = True

        def do_GET(self) -> None:
            self._serve()

        def do_POST(self) -> None:
            self._serve()

        def log_message(self, *args: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    yield found
    server.shutdown()
    server.server_close()
    thread.join()
