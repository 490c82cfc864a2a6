"""Writing answers: jobs, errors and webhook bodies in the contract's names and formats.

Guarantees the rules that hold between fields (progress 100 only when COMPLETED, nothing charged for a job that
failed, a result only for one that did not) whatever a row says, and that no 500 tells what went wrong inside.
Renders what it is shown; reads no database and no clock.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol
from uuid import UUID

from hiresfix.errors import HiresfixError, InsufficientCredits, InvalidRequest, OverBudget, RateLimited, Unavailable
from hiresfix.models.catalog import Model
from hiresfix.wire.locations import result_path, upload_path
from hiresfix.wire.queries import Place, cursor

REQUEST_HEADERS = ("Authorization", "Content-Type", "Idempotency-Key", "Prefer", "Range", "X-API-Key", "X-Request-Id")
"""What a page of another origin may send us."""
RESPONSE_HEADERS = (
    "Content-Disposition", "ETag", "Idempotency-Replayed", "Location", "Preference-Applied", "RateLimit",
    "RateLimit-Policy", "Retry-After", "X-RateLimit-Limit", "X-RateLimit-Remaining", "X-RateLimit-Reset",
    "X-Request-Id",
)  # fmt: skip
"""What it may read of our answers, beside what browsers always show."""

_UNPAID = ("FAILED", "CANCELLED")


class JobView(Protocol):
    """What rendering reads of a job. `state` is one of the contract's five; `cost` is the price before refunds."""

    @property
    def id(self) -> UUID: ...
    @property
    def state(self) -> str: ...
    @property
    def model(self) -> str: ...
    @property
    def progress(self) -> int: ...
    @property
    def cost(self) -> int: ...
    @property
    def error(self) -> str | None: ...
    @property
    def webhook_status(self) -> str | None: ...
    @property
    def created_at(self) -> datetime: ...
    @property
    def started_at(self) -> datetime | None: ...
    @property
    def completed_at(self) -> datetime | None: ...
    @property
    def expired(self) -> bool: ...
    @property
    def input(self) -> Mapping[str, Any]: ...
    @property
    def seed(self) -> int | None: ...
    @property
    def width(self) -> int | None: ...
    @property
    def height(self) -> int | None: ...
    @property
    def metadata(self) -> Mapping[str, Any] | None: ...
    @property
    def output_format(self) -> str: ...


def timestamp(moment: datetime) -> str:
    """`2026-03-15T10:00:00.000Z`; raises ValueError for a datetime without a zone."""
    if moment.tzinfo is None:
        raise ValueError(f"{moment!r} has no time zone. Pass an aware datetime.")
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"


def accepted(job_id: UUID, state: str = "QUEUED") -> dict[str, Any]:
    """The body of a 202. A replay passes the current state; CANCELLED, unknown to that body, reads FAILED."""
    return {"jobId": str(job_id), "status": "FAILED" if state == "CANCELLED" else state}


def finished(view: JobView, *, public_url: str, kept_for: timedelta | None = None) -> dict[str, Any]:
    """The body of a 200 to a submission that waited: the Job object and, as in a 202, its id as `jobId`."""
    return {"jobId": str(view.id), **job(view, public_url=public_url, kept_for=kept_for)}


class ForecastView(Protocol):
    """What rendering reads of a forecast: `position` in the queue, `seconds` until the job is done; None: unknown."""

    @property
    def position(self) -> int | None: ...
    @property
    def seconds(self) -> int | None: ...


def job(
    view: JobView,
    *,
    public_url: str,
    with_input: bool = True,
    forecast: ForecastView | None = None,
    kept_for: timedelta | None = None,
) -> dict[str, Any]:
    """The Job object; lists leave `input` out. A forecast is shown for an unfinished job only.

    kept_for: how long results are kept, from which follows when this one goes; None: not known.

    A job that waits again after losing its worker keeps its progress: it never moves backwards for a client.
    """
    expected = forecast if view.completed_at is None else None
    body = {
        "id": str(view.id),
        "status": view.state,
        "model": view.model,
        "progress": _progress(view),
        "result": _result(view, public_url),
        "error": _error(view),
        "creditCost": _credit_cost(view),
        "webhookStatus": view.webhook_status,
        "createdAt": timestamp(view.created_at),
        "startedAt": _optional_timestamp(view.started_at),
        "completedAt": _optional_timestamp(view.completed_at),
        "expired": view.expired,
        "expiresAt": _expires_at(view, kept_for),
        "queuePosition": expected and expected.position,
        "etaSeconds": expected and expected.seconds,
        "seed": view.seed,
        "width": view.width,
        "height": view.height,
        "metadata": None if view.metadata is None else dict(view.metadata),
    }
    return {**body, "input": dict(view.input)} if with_input else body


def job_list(jobs: Sequence[Mapping[str, Any]], after: Place | None, models: Sequence[str] | None) -> dict[str, Any]:
    """A page of Job objects; `after`: where the next one begins, None on the last."""
    body = {"jobs": list(jobs), "nextCursor": cursor(after) if after else None, "hasMore": after is not None}
    return body if models is None else {**body, "models": list(models)}


class UploadView(Protocol):
    """What rendering reads of an upload."""

    @property
    def id(self) -> UUID: ...
    @property
    def extension(self) -> str: ...
    @property
    def media_type(self) -> str: ...
    @property
    def bytes(self) -> int: ...
    @property
    def expires_at(self) -> datetime: ...


def upload(view: UploadView, *, public_url: str) -> dict[str, Any]:
    """The Upload object."""
    return {
        "id": str(view.id),
        "url": public_url.rstrip("/") + upload_path(view.id, view.extension),
        "kind": "image",
        "contentType": view.media_type,
        "byteSize": view.bytes,
        "expiresAt": timestamp(view.expires_at),
    }


def hook_body(event: str, view: JobView, public_url: str) -> bytes:
    """The bytes of a webhook request, to be signed and sent as they are.

    event: progress, completed or failed (which also tells of a cancelled job). Raises ValueError where the job's
    state contradicts the event.
    """
    states = {"progress": ("PROCESSING",), "completed": ("COMPLETED",), "failed": _UNPAID}
    if view.state not in states.get(event, ()):
        raise ValueError(f"A job that is {view.state} has no '{event}' event. Build the body in that state.")
    body: dict[str, Any] = {"event": event, "type": event, "jobId": str(view.id), "status": view.state}
    if event == "progress":
        body |= {"progress": _progress(view), "model": view.model}
    else:
        if event == "completed":
            body |= {"progress": _progress(view), "result": _result(view, public_url)}
        else:
            body |= {"error": _error(view)}
        body |= {
            "model": view.model,
            "creditCost": _credit_cost(view),
            "completedAt": _optional_timestamp(view.completed_at),
        }
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()


def _progress(view: JobView) -> int:
    if view.state == "COMPLETED":
        return 100
    if view.state in _UNPAID:
        return 0
    return min(max(view.progress, 1 if view.state == "PROCESSING" else 0), 99)


def _result(view: JobView, public_url: str) -> dict[str, list[str]] | None:
    if view.state != "COMPLETED":
        return None
    return {"images": [public_url.rstrip("/") + result_path(view.id, view.output_format)]}


def _error(view: JobView) -> str | None:
    if view.state == "CANCELLED":
        return "Job was cancelled"
    return (view.error or "Job failed") if view.state == "FAILED" else None


def _credit_cost(view: JobView) -> int:
    return 0 if view.state in _UNPAID else view.cost


def _expires_at(view: JobView, kept_for: timedelta | None) -> str | None:
    if view.state != "COMPLETED" or view.expired or view.completed_at is None or kept_for is None:
        return None
    return timestamp(view.completed_at + kept_for)


def _optional_timestamp(moment: datetime | None) -> str | None:
    return None if moment is None else timestamp(moment)


def error_body(error: HiresfixError, *, request_id: str) -> dict[str, Any]:
    """The body of an error answer. Errors of status 500 say nothing of their cause; the log does."""
    hidden = error.status == HiresfixError.status
    body: dict[str, Any] = {"error": "Internal server error" if hidden else error.message}
    if isinstance(error, InvalidRequest):
        body["details"] = error.details
    elif isinstance(error, InsufficientCredits):
        body |= {"creditsRequired": error.required, "creditsAvailable": error.available}
    elif isinstance(error, OverBudget):
        body |= {"creditsRequired": error.required, "monthlyBudget": error.budget, "monthlySpent": error.spent}
    return {**body, "code": HiresfixError.code if hidden else error.code, "requestId": request_id}


def error_headers(error: HiresfixError) -> dict[str, str]:
    """Headers that belong to an error answer: `Retry-After` in whole seconds where trying again can help."""
    return {"Retry-After": str(error.retry_after)} if isinstance(error, RateLimited | Unavailable) else {}


def quota_headers(name: str, *, limit: int, seconds: int, remaining: int, wait: int, now: float) -> dict[str, str]:
    """Where a caller stands: `limit` requests in any `seconds`, `remaining` left, one more in `wait` seconds.

    Both in use: `X-RateLimit-*`, and the fields of draft-ietf-httpapi-ratelimit-headers-10. With a moving window the
    reset is when the oldest request is forgotten, and not when all are.
    """
    return {
        "X-RateLimit-Limit": str(limit),
        "X-RateLimit-Remaining": str(remaining),
        "X-RateLimit-Reset": str(math.ceil(now) + wait),
        "RateLimit": f'"{name}";r={remaining};t={wait}',
        "RateLimit-Policy": f'"{name}";q={limit};w={seconds}',
    }


def preview(
    model: Model,
    *,
    cost: int,
    available: int,
    budget_left: int | None,
    source: tuple[int, int],
    output: tuple[int, int],
    seconds_per_megapixel: float | None,
) -> dict[str, Any]:
    """The body of a dry run's answer. `source` and `output` are (width, height); `budget_left` None: no budget.

    `estimatedSeconds` is the work alone, without what waits before it; null where nothing was measured of late.
    """
    megapixels = output[0] * output[1] / 1e6
    return {
        "dryRun": True,
        "model": model.id,
        "creditCost": cost,
        "creditsAvailable": available,
        "budgetAvailable": budget_left,
        "sufficient": cost <= available and (budget_left is None or cost <= budget_left),
        "input": {"width": source[0], "height": source[1]},
        "output": {"width": output[0], "height": output[1], "megapixels": round(megapixels, 2)},
        "estimatedSeconds": None if seconds_per_megapixel is None else math.ceil(megapixels * seconds_per_megapixel),
    }


def invalid_param(model: Model, name: str, message: str) -> InvalidRequest:
    """The error for a parameter whose fault shows only later: a picture that cannot be had, a result too large."""
    return InvalidRequest({f"{model.params_key}.{model.param(name).name}": [message]})
