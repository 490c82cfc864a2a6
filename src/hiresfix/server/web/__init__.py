"""The web face: pages in three languages, styles and scripts, all served by the API process, all public.

A client of the public API like any other. `routes` are plain ones: pages are not operations of the API and have no
place in its OpenAPI document.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

from hiresfix.models.catalog import MODELS, Model
from hiresfix.server.api.dependencies import service
from hiresfix.server.web import pages, static_files, structured_data
from hiresfix.server.web import studio as workshop
from hiresfix.server.web.languages import ENGLISH, FORMER_PREFIXES, LANGUAGES, Language, named, preferred
from hiresfix.server.web.templating import CACHED

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

    explicit = [
        Route(f"/{language.code}{path}", partial(_view, view, language), methods=["GET"]) for language in LANGUAGES
    ]
    return [Route(path, negotiated, methods=["GET"]), *explicit]


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


async def _sitemap(request: Request) -> Response:
    content = structured_data.sitemap(service(request).settings.public_url.rstrip("/"), pages.paths()).encode()
    return static_files.respond(request, static_files.made(content, "application/xml"), {"Cache-Control": CACHED})


async def _robots(request: Request) -> Response:
    """Pages may be found; the API, people's pictures and the studio are nothing to search."""
    shut = [f"Disallow: {path}" for path in ("/v2/", "/files/", *(f"{each.prefix}/studio" for each in LANGUAGES))]
    origin = service(request).settings.public_url.rstrip("/")
    text = "\n".join(["User-agent: *", *shut, "", f"Sitemap: {origin}/sitemap.xml", ""])
    return PlainTextResponse(text, headers={"Cache-Control": CACHED})


async def missing(request: Request) -> Response | None:
    """The page for an address that leads nowhere; None unless a person asks, and not for the API or a file."""
    path = request.url.path
    if "text/html" not in request.headers.get("accept", "") or path.startswith(("/v2/", "/files/", "/static/")):
        return None
    language = named(path.split("/")[1]) or preferred(request.headers.get("accept-language", ""))
    answer = await pages.not_found(request, language)
    answer.headers.add_vary_header("Accept-Language")
    return answer


def _model_routes(model: Model) -> list[Route]:
    return in_every_language(f"/models/{model.id}", partial(pages.model, offered=model))


routes: list[Route] = [
    Route("/static/{fingerprint}/{path:path}", static_files.serve),
    Route("/favicon.ico", static_files.favicon),
    Route("/robots.txt", _robots),
    Route("/sitemap.xml", _sitemap),
    *in_every_language("/", pages.front),
    *in_every_language("/models", pages.models),
    *(route for model in MODELS for route in _model_routes(model)),
    *in_preferred_language(workshop.PATH, workshop.studio),
    *(route for prefix, language in FORMER_PREFIXES.items() for route in _moved(f"/{prefix}", language.prefix)),
    *_moved(f"/{ENGLISH.code}", ""),  # last: what has an English address of its own comes before
]
"""In the order in which they are tried."""
