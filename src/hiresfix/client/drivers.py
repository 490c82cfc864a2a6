"""The two that run flows: one blocks, one awaits. All I/O of the client is here, and none of its decisions."""

from __future__ import annotations

import inspect
import time
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import urljoin

import anyio
import anyio.to_thread
import httpx

from hiresfix.client.effects import Body, Close, Do, Effect, Flow, Give, Head, Lost, Open, Read, Request, Sleep, Tell

T = TypeVar("T")
LINK_PIECE = 1 << 15
"""Bytes of a file that are handled at once. What came of a piece that was cut is lost."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """Where the server is (without a slash at the end), and what every request to it carries."""

    address: str
    headers: Mapping[str, str]

    def built(self, client: httpx.Client | httpx.AsyncClient, request: Request, content: Any) -> httpx.Request:
        """Raises Lost for a URL that is none."""
        keyed = request.keyed
        url = self.address + request.url if keyed else urljoin(self.address + "/", request.url)
        headers = {**(self.headers if keyed else {"Accept-Encoding": "identity"}), **request.headers}
        if isinstance(request.body, Body):
            headers["Content-Length"] = str(request.body.length)
        timeout = client.timeout
        if request.silence is not None:
            timeout = httpx.Timeout(**{**timeout.as_dict(), "read": request.silence})
        try:
            return client.build_request(
                request.method, url, params=request.query or None, headers=headers, content=content, timeout=timeout
            )
        except httpx.InvalidURL as error:
            raise Lost(f"{url} is no address ({error})") from error


def _lost(error: httpx.RequestError) -> Lost:
    return Lost(str(error) or type(error).__name__)


def _head(response: httpx.Response) -> Head:
    return Head(status=response.status_code, headers={name.lower(): text for name, text in response.headers.items()})


class Exchange:
    """One flow's exchange, blocking."""

    def __init__(self, client: httpx.Client, server: Server) -> None:
        self._client, self._server = client, server
        self._response: httpx.Response | None = None
        self._pieces: Iterator[bytes] = iter(())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        if self._response is not None:
            self._response.close()
            self._response = None

    def perform(self, effect: Effect) -> Any:
        match effect:
            case Open(request=request):
                return self._open(request)
            case Read():
                return self._read()
            case Close():
                return self.close()
            case Sleep(seconds=seconds):
                return time.sleep(seconds)
            case Do(work=work):
                return work()
            case Tell(listener=listener, arguments=arguments):
                return listener(*arguments)
            case Give():
                raise AssertionError("what is given is for who iterates")

    def _open(self, request: Request) -> Head:
        self.close()
        content = _sent(request.body) if isinstance(request.body, Body) else request.body
        built = self._server.built(self._client, request, content)
        try:
            self._response = self._client.send(built, stream=True, follow_redirects=not request.keyed)
        except httpx.RequestError as error:
            raise _lost(error) from error
        self._pieces = self._response.iter_bytes(None if request.keyed else LINK_PIECE)
        return _head(self._response)

    def _read(self) -> bytes:
        try:
            return next(self._pieces, b"")
        except httpx.RequestError as error:
            raise _lost(error) from error


def _sent(body: Body) -> Iterator[bytes]:
    sent = 0
    for piece in body.pieces():
        yield piece
        sent += len(piece)
        if body.report:
            body.report(sent, body.length)


def steps(client: httpx.Client, server: Server, flow: Flow[T]) -> Generator[Any, None, T]:
    """Run a flow; yields what it gives and returns what it returns."""
    with Exchange(client, server) as exchange:
        try:
            effect = next(flow)
            while True:
                try:
                    answer = (yield effect.item) if isinstance(effect, Give) else exchange.perform(effect)
                except Exception as error:
                    effect = flow.throw(error)
                else:
                    effect = flow.send(answer)
        except StopIteration as done:
            result: T = done.value
            return result
        finally:
            flow.close()


def run(client: httpx.Client, server: Server, flow: Flow[T]) -> T:
    """Run a flow that gives nothing."""
    running = steps(client, server, flow)
    try:
        next(running)
    except StopIteration as done:
        result: T = done.value
        return result
    raise AssertionError("what is given is for who iterates")


class AsyncExchange:
    """One flow's exchange, awaited."""

    def __init__(self, client: httpx.AsyncClient, server: Server) -> None:
        self._client, self._server = client, server
        self._response: httpx.Response | None = None
        self._pieces: AsyncIterator[bytes] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        if self._response is not None:
            response, self._response = self._response, None
            await response.aclose()

    async def perform(self, effect: Effect) -> Any:
        match effect:
            case Open(request=request):
                return await self._open(request)
            case Read():
                return await self._read()
            case Close():
                return await self.close()
            case Sleep(seconds=seconds):
                return await anyio.sleep(seconds)
            case Do(work=work):
                return await anyio.to_thread.run_sync(work)
            case Tell(listener=listener, arguments=arguments):
                return await _awaited(listener(*arguments))
            case Give():
                raise AssertionError("what is given is for who iterates")

    async def _open(self, request: Request) -> Head:
        await self.close()
        content = _sent_async(request.body) if isinstance(request.body, Body) else request.body
        built = self._server.built(self._client, request, content)
        try:
            self._response = await self._client.send(built, stream=True, follow_redirects=not request.keyed)
        except httpx.RequestError as error:
            raise _lost(error) from error
        self._pieces = self._response.aiter_bytes(None if request.keyed else LINK_PIECE)
        return _head(self._response)

    async def _read(self) -> bytes:
        assert self._pieces is not None
        try:
            return await anext(self._pieces, b"")
        except httpx.RequestError as error:
            raise _lost(error) from error


async def _awaited(told: object) -> object:
    return await told if inspect.isawaitable(told) else told


async def _sent_async(body: Body) -> AsyncIterator[bytes]:
    sent, pieces = 0, body.pieces()
    while piece := await anyio.to_thread.run_sync(next, pieces, b""):
        yield piece
        sent += len(piece)
        if body.report:
            await _awaited(body.report(sent, body.length))


@dataclass(frozen=True, slots=True)
class Returned:
    """The last item of `async_steps`: what the flow returned, which a generator cannot return there."""

    value: Any


async def async_steps(client: httpx.AsyncClient, server: Server, flow: Flow[Any]) -> AsyncGenerator[Any]:
    """Run a flow; yields what it gives, and at last `Returned`."""
    async with AsyncExchange(client, server) as exchange:
        try:
            effect = next(flow)
            while True:
                try:
                    if isinstance(effect, Give):
                        yield effect.item
                        answer = None
                    else:
                        answer = await exchange.perform(effect)
                except Exception as error:
                    effect = flow.throw(error)
                else:
                    effect = flow.send(answer)
        except StopIteration as done:
            returned = Returned(done.value)
        finally:
            flow.close()
    yield returned


async def async_run(client: httpx.AsyncClient, server: Server, flow: Flow[T]) -> T:
    """Run a flow that gives nothing."""
    running = async_steps(client, server, flow)
    returned = await anext(running)
    await running.aclose()
    assert isinstance(returned, Returned)
    result: T = returned.value
    return result
