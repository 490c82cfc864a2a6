"""The guarded HTTP client, against real servers on loopback.

Doubles replace what is not ours: name servers (`FakeResolver`) and the route to public addresses (`FakeInternet`,
which records each dialed address and connects to a local server instead).
"""

from __future__ import annotations

import asyncio
import gzip
import ssl
import subprocess
import tracemalloc
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import httpcore
import pytest

from hiresfix import __version__
from hiresfix.errors import FetchError, Unreachable
from hiresfix.server import guarded_http
from hiresfix.server.guarded_http import HttpPolicy, check_url, fetch, may_reach, post

IMAGE = b"\x89PNG\r\n\x1a\n and so on"
PUBLIC = "93.184.215.14"
DEVELOPMENT = HttpPolicy(allow_private=True)

Reply = Callable[[asyncio.StreamWriter], Awaitable[None]]


@dataclass(kw_only=True)
class Site:
    """A server that sends prepared responses byte for byte, and records requests."""

    pages: dict[str, bytes | Reply] = field(default_factory=dict)
    requests: list[bytes] = field(default_factory=list)
    connections: int = 0
    requested: asyncio.Event = field(default_factory=asyncio.Event)
    disconnected: asyncio.Event = field(default_factory=asyncio.Event)
    serving: set[asyncio.Task[None] | None] = field(default_factory=set)
    port: int = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.serving.add(asyncio.current_task())
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            length = [line[15:] for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")]
            self.requests.append(head + await reader.readexactly(int(length[0]) if length else 0))
            self.requested.set()
            page = self.pages.get(head.split(b" ", 2)[1].decode(), response_bytes(b"not found", status=404))
            responding = asyncio.create_task(self.respond(page, writer))
            disconnecting = asyncio.create_task(reader.read())
            await asyncio.wait([responding, disconnecting], return_when=asyncio.FIRST_COMPLETED)
            for task in (responding, disconnecting):
                task.cancel()
            await asyncio.gather(responding, disconnecting, return_exceptions=True)
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()
        self.disconnected.set()

    async def respond(self, page: bytes | Reply, writer: asyncio.StreamWriter) -> None:
        if isinstance(page, bytes):
            writer.write(page)
        else:
            await page(writer)
        await writer.drain()

    def url(self, path: str = "/", host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.port}{path}"


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    """On 127.0.0.1 and, where there is IPv6, on ::1; checks that every client disconnects."""
    site = Site()
    async with AsyncExitStack() as stack:
        server = await asyncio.start_server(site.serve, "127.0.0.1", 0)
        await stack.enter_async_context(server)
        site.port = server.sockets[0].getsockname()[1]
        with suppress(OSError):
            await stack.enter_async_context(await asyncio.start_server(site.serve, "::1", site.port))
        yield site
        async with asyncio.timeout(10):
            await asyncio.gather(*(task for task in site.serving if task))


def response_bytes(body: bytes = IMAGE, *, status: int = 200, length: int | None = None, **headers: str) -> bytes:
    fields = {"Content-Length": str(len(body) if length is None else length), **headers}
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in fields.items())
    return f"HTTP/1.1 {status} Status\r\n{lines}\r\n".encode() + body


def redirect(location: str, status: int = 302) -> bytes:
    return response_bytes(b"elsewhere", status=status, Location=location)


def chunk(body: bytes) -> bytes:
    return f"{len(body):x}\r\n".encode() + body + b"\r\n"


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@dataclass
class FakeResolver:
    """A name server: each lookup of a host takes its next answer; the last one repeats."""

    answers: dict[str, list[Sequence[str]]]
    lookups: list[str] = field(default_factory=list)

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        self.lookups.append(host)
        if host not in self.answers:
            return await guarded_http.resolve(host, port)
        answers = self.answers[host]
        return answers.pop(0) if len(answers) > 1 else answers[0]


@dataclass
class FakeInternet:
    """Connections to every address lead to one local port."""

    port: int
    dialed: list[tuple[str, int]] = field(default_factory=list)
    dead: set[str] = field(default_factory=set)


@pytest.fixture
def internet(site: Site, monkeypatch: pytest.MonkeyPatch) -> FakeInternet:
    internet = FakeInternet(site.port)
    connect = httpcore.AnyIOBackend.connect_tcp

    async def connect_tcp(
        self: httpcore.AnyIOBackend, host: str, port: int, *arguments: object
    ) -> httpcore.AsyncNetworkStream:
        internet.dialed.append((host, port))
        if host in internet.dead:
            raise httpcore.ConnectError("no route to host")
        return await connect(self, "127.0.0.1", internet.port)

    monkeypatch.setattr(httpcore.AnyIOBackend, "connect_tcp", connect_tcp)
    return internet


def public(**answers: list[Sequence[str]]) -> HttpPolicy:
    """The policy of production, resolving names like `images.example`."""
    return HttpPolicy(resolve=FakeResolver({f"{name}.example": addresses for name, addresses in answers.items()}))


def lookups(policy: HttpPolicy) -> list[str]:
    assert isinstance(policy.resolve, FakeResolver)
    return policy.resolve.lookups


# Successful fetches


async def test_fetch_returns_the_served_bytes(site: Site) -> None:
    site.pages["/a%20b.png?size=1"] = response_bytes()

    assert await fetch(site.url("/a%20b.png?size=1#part"), DEVELOPMENT) == IMAGE


async def test_request_headers_carry_nothing_private(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    site.pages["/"] = response_bytes(Set_Cookie="a=b")
    for _ in range(2):
        await fetch(site.url(), DEVELOPMENT)

    head = site.requests[1].decode().split("\r\n")
    assert head[0] == "GET / HTTP/1.1"
    assert dict(line.split(": ") for line in head[1:] if line) == {
        "Host": f"127.0.0.1:{site.port}",
        "User-Agent": f"hiresfix/{__version__}",
        "Accept": "image/*",
        "Accept-Encoding": "identity",
        "Connection": "close",
    }


async def test_international_url_is_encoded_once(site: Site, internet: FakeInternet) -> None:
    policy = HttpPolicy(resolve=FakeResolver({"xn--wgv71a.example": [[PUBLIC]]}))
    site.pages["/%E5%86%99%E7%9C%9F.png?q=a%2Fb"] = response_bytes()

    assert await fetch("http://日本.example./写真.png?q=a%2Fb", policy) == IMAGE
    assert b"Host: xn--wgv71a.example\r\n" in site.requests[0]


async def test_declared_media_type_is_ignored(site: Site) -> None:
    site.pages["/"] = response_bytes(b"<html>", Content_Type="text/html")

    assert await fetch(site.url(), DEVELOPMENT) == b"<html>"


@pytest.mark.parametrize("encoding", ["gzip", "GZIP", "x-gzip", "deflate", "identity", ""])
async def test_unrequested_compression_is_undone(site: Site, encoding: str) -> None:
    kinds: dict[str, Callable[[bytes], bytes]] = {"gzip": gzip.compress, "x-gzip": gzip.compress}
    compress = {**kinds, "deflate": zlib.compress}.get(encoding.lower(), bytes)
    site.pages["/"] = response_bytes(compress(IMAGE * 1000), Content_Encoding=encoding)

    assert await fetch(site.url(), DEVELOPMENT) == IMAGE * 1000


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_three_redirects_are_followed(site: Site, status: int) -> None:
    site.pages |= {
        "/a/1": redirect("2?x=1", status),
        "/a/2?x=1": redirect(f"//127.0.0.1:{site.port}/3 4", status),
        "/3%204": redirect(site.url("/4", host="localhost"), status),
        "/4": response_bytes(),
    }

    assert await fetch(site.url("/a/1"), DEVELOPMENT) == IMAGE
    assert b"Host: localhost:" in site.requests[3]


# Responses that are not a file


async def refused(url: str, policy: HttpPolicy) -> FetchError:
    """Return the error of a fetch that must fail; its message names no resolved address and says what to do."""
    with pytest.raises(FetchError) as caught:
        await fetch(url, policy)
    message = caught.value.message
    assert message.endswith(".")
    assert message.count(". ") >= 1 or message.startswith("The URL must")
    assert "127.0.0.1" not in message
    assert "Error" not in message
    return caught.value


@pytest.mark.parametrize(("status", "retryable"), [(404, False), (403, False), (304, False), (429, True), (500, True)])
async def test_error_status_is_named(site: Site, status: int, retryable: bool) -> None:
    site.pages["/"] = response_bytes(status=status, Location="/elsewhere") if status != 304 else redirect("/", 304)
    error = await refused(site.url(), DEVELOPMENT)

    assert str(status) in error.message
    assert error.retryable is retryable


async def test_fourth_redirect_is_refused(site: Site) -> None:
    for n in range(5):
        site.pages[f"/{n}"] = redirect(f"/{n + 1}")
    error = await refused(site.url("/0"), DEVELOPMENT)

    assert "more than 3 times" in error.message
    assert len(site.requests) == 4


async def test_redirect_loop_ends(site: Site) -> None:
    site.pages["/"] = redirect("/")
    await refused(site.url(), DEVELOPMENT)

    assert len(site.requests) == 4


async def test_redirect_without_location_is_an_error_status(site: Site) -> None:
    site.pages["/"] = response_bytes(status=302)

    assert "302" in (await refused(site.url(), DEVELOPMENT)).message


SMALL = replace(DEVELOPMENT, max_bytes=1_000_000)


async def test_size_limit_is_exact(site: Site) -> None:
    site.pages |= {"/fits": CHUNKED + chunk(b"x" * 1_000_000) + b"0\r\n\r\n"}
    site.pages |= {"/not": CHUNKED + chunk(b"x" * 1_000_001) + b"0\r\n\r\n"}
    site.pages |= {"/packed": response_bytes(gzip.compress(b"x" * 1_000_000), Content_Encoding="gzip")}
    site.pages |= {"/overpacked": response_bytes(gzip.compress(b"x" * 1_000_001), Content_Encoding="gzip")}

    assert len(await fetch(site.url("/fits"), SMALL)) == 1_000_000
    assert len(await fetch(site.url("/packed"), SMALL)) == 1_000_000
    assert "larger than 1000000 bytes" in (await refused(site.url("/not"), SMALL)).message
    assert "larger than 1000000 bytes" in (await refused(site.url("/overpacked"), SMALL)).message


async def test_declared_size_is_refused_at_once(site: Site) -> None:
    site.pages["/"] = response_bytes(b"", length=30_000_000)  # the body never arrives

    assert "larger than 25 MiB" in (await refused(site.url(), DEVELOPMENT)).message


async def test_endless_stream_is_cut_off(site: Site) -> None:
    async def endless(writer: asyncio.StreamWriter) -> None:
        writer.write(CHUNKED)
        while True:
            writer.write(chunk(b"x" * 65536))
            await writer.drain()

    site.pages["/"] = endless

    assert "larger" in (await refused(site.url(), SMALL)).message
    await asyncio.wait_for(site.disconnected.wait(), 10)


async def test_bytes_after_compressed_end_count(site: Site) -> None:
    async def endless(writer: asyncio.StreamWriter) -> None:
        writer.write(CHUNKED.replace(b"\r\n\r\n", b"\r\nContent-Encoding: gzip\r\n\r\n") + chunk(gzip.compress(IMAGE)))
        while True:
            writer.write(chunk(b"x" * 65536))
            await writer.drain()

    site.pages["/"] = endless

    assert "larger" in (await refused(site.url(), SMALL)).message


async def test_decompression_bomb_is_not_unpacked(site: Site) -> None:
    bomb = gzip.compress(bytes(100_000_000), compresslevel=6)
    assert len(bomb) < SMALL.max_bytes
    site.pages["/"] = response_bytes(bomb, Content_Encoding="gzip")
    tracemalloc.start()
    try:
        error = await refused(site.url(), SMALL)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert "larger" in error.message
    assert peak < 8 * SMALL.max_bytes


async def silence(writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(60)


async def drip_head(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n")
    for n in range(1000):
        writer.write(f"X-{n}: 1\r\n".encode())
        await writer.drain()
        await asyncio.sleep(0.05)


async def drip_body(writer: asyncio.StreamWriter) -> None:
    writer.write(response_bytes(b"", length=1000))
    for _ in range(1000):
        writer.write(b"x")
        await writer.drain()
        await asyncio.sleep(0.05)


async def drip_interim(writer: asyncio.StreamWriter) -> None:
    for _ in range(1000):
        writer.write(b"HTTP/1.1 103 Early Hints\r\n\r\n")
        await writer.drain()
        await asyncio.sleep(0.05)


@pytest.mark.parametrize("slow_reply", [silence, drip_head, drip_body, drip_interim])
async def test_slow_server_times_out(site: Site, slow_reply: Reply) -> None:
    site.pages["/"] = slow_reply
    error = await refused(site.url(), replace(DEVELOPMENT, total_timeout=0.4))

    assert "in time" in error.message
    assert isinstance(error, Unreachable)


async def test_timeout_covers_all_redirects(site: Site) -> None:
    async def slow(writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.3)
        writer.write(redirect("/"))

    site.pages["/"] = slow

    assert "in time" in (await refused(site.url(), replace(DEVELOPMENT, total_timeout=0.5))).message


async def test_hanging_name_server_times_out() -> None:
    async def hang(host: str, port: int) -> Sequence[str]:
        await asyncio.sleep(60)
        return [PUBLIC]

    await refused("http://slow.example/", HttpPolicy(total_timeout=0.2, resolve=hang))


async def reset(writer: asyncio.StreamWriter) -> None:
    writer.write(response_bytes(b"x" * 100, length=1000))
    await writer.drain()
    writer.transport.abort()


@pytest.mark.parametrize(
    "broken",
    [
        reset,
        response_bytes(b"x" * 100, length=1000),
        CHUNKED + chunk(b"x" * 100),
        CHUNKED + b"no number\r\n",
        response_bytes(gzip.compress(IMAGE, mtime=0)[:-9], Content_Encoding="gzip"),
        response_bytes(b"not gzip at all", Content_Encoding="gzip"),
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X-Long: " + b"x" * 500_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx",
        b"",
    ],
)
async def test_broken_response_is_unreachable(site: Site, broken: bytes | Reply) -> None:
    site.pages["/"] = broken

    assert isinstance(await refused(site.url(), DEVELOPMENT), Unreachable)


async def test_unknown_compression_is_refused(site: Site) -> None:
    site.pages["/"] = response_bytes(Content_Encoding="br")

    assert "compression" in (await refused(site.url(), DEVELOPMENT)).message


async def test_closed_port_and_unknown_name_are_retryable(unused_tcp_port: int) -> None:
    assert isinstance(await refused(f"http://127.0.0.1:{unused_tcp_port}/", DEVELOPMENT), Unreachable)
    assert isinstance(await refused("http://no-such-host.invalid/", DEVELOPMENT), Unreachable)
    assert isinstance(await refused("http://void.example/", public(void=[[]])), Unreachable)


async def test_cancel_closes_the_connection(site: Site) -> None:
    site.pages["/"] = drip_body
    fetching = asyncio.create_task(fetch(site.url(), DEVELOPMENT))
    await site.requested.wait()
    fetching.cancel()

    with pytest.raises(asyncio.CancelledError):
        await fetching
    await asyncio.wait_for(site.disconnected.wait(), 10)


# Malformed URLs


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("file:///etc/passwd", "must start with"),
        ("ftp://images.example/a", "must start with"),
        ("gopher://127.0.0.1:6379/_INFO", "must start with"),
        ("data:image/png;base64,AAAA", "must start with"),
        ("//images.example/a", "must start with"),
        ("images.example/a", "must start with"),
        ("", "must start with"),
        ("http://", "host name"),
        ("http:///etc/passwd", "host name"),
        ("http://./", "host name"),
        ("http://a..b/", "host name"),
        ("http://" + "a" * 64 + ".example/", "host name"),
        ("http://" + "a." * 127 + "example/", "host name"),
        ("http://127.0.0%2e1/", "host name"),
        ("http://-a.example/", "host name"),
        ("http://[fe80::1%25eth0]/", "host name"),
        ("http://[fe80::1%eth0]/", "host name"),
        ("http://[::1/", "malformed"),
        ("http://[v1.a]/", "malformed"),
        ("http://１２７.０.０.１/", "malformed"),
        ("http://ⓛocalhost/", "malformed"),
        ("http://256.1.1.1/", "malformed"),
        ("http://0177.0.0.1/", "malformed"),
        ("http://user@images.example/", "user name"),
        ("http://user:secret@images.example/", "user name"),
        ("http://images.example@127.0.0.1/", "user name"),
        ("http://images.example:secret@127.0.0.1/", "user name"),
        ("http://images.example\\@127.0.0.1/", "backslashes"),
        ("http://images.example/a b", "spaces"),
        (" http://images.example/", "spaces"),
        ("http://images.example/\r\nX-Injected: 1", "control characters"),
        ("http://images.example/\t", "control characters"),
        ("http://images.example/\x00", "control characters"),
        ("http://images.example/\u2028", "control characters"),
        ("http://images.example/\u202egnp.exe", "control characters"),
        ("http://images.example/" + "a" * 9000, "longer"),
        ("http://images.example:22/", "port"),
        ("http://images.example:8080/", "port"),
        ("https://images.example:6379/", "port"),
        ("http://images.example:0/", "port"),
        ("http://images.example:65616/", "port"),
    ],
)
async def test_malformed_url_is_refused_before_resolving(url: str, problem: str) -> None:
    policy = public(images=[[PUBLIC]])
    error = await refused(url, policy)

    assert problem in error.message
    assert not error.retryable
    assert lookups(policy) == []


def test_check_url_returns_host_and_port() -> None:
    target = check_url("HTTPS://Images.Example./a?b#c", HttpPolicy())
    v6 = check_url("http://[2606:4700::0:1111]:8080/", DEVELOPMENT)

    assert (target.host, target.port, target.secure, target.authority) == (
        "images.example",
        443,
        True,
        "images.example",
    )
    assert (v6.host, v6.port, v6.secure, v6.authority) == ("2606:4700::1111", 8080, False, "[2606:4700::1111]:8080")


# Addresses


def addresses(text: str) -> list[str]:
    return text.split()


NEVER = addresses(
    """
    169.254.169.254 100.100.100.200 fd00:ec2::254 fd20:ce::254 0.0.0.0 0.1.2.3 169.254.1.1 168.63.129.16 192.0.0.1
    192.0.0.9 192.0.0.170 192.0.2.1 192.31.196.1 192.52.193.1 192.88.99.1 192.175.48.1 198.18.0.1 198.19.255.255
    198.51.100.1 203.0.113.1 224.0.0.1 232.1.1.1 239.255.255.255 240.0.0.1 255.255.255.255
    :: ::127.0.0.1 ::8.8.8.8 ::ffff:127.0.0.1 ::ffff:10.0.0.1 ::ffff:8.8.8.8 ::ffff:0:8.8.8.8 fe80::1 fec0::1
    fe80::1%eth0 ff02::1 ff0e::1 2002:7f00:1:: 2002:808:808:: 64:ff9b::7f00:1 64:ff9b::a00:1 64:ff9b::a9fe:a9fe
    64:ff9b:1::808:808 2001::1 2001:0:808:808::1 2001:2::1 2001:10::1 2001:20::1 2001:db8::1 3fff::1 2620:4f:8000::1
    100::1 5f00::1 4000::1 8000::1 2606:4700::1111%1 nonsense 1.2.3 1.2.3.4.5 0x7f.1
"""
)
PRIVATE = addresses(
    """
    10.0.0.1 10.255.255.255 100.64.0.1 100.127.255.255 127.0.0.1 127.255.255.254 172.16.0.1 172.31.255.255 192.168.0.1
    ::1 fc00::1 fd12:3456::1
"""
)
ALWAYS = addresses(
    """
    1.1.1.1 8.8.8.8 9.255.255.255 11.0.0.0 100.63.255.255 100.128.0.0 126.255.255.255 128.0.0.0 169.253.255.255
    169.255.0.0 172.15.255.255 172.32.0.0 191.255.255.255 192.0.1.0 192.167.255.255 192.169.0.0 198.17.255.255
    198.20.0.0 223.255.255.255 168.63.129.15 2001:200::1 2001:4860:4860::8888 2003::1 2606:4700::1111 2a00:1450::1
    3ffe:ffff::1 64:ff9b::808:808
"""
)


@pytest.mark.parametrize("address", NEVER)
def test_special_address_is_never_reached(address: str) -> None:
    assert not may_reach(address, allow_private=False)
    assert not may_reach(address, allow_private=True)


@pytest.mark.parametrize("address", PRIVATE)
def test_private_address_needs_allow_private(address: str) -> None:
    assert not may_reach(address, allow_private=False)
    assert may_reach(address, allow_private=True)


@pytest.mark.parametrize("address", ALWAYS)
def test_public_address_is_reached(address: str) -> None:
    assert may_reach(address, allow_private=False)
    assert may_reach(address, allow_private=True)


SPELLINGS = [
    "127.0.0.1",
    "127.1",
    "2130706433",
    "0x7f000001",
    "0x7f.1",
    "127.0.0.1.",
    "localhost",
    "LOCALHOST.",
]


@pytest.mark.parametrize("host", SPELLINGS)
async def test_loopback_spellings_work_in_development(site: Site, host: str) -> None:
    """Prove that these spellings reach loopback, so that the next test means something."""
    site.pages["/"] = response_bytes()

    assert await fetch(site.url(host=host), DEVELOPMENT) == IMAGE


@pytest.mark.parametrize(
    "host",
    [
        *SPELLINGS,
        "0.0.0.0",
        "0",
        "127.127.127.127",
        "10.0.0.1",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "0xa9fea9fe",
        "2852039166",
        "100.64.0.1",
        "[::]",
        "[::1]",
        "[0:0:0:0:0:0:0:1]",
        "[::127.0.0.1]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[64:ff9b::127.0.0.1]",
        "[2002:7f00:1::]",
        "[fd00:ec2::254]",
        "[fe80::1]",
    ],
)
async def test_private_address_spellings_are_refused(site: Site, host: str) -> None:
    site.pages["/"] = response_bytes()
    policy = HttpPolicy(ports=frozenset({site.port}))
    error = await refused(site.url(host=host), policy)
    with pytest.raises(FetchError):
        await post(site.url(host=host).replace("http:", "https:"), b"", {}, policy)

    assert "private or local" in error.message
    assert not error.retryable
    assert site.connections == 0


async def test_mixed_public_and_private_answer_is_refused(site: Site, internet: FakeInternet) -> None:
    for addresses in ([PUBLIC, "127.0.0.1"], ["10.0.0.1", PUBLIC], [PUBLIC, "::1"]):
        await refused("http://images.example/", public(images=[addresses]))

    assert internet.dialed == []


async def test_dns_rebinding_gains_nothing(site: Site, internet: FakeInternet) -> None:
    site.pages["/"] = response_bytes()
    policy = public(images=[[PUBLIC], ["127.0.0.1"]])

    assert await fetch("http://images.example/", policy) == IMAGE
    assert lookups(policy) == ["images.example"]
    assert internet.dialed == [(PUBLIC, 80)]
    assert b"Host: images.example\r\n" in site.requests[0]

    await refused("http://images.example/", policy)
    assert internet.dialed == [(PUBLIC, 80)]


async def test_redirect_resolves_the_name_again(site: Site, internet: FakeInternet) -> None:
    site.pages |= {"/": redirect("/next"), "/next": response_bytes(b"secret")}
    policy = public(images=[[PUBLIC], ["127.0.0.1"]])
    await refused("http://images.example/", policy)

    assert internet.dialed == [(PUBLIC, 80)]


@pytest.mark.parametrize(
    "location",
    [
        "http://inside.example/",
        "http://127.0.0.1/",
        "http://2130706433/",
        "//[::1]/",
        "http://169.254.169.254/latest/meta-data/",
        "http://elsewhere.example:8080/",
        "http://user:secret@elsewhere.example/",
        "file:///etc/passwd",
        "http://[",
    ],
)
async def test_redirect_is_checked_like_any_url(site: Site, internet: FakeInternet, location: str) -> None:
    site.pages["/"] = redirect(location)
    await refused("http://images.example/", public(images=[[PUBLIC]], inside=[["10.0.0.5"]], elsewhere=[[PUBLIC]]))

    assert internet.dialed == [(PUBLIC, 80)]


async def test_next_address_is_tried_after_a_dead_one(site: Site, internet: FakeInternet) -> None:
    site.pages["/"] = response_bytes()
    internet.dead = {"2606:4700::1111"}

    assert await fetch("http://images.example/", public(images=[["2606:4700::1111", PUBLIC]])) == IMAGE
    assert internet.dialed == [("2606:4700::1111", 80), (PUBLIC, 80)]
    internet.dead.add(PUBLIC)
    error = await refused("http://images.example/", public(images=[["2606:4700::1111", PUBLIC]]))
    assert isinstance(error, Unreachable)


async def test_at_most_four_addresses_are_dialed(internet: FakeInternet) -> None:
    many = [f"93.184.215.{n}" for n in range(1, 251)]
    internet.dead = set(many)
    await refused("http://images.example/", public(images=[many]))

    assert internet.dialed == [(address, 80) for address in many[:4]]


# TLS


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with key and self-signed certificate of images.example."""
    folder = tmp_path_factory.mktemp("authority")
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-days",
        "2",
    ]
    names = ["-subj", "/CN=images.example", "-addext", "subjectAltName=DNS:images.example"]
    try:
        subprocess.run(
            [*command, *names, "-keyout", "key.pem", "-out", "cert.pem"], cwd=folder, check=True, capture_output=True
        )
    except FileNotFoundError:
        pytest.skip("openssl is not installed")
    return folder


@pytest.fixture
async def secure(site: Site, internet: FakeInternet, authority: Path) -> AsyncIterator[HttpPolicy]:
    """`site` behind TLS at images.example and other.example, and a policy that trusts its authority."""
    server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_context.load_cert_chain(authority / "cert.pem", authority / "key.pem")
    client_context = ssl.create_default_context(cafile=str(authority / "cert.pem"))
    async with await asyncio.start_server(site.serve, "127.0.0.1", 0, ssl=server_context) as server:
        internet.port = server.sockets[0].getsockname()[1]
        yield replace(public(images=[[PUBLIC]], other=[[PUBLIC]]), tls=client_context)


async def test_certificate_is_checked_for_the_name(site: Site, internet: FakeInternet, secure: HttpPolicy) -> None:
    site.pages["/"] = response_bytes()

    assert await fetch("https://images.example/", secure) == IMAGE
    assert internet.dialed == [(PUBLIC, 443)]
    assert "TLS certificate" in (await refused("https://other.example/", secure)).message
    assert "TLS certificate" in (await refused("https://images.example/", replace(secure, tls=None))).message


async def test_redirect_from_https_to_http_is_refused(site: Site, internet: FakeInternet, secure: HttpPolicy) -> None:
    site.pages["/"] = redirect("http://images.example/")

    assert "from https to http" in (await refused("https://images.example/", secure)).message
    assert internet.dialed == [(PUBLIC, 443)]


async def test_https_post_is_delivered(site: Site, secure: HttpPolicy) -> None:
    site.pages["/hook"] = response_bytes(b"ok")

    assert (await post("https://images.example/hook", b"{}", {}, secure)).status == 200


# Posting


async def test_post_sends_exact_bytes_and_headers(site: Site) -> None:
    site.pages["/hook"] = response_bytes(b"thank you", status=202)
    result = await post(site.url("/hook"), b'{"a":1}', {"Content-Type": "application/json", "X-Mine": "1"}, DEVELOPMENT)

    assert (result.status, result.excerpt, result.retry_after) == (202, "thank you", None)
    assert 0 < result.seconds < 10
    head, body = site.requests[0].split(b"\r\n\r\n")
    assert body == b'{"a":1}'
    lines = head.decode().split("\r\n")
    assert lines[0] == "POST /hook HTTP/1.1"
    assert {"Content-Type: application/json", "X-Mine: 1", f"User-Agent: hiresfix/{__version__}"} <= set(lines)


@pytest.mark.parametrize("status", [200, 301, 308, 404, 410, 500])
async def test_post_returns_every_status(site: Site, status: int) -> None:
    site.pages["/"] = redirect("/next", status)

    assert (await post(site.url(), b"", {}, DEVELOPMENT)).status == status
    assert len(site.requests) == 1


async def test_excerpt_is_one_kibibyte_of_storable_text(site: Site) -> None:
    site.pages["/"] = CHUNKED + chunk(b"\x00\xff" + b"x" * 5000) + chunk(b"y" * 5000) + b"0\r\n\r\n"
    result = await post(site.url(), b"", {}, DEVELOPMENT)

    assert result.excerpt == "\ufffd\ufffd" + "x" * 1022


@pytest.mark.parametrize("broken", [drip_body, reset, response_bytes(b"par", length=9)])
async def test_slow_or_broken_body_keeps_the_status(site: Site, broken: bytes | Reply) -> None:
    site.pages["/"] = broken
    result = await post(site.url(), b"", {}, replace(DEVELOPMENT, post_timeout=0.5))

    assert result.status == 200
    assert result.seconds < 0.5


@pytest.mark.parametrize("reply", [silence, drip_head, b"", b"SSH-2.0\r\n"])
async def test_post_without_status_is_unreachable(site: Site, reply: bytes | Reply) -> None:
    site.pages["/"] = reply

    with pytest.raises(Unreachable):
        await post(site.url(), b"", {}, replace(DEVELOPMENT, post_timeout=0.4))


async def test_post_requires_https(site: Site, internet: FakeInternet) -> None:
    with pytest.raises(FetchError, match="must start with https://"):
        await post("http://images.example/", b"", {}, public(images=[[PUBLIC]]))

    assert internet.dialed == []


async def test_post_checks_the_address_each_time(site: Site, secure: HttpPolicy, internet: FakeInternet) -> None:
    site.pages["/"] = response_bytes(b"ok")
    rebinding = replace(secure, resolve=FakeResolver({"images.example": [[PUBLIC], ["169.254.169.254"]]}))
    await post("https://images.example/", b"", {}, rebinding)

    with pytest.raises(FetchError, match="private or local"):
        await post("https://images.example/", b"", {}, rebinding)
    assert internet.dialed == [(PUBLIC, 443)]


@pytest.mark.parametrize(("value", "seconds"), [("120", 120), ("Wed, 21 Oct 2015 07:28:00 GMT", 0)])
async def test_retry_after_is_seconds_from_now(site: Site, value: str, seconds: float) -> None:
    site.pages["/"] = response_bytes(status=503, Retry_After=value)

    assert (await post(site.url(), b"", {}, DEVELOPMENT)).retry_after == seconds


async def test_retry_after_may_be_a_date(site: Site) -> None:
    then = datetime.now(UTC) + timedelta(hours=3)
    site.pages["/"] = response_bytes(status=503, Retry_After=format_datetime(then, usegmt=True))

    result = await post(site.url(), b"", {}, DEVELOPMENT)
    assert result.retry_after is not None
    assert 3600 <= result.retry_after <= 3 * 3600


@pytest.mark.parametrize(
    "value", ["soon", "-1", "1.5", "", "²", "Fri, 31 Dec 9999 23:59:59 -1200", f"Mon, 01 Jan {10**30} 00:00:00 GMT"]
)
async def test_invalid_retry_after_is_none(site: Site, value: str) -> None:
    site.pages["/"] = response_bytes(status=503, Retry_After=value)

    assert (await post(site.url(), b"", {}, DEVELOPMENT)).retry_after is None


# Through a proxy


async def test_egress_proxy_resolves_the_name(site: Site) -> None:
    site.pages["http://images.example:80/a"] = response_bytes()
    policy = replace(public(images=[["10.0.0.1"]]), proxy=site.url())

    assert await fetch("http://images.example/a", policy) == IMAGE
    assert lookups(policy) == []


@pytest.mark.parametrize("host", ["127.0.0.1", "2130706433", "0x7f.1", "[::1]", "[::ffff:10.0.0.1]", "169.254.169.254"])
async def test_egress_proxy_never_gets_private_addresses(site: Site, host: str) -> None:
    await refused(f"http://{host}/a", HttpPolicy(proxy=site.url()))

    assert site.connections == 0
