"""Sign-up on the wire: the request and the new account (a route of our own; contract.md 10.4).

Not imported by the rest of `wire`, because the library that checks e-mail addresses is installed with the server only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol
from uuid import UUID

from email_validator import EmailNotValidError, validate_email

from hiresfix import messages
from hiresfix.wire.json_body import known_fields
from hiresfix.wire.problems import InvalidValue

MAX_NAME = 100
FIELDS = ("email", "name", "teamName", "inviteCode")


@dataclass(frozen=True, slots=True, kw_only=True)
class SignUp:
    """A request to sign up, canonical: names are trimmed and may be empty."""

    email: str
    name: str
    team_name: str
    invite: str | None


class NewAccountView(Protocol):
    """Fields of a new account that rendering reads; `key` is the API key itself."""

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


def parse_sign_up(body: bytes, content_type: str | None) -> SignUp:
    """Return the request to sign up. Raises InvalidRequest with all problems."""
    problems, fields = known_fields(body, content_type, known=FIELDS)
    email = problems.catch("email", canonical_email, fields.get("email"))
    name, team_name, invite = (problems.catch(key, _line, fields.get(key)) for key in FIELDS[1:])
    problems.raise_if_any()
    return SignUp(email=email or "", name=name or "", team_name=team_name or "", invite=invite or None)


def canonical_email(value: Any) -> str:
    """Return an address of acceptable form, its domain in lower case; raise InvalidValue. Nothing is looked up."""
    if value is None:
        raise InvalidValue(messages.REQUIRED())
    if not isinstance(value, str):
        raise InvalidValue(messages.EXPECTED_EMAIL())
    try:
        return validate_email(value.strip(), check_deliverability=False, strict=True).normalized
    except EmailNotValidError as error:
        raise InvalidValue(messages.INVALID_EMAIL(problem=str(error))) from error


def _line(value: Any) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise InvalidValue(messages.EXPECTED_STRING())
    text = value.strip()
    if len(text) > MAX_NAME:
        raise InvalidValue(messages.AT_MOST_CHARACTERS(limit=MAX_NAME))
    if not text.isprintable():
        raise InvalidValue(messages.CONTROL_CHARACTERS())
    return text


def new_account(account: NewAccountView, request: SignUp) -> dict[str, Any]:
    """Return the body of a 201. No other answer ever contains the key."""
    return {
        "user": {"id": str(account.user), "email": request.email, "role": "OWNER"},
        "team": {"id": str(account.team), "name": account.team_name, "credits": account.credits},
        "apiKey": account.key,
    }
