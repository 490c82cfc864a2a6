"""Write jobs, pages, dry runs and webhook bodies in the contract's names and formats.

Enforces the rules between fields whatever a row says: progress 100 only when COMPLETED, nothing charged for a failed
job, a result only for a completed one. Reads no database and no clock.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol
from uuid import UUID

from hiresfix.messages import Param
from hiresfix.models.catalog import CatalogModel
from hiresfix.states import JobState
from hiresfix.wire.locations import result_path
from hiresfix.wire.queries import PagePosition, cursor

REQUEST_HEADERS = ("Authorization", "Content-Type", "Idempotency-Key", "Prefer", "Range", "X-API-Key", "X-Request-Id")
"""Request headers that pages of other origins may send."""
RESPONSE_HEADERS = (
    "Content-Disposition", "ETag", "Idempotency-Replayed", "Location", "Preference-Applied", "RateLimit",
    "RateLimit-Policy", "Retry-After", "X-RateLimit-Limit", "X-RateLimit-Remaining", "X-RateLimit-Reset",
    "X-Request-Id",
)  # fmt: skip
"""Response headers that such pages may read, besides those that browsers always show."""

_UNPAID = (JobState.FAILED, JobState.CANCELLED)


class JobView(Protocol):
    """Fields of a job that rendering reads. `state` is a JobState; `cost` is the price before refunds."""

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
    def error_reason(self) -> str | None: ...
    @property
    def error_params(self) -> Mapping[str, Param] | None: ...
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
    """Format as `2026-03-15T10:00:00.000Z`. Raises ValueError for a datetime without a zone."""
    if moment.tzinfo is None:
        raise ValueError(f"{moment!r} has no time zone. Pass an aware datetime.")
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"


def optional_timestamp(moment: datetime | None) -> str | None:
    """Format a time like `timestamp`; None stays None."""
    return None if moment is None else timestamp(moment)


def page(name: str, rows: Sequence[Any], after: PagePosition | None, *, of: str = "") -> dict[str, Any]:
    """Return a page of `rows` under `name`; `after`: position of the next page, None on the last."""
    return {name: list(rows), "nextCursor": cursor(after, of=of) if after else None, "hasMore": after is not None}


def accepted(job_id: UUID, state: str = JobState.QUEUED) -> dict[str, Any]:
    """Return the body of a 202. A replay passes the current state; that body has no CANCELLED, so it says FAILED."""
    return {"jobId": str(job_id), "status": JobState.FAILED if state == JobState.CANCELLED else state}


def finished(view: JobView, *, public_url: str, kept_for: timedelta | None = None) -> dict[str, Any]:
    """Return the body of a 200 to a submission that waited: the Job object and, as in a 202, its id as `jobId`."""
    return {"jobId": str(view.id), **job(view, public_url=public_url, kept_for=kept_for)}


class ForecastView(Protocol):
    """Fields of a forecast that rendering reads: queue `position`, `seconds` until the job is done; None: unknown."""

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
    """Return the Job object.

    A job that is queued again after losing its worker keeps its progress: it never moves backwards for a client.

    Args:
        view: The job.
        public_url: Base of the result's URL.
        with_input: False in lists, which leave `input` out.
        forecast: Shown for an unfinished job only.
        kept_for: How long results are kept, for `expiresAt`; None if unknown.
    """
    expected = forecast if view.completed_at is None else None
    body = {
        "id": str(view.id),
        "status": view.state,
        "model": view.model,
        "progress": _progress(view),
        "result": _result(view, public_url),
        **_error_fields(view),
        "creditCost": _credit_cost(view),
        "webhookStatus": view.webhook_status,
        "createdAt": timestamp(view.created_at),
        "startedAt": optional_timestamp(view.started_at),
        "completedAt": optional_timestamp(view.completed_at),
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


def job_list(
    jobs: Sequence[Mapping[str, Any]], after: PagePosition | None, models: Sequence[str] | None
) -> dict[str, Any]:
    """Return a page of Job objects; `after`: position of the next page, None on the last."""
    body = page("jobs", jobs, after)
    return body if models is None else {**body, "models": list(models)}


def hook_body(event: str, view: JobView, public_url: str) -> bytes:
    """Return the bytes of a webhook request, to be signed and sent as they are.

    `event` is progress, completed or failed (also for a cancelled job). Raises ValueError if the job's state
    contradicts the event.
    """
    states: Mapping[str, tuple[JobState, ...]] = {
        "progress": (JobState.PROCESSING,),
        "completed": (JobState.COMPLETED,),
        "failed": _UNPAID,
    }
    if view.state not in states.get(event, ()):
        raise ValueError(f"A job that is {view.state} has no '{event}' event. Build the body in that state.")
    body: dict[str, Any] = {"event": event, "type": event, "jobId": str(view.id), "status": view.state}
    if event == "progress":
        body |= {"progress": _progress(view), "model": view.model}
    else:
        if event == "completed":
            body |= {"progress": _progress(view), "result": _result(view, public_url)}
        else:
            body |= _error_fields(view)
        body |= {
            "model": view.model,
            "creditCost": _credit_cost(view),
            "completedAt": optional_timestamp(view.completed_at),
        }
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()


def _progress(view: JobView) -> int:
    if view.state == JobState.COMPLETED:
        return 100
    if view.state in _UNPAID:
        return 0
    return min(max(view.progress, 1 if view.state == JobState.PROCESSING else 0), 99)


def _result(view: JobView, public_url: str) -> dict[str, list[str]] | None:
    if view.state != JobState.COMPLETED:
        return None
    return {"images": [public_url.rstrip("/") + result_path(view.id, view.output_format)]}


def _error_fields(view: JobView) -> dict[str, Any]:
    """Return the English sentence, and the reason and params to show a failed job's sentence in another language."""
    reason = view.error_reason if view.state == JobState.FAILED else None
    params = dict(view.error_params or {}) if reason else None
    return {"error": _error(view), "errorReason": reason, "errorParams": params}


def _error(view: JobView) -> str | None:
    if view.state == JobState.CANCELLED:
        return "Job was cancelled"
    return (view.error or "Job failed") if view.state == JobState.FAILED else None


def _credit_cost(view: JobView) -> int:
    return 0 if view.state in _UNPAID else view.cost


def _expires_at(view: JobView, kept_for: timedelta | None) -> str | None:
    if view.state != JobState.COMPLETED or view.expired or view.completed_at is None or kept_for is None:
        return None
    return timestamp(view.completed_at + kept_for)


def preview(
    model: CatalogModel,
    *,
    cost: int,
    available: int,
    budget_left: int | None,
    source: tuple[int, int],
    output: tuple[int, int],
    seconds_per_megapixel: float | None,
) -> dict[str, Any]:
    """Return the body of a dry run's answer.

    `estimatedSeconds` covers the work alone, without the time in the queue; null without recent measurements.

    Args:
        model: The requested model.
        cost: Price in credits.
        available: The team's credits.
        budget_left: What is left of the key's monthly budget; None if it has none.
        source: Width and height of the image.
        output: Width and height of the result.
        seconds_per_megapixel: Measured on recent jobs; None if there were none.
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
