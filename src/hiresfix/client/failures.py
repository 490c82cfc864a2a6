"""Errors from answers: error answers as the classes the server raised, and jobs that ended without a result.

The class is chosen by `code`, else by status, so that servers without codes, or with unknown ones, are understood too.
Messages are `hiresfix.messages.Message` where the server sent a reason, as they were when the server raised them.
Knows no HTTP library.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

from hiresfix.client.effects import ResponseHead
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
from hiresfix.messages import Message
from hiresfix.states import JobState


@dataclass(frozen=True, slots=True, kw_only=True)
class _ErrorAnswer:
    """Answer of status 400 or more, with the fields that could be read."""

    status: int
    text: str
    body: Mapping[str, Any]
    retry_after: float | None

    def number(self, name: str) -> int:
        value = self.body.get(name)
        return value if isinstance(value, int) else 0

    @property
    def seconds(self) -> int:
        return math.ceil(self.retry_after or 1)

    @property
    def details(self) -> dict[str, list[str]]:
        details = self.body.get("details")
        if not isinstance(details, dict):
            return {"_root": [self.text]}
        return {
            str(path): [
                self._problem(path, str(text)) for text in (messages if isinstance(messages, list) else [messages])
            ]
            for path, messages in details.items()
        }

    def _problem(self, path: str, text: str) -> str:
        """Return a message of `details` with the reason that `problems` has for it."""
        problems = self.body.get("problems")
        for problem in problems if isinstance(problems, list) else []:
            if isinstance(problem, dict) and (problem.get("path"), problem.get("message")) == (path, text):
                return _message(text, problem.get("reason"), problem.get("params"))
        return text


_BUILDERS: Mapping[type[HiresfixError], Callable[[_ErrorAnswer], HiresfixError]] = {
    InvalidRequest: lambda answer: InvalidRequest(answer.details),
    InvalidJobId: lambda answer: InvalidJobId(),
    InsufficientCredits: lambda answer: InsufficientCredits(
        required=answer.number("creditsRequired"), available=answer.number("creditsAvailable")
    ),
    OverBudget: lambda answer: OverBudget(
        budget=answer.number("monthlyBudget"),
        spent=answer.number("monthlySpent"),
        required=answer.number("creditsRequired"),
    ),
    RateLimited: lambda answer: RateLimited(answer.text, retry_after=answer.seconds),
    Unavailable: lambda answer: Unavailable(answer.text, retry_after=answer.seconds),
    RequestTimedOut: lambda answer: RequestTimedOut.with_message(answer.text),
    RequestTooLarge: lambda answer: RequestTooLarge(),
    NotOffered: lambda answer: NotOffered(),
    MethodNotAllowed: lambda answer: MethodNotAllowed(),
}
"""Constructors of the classes that hold more than a message."""

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


def _server_errors(kind: type[HiresfixError]) -> Iterator[type[HiresfixError]]:
    """Yield the classes a server can raise, base classes first; not those of clients and callers."""
    yield kind
    for narrower in kind.__subclasses__():
        if narrower.__module__ == HiresfixError.__module__:
            yield from _server_errors(narrower)


def error_of(head: ResponseHead, body: bytes) -> HiresfixError:
    """Return the error that an answer of status 400 or more stands for, with its request id."""
    answer = _read(head, body)
    code = answer.body.get("code")
    kind = next((kind for kind in _server_errors(HiresfixError) if kind.code == code), None) or _BY_STATUS.get(
        head.status
    )
    if kind is None:
        error: HiresfixError = UnexpectedAnswer(f"The server answered {head.status}: {answer.text}")
    else:
        build = _BUILDERS.get(kind)
        error = build(answer) if build else kind(answer.text)
    error.request_id = head.headers.get("x-request-id")
    return error


def _read(head: ResponseHead, body: bytes) -> _ErrorAnswer:
    try:
        fields = json.loads(body)
    except ValueError:
        fields = None
    fields = fields if isinstance(fields, dict) else {}
    text = fields.get("error")
    if isinstance(text, str) and text:
        text = _message(text, fields.get("reason"), fields.get("params"))
    else:
        text = f"The server answered {head.status} without an explanation."
    return _ErrorAnswer(
        status=head.status,
        text=text,
        body=fields,
        retry_after=retry_after(head.headers),
    )


def _message(text: str, reason: object, params: object) -> str:
    """Return the sentence with its reason and params; without them if the server sent none, or something else."""
    if not isinstance(reason, str) or not reason:
        return text
    values = params.items() if isinstance(params, dict) else ()
    return Message(
        text,
        reason=reason,
        params={name: value for name, value in values if isinstance(value, str | int | float)},
    )


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds of `Retry-After`: a number, or a date relative to the answer's own; None without one."""
    text = headers.get("retry-after", "").strip()
    try:
        return max(0.0, float(text))
    except ValueError:
        pass
    try:
        until, now = parsedate_to_datetime(text), parsedate_to_datetime(headers.get("date", ""))
    except ValueError:
        return None
    if (until.tzinfo is None) != (now.tzinfo is None):  # not comparable
        return None
    return max(0.0, (until - now).total_seconds())


def require_result(job: Job) -> Job:
    """Return the job. Raises JobFailed or JobCancelled if it ended without a result."""
    if job.status == JobState.FAILED:
        raise JobFailed(_message(job.error or "Job failed", job.error_reason, job.error_params), job)
    if job.status == JobState.CANCELLED:
        raise JobCancelled(job.error or "Job was cancelled", job)
    return job
