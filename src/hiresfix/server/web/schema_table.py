"""Table rows for the input schema of a model, made from the JSON Schema that `GET /v2/models` returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hiresfix import wire
from hiresfix.models.catalog import CatalogModel
from hiresfix.server.web.languages import Language
from hiresfix.server.web.message_format import mark
from hiresfix.wire.upscale_request import DEFAULT_EVENTS

_MODEL_HELP = mark("The model to use.")
_WEBHOOK_HELP = mark("URL that receives signed requests about the job.")
_EVENTS_HELP = mark("Events to send to that URL.")


@dataclass(frozen=True, slots=True, kw_only=True)
class SchemaRow:
    """One parameter; `default` is JSON or None, `allowed` and `help` are in the language of the page."""

    name: str
    type: str
    required: bool
    default: str | None
    allowed: str
    help: str


def schema_rows(model: CatalogModel, language: Language) -> list[SchemaRow]:
    """Return all parameters of a request: `model` first, those of the model, then the webhook."""
    schema = wire.json_schema(model)
    model_rows = [
        _model_row(f"{model.params_key}.{name}", facts, language, required=name in schema["required"])
        for name, facts in schema["properties"].items()
    ]
    events = ", ".join(f"`{event}`" for event in wire.EVENTS)
    return [
        SchemaRow(
            name="model",
            type="string",
            required=True,
            default=None,
            allowed=f"`{model.id}`",
            help=language(_MODEL_HELP),
        ),
        *model_rows,
        SchemaRow(
            name="webhookUrl",
            type="string (uri)",
            required=False,
            default=None,
            allowed=language("an http(s) URL"),
            help=language(_WEBHOOK_HELP),
        ),
        SchemaRow(
            name="webhookEvents",
            type="array",
            required=False,
            default=", ".join(DEFAULT_EVENTS),
            allowed=events,
            help=language(_EVENTS_HELP),
        ),
    ]


def _model_row(name: str, facts: Mapping[str, Any], language: Language, *, required: bool) -> SchemaRow:
    default, description = facts.get("default"), facts["description"]
    return SchemaRow(
        name=name,
        type=f"{facts['type']} ({facts['format']})" if "format" in facts else facts["type"],
        required=required,
        default=None if default is None else str(default),
        allowed=_allowed(facts, language),
        help=language(description),
    )


def _allowed(facts: Mapping[str, Any], language: Language) -> str:
    """Return the allowed values in words; literal values are code and not translated."""
    if "enum" in facts:
        return ", ".join(f"`{choice}`" for choice in facts["enum"])
    if "minimum" in facts and "maximum" in facts:
        return language("`{minimum}` to `{maximum}`", minimum=facts["minimum"], maximum=facts["maximum"])
    if "maxLength" in facts:
        return language("up to {count} characters", count=language.number(facts["maxLength"]))
    return language("an http(s) URL or a data URI") if facts.get("format") == "uri" else "–"
