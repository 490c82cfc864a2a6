"""HTTP below the application: uvicorn, bounded against clients that are slow, huge or not speaking HTTP.

Guarantees: request line and headers fit into `MAX_HEADER_BYTES`, together; a connection on which no complete request
begins within `HEADER_SECONDS`, or on which a client still sends a body `REST_SECONDS` after its answer, is closed; what
is no HTTP gets the same envelope of JSON and request id as any other error. How long and how large a body may be is the
application's to say (`envelope.BoundedBody`).
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
"""What requests in progress get to finish when the process is told to stop."""


class BoundedHttp(H11Protocol):
    """uvicorn's HTTP/1.1 with limits on what a client may take its time with, apart from the body proper."""

    _waiting_for: Literal["head", "rest"] | None = None
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn's own
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
            self._wait_for("head")  # of the first or, on a connection kept open, the next request
        elif self.conn.their_state is h11.SEND_BODY and self.conn.our_state is h11.DONE:
            self._wait_for("rest")  # uvicorn reads and drops it, so that the client gets to read our answer
        else:
            self._wait_for(None)

    def _wait_for(self, what: Literal["head", "rest"] | None) -> None:
        if what == self._waiting_for:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._waiting_for = what
        seconds = {"head": HEADER_SECONDS, "rest": REST_SECONDS, None: 0.0}[what]
        self._timer = self.loop.call_later(seconds, self._too_late) if what else None

    def _too_late(self) -> None:
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
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):  # else half an answer is out already
            response = h11.Response(status_code=400, headers=list(headers.items()), reason=b"Bad Request")
            for event in (response, h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()


def server_config(app: ASGIApp, *, host: str = "127.0.0.1", port: int = 0) -> uvicorn.Config:
    """How this server runs under uvicorn."""
    return uvicorn.Config(
        app,
        host=host,
        port=port,
        http=BoundedHttp,
        h11_max_incomplete_event_size=MAX_HEADER_BYTES,
        ws="none",
        proxy_headers=False,  # the application believes only the proxies it was told of
        server_header=False,
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=STOP_SECONDS,
    )
