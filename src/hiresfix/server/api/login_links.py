"""Sign a browser in with a link that works once (a route of our own)."""

from __future__ import annotations

import structlog
from fastapi import APIRouter
from fastapi.responses import JSONResponse
from starlette.requests import Request

from hiresfix.errors import Unauthenticated
from hiresfix.server.accounts import login_links
from hiresfix.server.api.dependencies import NO_STORE, count_address, services_of, small_body
from hiresfix.server.api.openapi import answer, operation
from hiresfix.server.http.plain_route import PlainRoute
from hiresfix.server.http.rate_limit import Bucket
from hiresfix.wire import login_links as wire
from hiresfix.wire import timestamp

log = structlog.get_logger(__name__)
router = APIRouter(route_class=PlainRoute)


@router.post(
    "/v2/signin",
    openapi_extra=operation(
        "signIn",
        "Exchange the token of a one-time login link for an API key that expires by itself.",
        {201: answer("SignedIn", "The key, shown in this answer only.")},
        errors={400: "ValidationError", 401: "ErrorResponse", 413: "ErrorResponse", 429: "ErrorResponse"},
        body="SignIn",
        public=True,
    ),
)
async def sign_in(request: Request) -> JSONResponse:
    """Answer 201 once; after that the link is refused. Refusals count against the address like wrong keys."""
    services = services_of(request)
    token = wire.parse_sign_in(await small_body(request), request.headers.get("content-type"))
    try:
        async with services.database.transaction() as tx:
            entrance = await login_links.redeem(tx, token)
    except Unauthenticated:
        await count_address(request, Bucket.FAILED_AUTH)
        raise
    log.info("account.signed_in")
    body = {"apiKey": entrance.key, "expiresAt": timestamp(entrance.expires_at)}
    return JSONResponse(body, status_code=201, headers=NO_STORE)
