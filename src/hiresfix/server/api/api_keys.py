"""List, create and revoke API keys (routes of our own); operators have `hiresfix keys`."""

from __future__ import annotations

import structlog
from fastapi import APIRouter
from fastapi.responses import JSONResponse
from starlette.requests import Request

from hiresfix.server.accounts import api_keys
from hiresfix.server.api.dependencies import NO_STORE, caller_of, services_of, small_body
from hiresfix.server.api.openapi import answer, operation, query
from hiresfix.server.http.plain_route import PlainRoute
from hiresfix.wire import api_keys as wire
from hiresfix.wire.queries import parse_id

log = structlog.get_logger(__name__)
router = APIRouter(route_class=PlainRoute)


@router.get(
    "/v2/keys",
    openapi_extra=operation(
        "listKeys",
        "Your API keys, or your team's, without the keys themselves; the oldest first.",
        {200: answer("KeyList", "The keys, revoked ones too.")},
        errors={400: "ValidationError"},
        parameters=query(wire.KEY_QUERY),
    ),
)
async def list_keys(request: Request) -> JSONResponse:
    """Return all keys at once: a team has at most a hundred live keys."""
    services, caller = services_of(request), await caller_of(request)
    team = wire.parse_key_query(request.query_params)
    async with services.database.transaction() as tx:
        keys = await api_keys.list_for_caller(tx, caller, team=team)
    return JSONResponse({"keys": [wire.key(key) for key in keys]}, headers=NO_STORE)


@router.post(
    "/v2/keys",
    openapi_extra=operation(
        "createKey",
        "Create another key for yourself. For owners and admins, with a key that has no monthly budget.",
        {201: answer("KeyWithSecret", "The key, shown in this answer only.")},
        errors={400: "ValidationError", 409: "ErrorResponse", 413: "ErrorResponse"},
        body="NewKey",
    ),
)
async def create_key(request: Request) -> JSONResponse:
    """Answer 201 with the key itself, which no other answer ever shows; so an Idempotency-Key has no effect."""
    services, caller = services_of(request), await caller_of(request)
    new_key = wire.parse_new_key(await small_body(request), request.headers.get("content-type"))
    async with services.database.transaction() as tx:
        key, secret = await api_keys.create_for_caller(tx, caller, new_key.name, monthly_budget=new_key.monthly_budget)
    log.info("key.created", key_id=str(key.id))
    return JSONResponse(wire.key(key, secret=secret), status_code=201, headers=NO_STORE)


@router.delete(
    "/v2/keys/{key_id}",
    openapi_extra=operation(
        "revokeKey",
        "Revoke a key of yours, or, for owners and admins, of your team. Repeating it is not an error.",
        {200: answer("Key", "The key, refused from now on.")},
        errors={400: "ValidationError", 404: "ErrorResponse"},
    ),
)
async def revoke_key(request: Request, key_id: str) -> JSONResponse:
    """Revoke a key. A key may revoke itself: that is how signing out works."""
    services, caller = services_of(request), await caller_of(request)
    parsed_id = parse_id(key_id, name="key_id")
    async with services.database.transaction() as tx:
        revoked = await api_keys.revoke_for_caller(tx, caller, parsed_id)
    log.info("key.revoked", key_id=str(parsed_id))
    return JSONResponse(wire.key(revoked), headers=NO_STORE)
