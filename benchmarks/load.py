"""A thrifty HTTP/1.1 client for measuring servers: requests made beforehand, over connections that stay open.

It works in a closed loop: every connection sends its next request when it has read the last answer, so that what is
measured at N connections is the server with N requests in hand. It understands answers with a Content-Length, which is
all that the measured servers give, and nothing else of HTTP. Its own processor time is told beside the latencies,
because it runs on the cores of what it measures.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import statistics
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


@dataclass(slots=True, kw_only=True)
class Load:
    """What a run of requests met. latencies: seconds from the request's first byte to the answer's last."""

    latencies: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    refused: int = 0
    """Tries that were answered with "busy", which are neither latencies nor statuses."""
    last: bytes = b""
    """The last answer's body."""
    seconds: float = 0.0
    client_seconds: float = 0.0
    """Processor time of this client."""

    @property
    def rate(self) -> float:
        """Answers a second."""
        return len(self.latencies) / self.seconds

    def percentile(self, share: int) -> float:
        """Milliseconds within which so many percent of the answers came."""
        return 1000 * percentile(self.latencies, share)

    def require(self, status: int) -> None:
        """Raises SystemExit unless every answer had this status: refusals are quick and would flatter the server."""
        if set(self.statuses) != {status}:
            example = self.last[:300].decode(errors="replace")
            raise SystemExit(f"Not every answer was a {status}: {dict(self.statuses)}; the last: {example}")


def percentile(values: Sequence[float], share: int) -> float:
    """`share` in percent, 1 to 99; of a single value that value."""
    return statistics.quantiles(values, n=100, method="inclusive")[share - 1] if len(values) > 1 else values[0]


def request(method: str, path: str, *, key: str = "", body: bytes = b"", more: str = "") -> bytes:
    """One request as it goes over the wire; `more` are further header lines, each with its line end."""
    secret = f"X-API-Key: {key}\r\n" if key else ""
    kind = f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n" if body else ""
    return f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n{secret}{kind}{more}\r\n".encode() + body


async def drive(
    port: int, requests: Iterator[bytes], *, connections: int, seconds: float, busy: int | None = None
) -> Load:
    """Send `requests` for so many seconds, or until there are no more.

    busy: a status that asks to come again; the request is repeated at once, and its latency is that of all its tries.
    """
    load = Load()
    processor, started = time.process_time(), time.perf_counter()
    deadline = started + seconds

    async def one() -> None:
        async with _connected(port) as (reader, writer):
            while time.perf_counter() < deadline and (content := next(requests, None)) is not None:
                asked = time.perf_counter()
                while True:
                    writer.write(content)
                    status, load.last = await _answer(reader)
                    if status != busy:
                        break
                    load.refused += 1
                load.latencies.append(time.perf_counter() - asked)
                load.statuses[status] += 1

    await asyncio.gather(*(one() for _ in range(connections)))
    load.seconds = time.perf_counter() - started
    load.client_seconds = time.process_time() - processor
    return load


@contextlib.asynccontextmanager
async def _connected(port: int) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**20)
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def _answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    head = await reader.readuntil(b"\r\n\r\n")
    length = _LENGTH.search(head)
    if length is None:
        raise SystemExit(f"An answer without a Content-Length cannot be measured: {head[:200]!r}")
    return int(head[9:12]), await reader.readexactly(int(length[1]))
