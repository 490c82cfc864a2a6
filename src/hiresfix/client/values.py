"""What a server says, as values: jobs, uploads, models, the caller.

Reads any answer that speaks the contract: unknown fields are kept in `raw` and otherwise ignored, optional ones that
are missing or null are None, and what cannot be read at all is `UnexpectedAnswer`. Knows no HTTP.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, Self, TypeAlias, TypedDict, TypeVar

from hiresfix.client.errors import UnexpectedAnswer

V = TypeVar("V")

Status: TypeAlias = Literal["QUEUED", "PROCESSING", "COMPLETED", "FAILED", "CANCELLED"]
OVER: frozenset[str] = frozenset({"COMPLETED", "FAILED", "CANCELLED"})
Scope: TypeAlias = Literal["user", "team"]
Event: TypeAlias = Literal["progress", "completed", "failed"]


class Params(TypedDict, total=False):
    """What one may ask of a model, by the names of the API; `GET /v2/models` tells which of them a model has.

    `scale` and `steps` are short for `scale_factor` and `num_inference_steps`.
    """

    prompt: str
    negative_prompt: str
    scale: int | str
    scale_factor: int | str
    creativity: float
    resemblance: float
    dynamic: float
    steps: int
    num_inference_steps: int
    sharpen: float
    content: str
    output_format: str
    seed: int


SHORT = {"scale": "scale_factor", "steps": "num_inference_steps"}


def spelled_out(params: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters under the API's own names, those that are None left out.

    Raises TypeError where a short name stands beside its long one.
    """
    for short, name in SHORT.items():
        if params.get(short) is not None and params.get(name) is not None:
            raise TypeError(f"Give {short} or {name}, not both: they are the same.")
    return {SHORT.get(name, name): value for name, value in params.items() if value is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A job as the server last told of it.

    progress: percent, 100 only when COMPLETED. images: absolute or server-relative URLs of the results. credit_cost: 0
    once it failed. queue_position and eta_seconds are for unfinished jobs, of servers that tell them. raw: the object
    as it came.
    """

    id: str
    status: str
    model: str | None = None
    progress: int = 0
    images: tuple[str, ...] = ()
    error: str | None = None
    credit_cost: int | None = None
    webhook_status: str | None = None
    created_at: datetime | None = None
    started_at: datetime | None = None
    completed_at: datetime | None = None
    expired: bool = False
    queue_position: int | None = None
    eta_seconds: int | None = None
    seed: int | None = None
    width: int | None = None
    height: int | None = None
    metadata: Mapping[str, Any] | None = field(default=None, repr=False)
    input: Mapping[str, Any] | None = field(default=None, repr=False)
    raw: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def __str__(self) -> str:
        """For people, in a line: `on_progress=print` will do."""
        if self.error:
            return f"{self.status}: {self.error}"
        told = [self.status if self.status != "PROCESSING" else f"PROCESSING {self.progress} %"]
        if self.queue_position:
            told.append(f"{self.queue_position} before it")
        if self.eta_seconds is not None and not self.is_over:
            told.append(f"about {self.eta_seconds} s")
        return ", ".join(told)

    @property
    def is_over(self) -> bool:
        return self.status in OVER

    @classmethod
    def read(cls, body: object) -> Self:
        """From a Job object, or the `{"jobId", "status"}` of a submission. Raises UnexpectedAnswer."""
        told = _object(body)
        return cls(
            id=_required(told, "jobId" if "id" not in told else "id"),
            status=_required(told, "status"),
            model=_maybe(told, "model", str),
            progress=_whole(told, "progress") or 0,
            images=_images(told.get("result")),
            error=_maybe(told, "error", str),
            credit_cost=_whole(told, "creditCost"),
            webhook_status=_maybe(told, "webhookStatus", str),
            created_at=_moment(told, "createdAt"),
            started_at=_moment(told, "startedAt"),
            completed_at=_moment(told, "completedAt"),
            expired=told.get("expired") is True,
            queue_position=_whole(told, "queuePosition"),
            eta_seconds=_whole(told, "etaSeconds"),
            seed=_whole(told, "seed"),
            width=_whole(told, "width"),
            height=_whole(told, "height"),
            metadata=_maybe(told, "metadata", dict),
            input=_maybe(told, "input", dict),
            raw=told,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class JobPage:
    """Some jobs of a list, and where the next ones begin; None on the last page."""

    jobs: tuple[Job, ...]
    cursor: str | None

    @classmethod
    def read(cls, body: object) -> Self:
        told = _object(body)
        cursor = _maybe(told, "nextCursor", str)
        return cls(
            jobs=tuple(Job.read(job) for job in _list(told, "jobs")),
            cursor=cursor if told.get("hasMore", True) else None,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Preview:
    """What a request would cost, in credits, and make. sufficient: balance and budget cover it."""

    credit_cost: int
    credits_available: int | None = None
    sufficient: bool = True
    width: int | None = None
    height: int | None = None
    estimated_seconds: int | None = None
    raw: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def read(cls, body: object) -> Self:
        told = _object(body)
        cost = _whole(told, "creditCost")
        if cost is None:
            raise UnexpectedAnswer("The server does not tell prices beforehand: it ignores ?dryRun=true.")
        output = _maybe(told, "output", dict) or {}
        return cls(
            credit_cost=cost,
            credits_available=_whole(told, "creditsAvailable"),
            sufficient=told.get("sufficient") is not False,
            width=_whole(output, "width"),
            height=_whole(output, "height"),
            estimated_seconds=_whole(told, "estimatedSeconds"),
            raw=told,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """A picture handed in; submissions can name its `url` until `expires_at`."""

    id: str
    url: str
    content_type: str | None = None
    byte_size: int | None = None
    expires_at: datetime | None = None
    raw: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def read(cls, body: object) -> Self:
        told = _object(body)
        return cls(
            id=_required(told, "id"),
            url=_required(told, "url"),
            content_type=_maybe(told, "contentType", str),
            byte_size=_whole(told, "byteSize"),
            expires_at=_moment(told, "expiresAt"),
            raw=told,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A model on offer. Costs are credits; params: JSON Schema of its parameters; avg_seconds: measured of late."""

    id: str
    label: str | None = None
    modality: str | None = None
    description: str | None = None
    cost_min: int | None = None
    cost_max: int | None = None
    avg_seconds: float | None = None
    params_key: str | None = None
    params: Mapping[str, Any] | None = field(default=None, repr=False)
    raw: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def read(cls, body: object) -> Self:
        told = _object(body)
        return cls(
            id=_required(told, "id"),
            label=_maybe(told, "label", str),
            modality=_maybe(told, "modality", str),
            description=_maybe(told, "description", str),
            cost_min=_whole(told, "costMin"),
            cost_max=_whole(told, "costMax"),
            avg_seconds=_number(told, "avgSeconds"),
            params_key=_maybe(told, "paramsKey", str),
            params=_maybe(told, "params", dict),
            raw=told,
        )

    @classmethod
    def read_all(cls, body: object) -> tuple[Self, ...]:
        """From the catalog's object."""
        return tuple(cls.read(entry) for entry in _list(_object(body), "models"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Me:
    """Whose the key is, and what the team has. key_prefix: the key's first characters, safe to show."""

    email: str | None = None
    role: str | None = None
    team: str | None = None
    credits: int | None = None
    plan: str | None = None
    max_concurrent_jobs: int | None = None
    key_name: str | None = None
    key_prefix: str | None = None
    raw: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def read(cls, body: object) -> Self:
        told = _object(body)
        user, team, key = (_maybe(told, name, dict) or {} for name in ("user", "team", "apiKey"))
        return cls(
            email=_maybe(user, "email", str),
            role=_maybe(user, "role", str),
            team=_maybe(team, "name", str),
            credits=_whole(team, "credits"),
            plan=_maybe(team, "plan", str),
            max_concurrent_jobs=_whole(team, "maxConcurrentJobs"),
            key_name=_maybe(key, "name", str),
            key_prefix=_maybe(key, "prefix", str),
            raw=told,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookEvent:
    """What a webhook tells. The same may arrive twice: `job.id` and `event` together say whether you know it."""

    event: str
    job: Job

    @classmethod
    def read(cls, body: object) -> Self:
        told = _object(body)
        event = _maybe(told, "event", str) or _required(told, "type")
        return cls(event=event, job=Job.read(told))


def _object(body: object) -> dict[str, Any]:
    if not isinstance(body, dict):
        raise UnexpectedAnswer(f"Expected a JSON object, got {type(body).__name__}. Is the URL that of a server?")
    return body


def _list(told: Mapping[str, Any], name: str) -> list[Any]:
    found = told.get(name)
    if not isinstance(found, list):
        raise UnexpectedAnswer(f"The answer has no list called {name!r}. Is the URL that of a server?")
    return found


def _required(told: Mapping[str, Any], name: str) -> str:
    found = told.get(name)
    if not isinstance(found, str) or not found:
        raise UnexpectedAnswer(f"The answer lacks {name!r}. Is the URL that of a server?")
    return found


def _maybe(told: Mapping[str, Any], name: str, kind: type[V]) -> V | None:
    """The field if it is there and of this type."""
    found = told.get(name)
    return found if isinstance(found, kind) else None


def _number(told: Mapping[str, Any], name: str) -> float | None:
    found = told.get(name)
    return float(found) if isinstance(found, int | float) and not isinstance(found, bool) else None


def _whole(told: Mapping[str, Any], name: str) -> int | None:
    found = told.get(name)
    if isinstance(found, float) and found.is_integer():
        return int(found)
    return found if isinstance(found, int) and not isinstance(found, bool) else None


def _moment(told: Mapping[str, Any], name: str) -> datetime | None:
    try:
        return datetime.fromisoformat(told[name])
    except (LookupError, TypeError, ValueError):
        return None


def _images(result: object) -> tuple[str, ...]:
    """`{"images": [url]}`, or the bare URL of older servers."""
    if isinstance(result, str):
        return (result,)
    images = result.get("images") if isinstance(result, dict) else None
    return tuple(url for url in images if isinstance(url, str)) if isinstance(images, list) else ()
