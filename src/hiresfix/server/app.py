"""The API process: an ASGI application that answers everything, errors included, as JSON with a request id.

Guarantees for every answer, whoever makes it (a route, the framework, a bug): `Content-Type: application/json`
(files and pages aside), the error envelope of contract.md 11, what `envelope` adds, no 422, no redirect of the
API's but to the signed address of a result. It runs without torch installed.
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
from hiresfix.server.api.dependencies import Service
from hiresfix.server.database import pool, query
from hiresfix.server.database.notifications import Changes
from hiresfix.server.database.pool import Database
from hiresfix.server.database.task_queue import Queue
from hiresfix.server.http import metrics_server, rate_limit
from hiresfix.server.http.middleware import BoundedBody, CrossOrigin, Envelope
from hiresfix.server.http.rate_limit import Limiter
from hiresfix.server.http.uvicorn_server import server_config
from hiresfix.server.jobs import worker_registry
from hiresfix.server.jobs.estimates import Outlook
from hiresfix.server.jobs.fleet_metrics import Census
from hiresfix.server.platform import tracing
from hiresfix.server.platform.disk import Disk
from hiresfix.server.platform.health import Health
from hiresfix.server.sandbox.client import Sandbox
from hiresfix.server.settings import Settings, warn_if_open
from hiresfix.server.storage import Storage

log = structlog.get_logger(__name__)

DECODING = 4
STORE_SECONDS = 10.0
"""Between two looks at the store, which may charge for them."""
_OF_THE_FRAMEWORK = {404: NotFound("Not found"), 405: MethodNotAllowed(), 413: RequestTooLarge()}


def create_app(settings: Settings, *, database_url: str) -> FastAPI:
    """The application; its database and store are opened when the server starts and closed when it ends."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        warn_if_open(settings)
        changes, links = Changes(database_url), _links(settings)
        async with (
            Sandbox(uploads.limits(settings)) as quarantine,
            Database(database_url, max_size=20, name="hiresfix-api") as database,
            aclosing(Limiter(settings.rate_limit_url)) as limiter,
            changes.listening(),
            _disk(settings) as disk,
        ):
            storage = uploads.store(settings, database)
            health = _health(settings, database, storage, disk)
            app.state.service = Service(
                settings=settings,
                database=database,
                storage=storage,
                links=links,
                picture_origins=await _origins(links),
                queue=Queue(database_url),
                changes=changes,
                outlook=Outlook(database),
                limiter=limiter,
                quarantine=quarantine,
                quotas=rate_limit.quotas(settings),
                decoding=asyncio.Semaphore(DECODING),
                disk=disk,
                health=health,
                census=Census(database),
            )
            async with metrics_server.serving(settings, app.state.service.census.figures), aclosing(health):
                with tracing.exporting(settings.telemetry_url, role="api"):
                    yield

    app = FastAPI(lifespan=lifespan, openapi_url=None, redirect_slashes=False)
    # One flat list, what is asked most first: a router within a router is a table more to go through for each request.
    app.router.routes.extend([*api.routes, *files.router.routes, *web.routes])
    for kind in (HiresfixError, HTTPException, RequestValidationError, *pool.OUTAGE):
        app.add_exception_handler(kind, _render)
    _wrap(app, settings)
    return app


@asynccontextmanager
async def _disk(settings: Settings) -> AsyncIterator[Disk]:
    disk = Disk(settings.folders, least=settings.min_free_bytes)
    async with disk.watching():
        yield disk


def _health(settings: Settings, database: Database, storage: Storage, disk: Disk) -> Health:
    """What `/readyz` looks at; a word for each that anybody may read."""

    async def look_at_database() -> str | None:
        try:
            async with database.transaction() as tx:
                await query.value(tx, "select 1 from teams limit 1")
        except pool.OUTAGE:
            return "does not answer"
        return None

    async def look_at_store() -> str | None:
        try:
            await storage.check()
        except StorageFailed:
            return "does not keep files"
        return None

    async def look_at_disk() -> str | None:
        return None if disk.has_room() else "is nearly full; no pictures are taken in"

    async def look_at_workers() -> str | None:
        try:
            async with database.transaction() as tx:
                return None if await worker_registry.anybody_alive(tx) else "none is up; jobs are accepted and wait"
        except pool.OUTAGE:
            return "not known while the database does not answer"

    checks = {
        "database": look_at_database,
        "store": look_at_store,
        "disk": look_at_disk,
        "worker": look_at_workers,
    }
    return Health(checks, required=settings.ready_requires, fresh={"store": STORE_SECONDS})


def _links(settings: Settings) -> Storage | None:
    """The store as clients reach it: an address is signed together with the host it is for."""
    if settings.result_urls == "served":
        return None
    endpoint = settings.storage_public_endpoint
    options: dict[str, Any] = {"endpoint": endpoint} if endpoint else {}
    return Storage.open(settings.storage_location, **options)


async def _origins(links: Storage | None) -> tuple[str, ...]:
    """Of signed URLs. That one is made here shows at the start, and not to a client, if none can be."""
    if links is None:
        return ()
    scheme, host, *_ = urlsplit(await links.sign("probe", seconds=1))
    return (f"{scheme}://{host}",)


def _wrap(app: FastAPI, settings: Settings) -> None:
    """What stands around all routes; the last one added is the outermost."""
    app.add_middleware(BoundedBody, most=settings.max_body_bytes, seconds=settings.body_seconds)
    if settings.cors_origins:
        app.add_middleware(
            CrossOrigin,
            allow_origins=settings.cors_origins,
            allow_methods=("GET", "POST", "DELETE"),
            allow_headers=wire.REQUEST_HEADERS,
            expose_headers=wire.RESPONSE_HEADERS,
        )
    app.add_middleware(Envelope, public_url=settings.public_url)
    # Without proxies too: X-Forwarded-For is then believed from nobody.
    app.add_middleware(ProxyHeadersMiddleware, trusted_hosts=[str(network) for network in settings.trusted_proxies])


class Server(uvicorn.Server):
    """Sends home who waits for jobs before it waits for their connections to end."""

    def __init__(self, app: FastAPI, *, host: str, port: int) -> None:
        super().__init__(server_config(app, host=host, port=port))
        self._app = app

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._app.state.service.changes.close()
        await super().shutdown(sockets)


async def _render(request: Request, error: Exception) -> Response:
    """The one place where an error becomes an answer."""
    request_id = request.state.request_id
    known: HiresfixError
    match error:
        case HTTPException(status_code=404) if page := await web.missing(request):
            return page
        case HTTPException(status_code=status, headers=headers):
            known = _OF_THE_FRAMEWORK.get(status) or InvalidRequest({"_root": [str(error.detail)]})
            if status == 405:
                headers = {**(headers or {}), "Allow": _allowed(request)}
            return _answer(status, wire.error_body(known, request_id=request_id), headers or {})
        case RequestValidationError():
            known = InvalidRequest({"_root": ["The request could not be read."]})
        case HiresfixError():
            known = error
        case _:
            log.warning("request.database_away", reason=type(error).__name__)
            known = Unavailable()
    if isinstance(known, Unavailable):  # a state of the whole server, and no bug: it would fill the log with traces
        log.warning("request.unavailable", reason=known.message)
    elif known.status >= 500 and not isinstance(known, NotOffered):
        log.error("request.failed", code=known.code, reason=known.message, exc_info=known)
    return _answer(known.status, wire.error_body(known, request_id=request_id), wire.error_headers(known))


def _allowed(request: Request) -> str:
    """Every method of the path; the framework would name those of one route."""
    path = request.scope["path"]
    routes = (route for route in iter_route_contexts(request.app.routes) if isinstance(route.original_route, APIRoute))
    methods = {method for route in routes if route.path_regex.match(path) for method in route.methods or ()}
    return ", ".join(sorted(methods))


def _answer(status: int, body: dict[str, Any], headers: Mapping[str, str]) -> JSONResponse:
    return JSONResponse(body, status_code=status, headers=dict(headers))
