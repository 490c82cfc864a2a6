"""A small HTTP server of each process for monitoring: `/healthz` and `/metrics`.

Workers have no other server, and API processes that share a port need one each, or every scrape would reach a random
process.

It answers from the event loop that also renews leases, so a process that answers can keep its job. It handles no
signals and ends with the process. If the port is taken, the process logs that and works without metrics.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterable

import structlog
import uvicorn
from prometheus_client.metrics_core import Metric
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from hiresfix.server.http.uvicorn_server import server_config
from hiresfix.server.platform import metrics
from hiresfix.server.settings import Settings

log = structlog.get_logger(__name__)

REFUSED = "Metrics are for the operator. Send HIRESFIX_METRICS_TOKEN as a bearer token."


MetricsSource = Callable[[], Awaitable[Iterable[Metric]]]


async def no_metrics() -> Iterable[Metric]:
    """Return nothing."""
    return ()


def application(token: str | None, extra: MetricsSource) -> Starlette:
    """Return the two routes. `token`: required for metrics, if set. `extra`: metrics besides the process's own."""

    async def healthz(request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def metrics_text(request: Request) -> Response:
        if token is not None and not metrics.is_allowed(request.headers.get("authorization"), token):
            return JSONResponse({"error": REFUSED, "code": "forbidden"}, status_code=403)
        return Response(metrics.render(await extra()), media_type=metrics.CONTENT_TYPE)

    return Starlette(routes=[Route("/healthz", healthz), Route("/metrics", metrics_text)])


class _ServerWithoutSignals(uvicorn.Server):
    """A server that leaves signals to the process it runs in."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


@contextlib.asynccontextmanager
async def serving(settings: Settings, extra: MetricsSource = no_metrics) -> AsyncIterator[None]:
    """Serve during the block, if a port is set."""
    if settings.metrics_port is None:
        yield
        return
    try:
        listener = _listen(settings.metrics_host, settings.metrics_port)
    except OSError as error:
        log.error("metrics.not_served", port=settings.metrics_port, reason=error.strerror or str(error),
                  remedy="Set HIRESFIX_METRICS_PORT and HIRESFIX_METRICS_HOST to a free address.")  # fmt: skip
        yield
        return
    app = application(settings.metrics_token, extra)
    server = _ServerWithoutSignals(server_config(app, host=settings.metrics_host, port=settings.metrics_port))
    task = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        yield
    finally:
        server.should_exit = server.force_exit = True
        await task


def _listen(host: str, port: int) -> socket.socket:
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError:
        listener.close()
        raise
    return listener
