"""Structured data for search engines: JSON-LD with the vocabulary of schema.org, and the sitemap."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any
from xml.sax.saxutils import escape, quoteattr

import hiresfix
from hiresfix.models.catalog import CatalogModel
from hiresfix.server.web import samples
from hiresfix.server.web.languages import LANGUAGES, Language
from hiresfix.server.web.static_files import static_url
from hiresfix.server.web.templating import PageContext

_LICENCE = "https://www.apache.org/licenses/LICENSE-2.0"
_CC0 = "https://creativecommons.org/publicdomain/zero/1.0/"


def front_page_data(page: PageContext, language: Language) -> dict[str, Any]:
    """Return the JSON-LD of the front page."""
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


def breadcrumbs(page: PageContext, language: Language, steps: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """Return the JSON-LD of a page that has only breadcrumbs; `steps` are paths and names after the front page."""
    return _graph(_breadcrumb_list(page, language, steps))


def model_page_data(
    page: PageContext, language: Language, model: CatalogModel, questions: Sequence[tuple[str, str]]
) -> dict[str, Any]:
    """Return the JSON-LD of a model page.

    Args:
        page: address of the page.
        language: language of the page.
        model: the model.
        questions: questions and answers on the page.
    """
    return _graph(
        {
            "@type": "WebAPI",
            "name": f"{model.label} API",
            "description": language(model.description),
            "url": page.canonical,
            "documentation": f"{page.origin}/v2/openapi.json",
            "termsOfService": _LICENCE,
            "provider": {"@type": "Organization", "name": "hiresfix", "url": page.origin},
            "inLanguage": language.code,
        },
        *(
            {
                "@type": "ImageObject",
                "contentUrl": page.origin + static_url(sample.after),
                "name": language(sample.title),
                "description": language(sample.alt),
                "creditText": sample.author,
                "license": _CC0,
            }
            for sample in samples.samples_of(model)
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
        _breadcrumb_list(page, language, [("/models", language("Models")), (page.path, model.label)]),
    )


def sitemap(origin: str, paths: Iterable[str]) -> str:
    """Return the XML sitemap: every page in every language, each with its translations."""
    entries = []
    for path in paths:
        for language in LANGUAGES:
            page = PageContext(path=path, language=language, origin=origin)
            links = "".join(
                f'<xhtml:link rel="alternate" hreflang="{code}" href={quoteattr(url)}/>'
                for code, url in page.alternates
            )
            entries.append(f"<url><loc>{escape(page.canonical)}</loc>{links}</url>")
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n<urlset xmlns="http://www.sitemaps.org/schemas/sitemap/0.9"'
        ' xmlns:xhtml="http://www.w3.org/1999/xhtml">\n' + "\n".join(entries) + "\n</urlset>\n"
    )


def _breadcrumb_list(page: PageContext, language: Language, steps: Iterable[tuple[str, str]]) -> dict[str, Any]:
    return {
        "@type": "BreadcrumbList",
        "itemListElement": [
            {"@type": "ListItem", "position": position, "name": name, "item": page.origin + language.path(path)}
            for position, (path, name) in enumerate([("/", "hiresfix"), *steps], 1)
        ],
    }


def _graph(*nodes: dict[str, Any]) -> dict[str, Any]:
    return {"@context": "https://schema.org", "@graph": list(nodes)}
