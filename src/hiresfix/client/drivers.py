"""Drivers that run flows, one blocking and one for asyncio. They do all the client's I/O and make no decisions."""

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

from hiresfix.client.effects import (
    Close,
    ConnectionLost,
    Effect,
    Flow,
    Notify,
    Open,
    Read,
    Request,
    ResponseHead,
    Run,
    Sleep,
    StreamedBody,
    Yield,
)

T = TypeVar("T")
LINK_PIECE_BYTES = 1 << 15
"""Bytes of a file handled at once. A piece that is cut off is lost as a whole."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Address of the server (without a slash at the end), and the headers of every request to it."""

    address: str
    headers: Mapping[str, str]

    def build_request(self, client: httpx.Client | httpx.AsyncClient, request: Request, content: Any) -> httpx.Request:
        """Return the request for httpx. Raises ConnectionLost for an invalid URL."""
        authenticated = request.authenticated
        url = self.address + request.url if authenticated else urljoin(self.address + "/", request.url)
        headers = {**(self.headers if authenticated else {"Accept-Encoding": "identity"}), **request.headers}
        if isinstance(request.body, StreamedBody):
            headers["Content-Length"] = str(request.body.length)
        timeout = client.timeout
        if request.read_timeout is not None:
            timeout = httpx.Timeout(**{**timeout.as_dict(), "read": request.read_timeout})
        try:
            return client.build_request(
                request.method, url, params=request.query or None, headers=headers, content=content, timeout=timeout
            )
        except httpx.InvalidURL as error:
            raise ConnectionLost(f"{url} is not a valid address ({error})") from error


def _lost(error: httpx.RequestError) -> ConnectionLost:
    return ConnectionLost(str(error) or type(error).__name__)


def _head(response: httpx.Response) -> ResponseHead:
    return ResponseHead(
        status=response.status_code, headers={name.lower(): text for name, text in response.headers.items()}
    )


class Exchange:
    """HTTP exchange of one flow, blocking."""

    def __init__(self, client: httpx.Client, endpoint: Endpoint) -> None:
        self._client, self._endpoint = client, endpoint
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
            case Run(work=work):
                return work()
            case Notify(listener=listener, arguments=arguments):
                return listener(*arguments)
            case Yield():
                raise AssertionError("only iterate() handles Yield")

    def _open(self, request: Request) -> ResponseHead:
        self.close()
        content = _send(request.body) if isinstance(request.body, StreamedBody) else request.body
        http_request = self._endpoint.build_request(self._client, request, content)
        try:
            self._response = self._client.send(http_request, stream=True, follow_redirects=not request.authenticated)
        except httpx.RequestError as error:
            raise _lost(error) from error
        self._pieces = self._response.iter_bytes(None if request.authenticated else LINK_PIECE_BYTES)
        return _head(self._response)

    def _read(self) -> bytes:
        try:
            return next(self._pieces, b"")
        except httpx.RequestError as error:
            raise _lost(error) from error


def _send(body: StreamedBody) -> Iterator[bytes]:
    sent = 0
    for piece in body.pieces():
        yield piece
        sent += len(piece)
        if body.report:
            body.report(sent, body.length)


def iterate(client: httpx.Client, endpoint: Endpoint, flow: Flow[T]) -> Generator[Any, None, T]:
    """Run a flow; yields its items and returns its result."""
    with Exchange(client, endpoint) as exchange:
        try:
            effect = next(flow)
            while True:
                try:
                    answer = (yield effect.item) if isinstance(effect, Yield) else exchange.perform(effect)
                except Exception as error:
                    effect = flow.throw(error)
                else:
                    effect = flow.send(answer)
        except StopIteration as done:
            result: T = done.value
            return result
        finally:
            flow.close()


def run(client: httpx.Client, endpoint: Endpoint, flow: Flow[T]) -> T:
    """Run a flow that yields no items, and return its result."""
    running = iterate(client, endpoint, flow)
    try:
        next(running)
    except StopIteration as done:
        result: T = done.value
        return result
    raise AssertionError("only iterate() handles Yield")


class AsyncExchange:
    """HTTP exchange of one flow, for asyncio."""

    def __init__(self, client: httpx.AsyncClient, endpoint: Endpoint) -> None:
        self._client, self._endpoint = client, endpoint
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
            case Run(work=work):
                return await anyio.to_thread.run_sync(work)
            case Notify(listener=listener, arguments=arguments):
                return await _await_if_needed(listener(*arguments))
            case Yield():
                raise AssertionError("only iterate() handles Yield")

    async def _open(self, request: Request) -> ResponseHead:
        await self.close()
        content = _send_async(request.body) if isinstance(request.body, StreamedBody) else request.body
        http_request = self._endpoint.build_request(self._client, request, content)
        try:
            self._response = await self._client.send(
                http_request, stream=True, follow_redirects=not request.authenticated
            )
        except httpx.RequestError as error:
            raise _lost(error) from error
        self._pieces = self._response.aiter_bytes(None if request.authenticated else LINK_PIECE_BYTES)
        return _head(self._response)

    async def _read(self) -> bytes:
        assert self._pieces is not None
        try:
            return await anext(self._pieces, b"")
        except httpx.RequestError as error:
            raise _lost(error) from error


async def _await_if_needed(value: object) -> object:
    return await value if inspect.isawaitable(value) else value


async def _send_async(body: StreamedBody) -> AsyncIterator[bytes]:
    sent, pieces = 0, body.pieces()
    while piece := await anyio.to_thread.run_sync(next, pieces, b""):
        yield piece
        sent += len(piece)
        if body.report:
            await _await_if_needed(body.report(sent, body.length))


@dataclass(frozen=True, slots=True)
class Returned:
    """Last item of `async_iterate`: the flow's result, which an asynchronous generator cannot return."""

    value: Any


async def async_iterate(client: httpx.AsyncClient, endpoint: Endpoint, flow: Flow[Any]) -> AsyncGenerator[Any]:
    """Run a flow; yields its items, and finally `Returned`."""
    async with AsyncExchange(client, endpoint) as exchange:
        try:
            effect = next(flow)
            while True:
                try:
                    if isinstance(effect, Yield):
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


async def async_run(client: httpx.AsyncClient, endpoint: Endpoint, flow: Flow[T]) -> T:
    """Run a flow that yields no items, and return its result."""
    running = async_iterate(client, endpoint, flow)
    returned = await anext(running)
    await running.aclose()
    assert isinstance(returned, Returned)
    result: T = returned.value
    return result
