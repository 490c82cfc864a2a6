"""Guarded HTTP client: fetch from and post to URLs that callers chose, and reach nothing that is not public.

Guarantees, for `fetch` and `post` alike:

* The host name is resolved once and every address is checked; a single address that is not publicly routable unicast
  refuses the whole URL. The connection goes to the checked addresses and to no other, so a name that resolves
  differently between check and use (DNS rebinding) gains nothing. The spelling of a host decides nothing:
  2130706433, 0x7f.1 and 127.1 are resolved like any name, and the resulting address is checked.
* The Host header, TLS server name and certificate check still use the host name.
* Each redirect is a new URL: parsed, resolved and checked from the start. No redirect from https to http is followed.
* Size is counted on the wire and again after decompression, time over the whole exchange including redirects. So
  neither a decompression bomb nor a server that sends one byte a second exceeds the limits.
* No cookies, no proxy and no .netrc from the environment, no connection reuse.

With an egress proxy the proxy resolves names and has to filter them; only literal addresses are checked here.
Error messages are for the caller who gave the URL: they never name a resolved address. This module does not know
what it fetches or why it posts.
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

from hiresfix import __version__, messages
from hiresfix.errors import FetchError, Unreachable
from hiresfix.units import MEBIBYTE

USER_AGENT: Final = f"hiresfix/{__version__}"
EXCERPT_BYTES: Final = 1024
MAX_URL_LENGTH: Final = 8192
MAX_DIALED_ADDRESSES: Final = 4

Resolve: TypeAlias = Callable[[str, int], Awaitable[Sequence[str]]]
"""Host name and port -> its addresses as text; raises OSError when there are none."""


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
# For IPv6 the list is of what is allowed: only 2000::/3 is global unicast, except 2001::/23 (Teredo, ORCHID,
# benchmarking), documentation, 6to4 and AS112. All forms that embed an IPv4 address lie outside or are refused here,
# except NAT64, through which an IPv6-only network reaches every IPv4 host: there the embedded address is checked.
PUBLIC_V6: Final = IPv6Network("2000::/3")
NOT_PUBLIC_V6: Final = _networks("2001::/23", "2001:db8::/32", "2002::/16", "2620:4f:8000::/48", "3fff::/20")
NAT64: Final = IPv6Network("64:ff9b::/96")
# What `allow_private` adds; the metadata services of cloud providers stay closed.
PRIVATE_NETWORKS: Final = (
    *_networks("10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"),
    *_networks("::1/128", "fc00::/7"),
)
METADATA_ADDRESSES: Final = tuple(
    map(ip_address, ("169.254.169.254", "100.100.100.200", "fd00:ec2::254", "fd20:ce::254"))
)

REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
LABEL: Final = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")


# Names are resolved on separate threads: a resolver that hangs must not use up those of `asyncio.to_thread`.
_LOOKUPS: Final = ThreadPoolExecutor(max_workers=8, thread_name_prefix="lookup")


async def resolve(host: str, port: int) -> Sequence[str]:
    """Return the addresses of `host` as the system resolves it, in the system's order of preference."""
    look_up = functools.partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
    answers = await asyncio.get_running_loop().run_in_executor(_LOOKUPS, look_up)
    return list(dict.fromkeys(str(address[0]) for *_, address in answers))


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpPolicy:
    """Limits of requests: reachable addresses, size in bytes and time in seconds.

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
    """Trusted certificate authorities; None is those of the system and of certifi."""
    resolve: Resolve = resolve


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A URL of valid form, whose address is not checked yet. `host` is ASCII, lower case, without brackets."""

    url: httpx.URL
    host: str
    port: int

    @property
    def secure(self) -> bool:
        """True for https."""
        return self.url.scheme == "https"

    @property
    def authority(self) -> str:
        """Value of the Host header: an IPv6 address in brackets, no port if it is the scheme's default."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.secure else 80) else f"{host}:{self.port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class PostResult:
    """Response to a `post`.

    `seconds` is the time until the status line, `excerpt` at most 1 KiB of the body as text without NULs, and
    `retry_after` the wait in seconds that the response asks for.
    """

    status: int
    seconds: float
    excerpt: str
    retry_after: float | None


def check_url(url: str, policy: HttpPolicy) -> Target:
    """Parse the URL; raises FetchError naming what is wrong with its form. Resolves nothing.

    There is one parser: its result is resolved, checked, connected to and sent, so no second parser can read the text
    differently. International names become IDNA 2008, a trailing dot is dropped.
    """
    if len(url) > MAX_URL_LENGTH:
        raise FetchError(messages.URL_TOO_LONG(limit=MAX_URL_LENGTH))
    if "\\" in url or any(character == " " or not character.isprintable() for character in url):
        raise FetchError(messages.URL_BAD_CHARACTERS())
    try:
        parsed = httpx.URL(url)
    except (httpx.InvalidURL, ValueError) as error:
        raise FetchError(messages.URL_MALFORMED()) from error
    if parsed.scheme not in ("http", "https"):
        raise FetchError(messages.URL_SCHEME())
    if parsed.userinfo:
        raise FetchError(messages.URL_WITH_CREDENTIALS())
    port = parsed.port if parsed.port is not None else (443 if parsed.scheme == "https" else 80)
    if not 0 < port < 65536 or not (policy.allow_private or port in policy.ports):
        allowed = " or ".join(map(str, sorted(policy.ports)))
        raise FetchError(messages.URL_PORT_NOT_ALLOWED(ports=allowed))
    host = _host(parsed.raw_host.decode("ascii"))
    return Target(url=parsed, host=host, port=port)


def _host(host: str) -> str:
    """Return `host` without its trailing dot; raises FetchError unless it is a DNS name or an address without zone."""
    if ":" in host:
        with contextlib.suppress(ValueError):
            address = IPv6Address(host)
            if address.scope_id is None:
                return str(address)
    else:
        name = host.removesuffix(".")
        if len(name) <= 253 and all(map(LABEL.fullmatch, name.split("."))):
            return name
    raise FetchError(messages.URL_HOST_INVALID())


def may_reach(address: str, *, allow_private: bool) -> bool:
    """Return whether a connection to this address is allowed."""
    try:
        parsed = ip_address(address)
    except ValueError:
        return False
    if parsed in METADATA_ADDRESSES or (isinstance(parsed, IPv6Address) and parsed.scope_id is not None):
        return False
    return _is_public(parsed) or (allow_private and any(parsed in network for network in PRIVATE_NETWORKS))


def _is_public(address: IPv4Address | IPv6Address) -> bool:
    if isinstance(address, IPv4Address):
        return not any(address in network for network in NOT_PUBLIC_V4)
    if address in NAT64:
        return _is_public(IPv4Address(int(address) & 0xFFFFFFFF))
    return address in PUBLIC_V6 and not any(address in network for network in NOT_PUBLIC_V6)


async def resolve_checked(target: Target, policy: HttpPolicy) -> Sequence[str]:
    """Resolve the host and check every address.

    Raises FetchError when one of them may not be reached, Unreachable when the name has no address.
    """
    try:
        addresses = await policy.resolve(target.host, target.port)
    except (OSError, UnicodeError) as error:
        raise Unreachable(messages.URL_HOST_UNKNOWN()) from error
    if not addresses:
        raise Unreachable(messages.URL_HOST_WITHOUT_ADDRESS())
    _check_addresses(addresses, policy)
    return addresses


def _check_addresses(addresses: Sequence[str], policy: HttpPolicy) -> None:
    if not all(may_reach(address, allow_private=policy.allow_private) for address in addresses):
        raise FetchError(messages.URL_PRIVATE_ADDRESS())


async def check_receiver(url: str, policy: HttpPolicy) -> None:
    """Raise FetchError if `post` would refuse this URL now; every `post` checks it again."""
    target = check_url(url, policy)
    _require_tls(target, policy)
    if policy.proxy is None:
        await resolve_checked(target, policy)


def _require_tls(target: Target, policy: HttpPolicy) -> None:
    if not (target.secure or policy.allow_private):
        raise FetchError(messages.URL_NEEDS_HTTPS())


async def fetch(url: str, policy: HttpPolicy) -> bytes:
    """Return the decompressed body of a GET, at most `policy.max_bytes`, whatever its declared type.

    Raises FetchError (Unreachable when trying again can help).
    """
    target = check_url(url, policy)
    with _translated_errors():
        async with asyncio.timeout(policy.total_timeout):
            for _ in range(policy.max_redirects + 1):
                headers = {"Accept": "image/*", "Accept-Encoding": "identity"}
                async with _exchange("GET", target, headers, None, policy) as response:
                    location = _header(response, b"location")
                    if response.status not in REDIRECTS or location is None:
                        return await _body(response, policy.max_bytes)
                target = _follow(target, location, policy)
    raise FetchError(messages.URL_TOO_MANY_REDIRECTS(limit=policy.max_redirects))


async def post(url: str, body: bytes, headers: Mapping[str, str], policy: HttpPolicy) -> PostResult:
    """Send `body` once; every status is a result, and redirects are not followed.

    The address is checked at each call. Raises FetchError when the URL is refused, Unreachable when no status came
    back in time. A response with a slow or broken body is still a result.
    """
    target = check_url(url, policy)
    _require_tls(target, policy)
    loop = asyncio.get_running_loop()
    started = loop.time()
    with _translated_errors():
        async with asyncio.timeout(policy.post_timeout) as deadline:
            request_headers = {"Accept-Encoding": "identity", **headers, "Content-Length": str(len(body))}
            async with _exchange("POST", target, request_headers, body, policy) as response:
                seconds = loop.time() - started
                # The status is the result; from here on nothing may turn it into an error.
                deadline.reschedule(None)
                return PostResult(
                    status=response.status,
                    seconds=seconds,
                    excerpt=await _excerpt(response, started + policy.post_timeout),
                    retry_after=_retry_after(response),
                )


@contextlib.contextmanager
def _translated_errors() -> Iterator[None]:
    """Translate errors of the transport into errors for the caller; the cause stays attached for the log."""
    try:
        yield
    except (TimeoutError, httpcore.TimeoutException) as error:
        raise Unreachable(messages.URL_TIMED_OUT()) from error
    except httpcore.ConnectError as error:
        if isinstance(error.__context__, ssl.SSLError):  # httpcore re-raises "from None", which keeps the context only
            raise FetchError(messages.URL_CERTIFICATE_INVALID()) from error
        raise Unreachable(messages.URL_CONNECTION_REFUSED()) from error
    except (httpcore.NetworkError, httpcore.RemoteProtocolError, httpcore.ProxyError, zlib.error) as error:
        raise Unreachable(messages.URL_INTERRUPTED()) from error


class _PinnedBackend(httpcore.AsyncNetworkBackend):
    """Connects to the given addresses in order until one answers, whatever host httpcore asks for."""

    def __init__(self, addresses: Sequence[str]) -> None:
        self._addresses = addresses[
            :MAX_DIALED_ADDRESSES
        ]  # a name with a thousand addresses must not make us scan them
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
def _default_tls() -> ssl.SSLContext:
    return httpcore.default_ssl_context()


async def _pool(target: Target, policy: HttpPolicy) -> httpcore.AsyncConnectionPool:
    """Return a pool for one exchange: directly to the checked addresses, or through the proxy."""
    tls = (policy.tls or _default_tls()) if target.secure else None
    if policy.proxy is None:
        backend = _PinnedBackend(await resolve_checked(target, policy))
        return httpcore.AsyncConnectionPool(ssl_context=tls, max_connections=1, network_backend=backend)
    with contextlib.suppress(OSError):
        # inet_aton accepts every spelling of an IPv4 address that a proxy's resolver might accept.
        _check_addresses(
            [target.host if ":" in target.host else socket.inet_ntoa(socket.inet_aton(target.host))], policy
        )
    return httpcore.AsyncHTTPProxy(policy.proxy, ssl_context=tls, max_connections=1)


@contextlib.asynccontextmanager
async def _exchange(
    method: str, target: Target, headers: Mapping[str, str], body: bytes | None, policy: HttpPolicy
) -> AsyncIterator[httpcore.Response]:
    """Send one request on a new connection, which is closed afterwards; yield the response without its body.

    Args:
        method: GET or POST.
        target: Where to.
        headers: Headers besides Host, User-Agent and Connection.
        body: Body of a POST.
        policy: Limits of the request.
    """
    url = httpcore.URL(
        scheme=target.url.raw_scheme, host=target.host.encode("ascii"), port=target.port, target=target.url.raw_path
    )
    fields = {"Host": target.authority, "User-Agent": USER_AGENT, "Connection": "close", **headers}
    timeout = {"connect": policy.connect_timeout}
    async with (
        await _pool(target, policy) as pool,
        pool.stream(
            method, url, headers=list(fields.items()), content=body, extensions={"timeout": timeout}
        ) as response,
    ):
        yield response


def _header(response: httpcore.Response, name: bytes) -> str | None:
    """Return the last header with that lower-case name, as text."""
    values = [value for field, value in response.headers if field.lower() == name]
    return values[-1].decode("utf-8", "replace").strip() if values else None


def _follow(target: Target, location: str, policy: HttpPolicy) -> Target:
    try:
        url = str(target.url.join(location))
    except (httpx.InvalidURL, ValueError) as error:
        raise FetchError(messages.URL_REDIRECT_MALFORMED()) from error
    new = check_url(url, policy)
    if target.secure and not new.secure:
        raise FetchError(messages.URL_REDIRECT_TO_HTTP())
    return new


async def _body(response: httpcore.Response, limit: int) -> bytes:
    """Return the decompressed body; raises FetchError for a status that is not 2xx or a size above `limit`."""
    if not 200 <= response.status < 300:
        error_type = Unreachable if response.status >= 500 or response.status in (408, 425, 429) else FetchError
        raise error_type(messages.URL_STATUS(status=response.status))
    size = f"{limit // MEBIBYTE} MiB" if limit >= MEBIBYTE else f"{limit} bytes"
    too_large = FetchError(messages.URL_FILE_TOO_LARGE(limit=size))
    declared = _header(response, b"content-length")
    if declared is not None and int(declared) > limit:
        raise too_large
    inflate = _decompressor(_header(response, b"content-encoding"))
    wire_bytes, body = 0, bytearray()
    async for chunk in response.aiter_stream():
        wire_bytes += len(chunk)
        # One byte beyond the limit distinguishes a file of exactly that size from a longer one.
        body += chunk if inflate is None else inflate.decompress(chunk, limit + 1 - len(body))
        if max(wire_bytes, len(body)) > limit:
            raise too_large
    if inflate is not None and not inflate.eof:
        raise Unreachable(messages.URL_INTERRUPTED())
    return bytes(body)


def _decompressor(encoding: str | None) -> zlib._Decompress | None:
    """Return a decompressor for the encodings that some servers apply although they were not requested."""
    if encoding is None or encoding.lower() in ("", "identity"):
        return None
    if encoding.lower() in ("gzip", "x-gzip", "deflate"):
        return zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)  # detects gzip or zlib by itself
    raise FetchError(messages.URL_COMPRESSED())


async def _excerpt(response: httpcore.Response, deadline: float) -> str:
    """Return what arrives of the body's first KiB before `deadline` (loop time); never raises for a broken body."""
    received = bytearray()
    with contextlib.suppress(TimeoutError, httpcore.NetworkError, httpcore.RemoteProtocolError):
        async with asyncio.timeout_at(deadline):
            async for chunk in response.aiter_stream():
                received += chunk
                if len(received) >= EXCERPT_BYTES:
                    break
    # PostgreSQL cannot store NUL in text.
    return received[:EXCERPT_BYTES].decode("utf-8", "replace").replace("\0", "\ufffd")


def _retry_after(response: httpcore.Response) -> float | None:
    """Return Retry-After (RFC 9110 10.2.3) in seconds from now; None when absent or invalid."""
    value = _header(response, b"retry-after")
    if value is None:
        return None
    if value.isascii() and value.isdigit():
        return float(value)
    try:
        moment = parsedate_to_datetime(value).astimezone(UTC)
    except (ValueError, OverflowError):  # OverflowError for dates outside of Python's calendar
        return None
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())
