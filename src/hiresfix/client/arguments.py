"""What a caller passes to a client, made into values that flows understand. Shared by the two clients.

Reads HIRESFIX_URL and HIRESFIX_API_KEY where nothing else is given; asks no server.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias, TypeVar
from urllib.parse import urlsplit

import httpx

from hiresfix import __version__
from hiresfix.client.drivers import Server
from hiresfix.client.effects import Effect, Give, Tell
from hiresfix.client.flows import Order
from hiresfix.client.inputs import Image
from hiresfix.client.values import Event, Job, Params
from hiresfix.errors import ConfigurationError
from hiresfix.files import FORMAT_OF_SUFFIX

DEFAULT_URL = "http://127.0.0.1:8000"
"""Where `hiresfix serve` listens."""
DEFAULT_MODEL = "clarity-upscale"
TIMEOUT = 60.0
CONNECT_TIMEOUT = 10.0

H = TypeVar("H", httpx.Client, httpx.AsyncClient)
AnyPath: TypeAlias = str | os.PathLike[str]
OnProgress: TypeAlias = Callable[[Job], object]
"""Called with every new state of a job. An `AsyncClient` awaits what it returns, if it can be awaited."""
OnUpload: TypeAlias = Callable[[int, int], object]
"""Called with bytes sent and bytes in all; from the beginning again where an upload had to be tried again."""


def server(url: str | None, api_key: str | None) -> Server:
    """Raises ConfigurationError for an address or a key that cannot be one."""
    address = (url or os.environ.get("HIRESFIX_URL") or DEFAULT_URL).strip().rstrip("/").removesuffix("/v2")
    try:
        parts = urlsplit(address)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and not (parts.query or parts.fragment)
    except ValueError:
        good = False
    if not good:
        raise ConfigurationError(f"{address!r} is no server's address. Set HIRESFIX_URL to one like {DEFAULT_URL}.")
    key = (api_key or os.environ.get("HIRESFIX_API_KEY") or "").strip()
    if not key:
        raise ConfigurationError(
            "There is no API key. Set HIRESFIX_API_KEY, or pass api_key=; `hiresfix keys create NAME` makes one."
        )
    if not (key.isascii() and key.isprintable()):
        raise ConfigurationError("The API key has characters that no key has. Copy it again.")
    headers = {"X-API-Key": key, "User-Agent": f"hiresfix-python/{__version__}", "Accept": "application/json"}
    return Server(address=address, headers=headers)


def order(
    image: Image,
    model: str,
    params: Params,
    extra: dict[str, Any] | None = None,
    webhook_url: str | None = None,
    webhook_events: Event | Sequence[Event] | None = None,
) -> Order:
    if isinstance(webhook_events, str):
        webhook_events = (webhook_events,)
    return Order(
        image=image,
        model=model,
        params={**params, **(extra or {})},
        webhook_url=webhook_url,
        webhook_events=None if webhook_events is None else tuple(webhook_events),
    )


def into(path: AnyPath, params: Params) -> Params:
    """Parameters with the format that the file's name says. Raises ValueError where they contradict it."""
    suffix = Path(path).suffix.lower()
    named, wanted = FORMAT_OF_SUFFIX.get(suffix), params.get("output_format")
    if named is None:
        raise ValueError(f"Cannot write {suffix or 'a file without a suffix'}; use .png, .jpg or .webp.")
    if wanted is not None and FORMAT_OF_SUFFIX.get(f".{wanted.lower()}") != named:
        raise ValueError(f"{wanted} does not go into a file called {suffix}.")
    return {**params, "output_format": named}


def telling(on_progress: OnProgress | None) -> Callable[[Job], Effect]:
    return lambda job: Tell(listener=on_progress or _nothing, arguments=(job,))


def _nothing(job: Job) -> None: ...


def giving(job: Job) -> Effect:
    return Give(item=job)


def opened(kind: type[H], timeout: float | httpx.Timeout | None, proxy: str | httpx.Proxy | None) -> H:
    """An HTTP client. Raises ConfigurationError for a proxy, given or the environment's, that it cannot use."""
    try:
        return kind(timeout=timeouts(timeout), proxy=proxy)
    except (ImportError, ValueError, httpx.InvalidURL) as error:
        raise ConfigurationError(
            f"The proxy cannot be used: {error} Correct it, or HTTPS_PROXY, HTTP_PROXY and ALL_PROXY."
        ) from error


def timeouts(given: float | httpx.Timeout | None) -> httpx.Timeout:
    if isinstance(given, httpx.Timeout):
        return given
    return httpx.Timeout(TIMEOUT if given is None else given, connect=min(CONNECT_TIMEOUT, given or CONNECT_TIMEOUT))
