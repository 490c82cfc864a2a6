"""Arguments of a client as values that flows understand. Shared by the two clients.

Reads HIRESFIX_URL and HIRESFIX_API_KEY for what the caller leaves out; asks no server.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias, TypeVar
from urllib.parse import urlsplit

import httpx

from hiresfix import __version__
from hiresfix.client.drivers import Endpoint
from hiresfix.client.effects import Effect, Notify, Yield
from hiresfix.client.flows import JobRequest
from hiresfix.client.inputs import Image
from hiresfix.client.retry import RetryPolicy
from hiresfix.client.values import Event, Job, Params
from hiresfix.errors import ConfigurationError
from hiresfix.files import FORMAT_OF_SUFFIX

DEFAULT_URL = "http://127.0.0.1:8000"
"""Address of `hiresfix serve`."""
DEFAULT_MODEL = "clarity-upscale"
TIMEOUT = 60.0
CONNECT_TIMEOUT = 10.0

H = TypeVar("H", httpx.Client, httpx.AsyncClient)
AnyPath: TypeAlias = str | os.PathLike[str]
OnProgress: TypeAlias = Callable[[Job], object]
"""Called with every new state of a job. An `AsyncClient` awaits the result if it is awaitable."""


def endpoint(url: str | None, api_key: str | None) -> Endpoint:
    """Return address and headers of the server. Raises ConfigurationError for an invalid address or key."""
    address = (url or os.environ.get("HIRESFIX_URL") or DEFAULT_URL).strip().rstrip("/").removesuffix("/v2")
    try:
        parts = urlsplit(address)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and not (parts.query or parts.fragment)
    except ValueError:
        valid = False
    if not valid:
        raise ConfigurationError(
            f"{address!r} is not the address of a server. Set HIRESFIX_URL to one like {DEFAULT_URL}."
        )
    key = (api_key or os.environ.get("HIRESFIX_API_KEY") or "").strip()
    if not key:
        raise ConfigurationError(
            "There is no API key. Set HIRESFIX_API_KEY, or pass api_key=; `hiresfix keys create NAME` creates one."
        )
    if not (key.isascii() and key.isprintable()):
        raise ConfigurationError("The API key contains characters that keys never contain. Copy it again.")
    headers = {"X-API-Key": key, "User-Agent": f"hiresfix-python/{__version__}", "Accept": "application/json"}
    return Endpoint(address=address, headers=headers)


def retry_policy(retry: RetryPolicy | None, terms: RetryPolicy | None) -> RetryPolicy:
    """Return the policy of a client; `terms` is the old name of the keyword `retry`."""
    if terms is not None:
        warnings.warn(
            "Client(terms=...) is now Client(retry=...). Change the keyword.", DeprecationWarning, stacklevel=3
        )
    return retry or terms or RetryPolicy()


def job_request(
    image: Image,
    model: str,
    params: Params,
    extra: dict[str, Any] | None = None,
    webhook_url: str | None = None,
    webhook_events: Event | Sequence[Event] | None = None,
) -> JobRequest:
    if isinstance(webhook_events, str):
        webhook_events = (webhook_events,)
    return JobRequest(
        image=image,
        model=model,
        params={**params, **(extra or {})},
        webhook_url=webhook_url,
        webhook_events=None if webhook_events is None else tuple(webhook_events),
    )


def with_format_of(path: AnyPath, params: Params) -> Params:
    """Return the parameters with the format that the suffix of `path` names.

    Raises ValueError for a suffix that cannot be written, or if `output_format` contradicts it.
    """
    suffix = Path(path).suffix.lower()
    file_format, requested = FORMAT_OF_SUFFIX.get(suffix), params.get("output_format")
    if file_format is None:
        raise ValueError(f"Cannot write {suffix or 'a file without a suffix'}; use .png, .jpg or .webp.")
    if requested is not None and FORMAT_OF_SUFFIX.get(f".{requested.lower()}") != file_format:
        raise ValueError(f"The format {requested} does not fit a file called {suffix}. Change one of the two.")
    return {**params, "output_format": file_format}


def notifier(on_progress: OnProgress | None) -> Callable[[Job], Effect]:
    """Return a function that makes the effect which calls `on_progress`."""
    return lambda job: Notify(listener=on_progress or _ignore, arguments=(job,))


def _ignore(job: Job) -> None: ...


def yield_job(job: Job) -> Effect:
    return Yield(item=job)


def open_http(kind: type[H], timeout: float | httpx.Timeout | None, proxy: str | httpx.Proxy | None) -> H:
    """Open an HTTP client. Raises ConfigurationError for a proxy that cannot be used, given or from the environment."""
    try:
        return kind(timeout=timeouts(timeout), proxy=proxy)
    except (ImportError, ValueError, httpx.InvalidURL) as error:
        raise ConfigurationError(
            f"The proxy cannot be used: {error} Correct it, or HTTPS_PROXY, HTTP_PROXY and ALL_PROXY."
        ) from error


def timeouts(timeout: float | httpx.Timeout | None) -> httpx.Timeout:
    if isinstance(timeout, httpx.Timeout):
        return timeout
    return httpx.Timeout(
        TIMEOUT if timeout is None else timeout, connect=min(CONNECT_TIMEOUT, timeout or CONNECT_TIMEOUT)
    )
