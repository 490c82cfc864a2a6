"""HTTP to addresses that strangers chose: fetch a file, post a message, and reach nothing that is not public.

Guarantees, for `fetch` and `post` alike:

* The host name is resolved once and every address of the answer is judged; one that is not publicly routable
  unicast refuses the whole URL. The connection then goes to the judged addresses and to no other, so a name that
  changes its mind between check and use (DNS rebinding) gains nothing. Nothing is ever decided by how a host is
  spelled: 2130706433, 0x7f.1 and 127.1 are resolved like any name and judged by the result.
* The Host header, TLS server name and certificate check still use the host name.
* Each redirect is a new URL: parsed, resolved and judged from the start. From https to http none is followed.
* Size is counted on the wire and again after decompression, time over the whole exchange, redirects included, so
  neither a bomb nor a server that sends one byte a second holds more than the limits.
* No cookies, no proxy and no .netrc from the environment, no kept connections.

With an egress proxy the proxy resolves names and is the guard; only literal addresses are judged here.
Error messages are meant for whoever gave the URL: they never name an address we resolved.
This module does not know what it fetches or why it posts.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import re
import socket
import ssl
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final, TypeAlias

import httpcore
import httpx

from hiresfix import __version__
from hiresfix.errors import FetchError, Unreachable

MEBIBYTE: Final = 1024 * 1024
USER_AGENT: Final = f"hiresfix/{__version__}"
EXCERPT_BYTES: Final = 1024
MAX_URL_LENGTH: Final = 8192
MAX_DIALLED: Final = 4

Resolve: TypeAlias = Callable[[str, int], Awaitable[Sequence[str]]]
"""Host name and port -> the textual addresses of its answer; raises OSError when there is none."""


def _networks(*blocks: str) -> tuple[IPv4Network | IPv6Network, ...]:
    return tuple(map(ip_network, blocks))


# IANA's special-purpose registries (RFC 6890 and its updates), multicast and class E, written out because
# `ipaddress.is_global` of Python 3.11 passes multicast, 192.0.0.0/24, 192.88.99.0/24, 6to4, NAT64, v4-mapped and
# v4-compatible addresses. 168.63.129.16 is Azure's platform address, reachable from every virtual machine there.
NOT_PUBLIC_V4: Final = (
    *_networks("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "168.63.129.16/32", "169.254.0.0/16"),
    *_networks("172.16.0.0/12", "192.0.0.0/24", "192.0.2.0/24", "192.31.196.0/24", "192.52.193.0/24"),
    *_networks("192.88.99.0/24", "192.168.0.0/16", "192.175.48.0/24", "198.18.0.0/15", "198.51.100.0/24"),
    *_networks("203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4"),
)
# IPv6 is the other way round: only 2000::/3 is global unicast, and in it 2001::/23 (Teredo, ORCHID, benchmarking),
# documentation, 6to4 and AS112 are not. All forms that embed an IPv4 address lie outside or are refused here,
# but NAT64, through which an IPv6-only network sees every IPv4 host: there the embedded address is judged.
PUBLIC_V6: Final = IPv6Network("2000::/3")
NOT_PUBLIC_V6: Final = _networks("2001::/23", "2001:db8::/32", "2002::/16", "2620:4f:8000::/48", "3fff::/20")
NAT64: Final = IPv6Network("64:ff9b::/96")
# What `allow_private` adds; the metadata services of cloud providers stay closed.
PRIVATE: Final = (
    *_networks("10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"),
    *_networks("::1/128", "fc00::/7"),
)
METADATA: Final = tuple(map(ip_address, ("169.254.169.254", "100.100.100.200", "fd00:ec2::254", "fd20:ce::254")))

REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
LABEL: Final = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")

PRIVATE_ADDRESS: Final = (
    "The URL points to a private or local address, which this server does not connect to. Use a public one."
)
INTERRUPTED: Final = "The connection broke off before the answer was complete. Try again."
TIMED_OUT: Final = "The URL did not answer completely in time. Try again, or use a faster host."

# Names are looked up on threads of their own: a resolver that hangs must not use up those of `asyncio.to_thread`.
_LOOKUPS: Final = ThreadPoolExecutor(max_workers=8, thread_name_prefix="lookup")


async def resolve(host: str, port: int) -> Sequence[str]:
    """Addresses of `host` as the system resolves it, in the system's order of preference."""
    look_up = functools.partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
    answers = await asyncio.get_running_loop().run_in_executor(_LOOKUPS, look_up)
    return list(dict.fromkeys(str(address[0]) for *_, address in answers))


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What may be reached, how much may come back and how long it may take; seconds and bytes.

    `allow_private` is for development: loopback and private networks, any port, and `post` over plain http.
    `total_timeout` bounds a `fetch` with all its redirects, `post_timeout` a `post`.
    `proxy` is the http:// URL of an egress proxy that every connection then goes through.
    """

    allow_private: bool = False
    max_bytes: int = 25 * MEBIBYTE
    connect_timeout: float = 5.0
    total_timeout: float = 15.0
    post_timeout: float = 10.0
    max_redirects: int = 3
    ports: frozenset[int] = frozenset({80, 443})
    proxy: str | None = None
    tls: ssl.SSLContext | None = None
    """Whom to trust; without it the system's certificate authorities and those of certifi."""
    resolve: Resolve = resolve


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A URL whose form is acceptable; its address is not judged yet. `host` is ASCII, lower case, unbracketed."""

    url: httpx.URL
    host: str
    port: int

    @property
    def secure(self) -> bool:
        return self.url.scheme == "https"

    @property
    def authority(self) -> str:
        """The Host header: brackets around an IPv6 address, no port when it is the scheme's own."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.secure else 80) else f"{host}:{self.port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a `post` was answered: `seconds` until the status line, at most 1 KiB of the body as text without NULs.

    `retry_after` is the wait in seconds that the answer asked for.
    """

    status: int
    seconds: float
    excerpt: str
    retry_after: float | None


def check_url(url: str, policy: Policy) -> Target:
    """The URL taken apart, or FetchError naming what is wrong with its form; resolves nothing.

    There is one parser: what it returns is resolved, judged, connected to and sent, so no second reading of the
    text can differ. International names become IDNA 2008, a trailing dot is dropped.
    """
    if len(url) > MAX_URL_LENGTH:
        raise FetchError(f"The URL is longer than {MAX_URL_LENGTH} characters. Use a shorter one.")
    if "\\" in url or any(character == " " or not character.isprintable() for character in url):
        raise FetchError("The URL contains spaces, backslashes or control characters. Percent-encode them.")
    try:
        parsed = httpx.URL(url)
    except (httpx.InvalidURL, ValueError) as error:
        raise FetchError("The URL is malformed. Use an absolute http or https URL.") from error
    if parsed.scheme not in ("http", "https"):
        raise FetchError("The URL must start with http:// or https://.")
    if parsed.userinfo:
        raise FetchError("The URL contains a user name or password. Remove it, or use a signed URL.")
    port = parsed.port if parsed.port is not None else (443 if parsed.scheme == "https" else 80)
    if not 0 < port < 65536 or not (policy.allow_private or port in policy.ports):
        allowed = " or ".join(map(str, sorted(policy.ports)))
        raise FetchError(f"The URL's port is not allowed. Use port {allowed}.")
    host = _host(parsed.raw_host.decode("ascii"))
    return Target(url=parsed, host=host, port=port)


def _host(host: str) -> str:
    """`host` without its trailing dot; FetchError unless it is a DNS name or an address without a zone."""
    if ":" in host:
        with contextlib.suppress(ValueError):
            address = IPv6Address(host)
            if address.scope_id is None:
                return str(address)
    else:
        name = host.removesuffix(".")
        if len(name) <= 253 and all(map(LABEL.fullmatch, name.split("."))):
            return name
    raise FetchError("The URL has no valid host name. Use an absolute http or https URL.")


def may_reach(address: str, *, allow_private: bool) -> bool:
    """Whether a connection to this textual address is allowed."""
    try:
        parsed = ip_address(address)
    except ValueError:
        return False
    if parsed in METADATA or (isinstance(parsed, IPv6Address) and parsed.scope_id is not None):
        return False
    return _is_public(parsed) or (allow_private and any(parsed in network for network in PRIVATE))


def _is_public(address: IPv4Address | IPv6Address) -> bool:
    if isinstance(address, IPv4Address):
        return not any(address in network for network in NOT_PUBLIC_V4)
    if address in NAT64:
        return _is_public(IPv4Address(int(address) & 0xFFFFFFFF))
    return address in PUBLIC_V6 and not any(address in network for network in NOT_PUBLIC_V6)


async def locate(target: Target, policy: Policy) -> Sequence[str]:
    """The addresses to connect to, all of them judged.

    Raises FetchError when one of them may not be reached, Unreachable when the name has none.
    """
    try:
        addresses = await policy.resolve(target.host, target.port)
    except (OSError, UnicodeError) as error:
        raise Unreachable("The URL's host name could not be resolved. Check its spelling.") from error
    if not addresses:
        raise Unreachable("The URL's host name has no address. Check its spelling.")
    _judge(addresses, policy)
    return addresses


def _judge(addresses: Sequence[str], policy: Policy) -> None:
    if not all(may_reach(address, allow_private=policy.allow_private) for address in addresses):
        raise FetchError(PRIVATE_ADDRESS)


async def check_receiver(url: str, policy: Policy) -> None:
    """Raises FetchError if `post` would refuse this URL today; every `post` judges it again."""
    target = check_url(url, policy)
    _require_tls(target, policy)
    if policy.proxy is None:
        await locate(target, policy)


def _require_tls(target: Target, policy: Policy) -> None:
    if not (target.secure or policy.allow_private):
        raise FetchError("The URL must start with https://.")


async def fetch(url: str, policy: Policy) -> bytes:
    """The body of a GET, decompressed, at most `policy.max_bytes`; whatever the server says it is.

    Raises FetchError (Unreachable when trying again can help).
    """
    target = check_url(url, policy)
    with _explained():
        async with asyncio.timeout(policy.total_timeout):
            for _ in range(policy.max_redirects + 1):
                headers = {"Accept": "image/*", "Accept-Encoding": "identity"}
                async with _exchange("GET", target, headers, None, policy) as response:
                    location = _header(response, b"location")
                    if response.status not in REDIRECTS or location is None:
                        return await _body(response, policy.max_bytes)
                target = _follow(target, location, policy)
    raise FetchError(f"The URL redirects more than {policy.max_redirects} times. Use the final URL.")


async def post(url: str, body: bytes, headers: Mapping[str, str], policy: Policy) -> Answer:
    """Send `body` once; any status is an answer, redirects are not followed.

    The address is judged anew at each call. Raises FetchError when the URL is refused, Unreachable when no status
    came back in time. An answer whose body is slow or broken is still an answer.
    """
    target = check_url(url, policy)
    _require_tls(target, policy)
    loop = asyncio.get_running_loop()
    started = loop.time()
    with _explained():
        async with asyncio.timeout(policy.post_timeout) as deadline:
            sent = {"Accept-Encoding": "identity", **headers, "Content-Length": str(len(body))}
            async with _exchange("POST", target, sent, body, policy) as response:
                seconds = loop.time() - started
                # The status decides; from here on nothing may turn the answer into an error.
                deadline.reschedule(None)
                return Answer(
                    status=response.status,
                    seconds=seconds,
                    excerpt=await _excerpt(response, started + policy.post_timeout),
                    retry_after=_retry_after(response),
                )


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """Turns what the transport raises into errors for the caller; the cause stays attached for the log."""
    try:
        yield
    except (TimeoutError, httpcore.TimeoutException) as error:
        raise Unreachable(TIMED_OUT) from error
    except httpcore.ConnectError as error:
        if isinstance(error.__context__, ssl.SSLError):  # httpcore re-raises "from None", which keeps the context only
            raise FetchError("The URL's host has no valid TLS certificate. Renew it, or use another host.") from error
        raise Unreachable("The URL's host refused the connection. Check that it is public and running.") from error
    except (httpcore.NetworkError, httpcore.RemoteProtocolError, httpcore.ProxyError, zlib.error) as error:
        raise Unreachable(INTERRUPTED) from error


class _Pinned(httpcore.AsyncNetworkBackend):
    """Connects to the given addresses, first to answer wins, whatever host it is asked for."""

    def __init__(self, addresses: Sequence[str]) -> None:
        self._addresses = addresses[:MAX_DIALLED]  # a name with a thousand addresses shall not make us scan them
        self._network = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - httpcore's interface
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        share = None if timeout is None else timeout / len(self._addresses)
        for address in self._addresses[:-1]:
            with contextlib.suppress(httpcore.ConnectError, httpcore.ConnectTimeout):
                return await self._network.connect_tcp(address, port, share, local_address, socket_options)
        return await self._network.connect_tcp(self._addresses[-1], port, share, local_address, socket_options)

    async def sleep(self, seconds: float) -> None:
        await self._network.sleep(seconds)


@functools.cache
def _authorities() -> ssl.SSLContext:
    return httpcore.default_ssl_context()


async def _pool(target: Target, policy: Policy) -> httpcore.AsyncConnectionPool:
    """A pool for one exchange: straight to the judged addresses, or to the proxy."""
    tls = (policy.tls or _authorities()) if target.secure else None
    if policy.proxy is None:
        pinned = _Pinned(await locate(target, policy))
        return httpcore.AsyncConnectionPool(ssl_context=tls, max_connections=1, network_backend=pinned)
    with contextlib.suppress(OSError):
        # inet_aton reads every spelling of an IPv4 address that a proxy's resolver might read as one.
        _judge([target.host if ":" in target.host else socket.inet_ntoa(socket.inet_aton(target.host))], policy)
    return httpcore.AsyncHTTPProxy(policy.proxy, ssl_context=tls, max_connections=1)


@contextlib.asynccontextmanager
async def _exchange(
    method: str, target: Target, headers: Mapping[str, str], body: bytes | None, policy: Policy
) -> AsyncIterator[httpcore.Response]:
    """One request and the head of its response, on a connection of its own that is closed afterwards."""
    url = httpcore.URL(
        scheme=target.url.raw_scheme, host=target.host.encode("ascii"), port=target.port, target=target.url.raw_path
    )
    fields = {"Host": target.authority, "User-Agent": USER_AGENT, "Connection": "close", **headers}
    patience = {"connect": policy.connect_timeout}
    async with (
        await _pool(target, policy) as pool,
        pool.stream(
            method, url, headers=list(fields.items()), content=body, extensions={"timeout": patience}
        ) as response,
    ):
        yield response


def _header(response: httpcore.Response, name: bytes) -> str | None:
    """The last header of that lower-case name, as text."""
    values = [value for field, value in response.headers if field.lower() == name]
    return values[-1].decode("utf-8", "replace").strip() if values else None


def _follow(target: Target, location: str, policy: Policy) -> Target:
    try:
        url = str(target.url.join(location))
    except (httpx.InvalidURL, ValueError) as error:
        raise FetchError("The URL redirects to a malformed URL. Use the final URL.") from error
    new = check_url(url, policy)
    if target.secure and not new.secure:
        raise FetchError("The URL redirects from https to http, which is not followed. Use the final URL.")
    return new


async def _body(response: httpcore.Response, limit: int) -> bytes:
    """The decompressed body; FetchError when the status is not 2xx or either size is over `limit`."""
    if not 200 <= response.status < 300:
        kind = Unreachable if response.status >= 500 or response.status in (408, 425, 429) else FetchError
        raise kind(f"The URL answered {response.status}. Check that it is public and still exists.")
    too_large = FetchError(f"The file is larger than {_size(limit)}. Send a smaller one.")
    declared = _header(response, b"content-length")
    if declared is not None and int(declared) > limit:
        raise too_large
    inflate = _decompressor(_header(response, b"content-encoding"))
    wire, body = 0, bytearray()
    async for chunk in response.aiter_stream():
        wire += len(chunk)
        # One byte of room beyond the limit tells a full file from one that goes on.
        body += chunk if inflate is None else inflate.decompress(chunk, limit + 1 - len(body))
        if max(wire, len(body)) > limit:
            raise too_large
    if inflate is not None and not inflate.eof:
        raise Unreachable(INTERRUPTED)
    return bytes(body)


def _decompressor(encoding: str | None) -> zlib._Decompress | None:
    """For the encodings that some servers apply unasked."""
    if encoding is None or encoding.lower() in ("", "identity"):
        return None
    if encoding.lower() in ("gzip", "x-gzip", "deflate"):
        return zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)  # finds out by itself whether gzip or zlib
    raise FetchError("The URL answered in a compression that was not asked for. Serve the file uncompressed.")


def _size(count: int) -> str:
    return f"{count // MEBIBYTE} MiB" if count >= MEBIBYTE else f"{count} bytes"


async def _excerpt(response: httpcore.Response, deadline: float) -> str:
    """What arrives of the first KiB of the body before `deadline` (loop time); never raises for a broken body."""
    received = bytearray()
    with contextlib.suppress(TimeoutError, httpcore.NetworkError, httpcore.RemoteProtocolError):
        async with asyncio.timeout_at(deadline):
            async for chunk in response.aiter_stream():
                received += chunk
                if len(received) >= EXCERPT_BYTES:
                    break
    # PostgreSQL's text holds no NUL.
    return received[:EXCERPT_BYTES].decode("utf-8", "replace").replace("\0", "\ufffd")


def _retry_after(response: httpcore.Response) -> float | None:
    """Retry-After (RFC 9110 10.2.3) in seconds from now; None when absent or unreadable."""
    value = _header(response, b"retry-after")
    if value is None:
        return None
    if value.isascii() and value.isdigit():
        return float(value)
    try:
        moment = parsedate_to_datetime(value).astimezone(UTC)
    except (ValueError, OverflowError):  # the latter for dates that no calendar of ours reaches
        return None
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())
