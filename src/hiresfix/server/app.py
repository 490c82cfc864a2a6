"""The API process: an ASGI application that answers everything, errors included, as JSON with a request id.

Every answer, from a route, the framework or a bug, has `Content-Type: application/json` (except files and pages), the
error body of contract.md 11 and the headers of `http.middleware`. The API never answers 422, and redirects only to the
signed URL of a result. It runs without torch installed.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import structlog
import uvicorn
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute, iter_route_contexts
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from hiresfix import wire
from hiresfix.errors import (
    HiresfixError,
    InvalidRequest,
    MethodNotAllowed,
    NotFound,
    NotOffered,
    RequestTooLarge,
    StorageFailed,
    Unavailable,
)
from hiresfix.server import api, uploads, web
from hiresfix.server.api import files
from hiresfix.server.api.dependencies import Services
from hiresfix.server.database import pool, query
from hiresfix.server.database.notifications import Notifications
from hiresfix.server.database.pool import Database
from hiresfix.server.database.task_queue import Queue
from hiresfix.server.http import metrics_server, rate_limit
from hiresfix.server.http.middleware import BodyLimitMiddleware, JsonCorsMiddleware, RequestMiddleware
from hiresfix.server.http.rate_limit import RateLimiter
from hiresfix.server.http.uvicorn_server import server_config
from hiresfix.server.jobs import worker_registry
from hiresfix.server.jobs.estimates import Estimator
from hiresfix.server.jobs.fleet_metrics import FleetMetrics
from hiresfix.server.platform import tracing
from hiresfix.server.platform.disk import Disk
from hiresfix.server.platform.health import Health
from hiresfix.server.sandbox.client import Sandbox
from hiresfix.server.settings import Settings, warn_if_open
from hiresfix.server.storage import Storage

log = structlog.get_logger(__name__)

MAX_CONCURRENT_DECODES = 4
STORE_CHECK_SECONDS = 10.0
"""Time between two checks of the store, which may charge for them."""
_FRAMEWORK_ERRORS = {404: NotFound("Not found"), 405: MethodNotAllowed(), 413: RequestTooLarge()}


def create_app(settings: Settings, *, database_url: str) -> FastAPI:
    """Return the application; its database and store are opened when the server starts and closed when it ends."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        warn_if_open(settings)
        notifications, links = Notifications(database_url), _links(settings)
        async with (
            Sandbox(uploads.image_limits(settings)) as sandbox,
            Database(
                database_url, max_size=20, name="hiresfix-api", timeout=settings.database_timeout_seconds
            ) as database,
            aclosing(RateLimiter(settings.rate_limit_url)) as limiter,
            notifications.listening(),
            _disk(settings) as disk,
        ):
            storage = uploads.open_storage(settings, database)
            health = _health(settings, database, storage, disk)
            app.state.services = Services(
                settings=settings,
                database=database,
                storage=storage,
                links=links,
                image_origins=await _origins(links),
                queue=Queue(database_url),
                notifications=notifications,
                estimator=Estimator(database),
                limiter=limiter,
                sandbox=sandbox,
                quotas=rate_limit.quotas(settings),
                decode_slots=asyncio.Semaphore(MAX_CONCURRENT_DECODES),
                disk=disk,
                health=health,
                fleet_metrics=FleetMetrics(database),
            )
            async with metrics_server.serving(settings, app.state.services.fleet_metrics.collect), aclosing(health):
                with tracing.exporting(settings.telemetry_url, role="api"):
                    yield

    app = FastAPI(lifespan=lifespan, openapi_url=None, redirect_slashes=False)
    # One flat list, busiest routes first: nested routers would cost every request another table to search.
    app.router.routes.extend([*api.routes, *files.router.routes, *web.routes])
    for kind in (HiresfixError, HTTPException, RequestValidationError, *pool.OUTAGE_ERRORS):
        app.add_exception_handler(kind, _render)
    _add_middleware(app, settings)
    return app


@asynccontextmanager
async def _disk(settings: Settings) -> AsyncIterator[Disk]:
    disk = Disk(settings.folders, min_free=settings.min_free_bytes)
    async with disk.watching():
        yield disk


def _health(settings: Settings, database: Database, storage: Storage, disk: Disk) -> Health:
    """Return the checks of `/readyz`; their texts are public."""

    async def check_database() -> str | None:
        try:
            async with database.transaction() as tx:
                await query.value(tx, "select 1 from teams limit 1")
        except pool.OUTAGE_ERRORS:
            return "does not answer"
        return None

    async def check_store() -> str | None:
        try:
            await storage.check()
        except StorageFailed:
            return "does not keep files"
        return None

    async def check_disk() -> str | None:
        return None if disk.has_room() else "is nearly full; no images are accepted"

    async def check_workers() -> str | None:
        try:
            async with database.transaction() as tx:
                return None if await worker_registry.any_alive(tx) else "none is running; jobs are accepted and wait"
        except pool.OUTAGE_ERRORS:
            return "unknown while the database does not answer"

    checks = {
        "database": check_database,
        "store": check_store,
        "disk": check_disk,
        "worker": check_workers,
    }
    return Health(checks, required=settings.ready_requires, max_age={"store": STORE_CHECK_SECONDS})


def _links(settings: Settings) -> Storage | None:
    """Return the store as clients reach it: a signature covers the host of the URL."""
    if settings.result_urls == "served":
        return None
    endpoint = settings.storage_public_endpoint
    options: dict[str, Any] = {"endpoint": endpoint} if endpoint else {}
    return Storage.open(settings.storage_location, **options)


async def _origins(links: Storage | None) -> tuple[str, ...]:
    """Return the origin of signed URLs. Signing one here makes wrong settings fail at the start."""
    if links is None:
        return ()
    scheme, host, *_ = urlsplit(await links.sign("probe", seconds=1))
    return (f"{scheme}://{host}",)


def _add_middleware(app: FastAPI, settings: Settings) -> None:
    """Add the middleware around all routes; the last one added is the outermost."""
    app.add_middleware(BodyLimitMiddleware, max_bytes=settings.max_body_bytes, seconds=settings.body_timeout_seconds)
    if settings.cors_origins:
        app.add_middleware(
            JsonCorsMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=("GET", "POST", "DELETE"),
            allow_headers=wire.REQUEST_HEADERS,
            expose_headers=wire.RESPONSE_HEADERS,
        )
    app.add_middleware(RequestMiddleware, public_url=settings.public_url)
    # Even without proxies: X-Forwarded-For is then ignored from everybody.
    app.add_middleware(ProxyHeadersMiddleware, trusted_hosts=[str(network) for network in settings.trusted_proxies])


class Server(uvicorn.Server):
    """A uvicorn server that ends requests waiting for jobs before it waits for their connections to close."""

    def __init__(self, app: FastAPI, *, host: str, port: int) -> None:
        super().__init__(server_config(app, host=host, port=port))
        self._app = app

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._app.state.services.notifications.close()
        await super().shutdown(sockets)


async def _render(request: Request, error: Exception) -> Response:
    """Turn an error into an answer; the only place that does."""
    request_id = request.state.request_id
    known: HiresfixError
    match error:
        case HTTPException(status_code=404) if page := await web.not_found_page(request):
            return page
        case HTTPException(status_code=status, headers=headers):
            known = _FRAMEWORK_ERRORS.get(status) or InvalidRequest({"_root": [str(error.detail)]})
            if status == 405:
                headers = {**(headers or {}), "Allow": _allowed(request)}
            return _answer(status, wire.error_body(known, request_id=request_id), headers or {})
        case RequestValidationError():
            known = InvalidRequest({"_root": ["The request could not be read. Check its format."]})
        case HiresfixError():
            known = error
        case _:
            log.warning("request.database_unavailable", reason=type(error).__name__)
            known = Unavailable()
    if isinstance(known, Unavailable):  # a state of the whole server, not a bug: traces would flood the log
        log.warning("request.unavailable", reason=known.message)
    elif known.status >= 500 and not isinstance(known, NotOffered):
        log.error("request.failed", code=known.code, reason=known.message, exc_info=known)
    return _answer(known.status, wire.error_body(known, request_id=request_id), wire.error_headers(known))


def _allowed(request: Request) -> str:
    """Return every method of the path; the framework would name those of one route only."""
    path = request.scope["path"]
    routes = (route for route in iter_route_contexts(request.app.routes) if isinstance(route.original_route, APIRoute))
    methods = {method for route in routes if route.path_regex.match(path) for method in route.methods or ()}
    return ", ".join(sorted(methods))


def _answer(status: int, body: dict[str, Any], headers: Mapping[str, str]) -> JSONResponse:
    return JSONResponse(body, status_code=status, headers=dict(headers))
