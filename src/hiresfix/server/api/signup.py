"""Signing up by oneself (a route of our own)."""

from __future__ import annotations

import structlog
from fastapi import APIRouter
from fastapi.responses import JSONResponse
from starlette.requests import Request

from hiresfix.server.accounts import signup
from hiresfix.server.api.dependencies import count_address, service, small_body
from hiresfix.server.api.openapi import answer, operation
from hiresfix.server.http.plain_route import Plain
from hiresfix.server.http.rate_limit import Bucket
from hiresfix.wire import signup as wire

log = structlog.get_logger(__name__)
router = APIRouter(route_class=Plain)


@router.post(
    "/v2/signup",
    openapi_extra=operation(
        "signUp",
        "Make a team of one's own, where the operator allows it.",
        {201: answer("Account", "The account, and the only showing of its key.")},
        errors={400: "ValidationError", 403: "ErrorResponse", 413: "ErrorResponse", 429: "ErrorResponse"},
        body="SignUp",
        public=True,
    ),
)
async def sign_up(request: Request) -> JSONResponse:
    """Make a team with its owner and the free credits; 201 with the API key, which no other answer ever shows.

    An Idempotency-Key has no effect: the key is not kept, so it cannot be shown again. Who lost the answer asks the
    operator for another key.
    """
    own = service(request)
    await count_address(request, Bucket.SIGN_UP)
    asked = wire.parse(await small_body(request), request.headers.get("content-type"))
    account = await signup.sign_up(
        own.database,
        email=asked.email,
        name=asked.name,
        team_name=asked.team_name,
        invite=asked.invite,
        mode=own.settings.signup,
        free_credits=own.settings.free_credits,
    )
    log.info("account.signed_up", user_id=str(account.user), team_id=str(account.team))
    return JSONResponse(wire.welcome(account, asked), status_code=201, headers={"Cache-Control": "no-store"})
