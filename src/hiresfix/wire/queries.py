"""Read query strings, ids in paths and the Prefer header; report all problems of a query at once, by parameter name.

Unknown parameters are ignored, an empty one counts as not sent. The OpenAPI document is made from the same tables.
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

from hiresfix import messages
from hiresfix.errors import InvalidRequest
from hiresfix.states import JobState
from hiresfix.wire.problems import InvalidValue, ProblemCollector

MODALITIES = ("image", "video", "music")
SCOPES = ("user", "team")
DEFAULT_LIMIT = 20
MAX_LIMIT = 100
_MAX_MODEL_LENGTH = 100

JOB_QUERY: Mapping[str, Mapping[str, Any]] = {
    "status": {"type": "string", "enum": list(JobState), "description": "Only jobs in this state."},
    "model": {"type": "string", "maxLength": _MAX_MODEL_LENGTH, "description": "Only jobs of the model with this id."},
    "limit": {
        "type": "integer",
        "minimum": 1,
        "maximum": MAX_LIMIT,
        "description": f"Jobs on a page; default {DEFAULT_LIMIT}.",
    },
    "cursor": {"type": "string", "description": "`nextCursor` of the previous page."},
    "scope": {
        "type": "string",
        "enum": list(SCOPES),
        "description": "`user` (default): your own jobs. `team`: your team's, for owners and admins.",
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
    "dryRun": {"type": "boolean", "description": "Only check the request and return its price."},
}
"""JSON Schema of each parameter of `POST /v2/images/upscale`."""


SCOPE: Mapping[str, Any] = {"type": "string", "enum": list(SCOPES)}
"""JSON Schema of `scope` in the lists of a team's records, without its description."""

PAGE: Mapping[str, Mapping[str, Any]] = {
    "limit": {**JOB_QUERY["limit"], "description": f"Rows on a page; default {DEFAULT_LIMIT}."},
    "cursor": JOB_QUERY["cursor"],
}
"""JSON Schema of the parameters that every paged list has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PagePosition:
    """Position in a list of rows by time and id: a page begins after the row with these two."""

    created_at: datetime
    id: UUID


@dataclass(frozen=True, slots=True, kw_only=True)
class JobQuery:
    """A valid `GET /v2/jobs`; None means any."""

    status: str | None = None
    model: str | None = None
    limit: int = DEFAULT_LIMIT
    after: PagePosition | None = None
    team: bool = False
    search: UUID | None = None
    include_models: bool = False


class QueryReader:
    """Reads the parameters of one query string that were sent and not empty, and collects their problems."""

    def __init__(self, query: Mapping[str, str]) -> None:
        self._sent = {name: value for name, value in query.items() if value}
        self.problems = ProblemCollector()

    def team(self) -> bool:
        """Return whether `scope` asks for the whole team's records."""
        return self.choice("scope", SCOPES) == "team"

    def choice(self, name: str, choices: tuple[str, ...]) -> str | None:
        """Return the parameter's value, one of `choices`."""
        return self.problems.catch(name, choice_of, self._sent[name], choices) if name in self._sent else None

    def job(self, name: str) -> UUID | None:
        """Return the job id in the parameter."""
        return self.problems.catch(name, job_id, self._sent[name]) if name in self._sent else None

    def model(self) -> str | None:
        """Return the model id in `model`."""
        return self.problems.catch("model", _model, self._sent["model"]) if "model" in self._sent else None

    def limit(self) -> int:
        """Return the page size."""
        size = self.problems.catch("limit", page_size, self._sent["limit"]) if "limit" in self._sent else None
        return size or DEFAULT_LIMIT

    def after(self, *, of: str = "") -> PagePosition | None:
        """Return the position in `cursor`; `of` names the list."""
        if "cursor" not in self._sent:
            return None
        return self.problems.catch("cursor", parse_cursor, self._sent["cursor"], of=of)


def parse_job_query(query: Mapping[str, str]) -> JobQuery:
    """Return the query of `GET /v2/jobs`. Raises InvalidRequest."""
    reader = QueryReader(query)
    parsed = JobQuery(
        status=reader.choice("status", tuple(JobState)),
        model=reader.model(),
        limit=reader.limit(),
        after=reader.after(),
        team=reader.team(),
        search=reader.job("search"),
        include_models=reader.choice("include_models", ("true", "false")) == "true",
    )
    reader.problems.raise_if_any()
    return parsed


_FLAGS = {"false": False, "0": False, "true": True, "1": True}


def parse_dry_run(query: Iterable[tuple[str, str]]) -> bool:
    """Return whether `dryRun` is set, in any spelling: `dry_run`, `dryrun`.

    Anything unclear (empty, or twice with different values) raises InvalidRequest: a caller who wanted a dry run must
    not be charged.
    """
    flags = {_FLAGS.get(value.lower()) for name, value in query if name.lower().replace("_", "") == "dryrun"}
    if None in flags or len(flags) > 1:
        raise InvalidRequest({"dryRun": [messages.EXPECTED_BOOLEAN()]})
    return True in flags


def parse_modality(query: Mapping[str, str]) -> str | None:
    """Return the requested modality, if any. Raises InvalidRequest."""
    reader = QueryReader(query)
    modality = reader.choice("modality", MODALITIES)
    reader.problems.raise_if_any()
    return modality


def parse_id(text: str, *, name: str) -> UUID:
    """Return a UUID in a path; raise InvalidRequest under the path parameter's name."""
    parsed = uuid(text)
    if parsed is None:
        raise InvalidRequest({name: [messages.EXPECTED_UUID()]})
    return parsed


def uuid(text: str) -> UUID | None:
    """Return the UUID in its usual form of 36 characters, in any case; None for everything else."""
    try:
        parsed = UUID(text)
    except ValueError:
        return None
    return parsed if str(parsed) == text.lower() else None  # UUID() also reads braces, urn: and missing dashes


def choice_of(value: str, choices: tuple[str, ...]) -> str:
    """Return the value if it is one of `choices`; raise InvalidValue otherwise."""
    if value not in choices:
        raise InvalidValue(messages.EXPECTED_CHOICE(choices=", ".join(choices)))
    return value


def _model(value: str) -> str:
    if len(value) > _MAX_MODEL_LENGTH or "\0" in value:
        raise InvalidValue(messages.EXPECTED_MODEL_ID())
    return value


def page_size(value: str) -> int:
    """Return the number of rows on a page; raise InvalidValue."""
    if not re.fullmatch(r"\d{1,9}", value, re.ASCII) or not 1 <= int(value) <= MAX_LIMIT:
        raise InvalidValue(messages.EXPECTED_PAGE_SIZE(minimum=1, maximum=MAX_LIMIT))
    return int(value)


def job_id(value: str) -> UUID:
    """Return the job id; raise InvalidValue."""
    parsed = uuid(value)
    if parsed is None:
        raise InvalidValue(messages.EXPECTED_JOB_ID())
    return parsed


# A cursor is time and id of the last row shown, and a checksum. The checksum has no secret: a forged cursor only leads
# to another position in a list that the caller may read anyway.
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_POSITION = struct.Struct(">q16s")
_CHECK_BYTES = 6  # 30 bytes in all: their base64 has neither padding nor spare bits
_CURSOR = re.compile(r"[A-Za-z0-9_-]{40}")


def cursor(position: PagePosition, *, of: str = "") -> str:
    """Return the opaque text that asks for the rows after `position`; `of` tells lists apart."""
    packed = _POSITION.pack((position.created_at - _EPOCH) // timedelta(microseconds=1), position.id.bytes)
    return base64.urlsafe_b64encode(packed + _check(packed, of)).decode()


def _check(packed: bytes, of: str) -> bytes:
    check = hashlib.blake2b(packed, digest_size=_CHECK_BYTES, person=b"hiresfix.cursor", salt=of.encode())
    return check.digest()


def parse_cursor(text: str, *, of: str = "") -> PagePosition:
    """Return the position that `cursor` made the text of, for the same list; raise InvalidValue."""
    invalid = InvalidValue(messages.INVALID_CURSOR())
    if not _CURSOR.fullmatch(text):
        raise invalid
    raw = base64.urlsafe_b64decode(text)
    packed, check = raw[: _POSITION.size], raw[_POSITION.size :]
    if check != _check(packed, of):
        raise invalid
    microseconds, identity = _POSITION.unpack(packed)
    try:
        return PagePosition(created_at=_EPOCH + timedelta(microseconds=microseconds), id=UUID(bytes=identity))
    except OverflowError as error:
        raise invalid from error


_WAIT = re.compile(r'\s*wait\s*=\s*"?(\d{1,9})"?\s*(?:;.*)?', re.ASCII | re.IGNORECASE | re.DOTALL)


def preferred_wait(prefer: Iterable[str]) -> int | None:
    """Return the seconds of the first readable `wait=N` in the Prefer headers (RFC 7240, 4.3); None without one."""
    matches = (_WAIT.fullmatch(preference) for header in prefer for preference in header.split(","))
    return next((int(match[1]) for match in matches if match), None)
