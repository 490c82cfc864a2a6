"""The input schema of a model as rows of a table, made from the same JSON Schema that `GET /v2/models` shows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hiresfix import wire
from hiresfix.models.catalog import Model
from hiresfix.server.web.languages import Language
from hiresfix.server.web.message_format import mark
from hiresfix.wire.parse import DEFAULT_EVENTS

_MODEL = mark("Which model makes the picture.")
_HOOK = mark("Where to send a signed request when something happens to the job.")
_EVENTS = mark("Which events to send there.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """`default` as one writes it in JSON, None for none; `allowed` and `help` in the reader's language."""

    name: str
    type: str
    required: bool
    default: str | None
    allowed: str
    help: str


def rows(model: Model, language: Language) -> list[Row]:
    """Every parameter of a request for the model, the outer ones first and last."""
    schema = wire.json_schema(model)
    own = [
        _row(f"{model.params_key}.{name}", facts, language, required=name in schema["required"])
        for name, facts in schema["properties"].items()
    ]
    events = ", ".join(f"`{event}`" for event in wire.EVENTS)
    return [
        _outer("model", "string", f"`{model.id}`", language(_MODEL), required=True),
        *own,
        _outer("webhookUrl", "string (uri)", language("an http(s) URL"), language(_HOOK)),
        _outer("webhookEvents", "array", events, language(_EVENTS), default=", ".join(DEFAULT_EVENTS)),
    ]


def _outer(
    name: str, kind: str, allowed: str, explained: str, *, required: bool = False, default: str | None = None
) -> Row:
    return Row(name=name, type=kind, required=required, default=default, allowed=allowed, help=explained)


def _row(name: str, facts: Mapping[str, Any], language: Language, *, required: bool) -> Row:
    kind = f"{facts['type']} ({facts['format']})" if "format" in facts else facts["type"]
    default, explained = facts.get("default"), facts["description"]
    return Row(
        name=name,
        type=kind,
        required=required,
        default=None if default is None else str(default),
        allowed=_allowed(facts, language),
        help=language(explained),
    )


def _allowed(facts: Mapping[str, Any], language: Language) -> str:
    """In words; values that one types stand as code and are not translated."""
    if "enum" in facts:
        return ", ".join(f"`{choice}`" for choice in facts["enum"])
    if "minimum" in facts and "maximum" in facts:
        return language("`{least}` to `{most}`", least=facts["minimum"], most=facts["maximum"])
    if "maxLength" in facts:
        return language("up to {count} characters", count=language.number(facts["maxLength"]))
    return language("an http(s) URL or a data URI") if facts.get("format") == "uri" else "–"
