"""The public pages: what this server offers, in every language, made from the catalog and the settings."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from hiresfix.server.web.languages import Language
from hiresfix.server.web.rendering import page_of, render


async def front(request: Request, language: Language) -> Response:
    return render(request, "front.html", page_of(request, "/", language))
