"""Answer 501 on routes of the hosted API that this server does not offer.

501 and not 404: of all 5xx answers clients do not repeat this one, and it tells a missing feature from a wrong address.
"""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from hiresfix.errors import NotOffered
from hiresfix.server.http.plain_route import PlainRoute

router = APIRouter(route_class=PlainRoute)

PATHS = (
    *(f"/v2/images/{name}" for name in ("generate", "edit", "background-remove", "bg-remove")),
    *(f"/v2/{name}{rest}" for name in ("videos", "music", "loras", "assets") for rest in ("", "/{rest:path}")),
)
METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"]


async def not_offered(request: Request, rest: str = "") -> Response:
    """Answer 501."""
    raise NotOffered


for path in PATHS:
    router.add_api_route(path, not_offered, methods=METHODS, include_in_schema=False)
