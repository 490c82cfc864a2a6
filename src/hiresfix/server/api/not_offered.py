"""Routes that clients know from the hosted API and that this server does not offer.

501 and not 404: it is the one answer of its kind that clients do not try again, and it tells a missing feature
from a wrong address.
"""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from hiresfix.errors import NotOffered
from hiresfix.server.http.plain_route import Plain

router = APIRouter(route_class=Plain)

PATHS = (
    *(f"/v2/images/{name}" for name in ("generate", "edit", "background-remove", "bg-remove")),
    *(f"/v2/{name}{rest}" for name in ("videos", "music", "loras", "assets") for rest in ("", "/{rest:path}")),
)
METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"]


async def not_offered(request: Request, rest: str = "") -> Response:
    raise NotOffered


for path in PATHS:
    router.add_api_route(path, not_offered, methods=METHODS, include_in_schema=False)
