"""Read a request body as one JSON object, strictly: return an object or raise InvalidValue.

Every number is an int or a float, and reading costs memory in proportion to the body. Does not know what the object
means; strings may still hold NUL characters and lone surrogates.
"""

from __future__ import annotations

import json
from typing import Any

from hiresfix import messages
from hiresfix.wire.problems import ROOT, InvalidValue, ProblemCollector, printable

_BOM = b"\xef\xbb\xbf"
# A value costs about 60 bytes of memory and as little as 2 bytes of body. Real requests hold two dozen values, and
# base64 contains none of the counted characters.
_MAX_VALUES = 100_000
_EXACT_DIGITS = 25
_MAX_DIGITS = 1000


def json_object(body: bytes, content_type: str | None) -> dict[str, Any]:
    """Return the object in a UTF-8 body; a byte order mark is tolerated. Raise InvalidValue for the root.

    Media types: application/json, application/*+json, text/json. A body without a declared type is read as JSON, since
    nothing contradicts it. Another type is refused (`curl -d` alone sends a form's).
    """
    _require_json(content_type)
    body = body.removeprefix(_BOM)
    if not body.strip():
        raise InvalidValue(messages.BODY_EMPTY())
    if sum(body.count(mark) for mark in (b",", b"[", b"{")) > _MAX_VALUES:
        raise InvalidValue(messages.BODY_TOO_MANY_VALUES())
    try:
        value = json.loads(
            body.decode(),
            object_pairs_hook=_unique,
            parse_int=_integer,
            parse_float=_float,
            parse_constant=_refuse_constant,
        )
    except UnicodeDecodeError as error:
        raise InvalidValue(messages.BODY_NOT_UTF8(position=error.start)) from error
    except json.JSONDecodeError as error:
        message = messages.BODY_MALFORMED(problem=error.msg, line=error.lineno, column=error.colno)
        raise InvalidValue(message) from error
    except RecursionError as error:
        raise InvalidValue(messages.BODY_NESTED_TOO_DEEPLY()) from error
    if not isinstance(value, dict):
        raise InvalidValue(messages.BODY_NOT_OBJECT())
    return value


def known_fields(
    body: bytes, content_type: str | None, *, known: tuple[str, ...]
) -> tuple[ProblemCollector, dict[str, Any]]:
    """Return the object's fields and a collector that has noted keys not in `known`.

    Raise InvalidRequest if the body is not a JSON object.
    """
    problems = ProblemCollector()
    fields = problems.catch(ROOT, json_object, body, content_type) or {}
    problems.raise_if_any()
    if unknown := sorted(fields.keys() - set(known)):
        keys = ", ".join(f"'{printable(key)}'" for key in unknown)
        problems.add(ROOT, messages.UNKNOWN_KEYS_KNOWN(keys=keys, known=", ".join(known)))
    return problems, fields


def _require_json(content_type: str | None) -> None:
    media_type = (content_type or "").partition(";")[0].strip().lower()
    is_json = media_type in ("", "application/json", "text/json") or (
        media_type.startswith("application/") and media_type.endswith("+json")
    )
    if not is_json:
        raise InvalidValue(messages.BODY_MEDIA_TYPE(media_type=printable(media_type)))


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for key, value in pairs:
        if key in fields:
            raise InvalidValue(messages.DUPLICATE_KEY(key=printable(key)))
        fields[key] = value
    return fields


def _integer(digits: str) -> int | float:
    """Read an integer; one too long for any of our ranges becomes the nearest double, which may be infinite."""
    return int(digits) if len(digits) <= _EXACT_DIGITS else _float(digits)


def _float(digits: str) -> float:
    if len(digits) > _MAX_DIGITS:
        raise InvalidValue(messages.BODY_NUMBER_TOO_LONG(limit=_MAX_DIGITS))
    return float(digits)


def _refuse_constant(name: str) -> None:
    raise InvalidValue(messages.BODY_MALFORMED_NUMBER(name=name))
