"""Login links on the wire: the request that exchanges a link's token for an API key."""

from __future__ import annotations

from typing import Any

from hiresfix import messages
from hiresfix.wire.json_body import known_fields
from hiresfix.wire.problems import InvalidValue

MAX_TOKEN = 200


def parse_sign_in(body: bytes, content_type: str | None) -> str:
    """Return the link's token. Raises InvalidRequest."""
    problems, fields = known_fields(body, content_type, known=("token",))
    token = problems.catch("token", _token, fields.get("token"))
    problems.raise_if_any()
    return token or ""


def _token(value: Any) -> str:
    if value is None:
        raise InvalidValue(messages.REQUIRED())
    if not isinstance(value, str) or not 1 <= len(value) <= MAX_TOKEN:
        raise InvalidValue(messages.EXPECTED_TOKEN())
    return value
