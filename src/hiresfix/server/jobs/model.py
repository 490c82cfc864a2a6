"""Data classes of jobs: submission, claim, the ways an attempt ends, and a job as its owner sees it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from hiresfix.messages import Param
from hiresfix.recipe import Recipe
from hiresfix.server import storage_keys
from hiresfix.server.accounts.authentication import Caller
from hiresfix.states import JobState


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredSource:
    """The caller's image as stored at submission; sizes in bytes and (oriented) pixels."""

    key: str
    sha256: str
    media_type: str
    bytes: int
    width: int
    height: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredResult:
    """The upscaled image as stored by the attempt that won, with the engine's metadata."""

    key: str
    sha256: str
    media_type: str
    bytes: int
    width: int
    height: int
    metadata: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Completed:
    """The attempt succeeded: the image is in the store."""

    result: StoredResult


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """The attempt failed. `error` is shown to the caller: no paths, hosts or traces."""

    error: str
    retryable: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RejectedResult:
    """The attempt produced an image that failed its quality check. `error` is shown to the caller.

    The job gets exactly one more attempt after its first rejected result, if any attempt is left.
    """

    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Unsupported:
    """This release does not understand the job; a worker of a newer release may.

    The attempt is not counted. A job that stays unsupported for `lifecycle.MAX_UNSUPPORTED` fails with `error`.
    """

    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreUnavailable:
    """The attempt stopped because the file store is unavailable, which says nothing about the job.

    The attempt is not counted.
    """


AttemptOutcome = Completed | Failed | RejectedResult | Unsupported | StoreUnavailable


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """A new job. The caller of `submit` chooses `id` beforehand because the source is stored under it."""

    id: UUID
    caller: Caller
    request_id: str
    model: str
    cost: int
    recipe: Recipe
    input: dict[str, Any]
    source: StoredSource
    hook_url: str | None
    hook_events: tuple[str, ...]
    max_attempts: int
    needs: tuple[str, ...] = ()
    """Tags that a worker must have; the memory it needs follows from recipe and source."""
    traceparent: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A job as its owner may see it (a `wire.JobView`)."""

    id: UUID
    team_id: UUID
    user_id: UUID
    key_id: UUID | None
    model: str
    state: JobState
    progress: int
    cost: int
    attempt: int
    max_attempts: int
    recipe: dict[str, Any]
    input: dict[str, Any]
    result: dict[str, Any] | None
    error: str | None
    error_message: dict[str, Any] | None
    """`reason` and `params` of `error`; None without a reason, and in rows of earlier releases."""
    hook_url: str | None
    hook_events: list[str]
    webhook_status: str | None
    created_at: datetime
    started_at: datetime | None
    completed_at: datetime | None
    expired: bool

    def __post_init__(self) -> None:
        object.__setattr__(self, "state", JobState(self.state))  # the database returns a plain string

    @property
    def seed(self) -> int:
        return int(self.recipe["seed"])

    @property
    def output_format(self) -> str:
        return str(self.recipe["output_format"])

    @property
    def error_reason(self) -> str | None:
        return self.error_message["reason"] if self.error_message else None

    @property
    def error_params(self) -> dict[str, Param] | None:
        return self.error_message["params"] if self.error_message else None

    @property
    def width(self) -> int | None:
        return self.result["width"] if self.result else None

    @property
    def height(self) -> int | None:
        return self.result["height"] if self.result else None

    @property
    def metadata(self) -> dict[str, Any] | None:
        return self.result["metadata"] if self.result else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """The right to work on a job until its lease expires, proven by `token`.

    `stored_recipe` is kept as the job's row has it, because another release may have written it. Reading it
    (`recipe`) is part of the attempt, which is counted and can fail.
    """

    id: UUID
    token: UUID
    attempt: int
    max_attempts: int
    stored_recipe: dict[str, Any]
    source: StoredSource
    model: str
    request_id: str
    rejected_before: bool
    """An earlier attempt's image failed its quality check: compute this one in full precision."""
    wait_seconds: float
    """Time since this attempt could have started."""
    age_seconds: float
    """Time from the submission of the job to this claim."""
    traceparent: str | None
    """The trace of the submission, which the attempt joins."""

    @property
    def result_key(self) -> str:
        """Storage key of this attempt's image; unique to the attempt, so attempts never overwrite each other."""
        return storage_keys.result(self.id, self.token)

    def recipe(self) -> Recipe:
        return Recipe.from_dict(self.stored_recipe)


@dataclass(frozen=True, slots=True, kw_only=True)
class Headroom:
    """The team's credits at one moment, and whether the key has a budget at all."""

    credits: int
    has_budget: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpiredLease:
    """A job whose lease expired: the attempt that went silent, and the job's state now."""

    id: UUID
    request_id: str
    attempt: int
    state: JobState


@dataclass(frozen=True, slots=True, kw_only=True)
class PurgeableJob:
    """A finished job with a file past its retention, and the keys of its files."""

    id: UUID
    completed_at: datetime
    source_key: str
    result_key: str | None
