"""Lightweight HTTP/1.1 load generator: prebuilt requests over persistent connections.

Closed loop: each connection sends its next request when it has read the previous answer, so N connections measure the
server with N requests in progress. It understands only answers with a Content-Length, which all measured servers send.
Its own CPU time is reported next to the latencies, because it shares the cores with the server.
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
class LoadResult:
    """Result of a load run. `latencies` are seconds from the first byte of the request to the last of the answer."""

    latencies: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    refused: int = 0
    """Attempts answered with the busy status; they count in neither `latencies` nor `statuses`."""
    last: bytes = b""
    """Body of the last answer."""
    seconds: float = 0.0
    client_seconds: float = 0.0
    """CPU time of this client."""

    @property
    def rate(self) -> float:
        """Answers per second."""
        return len(self.latencies) / self.seconds

    def percentile(self, share: int) -> float:
        """Return the latency percentile in milliseconds."""
        return 1000 * percentile(self.latencies, share)

    def require(self, status: int) -> None:
        """Raise SystemExit unless every answer had this status: rejections are fast and would flatter the server."""
        if set(self.statuses) != {status}:
            example = self.last[:300].decode(errors="replace")
            raise SystemExit(f"Not every answer was a {status}: {dict(self.statuses)}; the last: {example}")


def percentile(values: Sequence[float], share: int) -> float:
    """Return a percentile, 1 to 99; a single value is its own percentile."""
    return statistics.quantiles(values, n=100, method="inclusive")[share - 1] if len(values) > 1 else values[0]


def request(method: str, path: str, *, key: str = "", body: bytes = b"", more: str = "") -> bytes:
    """Return the bytes of one request; `more` has further header lines, each with its line end."""
    secret = f"X-API-Key: {key}\r\n" if key else ""
    kind = f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n" if body else ""
    return f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n{secret}{kind}{more}\r\n".encode() + body


async def drive(
    port: int, requests: Iterator[bytes], *, connections: int, seconds: float, busy: int | None = None
) -> LoadResult:
    """Send `requests` for `seconds`, or until there are no more.

    Args:
        port: of the server on this machine.
        requests: bytes of each request.
        connections: number of parallel connections.
        seconds: duration.
        busy: status that means "try again". The request is repeated at once; its latency includes all attempts.
    """
    load = LoadResult()
    processor, started = time.process_time(), time.perf_counter()
    deadline = started + seconds

    async def one() -> None:
        async with _connected(port) as (reader, writer):
            while time.perf_counter() < deadline and (content := next(requests, None)) is not None:
                start = time.perf_counter()
                while True:
                    writer.write(content)
                    status, load.last = await _answer(reader)
                    if status != busy:
                        break
                    load.refused += 1
                load.latencies.append(time.perf_counter() - start)
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
