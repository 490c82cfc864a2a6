"""Convert one parameter from what clients write to its canonical value, using only the catalog's facts.

Tolerant where the meaning is certain (numeric strings, integral floats, any case of an enumeration, `2x`), strict
where it is not. Knows no model and no place in the request.
"""

from __future__ import annotations

import math
import re
from typing import Any, TypeAlias

from hiresfix import messages
from hiresfix.messages import Message
from hiresfix.models.catalog import CatalogModel
from hiresfix.models.parameters import Param
from hiresfix.wire.locations import canonical_image
from hiresfix.wire.problems import InvalidValue

Value: TypeAlias = str | int | float

_NUMERAL = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?", re.IGNORECASE | re.ASCII)
_MAX_NUMERAL = 64


def camel(name: str) -> str:
    """Convert `scale_factor` to `scaleFactor`."""
    first, *rest = name.split("_")
    return first + "".join(word.capitalize() for word in rest)


def spellings(param: Param) -> tuple[str, ...]:
    """Return every accepted name in order of precedence, the canonical one first."""
    names = (param.name, *param.aliases)
    return tuple(dict.fromkeys((*names, *map(camel, names))))


def canonical(param: Param, raw: Any) -> Value | None:
    """Return the canonical value of what a client sent; None if it counts as not sent. Raises InvalidValue.

    null and "" count as not sent; except for free text, so do blanks. Free text stays as it came, so that a single
    blank can mean "no prompt" where leaving it out means the default.
    """
    if raw is None or raw == "" or (isinstance(raw, str) and not _is_free_text(param) and not raw.strip()):
        return None
    if param.kind == "uri":
        return canonical_image(raw)
    if _is_free_text(param):
        return _free_text(param, raw)
    if isinstance(raw, str):
        raw = param.value_aliases.get(raw.strip().lower(), raw.strip())
    if param.choices:
        return _choice(param, raw)
    return _bounded(param, raw)


def default(param: Param) -> Value | None:
    """Return the canonical default; None if a parameter that was not sent stays absent."""
    return canonical(param, param.default)


def _is_free_text(param: Param) -> bool:
    return param.kind == "string" and not param.choices


def _free_text(param: Param, raw: Any) -> str:
    if not isinstance(raw, str):
        raise InvalidValue(messages.EXPECTED_STRING())
    if param.max_length is not None and len(raw) > param.max_length:
        raise InvalidValue(messages.AT_MOST_CHARACTERS(limit=param.max_length))
    if "\0" in raw:  # PostgreSQL stores neither this nor half a surrogate pair
        raise InvalidValue(messages.NUL_CHARACTER())
    if any("\ud800" <= character <= "\udfff" for character in raw):
        raise InvalidValue(messages.LONE_SURROGATE())
    return raw


def _choice(param: Param, raw: Any) -> Value:
    choice: Value | None
    if param.kind == "string":
        choices: dict[Value, Value] = {str(value).lower(): str(value) for value in param.choices}
        choice = raw.lower() if isinstance(raw, str) else None
    else:
        choices = {value: value for value in param.choices}
        choice = _number(raw)
    if choice not in choices:
        raise InvalidValue(messages.EXPECTED_CHOICE(choices=", ".join(map(str, param.choices))))
    return choices[choice]


def _bounded(param: Param, raw: Any) -> int | float | None:
    expected = messages.EXPECTED_INTEGER if param.kind == "integer" else messages.EXPECTED_NUMBER
    number = _number(raw)
    if number is None:
        raise InvalidValue(expected())
    if number in param.absent:
        return None
    if math.isfinite(number) and param.kind == "integer" and number != int(number):
        raise InvalidValue(expected())
    low = -math.inf if param.minimum is None else param.minimum
    high = math.inf if param.maximum is None else param.maximum
    if not (math.isfinite(number) and low <= number <= high):
        raise InvalidValue(_bounds_message(param))
    return int(number) if param.kind == "integer" else float(number) + 0.0  # + 0.0 turns -0.0 into 0.0


def _bounds_message(param: Param) -> Message:
    if param.minimum is not None and param.maximum is not None:
        return messages.BETWEEN(minimum=param.minimum, maximum=param.maximum)
    if param.minimum is not None:
        return messages.AT_LEAST(minimum=param.minimum)
    return messages.FINITE() if param.maximum is None else messages.AT_MOST(maximum=param.maximum)


def _number(raw: Any) -> int | float | None:
    """Return the value of a JSON number or of a numeral in a string; None for everything else."""
    if isinstance(raw, bool):
        return None
    if isinstance(raw, int | float):
        return raw
    if not isinstance(raw, str) or len(raw) > _MAX_NUMERAL or not _NUMERAL.fullmatch(raw):
        return None
    return int(raw) if raw.lstrip("+-").isdecimal() else float(raw)


def json_schema(model: CatalogModel) -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of the canonical params object, without tolerated spellings."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "properties": {param.name: _property(param) for param in model.params},
        "required": [param.name for param in model.params if param.required],
        "additionalProperties": False,
    }


def _property(param: Param) -> dict[str, Any]:
    facts = {
        "type": "string" if param.kind == "uri" else param.kind,
        "format": "uri" if param.kind == "uri" else None,
        "enum": list(param.choices) or None,
        "minimum": param.minimum,
        "maximum": param.maximum,
        "maxLength": param.max_length,
        "default": param.default,
        "description": param.help,
    }
    return {name: fact for name, fact in facts.items() if fact is not None}
