"""Caller, models and the OpenAPI document."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from starlette.requests import Request

from hiresfix import wire
from hiresfix.models.catalog import MODELS
from hiresfix.server.accounts import authentication
from hiresfix.server.api.dependencies import caller_of, services_of
from hiresfix.server.api.openapi import answer, document, operation, query
from hiresfix.server.http.plain_route import PlainRoute
from hiresfix.wire.queries import MODEL_QUERY

router = APIRouter(route_class=PlainRoute)


@router.get(
    "/v2/me", openapi_extra=operation("me", "The caller of this key.", {200: answer("Me", "User, team and key.")})
)
async def me(request: Request) -> JSONResponse:
    """Return user, team and key. Clients use this route to check a key, so it is one query."""
    services, caller = services_of(request), await caller_of(request)
    async with services.database.transaction() as tx:
        profile = await authentication.profile(tx, caller)
    return JSONResponse(wire.me(profile), headers={"Cache-Control": "no-store"})


@router.get(
    "/v2/models",
    openapi_extra=operation(
        "listModels",
        "The models on offer.",
        {200: answer("ModelCatalog", "The models.")},
        errors={400: "ValidationError"},
        parameters=query(MODEL_QUERY),
        public=True,
    ),
)
async def models(request: Request) -> JSONResponse:
    """Return the catalog to anybody: keys are ignored, so a wrong one is not an error."""
    services = services_of(request)
    modality = wire.parse_modality(request.query_params)
    offered = MODELS if modality in (None, "image") else ()
    paces = {model.id: await services.estimator.pace(model.id) for model in offered}
    entries = [
        wire.model_entry(
            model,
            price=services.settings.price(model),
            max_megapixels=services.settings.max_output_megapixels,
            seconds=pace.seconds if (pace := paces[model.id]) else None,
        )
        for model in offered
    ]
    return JSONResponse({"models": entries}, headers={"Cache-Control": "public, max-age=60"})


@router.get(
    "/v2/openapi.json",
    openapi_extra=operation("openapi", "This document.", {200: answer(description="OpenAPI 3.1.")}, public=True),
)
async def openapi(request: Request) -> JSONResponse:
    """Return all routes and schemas as OpenAPI 3.1."""
    services = services_of(request)
    if services.openapi is None:
        services.openapi = document(request.app.routes, public_url=services.settings.public_url)
    return JSONResponse(services.openapi, headers={"Cache-Control": "public, max-age=300"})
