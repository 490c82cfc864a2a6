"""One parameter between what clients write and its canonical value, led by the catalog's facts alone.

Tolerant where the meaning is certain (numeric strings, integral floats, any case of an enumeration, `2x`),
strict where it is not. Knows no model and no place in the request.
"""

from __future__ import annotations

import math
import re
from typing import Any, TypeAlias

from hiresfix.models.catalog import Model, Param
from hiresfix.wire.locations import canonical_picture
from hiresfix.wire.problems import Wrong

Value: TypeAlias = str | int | float

_NUMERAL = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?", re.IGNORECASE | re.ASCII)
_MAX_NUMERAL = 64


def camel(name: str) -> str:
    """`scale_factor` to `scaleFactor`."""
    first, *rest = name.split("_")
    return first + "".join(word.capitalize() for word in rest)


def spellings(param: Param) -> tuple[str, ...]:
    """Every accepted name, the canonical one first: that is the order in which they win."""
    names = (param.name, *param.aliases)
    return tuple(dict.fromkeys((*names, *map(camel, names))))


def canonical(param: Param, raw: Any) -> Value | None:
    """The canonical value of what a client sent; None if it means "not sent". Raises Wrong.

    null and "" are not sent; for anything but free text, blanks are not either. Free text stays as it came,
    so that a single blank can say "no prompt" where leaving it out means the default.
    """
    if raw is None or raw == "" or (isinstance(raw, str) and not _is_free_text(param) and not raw.strip()):
        return None
    if param.kind == "uri":
        return canonical_picture(raw)
    if _is_free_text(param):
        return _free_text(param, raw)
    if isinstance(raw, str):
        raw = param.value_aliases.get(raw.strip().lower(), raw.strip())
    if param.choices:
        return _choice(param, raw)
    return _bounded(param, raw)


def default(param: Param) -> Value | None:
    """The canonical value that stands in for one not sent; None if the parameter is then absent."""
    return canonical(param, param.default)


def _is_free_text(param: Param) -> bool:
    return param.kind == "string" and not param.choices


def _free_text(param: Param, raw: Any) -> str:
    if not isinstance(raw, str):
        raise Wrong("Expected a string")
    if param.max_length is not None and len(raw) > param.max_length:
        raise Wrong(f"Must be at most {param.max_length} characters")
    if "\0" in raw:  # PostgreSQL stores neither this nor half a surrogate pair
        raise Wrong("Must not contain the NUL character")
    if any("\ud800" <= character <= "\udfff" for character in raw):
        raise Wrong("Must be valid Unicode: it holds half of a surrogate pair")
    return raw


def _choice(param: Param, raw: Any) -> Value:
    wanted: Value | None
    if param.kind == "string":
        choices: dict[Value, Value] = {str(choice).lower(): str(choice) for choice in param.choices}
        wanted = raw.lower() if isinstance(raw, str) else None
    else:
        choices = {choice: choice for choice in param.choices}
        wanted = _number(raw)
    if wanted not in choices:
        raise Wrong(f"Expected one of {', '.join(map(str, param.choices))}")
    return choices[wanted]


def _bounded(param: Param, raw: Any) -> int | float | None:
    expected = "Expected an integer" if param.kind == "integer" else "Expected a number"
    number = _number(raw)
    if number is None:
        raise Wrong(expected)
    if number in param.absent:
        return None
    if math.isfinite(number) and param.kind == "integer" and number != int(number):
        raise Wrong(expected)
    low = -math.inf if param.minimum is None else param.minimum
    high = math.inf if param.maximum is None else param.maximum
    if not (math.isfinite(number) and low <= number <= high):
        raise Wrong(_bounds(param))
    return int(number) if param.kind == "integer" else float(number) + 0.0  # + 0.0 turns -0.0 into 0.0


def _bounds(param: Param) -> str:
    if param.minimum is not None and param.maximum is not None:
        return f"Must be between {param.minimum} and {param.maximum}"
    if param.minimum is not None:
        return f"Must be at least {param.minimum}"
    return "Must be finite" if param.maximum is None else f"Must be at most {param.maximum}"


def _number(raw: Any) -> int | float | None:
    """The number that a JSON number or a numeral in a string stands for; None for everything else."""
    if isinstance(raw, bool):
        return None
    if isinstance(raw, int | float):
        return raw
    if not isinstance(raw, str) or len(raw) > _MAX_NUMERAL or not _NUMERAL.fullmatch(raw):
        return None
    return int(raw) if raw.lstrip("+-").isdecimal() else float(raw)


def json_schema(model: Model) -> dict[str, Any]:
    """JSON Schema (2020-12) of the canonical params object; what is tolerated besides is not in it."""
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
