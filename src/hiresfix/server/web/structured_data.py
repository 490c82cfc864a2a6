"""What machines read of a page: JSON-LD in the words of schema.org, and the map of the site for search engines."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any
from xml.sax.saxutils import escape, quoteattr

import hiresfix
from hiresfix.models.catalog import Model
from hiresfix.server.web import samples
from hiresfix.server.web.languages import LANGUAGES, Language
from hiresfix.server.web.static_files import address
from hiresfix.server.web.templating import Page

_LICENCE = "https://www.apache.org/licenses/LICENSE-2.0"
_CC0 = "https://creativecommons.org/publicdomain/zero/1.0/"


def software(page: Page, language: Language) -> dict[str, Any]:
    """The front page."""
    return _graph(
        {
            "@type": "SoftwareApplication",
            "name": "hiresfix",
            "url": page.canonical,
            "applicationCategory": "MultimediaApplication",
            "operatingSystem": "Linux, macOS",
            "softwareVersion": hiresfix.__version__,
            "license": _LICENCE,
            "inLanguage": language.code,
        }
    )


def trail(page: Page, language: Language, steps: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """The way to a page from the front: paths and names."""
    return _graph(_trail(page, language, steps))


def model(page: Page, language: Language, offered: Model, questions: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """A model's page: the API, its samples, its questions."""
    return _graph(
        {
            "@type": "WebAPI",
            "name": f"{offered.label} API",
            "description": language(offered.description),
            "url": page.canonical,
            "documentation": f"{page.origin}/v2/openapi.json",
            "termsOfService": _LICENCE,
            "provider": {"@type": "Organization", "name": "hiresfix", "url": page.origin},
            "inLanguage": language.code,
        },
        *(
            {
                "@type": "ImageObject",
                "contentUrl": page.origin + address(sample.after),
                "name": language(sample.title),
                "description": language(sample.alt),
                "creditText": sample.author,
                "license": _CC0,
            }
            for sample in samples.of(offered)
        ),
        {
            "@type": "FAQPage",
            "mainEntity": [
                {
                    "@type": "Question",
                    "name": question,
                    "acceptedAnswer": {"@type": "Answer", "text": answer.replace("`", "")},
                }
                for question, answer in questions
            ],
        },
        _trail(page, language, [("/models", language("Models")), (page.path, offered.label)]),
    )


def sitemap(origin: str, paths: Iterable[str]) -> str:
    """Every page in every language, each with its translations."""
    entries = []
    for path in paths:
        for language in LANGUAGES:
            page = Page(path=path, language=language, origin=origin)
            links = "".join(
                f'<xhtml:link rel="alternate" hreflang="{code}" href={quoteattr(url)}/>'
                for code, url in page.alternates
            )
            entries.append(f"<url><loc>{escape(page.canonical)}</loc>{links}</url>")
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n<urlset xmlns="http://www.sitemaps.org/schemas/sitemap/0.9"'
        ' xmlns:xhtml="http://www.w3.org/1999/xhtml">\n' + "\n".join(entries) + "\n</urlset>\n"
    )


def _trail(page: Page, language: Language, steps: Iterable[tuple[str, str]]) -> dict[str, Any]:
    return {
        "@type": "BreadcrumbList",
        "itemListElement": [
            {"@type": "ListItem", "position": place, "name": name, "item": page.origin + language.path(path)}
            for place, (path, name) in enumerate([("/", "hiresfix"), *steps], 1)
        ],
    }


def _graph(*things: dict[str, Any]) -> dict[str, Any]:
    return {"@context": "https://schema.org", "@graph": list(things)}
