"""Headers of every answer, other origins, and clients that are slow, huge or not speaking HTTP."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import httpx
import pytest
from structlog.testing import capture_logs

from hiresfix.server.http import uvicorn_server
from tests.server.conftest import Api, wait_until

PROTECTIVE = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "cache-control": "no-store",
}


Connect = Callable[[Api], socket.socket]


@pytest.fixture
def connect() -> Iterator[Connect]:
    opened = []

    def connection(to: Api) -> socket.socket:
        opened.append(socket.create_connection(("127.0.0.1", int(to.url.rpartition(":")[2])), timeout=30))
        return opened[-1]

    yield connection
    for one in opened:
        one.close()


def rest(connection: socket.socket) -> bytes:
    """Everything until the server closes."""
    received = b""
    while chunk := connection.recv(65536):
        received += chunk
    return received


def until(connection: socket.socket, end: bytes) -> bytes:
    received = b""
    while end not in received:
        chunk = connection.recv(65536)
        assert chunk, received
        received += chunk
    return received


def trickle(connection: socket.socket, *, seconds: float) -> None:
    """A byte now and then; raises OSError once the server has closed."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        connection.sendall(b" ")
        time.sleep(0.02)


def parsed(answer: bytes) -> tuple[int, dict[str, str], Any]:
    head, _, body = answer.partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    return int(status.split()[1]), headers, json.loads(body)


def test_answers_have_protective_headers(api: Api, photo: str) -> None:
    with api.client() as client:
        answers = [
            client.get("/healthz"),
            client.get("/nowhere"),
            client.put("/v2/images/upscale"),
            client.post("/v2/images/upscale", json={}),
            api.submit({"image": photo}),
            httpx.get(f"{api.url}/v2/jobs/x"),
        ]
    assert [answer.status_code for answer in answers] == [200, 404, 405, 400, 202, 401]
    for answer in answers:
        assert {name: answer.headers.get(name) for name in PROTECTIVE} == PROTECTIVE
        assert not {"server", "x-powered-by", "strict-transport-security"} & set(answer.headers)


def test_hsts_only_with_https(start_api: Callable[..., Api]) -> None:
    api = start_api(public_url="https://upscale.example")
    assert httpx.get(f"{api.url}/healthz").headers["strict-transport-security"] == "max-age=31536000"


def test_only_listed_origins_pass_cors(start_api: Callable[..., Api]) -> None:
    api = start_api(cors_origins=("https://studio.example",))

    def call_from(origin: str, method: str = "OPTIONS") -> httpx.Response:
        ask = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x-api-key, idempotency-key"}
        return httpx.request(method, f"{api.url}/v2/images/upscale", headers={"Origin": origin, **ask})

    allowed = call_from("https://studio.example")
    assert allowed.status_code == 200
    assert allowed.headers["access-control-allow-origin"] == "https://studio.example"
    assert "access-control-allow-credentials" not in allowed.headers
    refused = call_from("https://evil.example")
    assert refused.status_code == 400
    assert "access-control-allow-origin" not in refused.headers
    assert "application/json" in refused.headers["content-type"]
    assert isinstance(refused.json()["error"], str)
    answer = call_from("https://studio.example", "POST")  # errors can be read, too
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (401, "https://studio.example")
    assert "X-Request-Id" in answer.headers["access-control-expose-headers"]
    assert "access-control-allow-origin" not in call_from("https://evil.example", "POST").headers


def test_no_origin_passes_without_a_list(api: Api) -> None:
    ask = {"Origin": "https://studio.example", "Access-Control-Request-Method": "POST"}
    answer = httpx.options(f"{api.url}/v2/images/upscale", headers=ask)
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
    assert "access-control-allow-origin" not in answer.headers


def test_invalid_http_gets_a_json_error(api: Api, connect: Connect) -> None:
    connection = connect(api)
    connection.sendall(b"\x16\x03\x01 this is TLS\r\n\r\n")
    status, headers, body = parsed(rest(connection))
    assert (status, headers["content-type"]) == (400, "application/json")
    assert headers["x-request-id"] == body["requestId"]
    assert "server" not in headers


@pytest.mark.parametrize("what", ["request line", "one header", "many headers"])
def test_oversized_request_head_is_refused(api: Api, connect: Connect, what: str) -> None:
    big = b"x" * (uvicorn_server.MAX_HEADER_BYTES + 1)
    head = {
        "request line": b"GET /" + big + b" HTTP/1.1\r\n\r\n",
        "one header": b"GET / HTTP/1.1\r\nX: " + big + b"\r\n\r\n",
        "many headers": b"GET / HTTP/1.1\r\n" + b"".join(b"X-%d: 0123456789\r\n" % i for i in range(4000)),
    }[what]
    connection = connect(api)
    connection.sendall(head[: uvicorn_server.MAX_HEADER_BYTES + 100])
    status, _, body = parsed(rest(connection))
    assert status == 400
    assert "32 KiB" in body["error"]


def test_slow_request_head_is_closed(api: Api, connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uvicorn_server, "HEADER_SECONDS", 0.5)
    silent, slow, later = connect(api), connect(api), connect(api)
    later.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
    until(later, b'"ok"}')
    later.sendall(b"GET /healthz HT")
    slow.sendall(b"GET /healthz HTTP/1.1\r\n")
    for _ in range(2):  # bytes that trickle in do not prolong it
        time.sleep(0.1)
        slow.sendall(b"X: y\r\n")
    assert [rest(connection) for connection in (silent, slow, later)] == [b"", b"", b""]


def post(key: str, *more: str) -> bytes:
    lines = (
        "POST /v2/images/upscale HTTP/1.1",
        "Host: x",
        f"X-API-Key: {key}",
        "Content-Type: application/json",
        *more,
    )
    return "\r\n".join((*lines, "", "")).encode()


@pytest.mark.parametrize("framing", ["Content-Length: 100", "Transfer-Encoding: chunked"])
def test_slow_body_is_408(start_api: Callable[..., Api], connect: Connect, framing: str) -> None:
    api = start_api(body_timeout_seconds=0.5)
    connection = connect(api)
    connection.sendall(post(api.key, framing))
    connection.sendall(b"1\r\n{\r\n" if "chunked" in framing else b"{")
    status, _, body = parsed(until(connection, b"}"))
    assert (status, body["code"]) == (408, "request_timed_out")
    assert "0.5 s" in body["error"]


def test_chunked_body_has_the_same_limit(start_api: Callable[..., Api], connect: Connect) -> None:
    api = start_api(max_body_bytes=1000)
    with closing(connect(api)) as connection:
        connection.sendall(
            post(api.key, "Transfer-Encoding: chunked") + b"1000\r\n" + b" " * 0x1000
        )  # and more to come
        assert b" 413 " in until(connection, b"}")


def test_key_is_checked_before_the_body(start_api: Callable[..., Api], connect: Connect) -> None:
    api = start_api(max_body_bytes=10)
    connection = connect(api)
    connection.sendall(post("afk_" + "0" * 40, "Content-Length: 1000"))
    assert b" 401 " in until(connection, b"}")


def test_body_after_the_answer_is_cut_off(api: Api, connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uvicorn_server, "REST_SECONDS", 0.5)
    connection = connect(api)
    connection.sendall(post("afk_" + "0" * 40, "Content-Length: 100000000"))
    assert b" 401 " in until(connection, b"}")
    with pytest.raises(ConnectionError):
        trickle(connection, seconds=20)


@pytest.mark.parametrize("path", ["/v2/images/upscale", "/v2/uploads", "/v2/signup"])
def test_client_disconnect_is_not_an_error(api: Api, connect: Connect, path: str) -> None:
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nX-API-Key: {api.key}\r\nContent-Length: 100\r\n"
    with capture_logs() as logs:
        connection = connect(api)
        connection.sendall(f"{head}Content-Type: multipart/form-data; boundary=x\r\n\r\n--x".encode())
        connection.close()
        wait_until(lambda: any(line["event"] == "request.answered" for line in logs))
    assert [(line["event"], line["status"]) for line in logs] == [("request.answered", 0)]
