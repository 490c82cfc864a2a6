"""The API process: an ASGI application that answers everything, errors included, as JSON with a request id.

Guarantees for every answer, whoever makes it (a route, the framework, a bug): `Content-Type: application/json`
(files aside), the error envelope of api-contract.md 11, what `envelope` adds, no 422, no redirect. It runs without
torch installed.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager
from typing import Any

import structlog
import uvicorn
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute, iter_route_contexts
from starlette.exceptions import HTTPException
from starlette.requests import Request
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from hiresfix import wire
from hiresfix.errors import HiresfixError, InvalidRequest, NotOffered, Unavailable
from hiresfix.server import api, config, db, downloads, gate, uploads, web
from hiresfix.server.api.context import Service
from hiresfix.server.changes import Changes
from hiresfix.server.config import Settings
from hiresfix.server.db import Database
from hiresfix.server.envelope import BoundedBody, CrossOrigin, Envelope
from hiresfix.server.outlook import Outlook
from hiresfix.server.quarantine import Quarantine
from hiresfix.server.queue import Queue
from hiresfix.server.ratelimit import Limiter
from hiresfix.server.storage import Storage
from hiresfix.server.transport import server_config

log = structlog.get_logger(__name__)

DECODING = 4
_TEXT_FOR_STATUS = {404: "Not found", 405: "Method not allowed", 413: "Request body too large"}


def create_app(settings: Settings, *, database_url: str) -> FastAPI:
    """The application; its database and store are opened when the server starts and closed when it ends."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        config.warn_if_open(settings)
        changes = Changes(database_url)
        async with (
            Quarantine(uploads.limits(settings)) as quarantine,
            Database(database_url, max_size=20, name="hiresfix-api") as database,
            aclosing(Limiter(settings.rate_limit_url)) as limiter,
            changes.listening(),
        ):
            app.state.service = Service(
                settings=settings,
                database=database,
                storage=Storage.open(settings.storage_location),
                queue=Queue(database_url),
                changes=changes,
                outlook=Outlook(database),
                limiter=limiter,
                quarantine=quarantine,
                quotas=gate.quotas(settings),
                decoding=asyncio.Semaphore(DECODING),
            )
            yield

    app = FastAPI(lifespan=lifespan, openapi_url=None, redirect_slashes=False)
    app.include_router(api.router)
    app.include_router(downloads.router)
    app.router.routes.extend(web.routes)
    for kind in (HiresfixError, HTTPException, RequestValidationError, *db.OUTAGE):
        app.add_exception_handler(kind, _render)
    _wrap(app, settings)
    return app


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


async def _render(request: Request, error: Exception) -> JSONResponse:
    """The one place where an error becomes an answer."""
    request_id = request.state.request_id
    match error:
        case HTTPException(status_code=status, headers=headers):
            text = _TEXT_FOR_STATUS.get(status, str(error.detail))
            if status == 405:
                headers = {**(headers or {}), "Allow": _allowed(request)}
            return _answer(status, {"error": text, "code": _code(text), "requestId": request_id}, headers or {})
        case RequestValidationError():
            known: HiresfixError = InvalidRequest({"_root": ["The request could not be read."]})
        case HiresfixError():
            known = error
        case _:
            log.warning("request.database_away", reason=type(error).__name__)
            known = Unavailable()
    if known.status >= 500 and not isinstance(known, NotOffered):
        log.error("request.failed", code=known.code, reason=known.message, exc_info=known)
    return _answer(known.status, wire.error_body(known, request_id=request_id), wire.error_headers(known))


def _allowed(request: Request) -> str:
    """Every method of the path; the framework would name those of one route."""
    path = request.scope["path"]
    routes = (route for route in iter_route_contexts(request.app.routes) if isinstance(route.original_route, APIRoute))
    methods = {method for route in routes if route.path_regex.match(path) for method in route.methods or ()}
    return ", ".join(sorted(methods))


def _code(text: str) -> str:
    return text.lower().replace(" ", "_")


def _answer(status: int, body: dict[str, Any], headers: Mapping[str, str]) -> JSONResponse:
    return JSONResponse(body, status_code=status, headers=dict(headers))
