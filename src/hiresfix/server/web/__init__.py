"""The web face: pages in three languages, styles and scripts, all served by the API process, all public.

A client of the public API like any other. `routes` are plain ones: pages are not operations of the API and have no
place in its OpenAPI document.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from hiresfix.server.web import assets, pages
from hiresfix.server.web.languages import ENGLISH, FORMER_PREFIXES, LANGUAGES, Language, preferred

View = Callable[[Request, Language], Awaitable[Response]]


def in_every_language(path: str, view: View) -> list[Route]:
    """Routes of a public page: its address decides the language, so that caches and search engines can tell."""
    return [Route(language.path(path), partial(_view, view, language), methods=["GET"]) for language in LANGUAGES]


def in_preferred_language(path: str, view: View) -> list[Route]:
    """Routes of a page for people alone: the browser's language, or the one its address names, English too."""

    async def negotiated(request: Request) -> Response:
        answer = await view(request, preferred(request.headers.get("accept-language", "")))
        answer.headers.add_vary_header("Accept-Language")
        return answer

    named = [
        Route(f"/{language.code}{path}", partial(_view, view, language), methods=["GET"]) for language in LANGUAGES
    ]
    return [Route(path, negotiated, methods=["GET"]), *named]


async def _view(view: View, language: Language, request: Request) -> Response:
    return await view(request, language)


def _moved(prefix: str, to: str) -> list[Route]:
    """Permanent redirects from all that begins with one prefix to the same with another."""

    async def redirect(request: Request) -> Response:
        rest = request.path_params.get("rest", "").strip("/\\")  # or a second slash in front would name a host
        target = f"{to}/{rest}".rstrip("/") or "/"
        query = f"?{request.url.query}" if request.url.query else ""
        return RedirectResponse(target + query, status_code=301)

    return [Route(prefix, redirect), Route(prefix + "/{rest:path}", redirect)]


routes: list[Route] = [
    Route("/static/{fingerprint}/{path:path}", assets.serve),
    Route("/favicon.ico", assets.favicon),
    *in_every_language("/", pages.front),
    *(route for prefix, language in FORMER_PREFIXES.items() for route in _moved(f"/{prefix}", language.prefix)),
    *_moved(f"/{ENGLISH.code}", ""),  # last: what has an English address of its own comes before
]
"""In the order in which they are tried."""
