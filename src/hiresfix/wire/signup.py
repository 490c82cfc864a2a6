"""Signing up: reading the request and writing the answer (a route of our own; contract.md 14).

Apart from the rest of `wire` because the library that knows e-mail addresses comes with the server only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol
from uuid import UUID

from email_validator import EmailNotValidError, validate_email

from hiresfix.wire.body import json_object
from hiresfix.wire.problems import ROOT, Problems, Wrong, shown

MAX_NAME = 100
FIELDS = ("email", "name", "teamName", "inviteCode")


@dataclass(frozen=True, slots=True, kw_only=True)
class SignUp:
    """A request to sign up, canonical: names are trimmed and may be empty."""

    email: str
    name: str
    team_name: str
    invite: str | None


class Welcome(Protocol):
    """What a new account consists of; `key` is the API key itself."""

    @property
    def user(self) -> UUID: ...
    @property
    def team(self) -> UUID: ...
    @property
    def team_name(self) -> str: ...
    @property
    def credits(self) -> int: ...
    @property
    def key(self) -> str: ...


def parse(body: bytes, content_type: str | None) -> SignUp:
    """Raises InvalidRequest with everything that is wrong."""
    problems = Problems()
    fields = problems.catch(ROOT, json_object, body, content_type) or {}
    problems.raise_if_any()
    if unknown := sorted(fields.keys() - set(FIELDS)):
        names = ", ".join(f"'{shown(key)}'" for key in unknown)
        problems.add(ROOT, f"Unrecognized key(s): {names}. Known are {', '.join(FIELDS)}.")
    email = problems.catch("email", canonical_email, fields.get("email"))
    name, team_name, invite = (problems.catch(key, _line, fields.get(key)) for key in FIELDS[1:])
    problems.raise_if_any()
    return SignUp(email=email or "", name=name or "", team_name=team_name or "", invite=invite or None)


def canonical_email(value: Any) -> str:
    """An address of acceptable form, its domain in lower case; raises Wrong. Nothing is looked up."""
    if value is None:
        raise Wrong("Required")
    if not isinstance(value, str):
        raise Wrong("Expected an e-mail address")
    try:
        return validate_email(value.strip(), check_deliverability=False, strict=True).normalized
    except EmailNotValidError as error:
        raise Wrong(f"Expected an e-mail address. {error}") from error


def _line(value: Any) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise Wrong("Expected a string")
    text = value.strip()
    if len(text) > MAX_NAME:
        raise Wrong(f"Must be at most {MAX_NAME} characters")
    if not text.isprintable():
        raise Wrong("Must not contain control characters")
    return text


def welcome(new: Welcome, asked: SignUp) -> dict[str, Any]:
    """The body of a 201. The key is in no other answer, ever."""
    return {
        "user": {"id": str(new.user), "email": asked.email, "role": "OWNER"},
        "team": {"id": str(new.team), "name": new.team_name, "credits": new.credits},
        "apiKey": new.key,
    }
