"""Web pages in three languages, with their styles and scripts, served by the API process to everybody.

The pages are a client of the public API like any other. Their routes are plain: pages are not operations of the API
and do not belong in its OpenAPI document.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

from hiresfix.models.catalog import MODELS, CatalogModel
from hiresfix.server.api.dependencies import services_of
from hiresfix.server.web import pages, static_files, structured_data, studio
from hiresfix.server.web.languages import (
    COUNTRY_PREFIXES,
    ENGLISH,
    LANGUAGES,
    Language,
    find_language,
    preferred_language,
)
from hiresfix.server.web.templating import CACHED

View = Callable[[Request, Language], Awaitable[Response]]


def in_every_language(path: str, view: View) -> list[Route]:
    """Return the routes of a public page: the address alone decides the language, for caches and search engines."""
    return [Route(language.path(path), partial(_view, view, language), methods=["GET"]) for language in LANGUAGES]


def in_preferred_language(path: str, view: View) -> list[Route]:
    """Return the routes of a page that is not indexed: in the browser's language, or the one the address names."""

    async def negotiated(request: Request) -> Response:
        language = preferred_language(request.headers.get("accept-language", ""))
        response = await view(request, language)
        response.headers.add_vary_header("Accept-Language")
        return response

    explicit = [
        Route(f"/{language.code}{path}", partial(_view, view, language), methods=["GET"]) for language in LANGUAGES
    ]
    return [Route(path, negotiated, methods=["GET"]), *explicit]


async def _view(view: View, language: Language, request: Request) -> Response:
    return await view(request, language)


def _redirects(prefix: str, new_prefix: str) -> list[Route]:
    """Return permanent redirects from every address with a prefix to the same address with another prefix."""

    async def redirect(request: Request) -> Response:
        rest = request.path_params.get("rest", "").strip("/\\")  # a second slash in front would name a host
        target = f"{new_prefix}/{rest}".rstrip("/") or "/"
        query = f"?{request.url.query}" if request.url.query else ""
        return RedirectResponse(target + query, status_code=301)

    return [Route(prefix, redirect), Route(prefix + "/{rest:path}", redirect)]


async def _sitemap(request: Request) -> Response:
    content = structured_data.sitemap(services_of(request).settings.public_url.rstrip("/"), pages.paths()).encode()
    asset = static_files.make_asset(content, "application/xml")
    return static_files.respond(request, asset, {"Cache-Control": CACHED})


async def _robots(request: Request) -> Response:
    """Allow search engines the pages, but not the API, people's images and the studio."""
    paths = ("/v2/", "/files/", *(f"{language.prefix}/studio" for language in LANGUAGES))
    disallowed = [f"Disallow: {path}" for path in paths]
    origin = services_of(request).settings.public_url.rstrip("/")
    text = "\n".join(["User-agent: *", *disallowed, "", f"Sitemap: {origin}/sitemap.xml", ""])
    return PlainTextResponse(text, headers={"Cache-Control": CACHED})


async def not_found_page(request: Request) -> Response | None:
    """Return the 404 page; None for clients that do not ask for HTML, and for addresses of the API or of files."""
    path = request.url.path
    if "text/html" not in request.headers.get("accept", "") or path.startswith(("/v2/", "/files/", "/static/")):
        return None
    language = find_language(path.split("/")[1]) or preferred_language(request.headers.get("accept-language", ""))
    response = await pages.not_found_page(request, language)
    response.headers.add_vary_header("Accept-Language")
    return response


def _model_routes(model: CatalogModel) -> list[Route]:
    return in_every_language(f"/models/{model.id}", partial(pages.model_page, model=model))


routes: list[Route] = [
    Route("/static/{fingerprint}/{path:path}", static_files.serve),
    Route("/favicon.ico", static_files.favicon),
    Route("/robots.txt", _robots),
    Route("/sitemap.xml", _sitemap),
    *in_every_language("/", pages.front_page),
    *in_every_language("/models", pages.models_page),
    *(route for model in MODELS for route in _model_routes(model)),
    *in_preferred_language(studio.PATH, studio.studio_page),
    *(route for prefix, language in COUNTRY_PREFIXES.items() for route in _redirects(f"/{prefix}", language.prefix)),
    *_redirects(f"/{ENGLISH.code}", ""),  # last: addresses of the English studio come before
]
"""Routes in the order in which they are tried."""
