"""The studio: one page that is a client of the public API like any other; what happens in it is in `static/js`."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from hiresfix.server.web import snippets
from hiresfix.server.web.error_texts import ERRORS, SAYINGS
from hiresfix.server.web.languages import Language
from hiresfix.server.web.templating import page_of, render

PATH = "/studio"


async def studio(request: Request, language: Language) -> Response:
    """Nobody's data is in it, so it needs no key; texts of errors come along because scripts get codes."""
    page = page_of(request, PATH, language, indexed=False)
    return render(
        request,
        "studio.html",
        page,
        scripts=["studio.js"],
        errors=dict(ERRORS),
        sayings=SAYINGS,
        programs=snippets.of_form(page.origin),
        request_mark=snippets.REQUEST,
    )
