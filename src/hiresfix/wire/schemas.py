"""Schemas of the contract's bodies, as the `components.schemas` of an OpenAPI 3.1 document.

Requests are made from the catalog by the same `json_schema` that `GET /v2/models` shows. Answers are written down here,
and tests check real answers against them. Schemas are closed and name every field, so that types generated from them
are exact.

A parameter's default is in its description and not in `default`: type generators treat a property with a default as
always present, and would demand all parameters from a caller that sends two.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hiresfix.models import catalog
from hiresfix.models.catalog import CatalogModel
from hiresfix.states import JobState
from hiresfix.wire.api_keys import MAX_BUDGET, MAX_NAME
from hiresfix.wire.login_links import MAX_TOKEN
from hiresfix.wire.params import json_schema
from hiresfix.wire.queries import MODALITIES
from hiresfix.wire.upscale_request import DEFAULT_EVENTS, EVENTS
from hiresfix.wire.webhook_deliveries import DELIVERY_STATES

Schema = dict[str, Any]

_TEXT: Schema = {"type": "string"}
_UUID: Schema = {"type": "string", "format": "uuid"}
_URI: Schema = {"type": "string", "format": "uri"}
_MOMENT: Schema = {"type": "string", "format": "date-time"}
_WHOLE: Schema = {"type": "integer", "minimum": 0}
_POSITIVE: Schema = {"type": "integer", "minimum": 1}
_SECONDS: Schema = {"type": "number", "minimum": 0}
_SHOWN_ONCE: Schema = {"type": "string", "description": "Shown in this answer only."}


def ref(name: str) -> Schema:
    """Return a reference to a schema of `components`."""
    return {"$ref": f"#/components/schemas/{name}"}


def components() -> dict[str, Schema]:
    """Return every schema of the contract by its name in the published types."""
    return {
        **_requests(),
        "Job": _closed(_JOB, optional={"input": _nullable({"type": "object"})}),
        "JobAccepted": _closed(
            {"jobId": _UUID, "status": _one_of(*(state for state in JobState if state is not JobState.CANCELLED))}
        ),
        "JobFinished": _closed({"jobId": _UUID, **_JOB, "input": _nullable({"type": "object"})}),
        "JobList": _closed(
            {"jobs": _many(ref("Job")), "nextCursor": _nullable(_TEXT), "hasMore": {"type": "boolean"}},
            optional={"models": _many(_TEXT)},
        ),
        "JobPreview": _PREVIEW,
        "Upload": _UPLOAD,
        "Me": _ME,
        "ModelCatalog": _closed({"models": _many(ref("ModelCatalogEntry"))}),
        "ModelCatalogEntry": _MODEL,
        "SignUp": _SIGN_UP,
        "Account": _ACCOUNT,
        "UploadFromUrl": _closed({"url": _URI}),
        "SignIn": _closed({"token": {**_TEXT, "minLength": 1, "maxLength": MAX_TOKEN}}),
        "SignedIn": _closed({"apiKey": _SHOWN_ONCE, "expiresAt": _MOMENT}),
        "NewKey": _closed(
            {"name": {**_TEXT, "minLength": 1, "maxLength": MAX_NAME}},
            optional={"monthlyBudget": {"type": ["integer", "null"], "minimum": 0, "maximum": MAX_BUDGET}},
        ),
        "Key": _closed(_KEY),
        "KeyWithSecret": _closed({**_KEY, "apiKey": _SHOWN_ONCE}),
        "KeyList": _closed({"keys": _many(ref("Key"))}),
        "Ledger": _paged("entries", ref("LedgerEntry")),
        "LedgerEntry": _LEDGER_ENTRY,
        "WebhookDelivery": _closed(_DELIVERY, optional={"attempts": _many(_ATTEMPT)}),
        "WebhookDeliveryList": _paged("deliveries", ref("WebhookDelivery")),
        "Status": _closed({"status": {"const": "ok"}}),
        "Readiness": _READINESS,
        **_errors(),
    }


def _closed(properties: Mapping[str, Schema], *, optional: Mapping[str, Schema] | None = None) -> Schema:
    return {
        "type": "object",
        "properties": {**properties, **(optional or {})},
        "required": list(properties),
        "additionalProperties": False,
    }


def _nullable(schema: Schema) -> Schema:
    if "type" in schema and "enum" not in schema:
        return {**schema, "type": [schema["type"], "null"]}
    return {"anyOf": [schema, {"type": "null"}]}


def _one_of(*values: str) -> Schema:
    return {"type": "string", "enum": list(values)}


def _many(schema: Schema) -> Schema:
    return {"type": "array", "items": schema}


def _paged(name: str, row: Schema) -> Schema:
    return _closed({name: _many(row), "nextCursor": _nullable(_TEXT), "hasMore": {"type": "boolean"}})


_REASON: Schema = {"type": "string", "description": "Stable name of the sentence, more specific than `code`."}
_PARAMS: Schema = {
    "type": "object",
    "additionalProperties": {"type": ["string", "number"]},
    "description": "Variable parts of the sentence by name.",
}

_JOB: Mapping[str, Schema] = {
    "id": _UUID,
    "status": _one_of(*JobState),
    "model": _TEXT,
    "progress": {"type": "integer", "minimum": 0, "maximum": 100},
    "result": _nullable(_closed({"images": {**_many(_URI), "minItems": 1, "maxItems": 1}})),
    "error": _nullable(_TEXT),
    "errorReason": {**_nullable(_TEXT), "description": "Stable name of the sentence in `error`, if it has one."},
    "errorParams": _nullable(_PARAMS),
    "creditCost": _WHOLE,
    "webhookStatus": _nullable(_one_of("pending", "delivered", "failed")),
    "createdAt": _MOMENT,
    "startedAt": _nullable(_MOMENT),
    "completedAt": _nullable(_MOMENT),
    "expired": {"type": "boolean", "description": "The files of this job have been deleted."},
    "expiresAt": {**_nullable(_MOMENT), "description": "When the files of a completed job will be deleted."},
    "queuePosition": {**_nullable(_POSITIVE), "description": "Position in the queue while it waits; an estimate."},
    "etaSeconds": {**_nullable(_POSITIVE), "description": "Estimated seconds until it is done."},
    "seed": _nullable(_WHOLE),
    "width": _nullable(_POSITIVE),
    "height": _nullable(_POSITIVE),
    "metadata": _nullable({"type": "object"}),
}
"""The Job object without `input`, which lists leave out."""

_PREVIEW = _closed(
    {
        "dryRun": {"const": True},
        "model": _TEXT,
        "creditCost": _WHOLE,
        "creditsAvailable": _WHOLE,
        "budgetAvailable": {**_nullable(_WHOLE), "description": "Credits left of this key's monthly budget."},
        "sufficient": {"type": "boolean"},
        "input": _closed({"width": _POSITIVE, "height": _POSITIVE}),
        "output": _closed({"width": _POSITIVE, "height": _POSITIVE, "megapixels": {"type": "number", "minimum": 0}}),
        "estimatedSeconds": {
            **_nullable(_WHOLE),
            "description": "The work alone, without the queue; null without recent measurements.",
        },
    }
)

_UPLOAD = _closed(
    {
        "id": _UUID,
        "url": _URI,
        "kind": {"const": "image"},
        "contentType": _TEXT,
        "byteSize": _POSITIVE,
        "expiresAt": _MOMENT,
    }
)

_ME = _closed(
    {
        "user": _closed({"id": _UUID, "email": _TEXT, "role": {**_TEXT, "examples": ["OWNER", "ADMIN", "MEMBER"]}}),
        "team": _closed(
            {
                "id": _UUID,
                "name": _TEXT,
                "credits": _WHOLE,
                "plan": _TEXT,
                "customerId": _nullable(_TEXT),
                "maxConcurrentJobs": _POSITIVE,
            }
        ),
        "apiKey": _nullable(_closed({"id": _UUID, "name": _TEXT, "prefix": _TEXT})),
    }
)

_SIGN_UP = _closed(
    {"email": {"type": "string", "format": "email"}},
    optional={
        "name": {"type": "string", "maxLength": 100},
        "teamName": {"type": "string", "maxLength": 100},
        "inviteCode": {"type": "string", "maxLength": 100},
    },
)

_ACCOUNT = _closed(
    {
        "user": _closed({"id": _UUID, "email": _TEXT, "role": {"const": "OWNER"}}),
        "team": _closed({"id": _UUID, "name": _TEXT, "credits": _WHOLE}),
        "apiKey": _SHOWN_ONCE,
    }
)

_KEY: Mapping[str, Schema] = {
    "id": _UUID,
    "name": _TEXT,
    "prefix": _TEXT,
    "user": {**_TEXT, "description": "E-mail address of its user."},
    "active": {"type": "boolean", "description": "False while the operator has suspended it."},
    "monthlyBudget": _nullable(_WHOLE),
    "createdAt": _MOMENT,
    "lastUsedAt": _nullable(_MOMENT),
    "expiresAt": {**_nullable(_MOMENT), "description": "When it stops working by itself; null: never."},
    "revokedAt": _nullable(_MOMENT),
}

_LEDGER_ENTRY = _closed(
    {
        "id": _POSITIVE,
        "kind": _one_of("grant", "charge", "refund", "adjust"),
        "amount": {"type": "integer", "description": "Credits the team gained; negative: lost."},
        "jobId": _nullable(_UUID),
        "reason": _TEXT,
        "createdAt": _MOMENT,
    }
)

_DELIVERY: Mapping[str, Schema] = {
    "id": {**_UUID, "description": "The X-Webhook-Id of its requests."},
    "jobId": _UUID,
    "event": _one_of(*EVENTS),
    "url": _TEXT,
    "status": _one_of(*DELIVERY_STATES),
    "attemptCount": _WHOLE,
    "lastStatus": _nullable({"type": "integer"}),
    "lastError": _nullable(_TEXT),
    "createdAt": _MOMENT,
    "nextAttemptAt": {**_nullable(_MOMENT), "description": "Only while it is pending."},
    "finishedAt": _nullable(_MOMENT),
}

_ATTEMPT = _closed(
    {
        "number": _POSITIVE,
        "startedAt": _MOMENT,
        "milliseconds": {**_nullable(_WHOLE), "description": "Null while it is in progress."},
        "status": _nullable({"type": "integer"}),
        "error": _nullable(_TEXT),
        "answer": {**_nullable(_TEXT), "description": "The first KiB."},
    }
)

_CHECK = _closed({"status": _one_of("ok", "failed"), "problem": _nullable(_TEXT), "milliseconds": _WHOLE})

_READINESS = _closed(
    {
        "status": _one_of("ok", "degraded", "unavailable"),
        "checks": {"type": "object", "additionalProperties": _CHECK},
    }
)

_MODEL = _closed(
    {
        "id": _TEXT,
        "label": _TEXT,
        "modality": _one_of(*MODALITIES),
        "description": _TEXT,
        "pricingMode": _one_of("flat", "per_megapixel"),
        "costMin": _WHOLE,
        "costMax": _WHOLE,
        "provider": _TEXT,
        "endpoint": _TEXT,
        "paramsKey": _TEXT,
        "params": {"type": "object", "description": "JSON Schema of the params object."},
        "presets": {
            **_many(_closed({"id": _TEXT, "label": _TEXT, "description": _TEXT, "params": {"type": "object"}})),
            "description": "Parameters that suit a kind of image, as a starting point.",
        },
    },
    optional={"avgSeconds": {**_SECONDS, "description": "Measured on recent jobs; absent without any."}},
)


def _errors() -> dict[str, Schema]:
    identity = {"code": _TEXT, "requestId": _TEXT}
    return {
        "ErrorResponse": _closed({"error": _TEXT, **identity}, optional={"reason": _REASON, "params": _PARAMS}),
        "ValidationError": _closed(
            {
                "error": {"const": "Validation error"},
                "details": {"type": "object", "additionalProperties": _many(_TEXT)},
                "problems": {
                    **_many(
                        _closed({"path": _TEXT, "message": _TEXT, "reason": _nullable(_REASON), "params": _PARAMS})
                    ),
                    "description": "The messages of `details` with what is needed to translate them.",
                },
                **identity,
            }
        ),
        "OverBudget": _closed(
            {"error": _TEXT, "creditsRequired": _WHOLE, "monthlyBudget": _WHOLE, "monthlySpent": _WHOLE, **identity}
        ),
        "InsufficientCredits": _closed(
            {
                "error": {"const": "Insufficient credits"},
                "creditsRequired": _WHOLE,
                "creditsAvailable": _WHOLE,
                **identity,
            }
        ),
    }


def _requests() -> dict[str, Schema]:
    """Return one request schema per model, discriminated by `model`, and their union."""
    schemas: dict[str, Schema] = {}
    mapping: dict[str, str] = {}
    for model in catalog.MODELS:
        params = model.params_key[0].upper() + model.params_key[1:]
        request = params.removesuffix("Params") + "Request"
        schemas[params] = _params(model)
        schemas[request] = _request(model, params)
        mapping[model.id] = ref(request)["$ref"]
    union = {
        "oneOf": [{"$ref": target} for target in mapping.values()],
        "discriminator": {"propertyName": "model", "mapping": mapping},
    }
    return {"ImageUpscaleRequest": union, **schemas}


def _request(model: CatalogModel, params: str) -> Schema:
    events = {**_many(_one_of(*EVENTS)), "minItems": 1, "uniqueItems": True}
    return _closed(
        {"model": _one_of(model.id), model.params_key: ref(params)},
        optional={
            "webhookUrl": {**_URI, "description": "URL that this job's events are posted to."},
            "webhookEvents": {**events, "description": f"Default: {' and '.join(DEFAULT_EVENTS)}."},
        },
    )


def _params(model: CatalogModel) -> Schema:
    schema = json_schema(model)
    del schema["$schema"]  # the document declares it once
    for name, facts in schema["properties"].items():
        if "default" in facts:
            default = facts.pop("default")
            schema["properties"][name] = {**facts, "description": f"{facts['description']} Default: {default}."}
    return schema
