"""Create an account without the operator (a route of our own)."""

from __future__ import annotations

import structlog
from fastapi import APIRouter
from fastapi.responses import JSONResponse
from starlette.requests import Request

from hiresfix.server.accounts import signup
from hiresfix.server.api.dependencies import count_address, services_of, small_body
from hiresfix.server.api.openapi import answer, operation
from hiresfix.server.http.plain_route import PlainRoute
from hiresfix.server.http.rate_limit import Bucket
from hiresfix.wire import signup as wire

log = structlog.get_logger(__name__)
router = APIRouter(route_class=PlainRoute)


@router.post(
    "/v2/signup",
    openapi_extra=operation(
        "signUp",
        "Create a team of your own, if the operator allows it.",
        {201: answer("Account", "The account; its key is shown in this answer only.")},
        errors={400: "ValidationError", 403: "ErrorResponse", 413: "ErrorResponse", 429: "ErrorResponse"},
        body="SignUp",
        public=True,
    ),
)
async def sign_up(request: Request) -> JSONResponse:
    """Create a team with its owner and the free credits; answer 201 with the API key, which no other answer shows.

    An Idempotency-Key has no effect: the key is not stored, so it cannot be shown again. A client that lost the answer
    has to ask the operator for another key.
    """
    services = services_of(request)
    await count_address(request, Bucket.SIGN_UP)
    sign_up_request = wire.parse_sign_up(await small_body(request), request.headers.get("content-type"))
    account = await signup.sign_up(
        services.database,
        email=sign_up_request.email,
        name=sign_up_request.name,
        team_name=sign_up_request.team_name,
        invite=sign_up_request.invite,
        mode=services.settings.signup,
        free_credits=services.settings.free_credits,
    )
    log.info("account.signed_up", user_id=str(account.user), team_id=str(account.team))
    return JSONResponse(
        wire.new_account(account, sign_up_request), status_code=201, headers={"Cache-Control": "no-store"}
    )
