"""GET /v2/openapi.json: valid, complete, and true to what the server really answers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import httpx
import pytest
from fastapi.routing import APIRoute, iter_route_contexts
from openapi_schema_validator import OAS31Validator
from openapi_spec_validator import OpenAPIV31SpecValidator

from hiresfix.models import catalog
from hiresfix.server.api import not_offered
from hiresfix.server.jobs import estimates
from hiresfix.wire import schemas
from tests.server.conftest import Api
from tests.server.jobs.test_watch import completed, work

IMAGE = "https://example.com/input.jpg"


@pytest.fixture
def document(api: Api) -> dict[str, Any]:
    response = httpx.get(f"{api.url}/v2/openapi.json")  # public: no key
    assert response.status_code == 200
    document: dict[str, Any] = response.json()
    return document


def problems(name: str, value: object) -> list[str]:
    """What is wrong with `value` as the schema of that name."""
    whole = {**schemas.ref(name), "components": {"schemas": schemas.components()}}
    validator = OAS31Validator(whole, format_checker=OAS31Validator.FORMAT_CHECKER)
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(value)]


def test_document_is_valid_openapi_3_1(document: dict[str, Any]) -> None:
    assert document["openapi"].startswith("3.1.")
    OpenAPIV31SpecValidator(document).validate()


def test_document_has_every_route(api: Api, document: dict[str, Any]) -> None:
    routes = [route for route in iter_route_contexts(api.app.routes) if isinstance(route.original_route, APIRoute)]
    real = {(route.path_format, method) for route in routes for method in route.methods or ()}
    neighbours = {(path.replace(":path", ""), method) for path in not_offered.PATHS for method in not_offered.METHODS}
    described = {(path, method.upper()) for path, methods in document["paths"].items() for method in methods}
    assert described == real - neighbours, "a new route describes itself with openapi_extra=operation(...)"


def test_schemas_have_published_names(document: dict[str, Any]) -> None:
    published = {
        "Job", "JobAccepted", "JobList", "ImageUpscaleRequest", "Upload", "Me", "ModelCatalog", "ModelCatalogEntry",
        "ErrorResponse", "ValidationError", "InsufficientCredits",
    }  # fmt: skip
    assert published <= set(document["components"]["schemas"])


def test_every_schema_is_used_or_published(document: dict[str, Any]) -> None:
    used = set(references(document))
    assert {name for name in document["components"]["schemas"] if name not in used} <= {"Upload"}


def references(part: Any) -> Iterable[str]:
    if isinstance(part, Mapping):
        if isinstance(part.get("$ref"), str):
            yield part["$ref"].rpartition("/")[2]
        for value in part.values():
            yield from references(value)
    elif isinstance(part, list):
        for value in part:
            yield from references(value)


def test_object_schemas_are_closed_without_defaults() -> None:
    def look(name: str, schema: Any) -> None:
        if isinstance(schema, list):
            for part in schema:
                look(name, part)
        if not isinstance(schema, Mapping):
            return
        if "properties" in schema:
            assert schema["additionalProperties"] is False, name
            assert not any("default" in facts for facts in schema["properties"].values()), name
        for part in schema.values():
            look(name, part)

    for name, schema in schemas.components().items():
        look(name, schema)


@pytest.mark.parametrize("model", catalog.MODELS, ids=lambda model: model.id)
def test_request_schema_requires_only_the_image(model: catalog.CatalogModel) -> None:
    request = {"model": model.id, model.params_key: {"image": IMAGE}}
    assert problems("ImageUpscaleRequest", request) == []
    everything = {
        param.name: IMAGE if param.kind == "uri" else 1 if param.default is None else param.default
        for param in model.params
    }
    hook = {"webhookUrl": "https://example.com/hook", "webhookEvents": ["completed", "failed"]}
    assert problems("ImageUpscaleRequest", {**request, model.params_key: everything, **hook}) == []
    for wrong in (
        {"model": model.id},
        {**request, "model": "another"},
        {**request, "webhokUrl": "https://example.com"},
        {**request, model.params_key: {"image": IMAGE, "scale_factor": 3}},
        {**request, model.params_key: {"image": IMAGE, "scale_facto": 2}},
    ):
        assert problems("ImageUpscaleRequest", wrong), wrong


def test_answers_match_the_document(api: Api, photo: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimates, "PACE_SECONDS", 0.0)
    accepted = api.submit({"image": photo}, headers={"Idempotency-Key": "k"})
    assert problems("JobAccepted", accepted.json()) == []
    job = accepted.json()["jobId"]
    with api.client() as client:

        def get(path: str) -> Any:
            return client.get(path).json()

        assert problems("Job", get(f"/v2/jobs/{job}")) == []
        work(api, job, completed)
        assert problems("Job", get(f"/v2/jobs/{job}")) == []
        waited = api.submit({"image": photo}, headers={"Idempotency-Key": "k", "Prefer": "wait=9"})
        assert (waited.status_code, problems("JobFinished", waited.json())) == (200, [])
        preview = client.post(
            "/v2/images/upscale?dryRun=true",
            json={"model": "clarity-upscale", "clarityUpscaleParams": {"image": photo}},
        )
        assert (preview.status_code, problems("JobPreview", preview.json())) == (200, [])
        api.submit({"image": photo}, webhookUrl=photo)
        api.do(
            "update jobs set state = 'FAILED', error = 'x', completed_at = now(),"
            ' error_message = \'{"reason": "x", "params": {"kind": "PNG", "limit": 2.5}}\' where state = \'QUEUED\''
        )
        page = get("/v2/jobs?include_models=true&limit=1")
        assert page["hasMore"]
        assert problems("JobList", page) == []
        assert problems("JobList", get("/v2/jobs?limit=2")) == []
        assert problems("Me", get("/v2/me")) == []
        models = get("/v2/models")
        assert "avgSeconds" in models["models"][0]
        assert problems("ModelCatalog", models) == []
        assert problems("Readiness", get("/readyz")) == []


def test_errors_match_the_document(api: Api, photo: str) -> None:
    api.do("insert into ledger (team_id, kind, amount, counterparty, actor, reason)"
           " select id, 'adjust', -99, 'adjustments', 'test', 'test' from teams")  # fmt: skip
    api.do("update api_keys set monthly_budget = 2")
    assert problems("OverBudget", api.submit({"image": photo}).json()) == []
    api.do("update teams set credits = 1")
    assert problems("InsufficientCredits", api.submit({"image": photo}).json()) == []
    assert problems("ValidationError", api.submit({}).json()) == []
    with api.client() as client:
        for path in ("/v2/jobs/x", "/v2/jobs/00000000-0000-4000-8000-000000000000", "/v2/loras", "/v2/nowhere"):
            assert problems("ErrorResponse", client.get(path).json()) == []
    assert problems("ErrorResponse", httpx.get(f"{api.url}/v2/me").json()) == []


def test_extra_field_would_be_noticed() -> None:
    assert problems("ErrorResponse", {"error": "x", "code": "x", "requestId": "x"}) == []
    assert problems("ErrorResponse", {"error": "x", "code": "x", "requestId": "x", "more": 1})
    assert problems("JobAccepted", {"jobId": "no uuid", "status": "QUEUED"})


# Answers that no route makes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "PATCH"])
@pytest.mark.parametrize(
    "path",
    [
        "/v2/images/generate",
        "/v2/images/edit",
        "/v2/images/background-remove",
        "/v2/images/background-remove/",
        "/v2/videos/generate",
        "/v2/music/generate",
        "/v2/loras",
        "/v2/loras/12/versions",
        "/v2/assets/a/b/c",
    ],
)
def test_hosted_routes_answer_501(api: Api, method: str, path: str) -> None:
    response = httpx.request(method, api.url + path)
    assert (response.status_code, response.json()["error"]) == (501, "Not available on this server")
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"] == response.json()["requestId"]


@pytest.mark.parametrize(
    "path", ["//", "///v2", "/v2", "/v2/jobs/%00", "/v2/jobs/%ff%fe", "/%2e%2e/etc", "/v2/jobs/a/b/c"]
)
def test_odd_paths_get_json_errors(api: Api, path: str) -> None:
    with api.client() as client:
        response = client.get(httpx.URL(api.url + path))
    assert response.status_code in (400, 404)
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"] == response.json()["requestId"]


def test_405_lists_allowed_methods(api: Api) -> None:
    paths = httpx.get(f"{api.url}/v2/openapi.json").json()["paths"]
    with api.client() as client:
        for path, methods in paths.items():
            address = path.replace("{job_id}", "00000000-0000-4000-8000-000000000000").replace("{name}", "x.png")
            for spelled in (address, address + "/"):
                response = client.request("TRACE", spelled)
                assert response.status_code == 405
                assert set(response.headers["allow"].split(", ")) == {method.upper() for method in methods}
                assert response.json()["error"] == "Method not allowed"
