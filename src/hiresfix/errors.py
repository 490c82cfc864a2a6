"""Every error that a caller, an operator or a client library can meet, in one hierarchy.

An error carries a stable `code` (snake_case, never changes once published), the HTTP `status` it is rendered with, and
`retryable`: whether trying again can help. Its message is English and ends with what to do. A message made from a
template of `hiresfix.messages` also gives the error a `reason`, more specific than the code, and the `params` in the
sentence. This module knows no transport: `hiresfix.wire` renders errors, the server sends them.

    HiresfixError
    ├── InvalidRequest          400   details: {path: [messages]}
    ├── InvalidJobId            400
    ├── Unauthenticated         401
    ├── Forbidden               403
    │   └── OverBudget          403   budget, spent, required
    ├── InsufficientCredits     402   required, available
    ├── NotFound                404
    ├── MethodNotAllowed        405
    ├── Conflict                409
    ├── Expired                 410
    ├── RequestTimedOut         408
    ├── RequestTooLarge         413
    ├── RateLimited             429   retry_after
    ├── NotOffered              501
    ├── StorageFailed           502
    ├── Unavailable             503   retry_after
    ├── ImageError              400   the bytes are not an acceptable image
    ├── PromptError             400   the prompt is too long
    ├── QuotaExceeded           400   the caller's uploads would exceed their quota
    ├── FetchError              400   a URL could not be fetched, or must not be
    │   └── Unreachable         400   the same, but trying again can help
    ├── WeightsError            500   a weight file is missing, damaged or of another architecture
    ├── NotUnderstood           500   a recipe of a newer release
    ├── EngineFailed            500   no usable result: non-finite, black, or out of memory
    └── ConfigurationError      500   the operator has to change a setting
    Cancelled                         not an error: the caller asked a running engine to stop

`hiresfix.client.errors` adds the errors that only clients meet, such as a server that does not answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Self

from hiresfix import messages
from hiresfix.messages import Message, Param


class HiresfixError(Exception):
    """Base of all errors that hiresfix raises on purpose."""

    code: ClassVar[str] = "internal_error"
    status: ClassVar[int] = 500
    retryable: ClassVar[bool] = False

    request_id: str | None = None
    """Id of the refused request, for the server's logs; None if no server was involved."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message

    @property
    def reason(self) -> str | None:
        """Stable name of the sentence; None if it is not from `hiresfix.messages`."""
        return self.message.reason if isinstance(self.message, Message) else None

    @property
    def params(self) -> Mapping[str, Param]:
        """Variable parts of the sentence, by the names of its placeholders."""
        return self.message.params if isinstance(self.message, Message) else {}


class InvalidRequest(HiresfixError):
    """The request breaks the contract; `details` maps each JSON path to all problems found there."""

    code = "validation_error"
    status = 400

    def __init__(self, details: Mapping[str, Sequence[str]]) -> None:
        super().__init__("Validation error")
        self.details = {path: list(problems) for path, problems in details.items()}

    def __str__(self) -> str:
        listed = "; ".join(f"{path}: {' '.join(problems)}" for path, problems in self.details.items())
        return f"{self.message}: {listed}" if listed else self.message


class InvalidJobId(HiresfixError):
    """The job id in the path is not a UUID."""

    code = "invalid_job_id"
    status = 400

    def __init__(self) -> None:
        super().__init__("Invalid job id")


class Unauthenticated(HiresfixError):
    """The request has no valid API key."""

    code = "unauthenticated"
    status = 401


class InsufficientCredits(HiresfixError):
    """The team's balance does not cover the price; both numbers are whole credits."""

    code = "insufficient_credits"
    status = 402

    def __init__(self, *, required: int, available: int) -> None:
        super().__init__("Insufficient credits")
        self.required = required
        self.available = available

    def __str__(self) -> str:
        return f"{self.message}: {self.required} needed, {self.available} available. Add credits or request less."


class Forbidden(HiresfixError):
    """The API key is valid but not allowed to do this."""

    code = "forbidden"
    status = 403


class OverBudget(Forbidden):
    """The API key may not spend that much this month; all numbers are whole credits.

    Not a 402: more credits would not help, and clients offer to buy them on a 402.
    """

    code = "over_budget"

    def __init__(self, *, budget: int, spent: int, required: int) -> None:
        super().__init__("Monthly budget of this API key exceeded")
        self.budget = budget
        self.spent = spent
        self.required = required


class NotFound(HiresfixError):
    """The resource does not exist, or the caller may not see it."""

    code = "not_found"
    status = 404


class MethodNotAllowed(HiresfixError):
    """The path exists, the method does not; the header `Allow` lists the methods that do."""

    code = "method_not_allowed"
    status = 405

    def __init__(self) -> None:
        super().__init__("Method not allowed")


class Conflict(HiresfixError):
    """The request does not fit the current state of the resource."""

    code = "conflict"
    status = 409


class Expired(HiresfixError):
    """The file existed and was deleted after its retention time."""

    code = "expired"
    status = 410


class RequestTimedOut(HiresfixError):
    """The client took longer than `seconds` to send the request's body."""

    code = "request_timed_out"
    status = 408
    retryable = True

    def __init__(self, seconds: float) -> None:
        super().__init__(messages.BODY_TOO_SLOW(seconds=messages.plain_number(seconds)))

    @classmethod
    def with_message(cls, text: str) -> Self:
        """Build the error on the client's side, from the server's own message."""
        error = cls(0)
        error.message, error.args = text, (text,)
        return error


class RequestTooLarge(HiresfixError):
    """The body exceeds the server's hard limit."""

    code = "request_too_large"
    status = 413

    def __init__(self) -> None:
        super().__init__("Request body too large")


class RateLimited(HiresfixError):
    """Too many requests; `retry_after` is whole seconds, at least 1, until trying again can succeed."""

    code = "rate_limited"
    status = 429
    retryable = True

    def __init__(self, message: str = "Rate limit exceeded", *, retry_after: int = 1) -> None:
        super().__init__(message)
        self.retry_after = max(1, retry_after)


class NotOffered(HiresfixError):
    """A route of the hosted API that this server does not have."""

    code = "not_offered"
    status = 501

    def __init__(self) -> None:
        super().__init__("Not available on this server")


class StorageFailed(HiresfixError):
    """The object store did not do what was asked."""

    code = "storage_failed"
    status = 502
    retryable = True


class Unavailable(HiresfixError):
    """The server cannot take the request at the moment; `retry_after` is whole seconds, at least 1."""

    code = "unavailable"
    status = 503
    retryable = True

    def __init__(self, message: str = "Service temporarily unavailable", *, retry_after: int = 5) -> None:
        super().__init__(message)
        self.retry_after = max(1, retry_after)


class ImageError(HiresfixError):
    """The bytes are not an image we accept: unknown format, damaged, or over a limit that the message names."""

    code = "invalid_picture"
    status = 400


PictureError = ImageError
"""Former name of `ImageError`, for users of the SDK."""


class QuotaExceeded(HiresfixError):
    """The file would exceed the quota of the caller's uploads."""

    code = "quota_exceeded"
    status = 400


class PromptError(HiresfixError):
    """The prompt needs more chunks of tokens than the engine reads."""

    code = "invalid_prompt"
    status = 400


class FetchError(HiresfixError):
    """A URL could not be fetched or delivered to, or the guarded HTTP client forbids its address."""

    code = "fetch_failed"
    status = 400


class Unreachable(FetchError):
    """The other side did not answer, or not completely; it may next time."""

    retryable = True


class WeightsError(HiresfixError):
    """A weight file is missing, damaged or of another architecture."""

    code = "weights_error"


class NotUnderstood(HiresfixError):
    """The recipe was written by a newer release; a newer worker can read it."""

    code = "not_understood"
    retryable = True


class EngineFailed(HiresfixError):
    """The engine has no result worth returning; a bad result is never returned as a success."""

    code = "engine_failed"


class BadResult(EngineFailed):
    """The result failed its own quality check or has non-finite values. Full precision gets another try."""

    code = "bad_result"


class ConfigurationError(HiresfixError):
    """The operator has to change a setting."""

    code = "configuration_error"


class Cancelled(Exception):
    """Raised by a progress callback to stop a running engine between two tiles or steps."""
