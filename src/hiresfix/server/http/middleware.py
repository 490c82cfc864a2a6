"""What every answer has in common, whoever makes it: request id, protective headers, quota, a line in the log.

Guarantees: no exception leaves without a JSON 500; headers that a route sets itself stay as it set them; the log line
names the path and never the query. Request bodies are bounded in bytes and in time for every route alike.
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
"""Where in a request's state the headers wait that tell its caller's standing (see `gate`)."""

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
    """Headers for every answer that does not say otherwise; browsers are told to insist on TLS where there is any."""
    https = public_url.startswith("https://")
    return {**_PROTECTIVE, "Strict-Transport-Security": _HSTS} if https else _PROTECTIVE


class Envelope:
    """Outermost layer of the application."""

    def __init__(self, app: ASGIApp, *, public_url: str) -> None:
        self._app = app
        self._headers = protective_headers(public_url)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if len(scope["path"]) > 1 and scope["path"].endswith("/"):
            scope["path"] = scope["path"].rstrip("/")  # both spellings answer; a redirect would lose the body
        request_id = _request_id(scope)
        state: dict[str, Any] = scope.setdefault("state", {})
        state.update(request_id=request_id, arrived=time.monotonic())
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=request_id)
        started, status = time.perf_counter(), 0

        async def send_named(message: Message) -> None:
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
                await self._app(scope, receive, send_named)
                span.rename(f"{scope['method']} {_route(scope)}")
                span.note(http__route=_route(scope), http__response__status_code=status)
        except ClientDisconnect:
            pass  # nobody is left to be answered, and nothing of ours broke: the log line tells it by its status 0
        except Exception:
            log.exception("request.crashed", path=scope["path"])
            if status:  # half an answer is out; only closing the connection can still tell the client
                raise
            body = {"error": "Internal server error", "code": "internal_error", "requestId": request_id}
            await JSONResponse(body, status_code=500)(scope, receive, send_named)
        finally:
            seconds = time.perf_counter() - started
            _count(scope, status, seconds)
            # Clients poll: what only looked and was answered well is not worth a line a second.
            note = log.debug if scope["method"] in ("GET", "HEAD") and 200 <= status < 400 else log.info
            note(
                "request.answered",
                method=scope["method"],
                path=scope["path"],
                status=status,
                milliseconds=round(1000 * seconds, 1),
            )


def _count(scope: Scope, status: int, seconds: float) -> None:
    """Under the route's template: a path names a job, or whatever a stranger tries."""
    method, route = metrics.method(scope["method"]), _route(scope)
    metrics.REQUESTS.labels(method, route, str(status)).inc()
    metrics.REQUEST_SECONDS.labels(method, route).observe(seconds)


def _route(scope: Scope) -> str:
    return str(getattr(scope.get("route"), "path", "none"))


@contextlib.contextmanager
def _traced(scope: Scope) -> Iterator[Span]:
    """A span of the contract's requests; probes and scrapes would only bury them."""
    if not scope["path"].startswith("/v2/"):
        yield tracing.UNTRACED
        return
    method, joins = metrics.method(scope["method"]), Headers(scope=scope).get("traceparent")
    facts = {"http__request__method": method, "hiresfix__request_id": scope["state"]["request_id"]}
    with tracing.span(method, joins=joins, **facts) as span:
        yield span


def _request_id(scope: Scope) -> str:
    given = Headers(scope=scope).get("x-request-id", "")
    return given if _REQUEST_ID.fullmatch(given) else str(uuid4())


class CrossOrigin(CORSMiddleware):
    """What pages of listed origins may do; everybody else's preflight gets a 400 in JSON like any other error."""

    def preflight_response(self, request_headers: Headers) -> Response:
        answer = super().preflight_response(request_headers)
        if answer.status_code == 200:
            return answer
        text = "This origin, method or header is not allowed from a browser. Ask the operator to list the origin."
        allowed = {"Vary": answer.headers["vary"]}
        return JSONResponse({"error": text, "code": "cors_refused"}, status_code=400, headers=allowed)


class BoundedBody:
    """Whoever reads a request's body gets RequestTooLarge or RequestTimedOut from it where a limit is passed.

    Raised in the route that reads, so that who may not ask at all is told that first (contract.md 4.6).
    """

    def __init__(self, app: ASGIApp, *, most: int, seconds: float) -> None:
        self._app = app
        self._most = most
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
            if complete:  # what comes now is that the client left, for which one may wait
                return await receive()
            if declared.isdigit() and int(declared) > self._most:
                raise RequestTooLarge
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError as error:
                raise RequestTimedOut(self._seconds) from error
            received += len(message.get("body", b""))
            if received > self._most:
                raise RequestTooLarge
            complete = not message.get("more_body", False)
            return message

        await self._app(scope, receive_bounded, send)
