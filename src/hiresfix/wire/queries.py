"""Reading query strings and the Prefer header; all problems of a query at once, by the parameter's name.

Parameters nobody knows are ignored, an empty one counts as not sent. The table of parameters is also what
the OpenAPI document says of them.
"""

from __future__ import annotations

import base64
import hashlib
import re
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from hiresfix.errors import InvalidRequest
from hiresfix.wire.problems import Problems, Wrong

STATES = ("QUEUED", "PROCESSING", "COMPLETED", "FAILED", "CANCELLED")
MODALITIES = ("image", "video", "music")
SCOPES = ("user", "team")
DEFAULT_LIMIT = 20
MAX_LIMIT = 100
_MAX_MODEL_LENGTH = 100

JOB_QUERY: Mapping[str, Mapping[str, Any]] = {
    "status": {"type": "string", "enum": list(STATES), "description": "Only jobs in this state."},
    "model": {"type": "string", "maxLength": _MAX_MODEL_LENGTH, "description": "Only jobs of the model with this id."},
    "limit": {
        "type": "integer",
        "minimum": 1,
        "maximum": MAX_LIMIT,
        "description": f"Jobs on a page; {DEFAULT_LIMIT} unless given.",
    },
    "cursor": {"type": "string", "description": "`nextCursor` of the page before."},
    "scope": {
        "type": "string",
        "enum": list(SCOPES),
        "description": "`user` (what you get without it): your own jobs. `team`: your team's, for owners and admins.",
    },
    "search": {"type": "string", "format": "uuid", "description": "Only the job with this id."},
    "include_models": {"type": "boolean", "description": "Also list the models of all jobs in scope."},
}
"""JSON Schema of each parameter of `GET /v2/jobs`."""

MODEL_QUERY: Mapping[str, Mapping[str, Any]] = {
    "modality": {"type": "string", "enum": list(MODALITIES), "description": "Only models of this modality."},
}
"""JSON Schema of each parameter of `GET /v2/models`."""

UPSCALE_QUERY: Mapping[str, Mapping[str, Any]] = {
    "dryRun": {"type": "boolean", "description": "Only check the request and tell what it would cost."},
}
"""JSON Schema of each parameter of `POST /v2/images/upscale`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where in a list of jobs a page begins: after the job with these two."""

    created_at: datetime
    id: UUID


@dataclass(frozen=True, slots=True, kw_only=True)
class JobQuery:
    """A valid `GET /v2/jobs`; None: any."""

    status: str | None = None
    model: str | None = None
    limit: int = DEFAULT_LIMIT
    after: Place | None = None
    team: bool = False
    search: UUID | None = None
    include_models: bool = False


def parse_job_query(sent: Mapping[str, str]) -> JobQuery:
    """Raises InvalidRequest."""
    problems = Problems()
    given = {name: value for name, value in sent.items() if value}

    def choice(name: str, choices: tuple[str, ...]) -> str | None:
        return problems.catch(name, choice_of, given[name], choices) if name in given else None

    query = JobQuery(
        status=choice("status", STATES),
        model=problems.catch("model", _model, given["model"]) if "model" in given else None,
        limit=(problems.catch("limit", page_size, given["limit"]) if "limit" in given else None) or DEFAULT_LIMIT,
        after=problems.catch("cursor", place_of, given["cursor"]) if "cursor" in given else None,
        team=choice("scope", SCOPES) == "team",
        search=problems.catch("search", job_id, given["search"]) if "search" in given else None,
        include_models=choice("include_models", ("true", "false")) == "true",
    )
    problems.raise_if_any()
    return query


_FLAGS = {"false": False, "0": False, "true": True, "1": True}


def parse_dry_run(query: Iterable[tuple[str, str]]) -> bool:
    """Whether `dryRun`, also spelled `dry_run` or `dryrun`, is set among the query's names and values.

    Anything unclear (empty, twice and different) raises InvalidRequest: what only meant to ask would be charged.
    """
    flags = {_FLAGS.get(value.lower()) for name, value in query if name.lower().replace("_", "") == "dryrun"}
    if None in flags or len(flags) > 1:
        raise InvalidRequest({"dryRun": ["Expected true or false"]})
    return True in flags


def parse_modality(sent: Mapping[str, str]) -> str | None:
    """The modality asked for, if one was. Raises InvalidRequest."""
    problems = Problems()
    given = sent.get("modality")
    modality = problems.catch("modality", choice_of, given, MODALITIES) if given else None
    problems.raise_if_any()
    return modality


def uuid(text: str) -> UUID | None:
    """The UUID in its usual form of 36 characters, in any case; None for everything else."""
    try:
        parsed = UUID(text)
    except ValueError:
        return None
    return parsed if str(parsed) == text.lower() else None  # UUID() also reads braces, urn: and missing dashes


def choice_of(value: str, choices: tuple[str, ...]) -> str:
    """One of `choices`, as it is written there; raises Wrong."""
    if value not in choices:
        raise Wrong(f"Expected one of {', '.join(choices)}")
    return value


def _model(value: str) -> str:
    if len(value) > _MAX_MODEL_LENGTH or "\0" in value:
        raise Wrong("Expected the id of a model")
    return value


def page_size(value: str) -> int:
    """How many a page is to have; raises Wrong."""
    if not re.fullmatch(r"\d{1,9}", value, re.ASCII) or not 1 <= int(value) <= MAX_LIMIT:
        raise Wrong(f"Must be an integer between 1 and {MAX_LIMIT}")
    return int(value)


def job_id(value: str) -> UUID:
    """Raises Wrong."""
    parsed = uuid(value)
    if parsed is None:
        raise Wrong("Expected a job id (a UUID)")
    return parsed


# A cursor is time and id of the last job shown, and a check that both came from here. The check has no secret: who
# forges a cursor gets to another place of a list that is theirs anyway.
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_PLACE = struct.Struct(">q16s")
_CHECK_BYTES = 6  # 30 bytes in all: base64 of them has neither padding nor spare bits
_CURSOR = re.compile(r"[A-Za-z0-9_-]{40}")


def cursor(place: Place, *, of: str = "") -> str:
    """The opaque text by which a client asks for what comes after `place`; `of` tells lists apart."""
    packed = _PLACE.pack((place.created_at - _EPOCH) // timedelta(microseconds=1), place.id.bytes)
    return base64.urlsafe_b64encode(packed + _check(packed, of)).decode()


def _check(packed: bytes, of: str) -> bytes:
    check = hashlib.blake2b(packed, digest_size=_CHECK_BYTES, person=b"hiresfix.cursor", salt=of.encode())
    return check.digest()


def place_of(text: str, *, of: str = "") -> Place:
    """What `cursor` made of a place in this list; raises Wrong."""
    wrong = Wrong("Not a cursor of this list. Use nextCursor of the page before, or start without one.")
    if not _CURSOR.fullmatch(text):
        raise wrong
    raw = base64.urlsafe_b64decode(text)
    packed, check = raw[: _PLACE.size], raw[_PLACE.size :]
    if check != _check(packed, of):
        raise wrong
    microseconds, identity = _PLACE.unpack(packed)
    try:
        return Place(created_at=_EPOCH + timedelta(microseconds=microseconds), id=UUID(bytes=identity))
    except OverflowError as error:
        raise wrong from error


_WAIT = re.compile(r'\s*wait\s*=\s*"?(\d{1,9})"?\s*(?:;.*)?', re.ASCII | re.IGNORECASE | re.DOTALL)


def preferred_wait(prefer: Iterable[str]) -> int | None:
    """Seconds of the first `wait=N` in the Prefer headers (RFC 7240, 4.3); None: none that can be read."""
    found = (_WAIT.fullmatch(preference) for header in prefer for preference in header.split(","))
    return next((int(match[1]) for match in found if match), None)
