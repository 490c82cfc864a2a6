"""Values of the API: jobs, uploads, models, the caller, webhook events.

Reads any answer that follows the contract: unknown fields are kept in `raw` and otherwise ignored, optional fields that
are missing or null are None, and an answer that cannot be read raises `UnexpectedAnswer`. Knows no HTTP.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, Self, TypeAlias, TypedDict, TypeVar

from hiresfix.client.errors import UnexpectedAnswer
from hiresfix.messages import Param
from hiresfix.states import TERMINAL, JobState

V = TypeVar("V")

Scope: TypeAlias = Literal["user", "team"]
Event: TypeAlias = Literal["progress", "completed", "failed"]


class Params(TypedDict, total=False):
    """Parameters of a model by the API's names; `GET /v2/models` lists those of each model.

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


FULL_NAMES = {"scale": "scale_factor", "steps": "num_inference_steps"}


def with_full_names(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters under the API's own names, without those that are None.

    Raises TypeError if a parameter is given by both of its names.
    """
    for short, name in FULL_NAMES.items():
        if params.get(short) is not None and params.get(name) is not None:
            raise TypeError(f"Give {short} or {name}, not both: they are the same parameter.")
    return {FULL_NAMES.get(name, name): value for name, value in params.items() if value is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """State of a job as the server last sent it.

    Attributes:
        status: one of `hiresfix.states.JobState`.
        progress: percent; 100 only when COMPLETED.
        images: URLs of the results, absolute or relative to the server.
        error: English sentence of a job that failed or was cancelled.
        error_reason: stable name of the sentence of a failed job, if the server sends it.
        error_params: variable parts of that sentence, by name.
        credit_cost: 0 once the job has failed or was cancelled.
        queue_position: jobs ahead of this one; only while it waits, and if the server sends it.
        eta_seconds: estimated time left; only while the job is not over, and if the server sends it.
        raw: the JSON object as it came.
    """

    id: str
    status: str
    model: str | None = None
    progress: int = 0
    images: tuple[str, ...] = ()
    error: str | None = None
    error_reason: str | None = None
    error_params: Mapping[str, Param] | None = None
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
        """Return one line for people, for example with `on_progress=print`."""
        if self.error:
            return f"{self.status}: {self.error}"
        parts = [f"{self.status} {self.progress} %" if self.status == JobState.PROCESSING else self.status]
        if self.queue_position:
            parts.append(f"{self.queue_position} ahead of it")
        if self.eta_seconds is not None and not self.is_over:
            parts.append(f"about {self.eta_seconds} s")
        return ", ".join(parts)

    @property
    def is_over(self) -> bool:
        return self.status in TERMINAL

    @classmethod
    def read(cls, body: object) -> Self:
        """Read a Job object, or the `{"jobId", "status"}` of a submission. Raises UnexpectedAnswer."""
        fields = _object(body)
        return cls(
            id=_required(fields, "jobId" if "id" not in fields else "id"),
            status=_required(fields, "status"),
            model=_optional(fields, "model", str),
            progress=_integer(fields, "progress") or 0,
            images=_images(fields.get("result")),
            error=_optional(fields, "error", str),
            error_reason=_optional(fields, "errorReason", str),
            error_params=_optional(fields, "errorParams", dict),
            credit_cost=_integer(fields, "creditCost"),
            webhook_status=_optional(fields, "webhookStatus", str),
            created_at=_datetime(fields, "createdAt"),
            started_at=_datetime(fields, "startedAt"),
            completed_at=_datetime(fields, "completedAt"),
            expired=fields.get("expired") is True,
            queue_position=_integer(fields, "queuePosition"),
            eta_seconds=_integer(fields, "etaSeconds"),
            seed=_integer(fields, "seed"),
            width=_integer(fields, "width"),
            height=_integer(fields, "height"),
            metadata=_optional(fields, "metadata", dict),
            input=_optional(fields, "input", dict),
            raw=fields,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class JobPage:
    """One page of a list of jobs. `cursor` names the next page; None on the last one."""

    jobs: tuple[Job, ...]
    cursor: str | None

    @classmethod
    def read(cls, body: object) -> Self:
        fields = _object(body)
        cursor = _optional(fields, "nextCursor", str)
        return cls(
            jobs=tuple(Job.read(job) for job in _list(fields, "jobs")),
            cursor=cursor if fields.get("hasMore", True) else None,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Preview:
    """Price in credits and output size of a request. `sufficient`: balance and budget cover it."""

    credit_cost: int
    credits_available: int | None = None
    sufficient: bool = True
    width: int | None = None
    height: int | None = None
    estimated_seconds: int | None = None
    raw: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def read(cls, body: object) -> Self:
        fields = _object(body)
        cost = _integer(fields, "creditCost")
        if cost is None:
            raise UnexpectedAnswer("This server cannot tell prices in advance: it ignores ?dryRun=true.")
        output = _optional(fields, "output", dict) or {}
        return cls(
            credit_cost=cost,
            credits_available=_integer(fields, "creditsAvailable"),
            sufficient=fields.get("sufficient") is not False,
            width=_integer(output, "width"),
            height=_integer(output, "height"),
            estimated_seconds=_integer(fields, "estimatedSeconds"),
            raw=fields,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """Uploaded image. Submissions can name its `url` until `expires_at`."""

    id: str
    url: str
    content_type: str | None = None
    byte_size: int | None = None
    expires_at: datetime | None = None
    raw: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def read(cls, body: object) -> Self:
        fields = _object(body)
        return cls(
            id=_required(fields, "id"),
            url=_required(fields, "url"),
            content_type=_optional(fields, "contentType", str),
            byte_size=_integer(fields, "byteSize"),
            expires_at=_datetime(fields, "expiresAt"),
            raw=fields,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """Model that the server offers.

    Attributes:
        cost_min: lowest price of a job in credits.
        cost_max: highest price of a job in credits.
        avg_seconds: recent average duration of a job.
        params: JSON Schema of its parameters.
    """

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
        fields = _object(body)
        return cls(
            id=_required(fields, "id"),
            label=_optional(fields, "label", str),
            modality=_optional(fields, "modality", str),
            description=_optional(fields, "description", str),
            cost_min=_integer(fields, "costMin"),
            cost_max=_integer(fields, "costMax"),
            avg_seconds=_number(fields, "avgSeconds"),
            params_key=_optional(fields, "paramsKey", str),
            params=_optional(fields, "params", dict),
            raw=fields,
        )

    @classmethod
    def read_all(cls, body: object) -> tuple[Self, ...]:
        """Read the object of `GET /v2/models`."""
        return tuple(cls.read(model) for model in _list(_object(body), "models"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Me:
    """Owner of the API key, and the team's credits. `key_prefix`: the key's first characters, safe to show."""

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
        fields = _object(body)
        user, team, key = (_optional(fields, name, dict) or {} for name in ("user", "team", "apiKey"))
        return cls(
            email=_optional(user, "email", str),
            role=_optional(user, "role", str),
            team=_optional(team, "name", str),
            credits=_integer(team, "credits"),
            plan=_optional(team, "plan", str),
            max_concurrent_jobs=_integer(team, "maxConcurrentJobs"),
            key_name=_optional(key, "name", str),
            key_prefix=_optional(key, "prefix", str),
            raw=fields,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookEvent:
    """Event of a webhook. It may arrive twice: `job.id` and `event` together identify it."""

    event: str
    job: Job

    @classmethod
    def read(cls, body: object) -> Self:
        fields = _object(body)
        event = _optional(fields, "event", str) or _required(fields, "type")
        return cls(event=event, job=Job.read(fields))


def _object(body: object) -> dict[str, Any]:
    if not isinstance(body, dict):
        raise UnexpectedAnswer(
            f"Expected a JSON object, got {type(body).__name__}. Check that the URL is that of a server."
        )
    return body


def _list(fields: Mapping[str, Any], name: str) -> list[Any]:
    value = fields.get(name)
    if not isinstance(value, list):
        raise UnexpectedAnswer(f"The answer has no list {name!r}. Check that the URL is that of a server.")
    return value


def _required(fields: Mapping[str, Any], name: str) -> str:
    value = fields.get(name)
    if not isinstance(value, str) or not value:
        raise UnexpectedAnswer(f"The answer has no {name!r}. Check that the URL is that of a server.")
    return value


def _optional(fields: Mapping[str, Any], name: str, kind: type[V]) -> V | None:
    """Return the field if it is present and of this type, else None."""
    value = fields.get(name)
    return value if isinstance(value, kind) else None


def _number(fields: Mapping[str, Any], name: str) -> float | None:
    value = fields.get(name)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _integer(fields: Mapping[str, Any], name: str) -> int | None:
    value = fields.get(name)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _datetime(fields: Mapping[str, Any], name: str) -> datetime | None:
    try:
        return datetime.fromisoformat(fields[name])
    except (LookupError, TypeError, ValueError):
        return None


def _images(result: object) -> tuple[str, ...]:
    """Read `{"images": [url]}`, or the bare URL that older servers send."""
    if isinstance(result, str):
        return (result,)
    images = result.get("images") if isinstance(result, dict) else None
    return tuple(url for url in images if isinstance(url, str)) if isinstance(images, list) else ()
