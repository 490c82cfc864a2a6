"""API keys as the team's own people arrange them (routes of our own); operators have `hiresfix keys`."""

from __future__ import annotations

import structlog
from fastapi import APIRouter
from fastapi.responses import JSONResponse
from starlette.requests import Request

from hiresfix.server.accounts import api_keys
from hiresfix.server.api.dependencies import NO_STORE, caller_of, service, small_body
from hiresfix.server.api.openapi import answer, operation, query
from hiresfix.server.http.plain_route import Plain
from hiresfix.wire import records as wire

log = structlog.get_logger(__name__)
router = APIRouter(route_class=Plain)


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
    """All at once: a team has a hundred live keys at most."""
    own, caller = service(request), await caller_of(request)
    team = wire.parse_key_query(request.query_params)
    async with own.database.transaction() as tx:
        found = await api_keys.shown_to(tx, caller, team=team)
    return JSONResponse({"keys": [wire.key(key) for key in found]}, headers=NO_STORE)


@router.post(
    "/v2/keys",
    openapi_extra=operation(
        "createKey",
        "Make another key for yourself. For owners and admins, by a key without a monthly budget.",
        {201: answer("KeyWithSecret", "The key, and its only showing.")},
        errors={400: "ValidationError", 409: "ErrorResponse", 413: "ErrorResponse"},
        body="NewKey",
    ),
)
async def create_key(request: Request) -> JSONResponse:
    """201 with the key itself, which no other answer ever shows; so an Idempotency-Key has no effect."""
    own, caller = service(request), await caller_of(request)
    asked = wire.parse_new_key(await small_body(request), request.headers.get("content-type"))
    async with own.database.transaction() as tx:
        made, secret = await api_keys.make(tx, caller, asked.name, monthly_budget=asked.monthly_budget)
    log.info("key.created", key_id=str(made.id))
    return JSONResponse(wire.key(made, secret=secret), status_code=201, headers=NO_STORE)


@router.delete(
    "/v2/keys/{key_id}",
    openapi_extra=operation(
        "revokeKey",
        "Revoke a key of yours, or, for owners and admins, of your team's. Again is no error.",
        {200: answer("Key", "The key, refused from now on.")},
        errors={400: "ValidationError", 404: "ErrorResponse"},
    ),
)
async def revoke_key(request: Request, key_id: str) -> JSONResponse:
    """A key may revoke itself: that is what signing out does."""
    own, caller = service(request), await caller_of(request)
    wanted = wire.parse_id(key_id, name="key_id")
    async with own.database.transaction() as tx:
        revoked = await api_keys.take_back(tx, caller, wanted)
    log.info("key.revoked", key_id=str(wanted))
    return JSONResponse(wire.key(revoked), headers=NO_STORE)
