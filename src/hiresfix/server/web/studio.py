"""The studio: one page, a client of the public API like any other. Its scripts are in `static/js`."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from hiresfix.server.web import snippets
from hiresfix.server.web.error_texts import ERRORS, MESSAGES
from hiresfix.server.web.languages import Language
from hiresfix.server.web.templating import page_context, render

PATH = "/studio"


async def studio_page(request: Request, language: Language) -> Response:
    """Render the studio; it contains no user data, so it needs no key. Scripts get the texts of error codes with it."""
    page = page_context(request, PATH, language, indexed=False)
    return render(
        request,
        "studio.html",
        page,
        scripts=["studio.js"],
        errors=dict(ERRORS),
        messages=dict(MESSAGES),
        programs=snippets.studio_programs(page.origin),
        request_mark=snippets.REQUEST_PLACEHOLDER,
    )
