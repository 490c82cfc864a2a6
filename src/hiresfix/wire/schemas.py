"""What the contract's bodies look like, as the `components.schemas` of an OpenAPI 3.1 document.

Requests are made from the catalog by the same `json_schema` that `GET /v2/models` shows; answers are written down
here beside the functions that render them, and tests hold real answers against them. Schemas are closed and name
every field, so that types generated from them say neither too little nor too much.

A parameter's default is told in its description and not by `default`: type generators take a property that has
one for a property that is always there, and would demand all eleven of whoever sends two.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hiresfix.models import catalog
from hiresfix.models.catalog import Model
from hiresfix.wire.params import json_schema
from hiresfix.wire.parse import DEFAULT_EVENTS, EVENTS
from hiresfix.wire.queries import MODALITIES, STATES
from hiresfix.wire.records import DELIVERY_STATES, MAX_BUDGET, MAX_NAME, MAX_TOKEN

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
    return {"$ref": f"#/components/schemas/{name}"}


def components() -> dict[str, Schema]:
    """Every schema of the contract by the name that published types have for it."""
    return {
        **_requests(),
        "Job": _closed(_JOB, optional={"input": _nullable({"type": "object"})}),
        "JobAccepted": _closed({"jobId": _UUID, "status": _one_of(*STATES[:-1])}),
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


_JOB: Mapping[str, Schema] = {
    "id": _UUID,
    "status": _one_of(*STATES),
    "model": _TEXT,
    "progress": {"type": "integer", "minimum": 0, "maximum": 100},
    "result": _nullable(_closed({"images": {**_many(_URI), "minItems": 1, "maxItems": 1}})),
    "error": _nullable(_TEXT),
    "creditCost": _WHOLE,
    "webhookStatus": _nullable(_one_of("pending", "delivered", "failed")),
    "createdAt": _MOMENT,
    "startedAt": _nullable(_MOMENT),
    "completedAt": _nullable(_MOMENT),
    "expired": {"type": "boolean", "description": "The files of this job have been deleted."},
    "expiresAt": {**_nullable(_MOMENT), "description": "When the files of a completed job will be deleted."},
    "queuePosition": {**_nullable(_POSITIVE), "description": "Place in the queue while it waits; an estimate."},
    "etaSeconds": {**_nullable(_POSITIVE), "description": "Seconds until it is done, as far as can be told."},
    "seed": _nullable(_WHOLE),
    "width": _nullable(_POSITIVE),
    "height": _nullable(_POSITIVE),
    "metadata": _nullable({"type": "object"}),
}
"""The Job object but for `input`, which lists leave out."""

_PREVIEW = _closed(
    {
        "dryRun": {"const": True},
        "model": _TEXT,
        "creditCost": _WHOLE,
        "creditsAvailable": _WHOLE,
        "budgetAvailable": {**_nullable(_WHOLE), "description": "What is left of this key's monthly budget."},
        "sufficient": {"type": "boolean"},
        "input": _closed({"width": _POSITIVE, "height": _POSITIVE}),
        "output": _closed({"width": _POSITIVE, "height": _POSITIVE, "megapixels": {"type": "number", "minimum": 0}}),
        "estimatedSeconds": {**_nullable(_WHOLE), "description": "Of the work alone; null where nothing was measured."},
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
    "user": {**_TEXT, "description": "E-mail address of whose it is."},
    "active": {"type": "boolean", "description": "False while the operator has suspended it."},
    "monthlyBudget": _nullable(_WHOLE),
    "createdAt": _MOMENT,
    "lastUsedAt": _nullable(_MOMENT),
    "expiresAt": {**_nullable(_MOMENT), "description": "When it ends by itself; null: never."},
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
    "nextAttemptAt": {**_nullable(_MOMENT), "description": "While it is pending."},
    "finishedAt": _nullable(_MOMENT),
}

_ATTEMPT = _closed(
    {
        "number": _POSITIVE,
        "startedAt": _MOMENT,
        "milliseconds": {**_nullable(_WHOLE), "description": "Null while it is being made."},
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
            "description": "Parameters that suit a kind of picture: where to begin.",
        },
    },
    optional={"avgSeconds": {**_SECONDS, "description": "Measured on recent jobs; absent without any."}},
)


def _errors() -> dict[str, Schema]:
    identity = {"code": _TEXT, "requestId": _TEXT}
    return {
        "ErrorResponse": _closed({"error": _TEXT, **identity}),
        "ValidationError": _closed(
            {
                "error": {"const": "Validation error"},
                "details": {"type": "object", "additionalProperties": _many(_TEXT)},
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
    """One request for each model, told apart by `model`, and their union."""
    found: dict[str, Schema] = {}
    mapping: dict[str, str] = {}
    for model in catalog.MODELS:
        params = model.params_key[0].upper() + model.params_key[1:]
        request = params.removesuffix("Params") + "Request"
        found[params] = _params(model)
        found[request] = _request(model, params)
        mapping[model.id] = ref(request)["$ref"]
    union = {
        "oneOf": [{"$ref": target} for target in mapping.values()],
        "discriminator": {"propertyName": "model", "mapping": mapping},
    }
    return {"ImageUpscaleRequest": union, **found}


def _request(model: Model, params: str) -> Schema:
    events = {**_many(_one_of(*EVENTS)), "minItems": 1, "uniqueItems": True}
    return _closed(
        {"model": _one_of(model.id), model.params_key: ref(params)},
        optional={
            "webhookUrl": {**_URI, "description": "Where this job's events are posted to."},
            "webhookEvents": {**events, "description": f"{' and '.join(DEFAULT_EVENTS)} unless given."},
        },
    )


def _params(model: Model) -> Schema:
    schema = json_schema(model)
    del schema["$schema"]  # the document says it for all
    for name, facts in schema["properties"].items():
        if "default" in facts:
            default = facts.pop("default")
            schema["properties"][name] = {**facts, "description": f"{facts['description']} Default: {default}."}
    return schema
