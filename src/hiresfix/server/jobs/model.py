"""Values of a job: submission, claim, outcome, and the job as its owner sees it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from hiresfix.recipe import Recipe
from hiresfix.server.accounts.authentication import Caller
from hiresfix.server.jobs import orphaned_results
from hiresfix.states import JobState


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """The caller's picture as stored at submission; sizes in bytes and (oriented) pixels."""

    key: str
    sha256: str
    media_type: str
    bytes: int
    width: int
    height: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """The enlarged picture as stored by the attempt that won, and what the engine said about it."""

    key: str
    sha256: str
    media_type: str
    bytes: int
    width: int
    height: int
    metadata: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Completed:
    """An attempt's end: the picture is in the store."""

    result: Result


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """An attempt's end: no picture. `error` is for the caller: no paths, hosts or traces."""

    error: str
    retryable: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """An attempt's end: a picture was made and failed its own check. `error` is as in `Failed`.

    The job is tried once more, however many attempts are left and whatever ended the others.
    """

    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Foreign:
    """An attempt's end: this release does not understand the job; a worker of a newer one may.

    It costs no attempt, until the job has gone around for `UNDERSTOOD_WITHIN`: then it fails with `error`.
    """

    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Hindered:
    """An attempt's end: nothing is known of the job, because what every job needs is away. It costs no attempt."""


Outcome = Completed | Failed | Refused | Foreign | Hindered


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """All a new job consists of. `id` is chosen beforehand because the source is stored under it."""

    id: UUID
    caller: Caller
    request_id: str
    model: str
    cost: int
    recipe: Recipe
    input: dict[str, Any]
    source: Source
    hook_url: str | None
    hook_events: tuple[str, ...]
    max_attempts: int
    needs: tuple[str, ...] = ()
    """Tags that a worker must have; the memory it takes follows from recipe and source."""
    traceparent: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A job as its owner may see it (a `wire.JobView`)."""

    id: UUID
    team_id: UUID
    user_id: UUID
    key_id: UUID | None
    model: str
    state: str
    progress: int
    cost: int
    attempt: int
    max_attempts: int
    recipe: dict[str, Any]
    input: dict[str, Any]
    result: dict[str, Any] | None
    error: str | None
    hook_url: str | None
    hook_events: list[str]
    webhook_status: str | None
    created_at: datetime
    started_at: datetime | None
    completed_at: datetime | None
    expired: bool

    @property
    def seed(self) -> int:
        return int(self.recipe["seed"])

    @property
    def output_format(self) -> str:
        return str(self.recipe["output_format"])

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
    """The right to work on a job until its lease ends, proven by `token`.

    `stored_recipe` is as the job's row has it: another release may have written it, so reading it is part of the
    attempt (`recipe`), which can fail and is counted, and not of the claim.
    """

    id: UUID
    token: UUID
    attempt: int
    max_attempts: int
    stored_recipe: dict[str, Any]
    source: Source
    model: str
    request_id: str
    refused: bool
    """An earlier attempt's picture failed its own check: this one is to be computed in full precision."""
    waited: float
    """Seconds since this attempt could have begun."""
    age: float
    """Seconds since the job was submitted, when it was claimed."""
    traceparent: str | None
    """The trace of the submission, which the work on the job joins."""

    @property
    def result_key(self) -> str:
        """Where this attempt puts its picture: a name of its own, so that nobody overwrites anybody."""
        return orphaned_results.result_key(self.id, self.token)

    def recipe(self) -> Recipe:
        return Recipe.from_dict(self.stored_recipe)


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """What a team and a key have left at a moment. budgeted: whether the key has a budget at all."""

    credits: int
    budgeted: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Swept:
    """A job that was handed on: the attempt that went silent, and the job's state now."""

    id: UUID
    request_id: str
    attempt: int
    state: JobState


@dataclass(frozen=True, slots=True, kw_only=True)
class Purgeable:
    """A finished job with a file that has served its time, and where its files are."""

    id: UUID
    completed_at: datetime
    source_key: str
    result_key: str | None
