"""Middleware: request id, protective headers, rate-limit headers, log line, CORS and limits of the body.

Every exception becomes a JSON 500. Headers that a route sets itself are not changed. The log line has the path and
never the query. Request bodies are limited in bytes and in time, for every route alike.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import Iterator, Mapping
from typing import Any
from uuid import uuid4

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hiresfix.errors import RequestTimedOut, RequestTooLarge
from hiresfix.server.platform import metrics, tracing
from hiresfix.server.platform.tracing import Span

log = structlog.get_logger(__name__)

QUOTA_HEADERS = "quota_headers"
"""Name in a request's state for the caller's rate-limit headers (see `api.dependencies`)."""

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_HSTS = "max-age=31536000"
_PROTECTIVE = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


def protective_headers(public_url: str) -> Mapping[str, str]:
    """Return the default headers of every answer; with an https URL they make browsers insist on TLS."""
    https = public_url.startswith("https://")
    return {**_PROTECTIVE, "Strict-Transport-Security": _HSTS} if https else _PROTECTIVE


class RequestMiddleware:
    """Outermost middleware: request id, default headers, metrics, trace, log line and the 500 for exceptions."""

    def __init__(self, app: ASGIApp, *, public_url: str) -> None:
        self._app = app
        self._headers = protective_headers(public_url)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if len(scope["path"]) > 1 and scope["path"].endswith("/"):
            scope["path"] = scope["path"].rstrip("/")  # both spellings work; a redirect would lose the body
        request_id = _request_id(scope)
        state: dict[str, Any] = scope.setdefault("state", {})
        state.update(request_id=request_id, arrived=time.monotonic())
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=request_id)
        started_at, status = time.perf_counter(), 0

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message.setdefault("headers", [])
                headers = MutableHeaders(scope=message)
                headers["X-Request-Id"] = request_id
                for name, value in (*self._headers.items(), *state.get(QUOTA_HEADERS, {}).items()):
                    headers.setdefault(name, value)
            await send(message)

        try:
            with _traced(scope) as span:
                await self._app(scope, receive, send_with_headers)
                span.rename(f"{scope['method']} {_route(scope)}")
                span.note(http__route=_route(scope), http__response__status_code=status)
        except ClientDisconnect:
            pass  # nobody is left to answer; the log line shows it by its status 0
        except Exception:
            log.exception("request.crashed", path=scope["path"])
            if status:  # the answer has begun; only closing the connection can still tell the client
                raise
            body = {"error": "Internal server error", "code": "internal_error", "requestId": request_id}
            await JSONResponse(body, status_code=500)(scope, receive, send_with_headers)
        finally:
            seconds = time.perf_counter() - started_at
            _count(scope, status, seconds)
            # Clients poll: a successful GET is not worth a log line a second.
            write = log.debug if scope["method"] in ("GET", "HEAD") and 200 <= status < 400 else log.info
            write(
                "request.answered",
                method=scope["method"],
                path=scope["path"],
                status=status,
                milliseconds=round(1000 * seconds, 1),
            )


def _count(scope: Scope, status: int, seconds: float) -> None:
    """Count the request under its route's template, because paths are unbounded."""
    method, route = metrics.method(scope["method"]), _route(scope)
    metrics.REQUESTS.labels(method, route, str(status)).inc()
    metrics.REQUEST_SECONDS.labels(method, route).observe(seconds)


def _route(scope: Scope) -> str:
    return str(getattr(scope.get("route"), "path", "none"))


@contextlib.contextmanager
def _traced(scope: Scope) -> Iterator[Span]:
    """Open a span for requests of the contract; probes and scrapes would bury them."""
    if not scope["path"].startswith("/v2/"):
        yield tracing.UNTRACED
        return
    method, parent = metrics.method(scope["method"]), Headers(scope=scope).get("traceparent")
    facts = {"http__request__method": method, "hiresfix__request_id": scope["state"]["request_id"]}
    with tracing.span(method, joins=parent, **facts) as span:
        yield span


def _request_id(scope: Scope) -> str:
    sent = Headers(scope=scope).get("x-request-id", "")
    return sent if _REQUEST_ID.fullmatch(sent) else str(uuid4())


class JsonCorsMiddleware(CORSMiddleware):
    """CORS for the listed origins; other preflight requests get a 400 in JSON like any other error."""

    def preflight_response(self, request_headers: Headers) -> Response:
        answer = super().preflight_response(request_headers)
        if answer.status_code == 200:
            return answer
        text = "This origin, method or header is not allowed from a browser. Ask the operator to list the origin."
        allowed = {"Vary": answer.headers["vary"]}
        return JSONResponse({"error": text, "code": "cors_refused"}, status_code=400, headers=allowed)


class BodyLimitMiddleware:
    """Reading a request's body raises RequestTooLarge or RequestTimedOut when it exceeds a limit.

    Raised in the route that reads the body, so that authentication errors come first (contract.md 4.6).
    """

    def __init__(self, app: ASGIApp, *, max_bytes: int, seconds: float) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        declared = Headers(scope=scope).get("content-length", "")
        deadline = asyncio.get_running_loop().time() + self._seconds
        received, complete = 0, False

        async def receive_bounded() -> Message:
            nonlocal received, complete
            if complete:  # only http.disconnect can follow
                return await receive()
            if declared.isdigit() and int(declared) > self._max_bytes:
                raise RequestTooLarge
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError as error:
                raise RequestTimedOut(self._seconds) from error
            received += len(message.get("body", b""))
            if received > self._max_bytes:
                raise RequestTooLarge
            complete = not message.get("more_body", False)
            return message

        await self._app(scope, receive_bounded, send)
