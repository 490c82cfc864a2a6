"""Fixtures of the client's tests: both clients behind one interface, and a TCP proxy that can break."""

from __future__ import annotations

import contextlib
import inspect
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias, cast

import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal

from hiresfix.client import AsyncClient, AsyncJobHandle, Client, RetryPolicy
from hiresfix.client.async_client import AsyncImages, AsyncJobs, AsyncUploads
from tests.conftest import png
from tests.live_server import LiveServer
from tests.server.conftest import settings, start_api

__all__ = ["settings", "start_api"]

Connect: TypeAlias = Callable[..., Client]

SHORT_PAUSES = RetryPolicy(jitter=lambda limit: limit / 100)
"""Pauses a hundredth as long, except for what a server asks for."""


class Blocking:
    """Blocking interface of an AsyncClient, its handles and the like."""

    def __init__(self, portal: BlockingPortal, target: object) -> None:
        self._portal, self._target = portal, target

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._target, name)
        if isinstance(value, AsyncImages | AsyncJobs | AsyncUploads):
            return Blocking(self._portal, value)
        return partial(self._call, value) if inspect.ismethod(value) else value

    def _call(self, method: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        async def call() -> Any:
            result = method(*arguments, **options)
            return await result if inspect.isawaitable(result) else result

        return self._wrap(self._portal.call(call))

    def _wrap(self, value: Any) -> Any:
        if inspect.isasyncgen(value):
            return self._iterate(value)
        return Blocking(self._portal, value) if isinstance(value, AsyncJobHandle) else value

    def _iterate(self, items: Any) -> Iterator[Any]:
        async def next_item() -> Any:
            return await anext(items)

        try:
            while True:
                try:
                    yield self._wrap(self._portal.call(next_item))
                except StopAsyncIteration:
                    return
        finally:
            self._portal.call(items.aclose)


@pytest.fixture(params=["blocking", "awaited"])
def connect(request: pytest.FixtureRequest) -> Iterator[Connect]:
    """Return a function that opens a client: a Client, or an AsyncClient behind a blocking interface."""
    with contextlib.ExitStack() as stack:
        if request.param == "blocking":
            yield lambda **options: stack.enter_context(Client(**{"retry": SHORT_PAUSES, **options}))
            return
        portal = stack.enter_context(start_blocking_portal())

        def open_client(**options: Any) -> Client:
            client = portal.call(partial(_open_async, **{"retry": SHORT_PAUSES, **options}))
            stack.callback(portal.call, client.aclose)
            return cast("Client", Blocking(portal, client))

        yield open_client


async def _open_async(**options: Any) -> AsyncClient:
    return AsyncClient(**options)


@pytest.fixture
def client(connect: Connect, live_server: LiveServer) -> Client:
    return connect(url=live_server.url, api_key=live_server.key)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "in.png"
    path.write_bytes(png(24, 17))
    return path


@pytest.fixture
def large_image(tmp_path: Path) -> Path:
    """An image that is uploaded before it is submitted."""
    path = tmp_path / "large.png"
    path.write_bytes(png(500, 300))
    assert path.stat().st_size > RetryPolicy().inline_bytes
    return path


@dataclass
class TcpProxy:
    """Forwards bytes to a server, and breaks connections on request."""

    server_port: int
    port: int = 0
    cut_after: int | None = None
    """Bytes from the client after which the next connection that sends as many is cut, once."""
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
    """Reset the connection, as a broken cable would."""
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()


def _forward(proxy: TcpProxy, source: socket.socket, target: socket.socket, *, counts: bool) -> None:
    passed = 0
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            passed += len(data)
            if counts and proxy.cut_after is not None and passed > proxy.cut_after:
                proxy.cut_after, proxy.cuts = None, proxy.cuts + 1
                break
            target.sendall(data)
    _cut(source)
    _cut(target)


@pytest.fixture
def start_proxy(live_server: LiveServer) -> Iterator[Callable[..., TcpProxy]]:
    """Return a function that starts a proxy to a server, by default the live one."""
    listeners: list[socket.socket] = []

    def start(port: int | None = None) -> TcpProxy:
        proxy = TcpProxy(server_port=port or int(live_server.url.rpartition(":")[2]))
        listener = socket.create_server(("127.0.0.1", 0))
        proxy.port = listener.getsockname()[1]
        listeners.append(listener)

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    client, _ = listener.accept()
                    try:
                        server = socket.create_connection(("127.0.0.1", proxy.server_port))
                    except OSError:
                        _cut(client)
                        continue
                    proxy.connections += [client, server]
                    for source, target, counts in ((client, server, True), (server, client, False)):
                        threading.Thread(
                            target=_forward, args=(proxy, source, target), kwargs={"counts": counts}, daemon=True
                        ).start()

        threading.Thread(target=accept, daemon=True).start()
        return proxy

    yield start
    for listener in listeners:
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
