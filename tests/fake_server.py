"""HTTP server for client tests: another vendor's server, or a proxy in front of ours. Answers by a function."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TypeAlias

import httpx

Answer: TypeAlias = tuple[int, dict[str, str], bytes]
"""Status, headers, body."""


@dataclass(frozen=True, kw_only=True)
class ReceivedRequest:
    method: str
    path: str
    headers: httpx.Headers
    body: bytes


@dataclass
class FakeServer:
    """Records its requests. `answer` returns the answer to one, or None to drop the connection."""

    url: str = ""
    answer: Callable[[ReceivedRequest], Answer | None] = field(
        default=lambda request: (404, {}, b'{"error": "Not found"}')
    )
    requests: list[ReceivedRequest] = field(default_factory=list)


def json_answer(status: int, body: object, **headers: str) -> Answer:
    return status, {"Content-Type": "application/json", **headers}, json.dumps(body).encode()


def forward(url: str, request: ReceivedRequest) -> Answer:
    """Send a request on to the server at `url`, and return its answer."""
    names = ("x-api-key", "content-type", "idempotency-key")
    headers = {name: request.headers[name] for name in names if name in request.headers}
    answer = httpx.request(request.method, url + request.path, content=request.body, headers=headers, timeout=60)
    return answer.status_code, {"Content-Type": answer.headers["content-type"]}, answer.content


@contextlib.contextmanager
def run_fake_server() -> Iterator[FakeServer]:
    fake = FakeServer()

    class Handler(BaseHTTPRequestHandler):
        def _serve(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            headers = httpx.Headers(dict(self.headers))
            request = ReceivedRequest(method=self.command, path=self.path, headers=headers, body=body)
            fake.requests.append(request)
            answer = fake.answer(request)
            if answer is None:
                self.connection.shutdown(socket.SHUT_RDWR)
                return
            status, answer_headers, content = answer
            self.send_response(status)
            for name, value in {"Content-Length": str(len(content)), **answer_headers}.items():
                self.send_header(name, value)
            self.end_headers()
            with contextlib.suppress(OSError):
                self.wfile.write(content)
            self.close_connection = True

        def do_GET(self) -> None:
            self._serve()

        def do_POST(self) -> None:
            self._serve()

        def log_message(self, *args: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    fake.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    yield fake
    server.shutdown()
    server.server_close()
    thread.join()
