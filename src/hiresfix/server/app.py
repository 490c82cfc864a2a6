"""The API process: an ASGI application that answers everything, errors included, as JSON with a request id.

Guarantees for every answer, whoever makes it (a route, the framework, a bug): `Content-Type: application/json`
(files aside), `X-Request-Id`, the error envelope of api-contract.md 11, no 422, no redirect. It runs without
torch installed.
"""

from __future__ import annotations

import asyncio
import re
import socket
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import structlog
import uvicorn
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hiresfix import wire
from hiresfix.errors import HiresfixError, InvalidRequest, Unavailable
from hiresfix.server import api, config, db, downloads
from hiresfix.server.api.context import Service
from hiresfix.server.changes import Changes
from hiresfix.server.config import Settings
from hiresfix.server.db import Database
from hiresfix.server.outlook import Outlook
from hiresfix.server.queue import Queue
from hiresfix.server.storage import Storage

log = structlog.get_logger(__name__)

DECODING = 4
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_TEXT_FOR_STATUS = {404: "Not found", 405: "Method not allowed", 413: "Request body too large"}


def create_app(settings: Settings, *, database_url: str) -> FastAPI:
    """The application; its database and store are opened when the server starts and closed when it ends."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        config.warn_if_open(settings)
        changes = Changes(database_url)
        async with Database(database_url, max_size=20, name="hiresfix-api") as database, changes.listening():
            app.state.service = Service(
                settings=settings,
                database=database,
                storage=Storage.open(settings.storage_location),
                queue=Queue(database_url),
                changes=changes,
                outlook=Outlook(database),
                decoding=asyncio.Semaphore(DECODING),
            )
            yield

    app = FastAPI(lifespan=lifespan, openapi_url=None, redirect_slashes=False)
    app.include_router(api.router)
    app.include_router(downloads.router)
    for kind in (HiresfixError, HTTPException, RequestValidationError, *db.OUTAGE):
        app.add_exception_handler(kind, _render)
    app.add_middleware(Envelope)
    return app


class Server(uvicorn.Server):
    """Sends home who waits for jobs before it waits for their connections to end."""

    def __init__(self, app: FastAPI, **options: Any) -> None:
        super().__init__(uvicorn.Config(app, log_config=None, access_log=False, server_header=False, **options))
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
            return _answer(status, {"error": text, "code": _code(text), "requestId": request_id}, headers or {})
        case RequestValidationError():
            known: HiresfixError = InvalidRequest({"_root": ["The request could not be read."]})
        case HiresfixError():
            known = error
        case _:
            log.warning("request.database_away", reason=type(error).__name__)
            known = Unavailable()
    if known.status >= 500:
        log.error("request.failed", code=known.code, reason=known.message, exc_info=known)
    return _answer(known.status, wire.error_body(known, request_id=request_id), wire.error_headers(known))


def _code(text: str) -> str:
    return text.lower().replace(" ", "_")


def _answer(status: int, body: dict[str, Any], headers: Mapping[str, str]) -> JSONResponse:
    return JSONResponse(body, status_code=status, headers=dict(headers))


class Envelope:
    """Outermost layer: request id, log line, and a JSON 500 for whatever nobody caught."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if len(scope["path"]) > 1 and scope["path"].endswith("/"):
            scope["path"] = scope["path"].rstrip("/")  # both spellings answer; a redirect would lose the body
        request_id = _request_id(scope)
        scope.setdefault("state", {}).update(request_id=request_id, arrived=time.monotonic())
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=request_id)
        started, status = time.perf_counter(), 0

        async def send_named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", []), (b"x-request-id", request_id.encode())]
            await send(message)

        try:
            await self._app(scope, receive, send_named)
        except Exception:
            log.exception("request.crashed", path=scope["path"])
            if status:  # half an answer is out; only closing the connection can still tell the client
                raise
            body = {"error": "Internal server error", "code": "internal_error", "requestId": request_id}
            await _answer(500, body, {})(scope, receive, send_named)
        finally:
            # Clients poll: what only looked and was answered well is not worth a line a second.
            note = log.debug if scope["method"] in ("GET", "HEAD") and 200 <= status < 400 else log.info
            note(
                "request.answered",
                method=scope["method"],
                path=scope["path"],
                status=status,
                milliseconds=round(1000 * (time.perf_counter() - started), 1),
            )


def _request_id(scope: Scope) -> str:
    given = dict(scope["headers"]).get(b"x-request-id", b"").decode("latin-1")
    return given if _REQUEST_ID.fullmatch(given) else str(uuid4())
