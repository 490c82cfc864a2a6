"""A worker's own small HTTP server, for whoever watches it: `/healthz` and `/metrics`.

Guarantees: it answers from the loop that also renews leases, so a `/healthz` that answers means a worker that can keep
its job; it takes no signals away from the worker, and ends with it. A port that is taken does not keep a worker from
working: it is logged, and the figures are missing.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Generator

import structlog
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from hiresfix.server import metrics
from hiresfix.server.config import Settings
from hiresfix.server.transport import server_config

log = structlog.get_logger(__name__)

REFUSED = "Metrics are for the operator. Send HIRESFIX_METRICS_TOKEN as a bearer token."


def application(token: str | None) -> Starlette:
    """The two routes; with a token, figures are only for whoever carries it."""

    async def healthz(request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def figures(request: Request) -> Response:
        if token is not None and not metrics.is_allowed(request.headers.get("authorization"), token):
            return JSONResponse({"error": REFUSED, "code": "forbidden"}, status_code=403)
        return Response(metrics.render(), media_type=metrics.CONTENT_TYPE)

    return Starlette(routes=[Route("/healthz", healthz), Route("/metrics", figures)])


class _Beside(uvicorn.Server):
    """A server that leaves the process's signals to the worker."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


@contextlib.asynccontextmanager
async def serving(settings: Settings) -> AsyncIterator[None]:
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
    app = application(settings.metrics_token)
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
