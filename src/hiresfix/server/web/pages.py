"""The public pages: what this server offers, in every language, made from the catalog and the settings.

Nothing on them is known twice: parameters, prices, limits and times come from where the API takes them, so that page,
OpenAPI document and validation cannot disagree.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response

from hiresfix.errors import HiresfixError
from hiresfix.models import catalog
from hiresfix.models.catalog import Model
from hiresfix.models.pricing import Price
from hiresfix.recipe import OutputFormat
from hiresfix.server.api.dependencies import service
from hiresfix.server.settings import Settings
from hiresfix.server.web import samples, schema_table, snippets, structured_data
from hiresfix.server.web.error_texts import ERRORS
from hiresfix.server.web.languages import Language
from hiresfix.server.web.model_texts import ABOUT
from hiresfix.server.web.samples import Sample
from hiresfix.server.web.templating import page_of, render

SCRIPTS = ("pages.js",)
_MET_BY_CALLERS = (
    "validation_error", "unauthenticated", "insufficient_credits", "forbidden", "over_budget", "not_found", "conflict",
    "expired", "rate_limited", "storage_failed", "unavailable",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """A model with what the operator takes for it and, if there is one, a picture of what it does."""

    model: Model
    price: Price
    sample: Sample | None


async def front(request: Request, language: Language) -> Response:
    """What this is, in one screen."""
    page = page_of(request, "/", language)
    return render(
        request,
        "front.html",
        page,
        scripts=SCRIPTS,
        samples=samples.SAMPLES,
        offers=_offers(service(request).settings),
        submission=snippets.submission(catalog.CLARITY, page.origin),
        structured_data=structured_data.software(page, language),
    )


async def models(request: Request, language: Language) -> Response:
    """All models."""
    page = page_of(request, "/models", language)
    return render(
        request,
        "models.html",
        page,
        samples=samples.SAMPLES,
        offers=_offers(service(request).settings),
        structured_data=structured_data.trail(page, language, [("/models", language("Models"))]),
    )


async def model(request: Request, language: Language, offered: Model) -> Response:
    """Everything about one model."""
    own = service(request)
    page = page_of(request, f"/models/{offered.id}", language)
    price = own.settings.price(offered)
    pace = await own.outlook.pace(offered.id)
    asked = questions(offered, own.settings, language)
    about = ABOUT.get(offered.id)
    shown = samples.of(offered)
    return render(
        request,
        "model.html",
        page,
        scripts=SCRIPTS,
        model=offered,
        others=[other for other in catalog.MODELS if other is not offered],
        about=about,
        samples=shown,
        settings=own.settings,
        price=price,
        seconds=pace.seconds if pace else None,
        contents=_contents(language, why=about is not None, samples=len(shown) > 1),
        features=features(offered, own.settings, language),
        schema=schema_table.rows(offered, language),
        questions=asked,
        errors=_errors(),
        key_variable=snippets.KEY_VARIABLE,
        submission=snippets.submission(offered, page.origin),
        polling=snippets.polling(page.origin),
        uploading=snippets.uploading(page.origin),
        accepted=snippets.accepted(),
        completed=snippets.completed(offered, page.origin, price.least),
        structured_data=structured_data.model(page, language, offered, asked),
    )


async def not_found(request: Request, language: Language) -> Response:
    """For a person whose address leads nowhere."""
    return render(request, "not_found.html", page_of(request, "/", language, indexed=False), status=404)


def features(offered: Model, settings: Settings, language: Language) -> list[str]:
    """What the model can do, read off its parameters and the operator's limits."""
    names = {param.name for param in offered.params}
    scales = [language("{n}×", n=choice) for choice in offered.param("scale_factor").choices if choice != 1]
    formats = [f"`{choice}`" for choice in OutputFormat]
    found = [
        language("Enlarges by {scales}, up to {limit} megapixels",
                 scales=language.either(scales), limit=language.number(settings.max_output_megapixels)),
        language("Takes PNG, JPEG, WebP, GIF, TIFF, BMP, AVIF and HEIC, up to {limit} MB",
                 limit=language.number(settings.max_image_bytes / 2**20, 0)),
        language("Returns {formats}, with transparency, profile and orientation as they were",
                 formats=language.either(formats)),
    ]  # fmt: skip
    if "seed" in names:
        found.append(language("Reproducible with a seed"))
    if "prompt" in names:
        found.append(language("Prompts and negative prompts, where diffusion weights are installed"))
    return [
        *found,
        language("Progress, place in the queue and expected time while you wait"),
        language("Signed webhooks and idempotent retries"),
    ]


def questions(offered: Model, settings: Settings, language: Language) -> list[tuple[str, str]]:
    """Question and answer: first what anybody asks, then what is asked about this model."""
    days = language.plural("{n} day", "{n} days", settings.retention_days)
    about = ABOUT.get(offered.id)
    own = [(language(question), language(answer)) for question, answer in about.questions] if about else []
    return [
        (
            language("Is there an API for {label}?", label=offered.label),
            language(
                "Yes: `POST /v2/images/upscale` with `model` set to `{id}`. It is the job API that clients of"
                " hosted services already use, so existing programs need another address and another key.",
                id=offered.id,
            ),
        ),
        (
            language("How many parameters does it take?"),
            language(
                "There are {count}, inside `{key}`. Only `image` is needed, the others have defaults.",
                count=language.number(len(offered.params)),
                key=offered.params_key,
            ),
        ),
        (
            language("What does a failed job cost?"),
            language("Nothing. The credits come back by themselves, also when you cancel a job before it is done."),
        ),
        *own,
        (
            language("Where do my pictures go?"),
            language(
                "Nowhere else: this server makes and keeps them. Results are deleted after {days}, and at once if"
                " you ask with `DELETE /v2/jobs/JOB_ID/files`.",
                days=days,
            ),
        ),
    ]


def _offers(settings: Settings) -> list[Offer]:
    return [
        Offer(model=each, price=settings.price(each), sample=next(iter(samples.of(each)), None))
        for each in catalog.MODELS
    ]


def _contents(language: Language, *, why: bool, samples: bool) -> list[tuple[str, str]]:
    found = [
        ("why", language("Why"), why),
        ("samples", language("Samples"), samples),
        ("overview", language("Overview"), True),
        ("start", language("Quick start"), True),
        ("lifecycle", language("Life of a job"), True),
        ("schema", language("Input schema"), True),
        ("pricing", language("Pricing"), True),
        ("faq", language("Questions"), True),
    ]
    return [(place, label) for place, label, shown in found if shown]


def _errors() -> Sequence[tuple[int, str, str]]:
    """Status, code and meaning of what callers meet."""
    statuses = {kind.code: kind.status for kind in _kinds(HiresfixError)}
    return sorted((statuses[code], code, ERRORS[code]) for code in _MET_BY_CALLERS)


def _kinds(kind: type[HiresfixError]) -> list[type[HiresfixError]]:
    return [kind, *(below for child in kind.__subclasses__() for below in _kinds(child))]


def paths() -> list[str]:
    """Of all indexed pages, without language."""
    return ["/", "/models", *(f"/models/{each.id}" for each in catalog.MODELS)]
