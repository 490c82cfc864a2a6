"""What the server says about itself."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from starlette.requests import Request

from hiresfix import wire
from hiresfix.models.catalog import MODELS
from hiresfix.server.accounts import authentication
from hiresfix.server.api.dependencies import caller_of, service
from hiresfix.server.api.openapi import answer, document, operation, query
from hiresfix.server.http.plain_route import Plain
from hiresfix.wire.queries import MODEL_QUERY

router = APIRouter(route_class=Plain)


@router.get("/v2/me", openapi_extra=operation("me", "Who this key is.", {200: answer("Me", "User, team and key.")}))
async def me(request: Request) -> JSONResponse:
    """Who is calling, on whose credits. Clients ask it to check a key, so it is one look-up."""
    own, caller = service(request), await caller_of(request)
    async with own.database.transaction() as tx:
        profile = await authentication.profile(tx, caller)
    return JSONResponse(wire.me(profile), headers={"Cache-Control": "no-store"})


@router.get(
    "/v2/models",
    openapi_extra=operation(
        "listModels",
        "What is on offer.",
        {200: answer("ModelCatalog", "The models.")},
        errors={400: "ValidationError"},
        parameters=query(MODEL_QUERY),
        public=True,
    ),
)
async def models(request: Request) -> JSONResponse:
    """The catalog, for anybody: keys are not looked at, so that a wrong one is no error either."""
    own = service(request)
    modality = wire.parse_modality(request.query_params)
    offered = MODELS if modality in (None, "image") else ()
    paces = {model.id: await own.outlook.pace(model.id) for model in offered}
    entries = [
        wire.model_entry(
            model,
            price=own.settings.price(model),
            max_megapixels=own.settings.max_output_megapixels,
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
    """All routes and schemas, as OpenAPI 3.1."""
    own = service(request)
    if own.openapi is None:
        own.openapi = document(request.app.routes, public_url=own.settings.public_url)
    return JSONResponse(own.openapi, headers={"Cache-Control": "public, max-age=300"})
