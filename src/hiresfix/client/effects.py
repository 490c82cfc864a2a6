"""Effects that a flow asks its driver for, and the answers. Values only: nothing here does I/O.

A flow is a generator that yields effects and is sent their answers. `hiresfix.client.drivers` has the two drivers, one
blocking, one for asyncio. A flow has at most one exchange open: `Open`, then `Read` until `b""`, then `Close`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar

T = TypeVar("T")

OnUpload: TypeAlias = Callable[[int, int], object]
"""Called with bytes sent and bytes in total; starts from zero again if an upload has to be repeated."""


class ConnectionLost(Exception):
    """No answer arrived, or only part of one. Raised into the flow; what the server did is unknown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamedBody:
    """Request body that is sent in pieces.

    Attributes:
        pieces: starts from the beginning each time it is called.
        length: bytes in total.
        report: called after every piece.
    """

    pieces: Callable[[], Iterator[bytes]]
    length: int
    report: OnUpload | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """HTTP request of a flow.

    Attributes:
        url: a path below the server's address; with `authenticated` False any link.
        authenticated: send the API key. Links to results do not get it.
        repeatable: sending the request twice has the same effect as sending it once.
        read_timeout: longest pause within the answer in seconds; None for the client's own timeout.
    """

    method: str
    url: str
    query: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | StreamedBody | None = field(default=None, repr=False)
    authenticated: bool = True
    repeatable: bool = True
    read_timeout: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponseHead:
    """Status and headers of an answer. Header names are in lower case."""

    status: int
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Open:
    """Send a request. Answered by a `ResponseHead`, or raises `ConnectionLost`."""

    request: Request


@dataclass(frozen=True, slots=True, kw_only=True)
class Read:
    """Read the next piece of the body, `b""` at its end. May raise `ConnectionLost`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Close:
    """End the exchange, even if it was not read to its end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sleep:
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Run work that blocks on disk or CPU. Answered by its result; its exceptions are raised into the flow."""

    work: Callable[[], Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Notify:
    """Call the caller's listener. The asynchronous driver awaits the result if it is awaitable."""

    listener: Callable[..., object]
    arguments: tuple[object, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Yield:
    """Hand the next item to whoever iterates over the flow."""

    item: object


Effect: TypeAlias = Open | Read | Close | Sleep | Run | Notify | Yield
Flow: TypeAlias = Generator[Effect, Any, T]
