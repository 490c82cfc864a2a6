"""Templates to answers: one environment a language, the address facts every page needs, and what browsers may load.

Guarantees that a page runs no inline script, loads nothing from elsewhere, names its translations, and gets 304 where
the browser has it already. Everything in a template is escaped unless it is Markup.
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
from hiresfix.server.api.dependencies import service
from hiresfix.server.web import message_catalogs, static_files
from hiresfix.server.web.languages import ENGLISH, LANGUAGES, Language
from hiresfix.server.web.message_format import rich

CACHED = "public, max-age=300, stale-while-revalidate=86400"
UNCACHED = "private, no-cache"


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Where a page is: `path` without language, `origin` of absolute addresses; indexed: search engines may list it."""

    path: str
    language: Language
    origin: str
    indexed: bool = True

    @property
    def canonical(self) -> str:
        return self.origin + self.language.path(self.path)

    @property
    def alternates(self) -> Sequence[tuple[str, str]]:
        """Hreflang and absolute address of every language, and of the default."""
        found = [(language.code, self.origin + language.path(self.path)) for language in LANGUAGES]
        return [*found, ("x-default", self.origin + self.path)]

    def switch(self, language: Language) -> str:
        """The address of this page in a language, also where the address without one negotiates."""
        return language.path(self.path) if self.indexed else f"/{language.code}{self.path}"

    def to(self, path: str) -> str:
        """The address of another page in this language."""
        return self.language.path(path)


def policy(*origins: str) -> str:
    """Content-Security-Policy of a page. origins: of the API and of results, which may differ from the page's."""
    others = " ".join(origins)
    allowed = {
        "default-src": "'none'",
        "script-src": "'self'",
        "style-src": "'self'",
        "img-src": f"'self' {others} blob: data:",
        "connect-src": f"'self' {others}",
        "font-src": "'self'",
        "manifest-src": "'self'",
        "form-action": "'self'",
        "base-uri": "'none'",
        "frame-ancestors": "'none'",
    }
    return "; ".join(f"{name} {sources}" for name, sources in allowed.items())


@cache
def environment(language: Language) -> Environment:
    """Templates in a language: `_("...", name=value)`, `ngettext(one, many, n)`, `number`, `static`, and `|rich`."""
    made = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.policies["json.dumps_kwargs"] = {"ensure_ascii": False}
    made.filters["rich"] = rich
    made.globals |= {
        "_": language,
        "ngettext": language.plural,
        "number": language.number,
        "language": language,
        "languages": LANGUAGES,
        "static": static_files.address,
        "version": hiresfix.__version__,
        "script_messages": partial(message_catalogs.for_script, language),
    }
    return made


def render(
    request: Request,
    template: str,
    page: Page,
    *,
    scripts: Sequence[str] = (),
    headers: Mapping[str, str] | None = None,
    status: int = 200,
    **context: Any,
) -> Response:
    """The template as an answer. scripts: ES modules below `static/js`; the page carries the translations they use."""
    html = environment(page.language).get_template(template).render(page=page, scripts=scripts, **context)
    sent = {
        "Cache-Control": CACHED if page.indexed else UNCACHED,
        "Content-Language": page.language.code,
        "Content-Security-Policy": policy(page.origin, *service(request).picture_origins),
        "Referrer-Policy": "same-origin",
        **(headers or {}),
    }
    return static_files.respond(request, static_files.made(html.encode(), "text/html"), sent, status=status)


def page_of(request: Request, path: str, language: Language = ENGLISH, *, indexed: bool = True) -> Page:
    """A page of this server at a path without language."""
    origin = service(request).settings.public_url.rstrip("/")
    return Page(path=path, language=language, origin=origin, indexed=indexed)
