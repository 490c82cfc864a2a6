"""Every error a caller, an operator or a client library can meet, in one hierarchy.

An error carries a stable `code` (snake_case, never changes once published), the HTTP `status` it is rendered
with and whether trying again can help (`retryable`). The message is English and ends with what to do. This
module knows no transport: `hiresfix.wire` renders errors, the server sends them.

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
    ├── PictureError            400   bytes that are no acceptable picture
    ├── PromptError             400   a prompt that is too long to read
    ├── QuotaExceeded           400   a caller's uploads take all the room they may
    ├── FetchError              400   a URL that could not be fetched, or must not be
    │   └── Unreachable         400   the same, but trying again can help
    ├── WeightsError            500   a weight file is missing, damaged or of another architecture
    ├── NotUnderstood           500   a recipe of a newer release
    ├── EngineFailed            500   no picture came out: not finite, black, or no memory left
    └── ConfigurationError      500   the operator has to change a setting
    Cancelled                         not an error: the caller asked a running engine to stop

`hiresfix.client.errors` adds what only clients meet: a server that does not answer, a job that was waited for in vain.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Self


class HiresfixError(Exception):
    """Base of all errors that hiresfix raises on purpose."""

    code: ClassVar[str] = "internal_error"
    status: ClassVar[int] = 500
    retryable: ClassVar[bool] = False

    request_id: str | None = None
    """What the server calls the request that it refused, for its operator's logs; None where no server was asked."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class InvalidRequest(HiresfixError):
    """The request breaks the contract; `details` maps each JSON path to all that is wrong there."""

    code = "validation_error"
    status = 400

    def __init__(self, details: Mapping[str, Sequence[str]]) -> None:
        super().__init__("Validation error")
        self.details = {path: list(messages) for path, messages in details.items()}

    def __str__(self) -> str:
        told = "; ".join(f"{path}: {' '.join(messages)}" for path, messages in self.details.items())
        return f"{self.message}: {told}" if told else self.message


class InvalidJobId(HiresfixError):
    code = "invalid_job_id"
    status = 400

    def __init__(self) -> None:
        super().__init__("Invalid job id")


class Unauthenticated(HiresfixError):
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
        return f"{self.message}: {self.required} needed, {self.available} there. Add credits or ask for less."


class Forbidden(HiresfixError):
    code = "forbidden"
    status = 403


class OverBudget(Forbidden):
    """The API key may not spend that much this month; all numbers are whole credits.

    Not 402: more credits would not help, and clients offer to buy them on a 402.
    """

    code = "over_budget"

    def __init__(self, *, budget: int, spent: int, required: int) -> None:
        super().__init__("Monthly budget of this API key exceeded")
        self.budget = budget
        self.spent = spent
        self.required = required


class NotFound(HiresfixError):
    code = "not_found"
    status = 404


class MethodNotAllowed(HiresfixError):
    """The path is there, the method is not; the header `Allow` names those that are."""

    code = "method_not_allowed"
    status = 405

    def __init__(self) -> None:
        super().__init__("Method not allowed")


class Conflict(HiresfixError):
    code = "conflict"
    status = 409


class Expired(HiresfixError):
    code = "expired"
    status = 410


class RequestTimedOut(HiresfixError):
    """The client took longer than `seconds` to send the request's body."""

    code = "request_timed_out"
    status = 408
    retryable = True

    def __init__(self, seconds: float) -> None:
        super().__init__(f"The request's body did not arrive within {seconds:g} s. Send a smaller one, or a URL.")

    @classmethod
    def told(cls, text: str) -> Self:
        """As a client makes it from the server's own words."""
        error = cls(0)
        error.message, error.args = text, (text,)
        return error


class RequestTooLarge(HiresfixError):
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
    code = "not_offered"
    status = 501

    def __init__(self) -> None:
        super().__init__("Not available on this server")


class StorageFailed(HiresfixError):
    code = "storage_failed"
    status = 502
    retryable = True


class Unavailable(HiresfixError):
    """The server cannot take the request just now; `retry_after` is whole seconds, at least 1."""

    code = "unavailable"
    status = 503
    retryable = True

    def __init__(self, message: str = "Service temporarily unavailable", *, retry_after: int = 5) -> None:
        super().__init__(message)
        self.retry_after = max(1, retry_after)


class PictureError(HiresfixError):
    """The bytes are no picture we accept: unknown, damaged, or over a limit that the message names."""

    code = "invalid_picture"
    status = 400


class QuotaExceeded(HiresfixError):
    """Keeping the file would take more room than the caller's uploads may take together."""

    code = "quota_exceeded"
    status = 400


class PromptError(HiresfixError):
    """The prompt cannot be read as it is: it makes more chunks than the engine takes."""

    code = "invalid_prompt"
    status = 400


class FetchError(HiresfixError):
    """A URL could not be fetched or delivered to, or the outbound guard forbids its address."""

    code = "fetch_failed"
    status = 400


class Unreachable(FetchError):
    """The other side did not answer, or not completely; it may the next time."""

    retryable = True


class WeightsError(HiresfixError):
    code = "weights_error"


class NotUnderstood(HiresfixError):
    """A recipe has what this release does not know: a newer one wrote it, and a newer worker can read it."""

    code = "not_understood"
    retryable = True


class EngineFailed(HiresfixError):
    """The engine made no picture worth returning; nothing bad is ever returned as a success."""

    code = "engine_failed"


class BadResult(EngineFailed):
    """What was made failed its own quality check, or is no numbers at all. In full precision it gets another try."""

    code = "bad_result"


class ConfigurationError(HiresfixError):
    code = "configuration_error"


class Cancelled(Exception):
    """Raised by a progress report to stop a running engine between two tiles or steps."""
