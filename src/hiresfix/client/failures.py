"""Answers that are refusals, as the same classes the server raised; jobs that ended without a result, as errors.

The class is chosen by `code`, else by status, so that servers which send no codes, or some of their own, are understood
as well. Knows no HTTP library.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any

from hiresfix.client.effects import Head
from hiresfix.client.errors import JobCancelled, JobFailed, UnexpectedAnswer
from hiresfix.client.values import Job
from hiresfix.errors import (
    Conflict,
    Expired,
    Forbidden,
    HiresfixError,
    InsufficientCredits,
    InvalidJobId,
    InvalidRequest,
    MethodNotAllowed,
    NotFound,
    NotOffered,
    OverBudget,
    RateLimited,
    RequestTimedOut,
    RequestTooLarge,
    StorageFailed,
    Unauthenticated,
    Unavailable,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Refusal:
    """An answer of status 400 or more, read as far as it can be."""

    status: int
    text: str
    body: Mapping[str, Any]
    retry_after: float | None

    def number(self, name: str) -> int:
        found = self.body.get(name)
        return found if isinstance(found, int) else 0

    @property
    def seconds(self) -> int:
        return math.ceil(self.retry_after or 1)

    @property
    def details(self) -> dict[str, list[str]]:
        details = self.body.get("details")
        if not isinstance(details, dict):
            return {"_root": [self.text]}
        return {
            str(path): [str(message) for message in (found if isinstance(found, list) else [found])]
            for path, found in details.items()
        }


_WITH_MORE: Mapping[type[HiresfixError], Callable[[_Refusal], HiresfixError]] = {
    InvalidRequest: lambda refusal: InvalidRequest(refusal.details),
    InvalidJobId: lambda refusal: InvalidJobId(),
    InsufficientCredits: lambda refusal: InsufficientCredits(
        required=refusal.number("creditsRequired"), available=refusal.number("creditsAvailable")
    ),
    OverBudget: lambda refusal: OverBudget(
        budget=refusal.number("monthlyBudget"),
        spent=refusal.number("monthlySpent"),
        required=refusal.number("creditsRequired"),
    ),
    RateLimited: lambda refusal: RateLimited(refusal.text, retry_after=refusal.seconds),
    Unavailable: lambda refusal: Unavailable(refusal.text, retry_after=refusal.seconds),
    RequestTimedOut: lambda refusal: RequestTimedOut.told(refusal.text),
    RequestTooLarge: lambda refusal: RequestTooLarge(),
    NotOffered: lambda refusal: NotOffered(),
    MethodNotAllowed: lambda refusal: MethodNotAllowed(),
}
"""How classes are made whose errors hold more than a message."""

_BY_STATUS: Mapping[int, type[HiresfixError]] = {
    400: InvalidRequest,
    401: Unauthenticated,
    402: InsufficientCredits,
    403: Forbidden,
    404: NotFound,
    405: MethodNotAllowed,
    408: RequestTimedOut,
    409: Conflict,
    410: Expired,
    413: RequestTooLarge,
    422: InvalidRequest,
    429: RateLimited,
    500: HiresfixError,
    501: NotOffered,
    502: StorageFailed,
    503: Unavailable,
    504: Unavailable,
}


def _every(kind: type[HiresfixError]) -> Iterator[type[HiresfixError]]:
    """What a server can raise, of classes that share a code the widest first; not what clients and callers add."""
    yield kind
    for narrower in kind.__subclasses__():
        if narrower.__module__ == HiresfixError.__module__:
            yield from _every(narrower)


def error_of(head: Head, body: bytes) -> HiresfixError:
    """The error that an answer of status 400 or more stands for, with the id of its request."""
    refusal = _read(head, body)
    code = refusal.body.get("code")
    kind = next((kind for kind in _every(HiresfixError) if kind.code == code), None) or _BY_STATUS.get(head.status)
    if kind is None:
        error: HiresfixError = UnexpectedAnswer(f"The server answered {head.status}: {refusal.text}")
    else:
        make = _WITH_MORE.get(kind)
        error = make(refusal) if make else kind(refusal.text)
    error.request_id = head.headers.get("x-request-id")
    return error


def _read(head: Head, body: bytes) -> _Refusal:
    try:
        told = json.loads(body)
    except ValueError:
        told = None
    told = told if isinstance(told, dict) else {}
    text = told.get("error")
    return _Refusal(
        status=head.status,
        text=text if isinstance(text, str) and text else f"The server answered {head.status} without saying why.",
        body=told,
        retry_after=retry_after(head.headers),
    )


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds until trying again can succeed: a number, or a date seen from the answer's own; None if not told."""
    told = headers.get("retry-after", "").strip()
    try:
        return max(0.0, float(told))
    except ValueError:
        pass
    try:
        until, now = parsedate_to_datetime(told), parsedate_to_datetime(headers.get("date", ""))
    except ValueError:
        return None
    return max(0.0, (until - now).total_seconds()) if _comparable(until, now) else None


def _comparable(one: datetime, other: datetime) -> bool:
    return (one.tzinfo is None) == (other.tzinfo is None)


def outcome(job: Job) -> Job:
    """The job if it has a result. Raises JobFailed or JobCancelled for one that is over and has none."""
    if job.status == "FAILED":
        raise JobFailed(job.error or "Job failed", job)
    if job.status == "CANCELLED":
        raise JobCancelled(job.error or "Job was cancelled", job)
    return job
