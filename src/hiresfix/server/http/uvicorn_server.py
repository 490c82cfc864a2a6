"""uvicorn with limits against clients that are slow, send too much or do not speak HTTP.

Request line and headers together fit into `MAX_HEADER_BYTES`. A connection is closed if no complete request head
arrives within `HEADER_SECONDS`, or if the client is still sending a body `REST_SECONDS` after its answer. Anything that
is not HTTP gets the same JSON error as any other. Time and size of bodies are limited by `middleware`.
"""

from __future__ import annotations

import asyncio
import json
from typing import Literal
from uuid import uuid4

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

MAX_HEADER_BYTES = 32 * 1024
HEADER_SECONDS = 20.0
REST_SECONDS = 5.0
STOP_SECONDS = 10
"""Time that requests in progress get to finish when the process is told to stop."""


class BoundedHttpProtocol(H11Protocol):
    """uvicorn's HTTP/1.1 protocol with time limits for request heads and for unread bodies."""

    _waiting_for: Literal["head", "rest"] | None = None
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as in uvicorn itself
        super().connection_made(transport)
        self._wait_for("head")

    def connection_lost(self, exc: Exception | None) -> None:
        self._wait_for(None)
        super().connection_lost(exc)

    def handle_events(self) -> None:
        super().handle_events()
        self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch()

    def _watch(self) -> None:
        if self.conn.their_state is h11.IDLE and self.conn.trailing_data[0]:
            self._wait_for("head")  # of the first request or, on a kept-open connection, the next
        elif self.conn.their_state is h11.SEND_BODY and self.conn.our_state is h11.DONE:
            self._wait_for("rest")  # uvicorn reads and drops it, so that the client can read the answer
        else:
            self._wait_for(None)

    def _wait_for(self, what: Literal["head", "rest"] | None) -> None:
        if what == self._waiting_for:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._waiting_for = what
        seconds = {"head": HEADER_SECONDS, "rest": REST_SECONDS, None: 0.0}[what]
        self._timer = self.loop.call_later(seconds, self._close_late) if what else None

    def _close_late(self) -> None:
        if not self.transport.is_closing():
            self.transport.close()

    def send_400_response(self, msg: str) -> None:
        request_id = str(uuid4())
        body = json.dumps(
            {
                "error": f"{msg} Send HTTP/1.1, with at most {MAX_HEADER_BYTES // 1024} KiB of headers.",
                "code": "invalid_http",
                "requestId": request_id,
            }
        ).encode()
        headers = {
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
            "X-Request-Id": request_id,
            "X-Content-Type-Options": "nosniff",
            "Connection": "close",
        }
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):  # else an answer has begun already
            response = h11.Response(status_code=400, headers=list(headers.items()), reason=b"Bad Request")
            for event in (response, h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()


def server_config(app: ASGIApp, *, host: str = "127.0.0.1", port: int = 0) -> uvicorn.Config:
    """Return the uvicorn configuration of this server."""
    return uvicorn.Config(
        app,
        host=host,
        port=port,
        http=BoundedHttpProtocol,
        h11_max_incomplete_event_size=MAX_HEADER_BYTES,
        ws="none",
        proxy_headers=False,  # the application trusts only the configured proxies
        server_header=False,
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=STOP_SECONDS,
    )
