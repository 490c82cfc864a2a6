"""Bytes of a request body to a JSON object, strictly: whatever arrives, an object comes out or Wrong is raised.

Guarantees that every number is an int or a float and that reading costs memory in proportion to the body. It
does not know what the object means; strings may still hold NUL characters and lone surrogates.
"""

from __future__ import annotations

import json
from typing import Any

from hiresfix.wire.problems import Wrong, shown

_BOM = b"\xef\xbb\xbf"
# A value costs some 60 bytes of memory and as little as 2 of body. Real requests hold two dozen values, and
# base64 contains none of the counted characters.
_MAX_VALUES = 100_000
_EXACT_DIGITS = 25
_MAX_DIGITS = 1000


def json_object(body: bytes, content_type: str | None) -> dict[str, Any]:
    """The object in a UTF-8 body, a byte order mark tolerated. Raises Wrong with a message for the root.

    Media types: application/json, application/*+json, text/json. A body without a declared type is read as
    JSON, since nothing contradicts it; a type that says otherwise (curl -d alone sends a form's) is refused.
    """
    _require_json(content_type)
    body = body.removeprefix(_BOM)
    if not body.strip():
        raise Wrong("Expected a JSON object, got an empty body")
    if sum(body.count(mark) for mark in (b",", b"[", b"{")) > _MAX_VALUES:
        raise Wrong("Too many values in the JSON body")
    try:
        value = json.loads(
            body.decode(),
            object_pairs_hook=_unique,
            parse_int=_integer,
            parse_float=_float,
            parse_constant=_refuse_constant,
        )
    except UnicodeDecodeError as error:
        raise Wrong(f"The body is not UTF-8 (byte {error.start})") from error
    except json.JSONDecodeError as error:
        raise Wrong(f"Malformed JSON: {error.msg} at line {error.lineno}, column {error.colno}") from error
    except RecursionError as error:
        raise Wrong("The JSON body is nested too deeply") from error
    if not isinstance(value, dict):
        raise Wrong("Expected a JSON object")
    return value


def _require_json(content_type: str | None) -> None:
    media_type = (content_type or "").partition(";")[0].strip().lower()
    is_json = media_type in ("", "application/json", "text/json") or (
        media_type.startswith("application/") and media_type.endswith("+json")
    )
    if not is_json:
        raise Wrong(f"Expected JSON, got '{shown(media_type)}'. Send the header Content-Type: application/json.")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise Wrong(f"Duplicate key '{shown(key)}'")
        found[key] = value
    return found


def _integer(digits: str) -> int | float:
    """Integers too long for any range of ours become the nearest double, which may be infinite."""
    return int(digits) if len(digits) <= _EXACT_DIGITS else _float(digits)


def _float(digits: str) -> float:
    if len(digits) > _MAX_DIGITS:
        raise Wrong(f"A number has more than {_MAX_DIGITS} digits")
    return float(digits)


def _refuse_constant(name: str) -> None:
    raise Wrong(f"Malformed JSON: {name} is not a JSON number")
