"""Render templates: one environment per language, the addresses every page needs, and the content security policy.

A page runs no inline script, loads nothing from elsewhere and links to its translations; a browser that has it already
gets 304. Everything in a template is escaped unless it is Markup.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.requests import Request
from starlette.responses import Response

import hiresfix
from hiresfix.server.api.dependencies import services_of
from hiresfix.server.web import message_catalogs, static_files
from hiresfix.server.web.languages import ENGLISH, LANGUAGES, Language
from hiresfix.server.web.message_format import rich

CACHED = "public, max-age=300, stale-while-revalidate=86400"
UNCACHED = "private, no-cache"


@dataclass(frozen=True, slots=True, kw_only=True)
class PageContext:
    """Address of a page.

    Attributes:
        path: path without language.
        language: language of the page.
        origin: start of absolute addresses.
        indexed: True if search engines may list it.
    """

    path: str
    language: Language
    origin: str
    indexed: bool = True

    @property
    def canonical(self) -> str:
        return self.origin + self.language.path(self.path)

    @property
    def alternates(self) -> Sequence[tuple[str, str]]:
        """Language code and absolute address of every translation, and of the default."""
        translations = [(language.code, self.origin + language.path(self.path)) for language in LANGUAGES]
        return [*translations, ("x-default", self.origin + self.path)]

    def switch(self, language: Language) -> str:
        """Return the address of this page in a language, even where the address without one negotiates."""
        return language.path(self.path) if self.indexed else f"/{language.code}{self.path}"

    def to(self, path: str) -> str:
        """Return the address of another page in this language."""
        return self.language.path(path)


def content_security_policy(*origins: str) -> str:
    """Return the Content-Security-Policy of a page; `origins` serve the API and results."""
    allowed_origins = " ".join(origins)
    directives = {
        "default-src": "'none'",
        "script-src": "'self'",
        "style-src": "'self'",
        "img-src": f"'self' {allowed_origins} blob: data:",
        "connect-src": f"'self' {allowed_origins}",
        "font-src": "'self'",
        "manifest-src": "'self'",
        "form-action": "'self'",
        "base-uri": "'none'",
        "frame-ancestors": "'none'",
    }
    return "; ".join(f"{name} {sources}" for name, sources in directives.items())


@cache
def environment(language: Language) -> Environment:
    """Return the templates of a language, with `_("...", name=value)`, `ngettext`, `number`, `static` and `|rich`."""
    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.policies["json.dumps_kwargs"] = {"ensure_ascii": False}
    templates.filters["rich"] = rich
    templates.globals |= {
        "_": language,
        "ngettext": language.plural,
        "number": language.number,
        "language": language,
        "languages": LANGUAGES,
        "static": static_files.static_url,
        "version": hiresfix.__version__,
        "script_messages": partial(message_catalogs.messages_for_script, language),
    }
    return templates


def render(
    request: Request,
    template: str,
    page: PageContext,
    *,
    scripts: Sequence[str] = (),
    headers: Mapping[str, str] | None = None,
    status: int = 200,
    **context: Any,
) -> Response:
    """Render a template as a response.

    Args:
        request: request to answer.
        template: file name below `templates`.
        page: address of the page.
        scripts: ES modules below `static/js`; the page contains the translations that they use.
        headers: more response headers.
        status: HTTP status.
        context: variables of the template.
    """
    html = environment(page.language).get_template(template).render(page=page, scripts=scripts, **context)
    all_headers = {
        "Cache-Control": CACHED if page.indexed else UNCACHED,
        "Content-Language": page.language.code,
        "Content-Security-Policy": content_security_policy(page.origin, *services_of(request).image_origins),
        "Referrer-Policy": "same-origin",
        **(headers or {}),
    }
    return static_files.respond(
        request, static_files.make_asset(html.encode(), "text/html"), all_headers, status=status
    )


def page_context(request: Request, path: str, language: Language = ENGLISH, *, indexed: bool = True) -> PageContext:
    """Return the context of a page of this server; `path` is without language."""
    origin = services_of(request).settings.public_url.rstrip("/")
    return PageContext(path=path, language=language, origin=origin, indexed=indexed)
