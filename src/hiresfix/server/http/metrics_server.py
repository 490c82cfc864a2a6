"""A process's own small HTTP server, for whoever watches it: `/healthz` and `/metrics`.

Workers have no other, and API processes that share a port need one each, or every scrape would meet another one.

Guarantees: it answers from the process's own loop, which also renews leases, so one that answers can keep
its job; it takes no signals away from the process, and ends with it. A port that is taken does not keep
the process from working: it is logged, and the figures are missing.
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


Figures = Callable[[], Awaitable[Iterable[Metric]]]


async def none() -> Iterable[Metric]:
    return ()


def application(token: str | None, more: Figures) -> Starlette:
    """The two routes; with a token, figures are only for whoever carries it. `more`: beside the process's own."""

    async def healthz(request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def figures(request: Request) -> Response:
        if token is not None and not metrics.is_allowed(request.headers.get("authorization"), token):
            return JSONResponse({"error": REFUSED, "code": "forbidden"}, status_code=403)
        return Response(metrics.render(await more()), media_type=metrics.CONTENT_TYPE)

    return Starlette(routes=[Route("/healthz", healthz), Route("/metrics", figures)])


class _Beside(uvicorn.Server):
    """A server that leaves the signals to the process around it."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


@contextlib.asynccontextmanager
async def serving(settings: Settings, more: Figures = none) -> AsyncIterator[None]:
    """Serve for the length of the block, if a port is set."""
    if settings.metrics_port is None:
        yield
        return
    try:
        listener = _listen(settings.metrics_host, settings.metrics_port)
    except OSError as error:
        log.error("metrics.not_served", port=settings.metrics_port, reason=error.strerror or str(error),
                  remedy="Set HIRESFIX_METRICS_PORT and HIRESFIX_METRICS_HOST to what is free here.")  # fmt: skip
        yield
        return
    app = application(settings.metrics_token, more)
    server = _Beside(server_config(app, host=settings.metrics_host, port=settings.metrics_port))
    served = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        yield
    finally:
        server.should_exit = server.force_exit = True
        await served


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
