"""Build the OpenAPI document from the routes: each route describes itself where it is declared.

    @router.get("/v2/things", openapi_extra=operation("listThings", "All things.", {200: answer("ThingList")}))

Path, methods and path parameters come from the routes themselves, schemas from `hiresfix.wire.schemas`, and the
errors that any route can answer with are added to every one. A route that should not be in the document is declared
with `include_in_schema=False`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import Any, TypeAlias

from fastapi.routing import APIRoute, iter_route_contexts
from starlette.routing import BaseRoute

import hiresfix
from hiresfix.wire import schemas

Named: TypeAlias = str | tuple[str, ...]
"""Name of a schema, or names of several alternatives."""

_PATH_PARAMETERS: Mapping[str, Mapping[str, Any]] = {
    name: {"type": "string", "format": "uuid"} for name in ("job_id", "key_id", "delivery_id")
}
_ANYWHERE: Mapping[int, Named] = {500: "ErrorResponse", 503: "ErrorResponse"}
_WITH_KEY: Mapping[int, Named] = {401: "ErrorResponse", 403: "ErrorResponse", 429: "ErrorResponse"}
_RETRY = (429, 503)


def answer(
    schema: Named | None = None, description: str = "", *, media_type: str = "application/json", **headers: str
) -> dict[str, Any]:
    """Describe an answer: its schema, None for a body that is not our JSON; headers by description."""
    content = {"schema": _named(schema)} if schema else {}
    return {
        "description": description or "Done.",
        "headers": {
            "X-Request-Id": {"$ref": "#/components/headers/RequestId"},
            **{name.replace("_", "-"): _header(text) for name, text in headers.items()},
        },
        "content": {media_type: content},
    }


def nothing(description: str, **headers: str) -> dict[str, Any]:
    """Describe an answer without a body."""
    return {name: part for name, part in answer(description=description, **headers).items() if name != "content"}


def query(table: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Describe optional query parameters, given as JSON Schemas by name."""
    return [_parameter("query", name, schema, required=False) for name, schema in table.items()]


def header(name: str, description: str) -> dict[str, Any]:
    """Describe an optional request header."""
    return _parameter("header", name, {"type": "string", "description": description}, required=False)


def operation(
    name: str,
    summary: str,
    answers: Mapping[int, Mapping[str, Any]],
    *,
    errors: Mapping[int, Named] | None = None,
    parameters: Iterable[Mapping[str, Any]] = (),
    body: str | None = None,
    public: bool = False,
) -> dict[str, Any]:
    """Return a route's `openapi_extra`.

    Args:
        name: The operation's id.
        summary: One sentence.
        answers: Answers by status.
        errors: Schema names of errors by status, besides those that any route has.
        parameters: Query and header parameters.
        body: Schema name of the JSON body.
        public: True if the route needs no key.
    """
    failures = {**_ANYWHERE, **({} if public else _WITH_KEY), **(errors or {})}
    responses = {**answers, **{status: _error(status, schema) for status, schema in failures.items()}}
    described: dict[str, Any] = {
        "operationId": name,
        "summary": summary,
        "parameters": list(parameters),
        "responses": {str(status): responses[status] for status in sorted(responses)},
    }
    if body:
        described["requestBody"] = {"required": True, "content": {"application/json": {"schema": schemas.ref(body)}}}
    return {**described, "security": []} if public else described


def document(routes: Iterable[BaseRoute], *, public_url: str) -> dict[str, Any]:
    """Return OpenAPI 3.1 of all routes that describe themselves."""
    paths: dict[str, dict[str, Any]] = {}
    for route in iter_route_contexts(list(routes)):
        if not isinstance(route.original_route, APIRoute) or not route.include_in_schema or not route.openapi_extra:
            continue
        path = str(route.path_format)
        for method in sorted(route.methods or ()):
            paths.setdefault(path, {})[method.lower()] = _placed(route.openapi_extra, path, method)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "hiresfix",
            "version": hiresfix.__version__,
            "description": "Image upscaling as jobs: submit an image, follow the job, fetch the result.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": public_url}],
        "security": [{"apiKey": []}, {"bearer": []}],
        "paths": paths,
        "components": {
            "schemas": schemas.components(),
            "headers": {"RequestId": _header("Id of this request in the server's logs.")},
            "securitySchemes": {
                "apiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
                "bearer": {"type": "http", "scheme": "bearer"},
            },
        },
    }


def _placed(described: Mapping[str, Any], path: str, method: str) -> dict[str, Any]:
    """Return the operation with its path parameters; the HEAD of a route gets an operation id of its own."""
    places = [
        _parameter("path", name, _PATH_PARAMETERS.get(name, {"type": "string"}), required=True)
        for name in re.findall(r"{(\w+)}", path)
    ]
    name = described["operationId"] + ("Headers" if method == "HEAD" else "")
    return {**described, "operationId": name, "parameters": [*places, *described["parameters"]]}


def _parameter(place: str, name: str, schema: Mapping[str, Any], *, required: bool) -> dict[str, Any]:
    facts = {key: value for key, value in schema.items() if key != "description"}
    parameter = {"name": name, "in": place, "required": required, "schema": facts}
    return {**parameter, "description": schema["description"]} if "description" in schema else parameter


def _named(schema: Named) -> dict[str, Any]:
    return schemas.ref(schema) if isinstance(schema, str) else {"anyOf": [schemas.ref(name) for name in schema]}


def _error(status: int, schema: Named) -> dict[str, Any]:
    retry = {"Retry_After": "Whole seconds until a retry can succeed."} if status in _RETRY else {}
    return answer(schema, HTTPStatus(status).phrase, **retry)


def _header(description: str) -> dict[str, Any]:
    return {"description": description, "schema": {"type": "string"}}
