"""What a flow asks of the world, and what the world answers. Values only: nothing here does I/O.

A flow is a generator that yields these and is sent their answers; `hiresfix.client.drivers` has the two that run it,
one blocking, one for asyncio. A flow has at most one exchange open: `Open`, then `Read` until `b""`, `Close`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar

T = TypeVar("T")


class Lost(Exception):
    """No answer came, or not all of it; raised into the flow. What the server did is unknown. Says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Body:
    """A request's body that is sent in pieces, from the beginning each time that `pieces` is called.

    `report(sent, total)` hears of every piece, in bytes.
    """

    pieces: Callable[[], Iterator[bytes]]
    length: int
    report: Callable[[int, int], object] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """`url` is a path below the server's address; without `keyed` it is a link, which is not shown the key.

    repeatable: asking twice does no more than asking once. silence: the longest pause within the answer in seconds,
    None for the client's own.
    """

    method: str
    url: str
    query: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | Body | None = field(default=None, repr=False)
    keyed: bool = True
    repeatable: bool = True
    silence: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """An answer before its body. Header names are in lower case."""

    status: int
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Open:
    """Send a request; answered by a `Head`, or `Lost`."""

    request: Request


@dataclass(frozen=True, slots=True, kw_only=True)
class Read:
    """The next piece of the body, `b""` at its end; or `Lost`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Close:
    """Be done with the exchange, however much of it was read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sleep:
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Do:
    """Work that may take a while on the disk or the processor; answered by its result, or what it raises."""

    work: Callable[[], Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tell:
    """Call what the caller gave us. The asynchronous driver awaits what comes back, if it can be awaited."""

    listener: Callable[..., object]
    arguments: tuple[object, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Give:
    """The next item of a flow that is iterated over."""

    item: object


Effect: TypeAlias = Open | Read | Close | Sleep | Do | Tell | Give
Flow: TypeAlias = Generator[Effect, Any, T]
