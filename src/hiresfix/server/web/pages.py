"""Public pages: what this server offers, in every language.

Parameters, prices, limits and times come from the catalog, the settings and the estimates, which the API uses too, so
that pages, OpenAPI document and validation cannot disagree.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response

from hiresfix.errors import HiresfixError
from hiresfix.models import catalog
from hiresfix.models.catalog import CatalogModel
from hiresfix.models.pricing import Price
from hiresfix.recipe import OutputFormat
from hiresfix.server.api.dependencies import services_of
from hiresfix.server.settings import Settings
from hiresfix.server.web import samples, schema_table, snippets, structured_data
from hiresfix.server.web.error_texts import ERRORS
from hiresfix.server.web.languages import Language
from hiresfix.server.web.model_texts import MODEL_TEXTS
from hiresfix.server.web.samples import SampleImage
from hiresfix.server.web.templating import page_context, render

SCRIPTS = ("pages.js",)
_DOCUMENTED_ERRORS = (
    "validation_error", "unauthenticated", "insufficient_credits", "forbidden", "over_budget", "not_found", "conflict",
    "expired", "rate_limited", "storage_failed", "unavailable",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCard:
    """A model with its price on this server and its first sample, if it has one."""

    model: CatalogModel
    price: Price
    sample: SampleImage | None


async def front_page(request: Request, language: Language) -> Response:
    """Render the front page."""
    page = page_context(request, "/", language)
    return render(
        request,
        "front.html",
        page,
        scripts=SCRIPTS,
        samples=samples.SAMPLES,
        cards=_model_cards(services_of(request).settings),
        submission=snippets.submission(catalog.CLARITY, page.origin),
        structured_data=structured_data.front_page_data(page, language),
    )


async def models_page(request: Request, language: Language) -> Response:
    """Render the list of models."""
    page = page_context(request, "/models", language)
    return render(
        request,
        "models.html",
        page,
        samples=samples.SAMPLES,
        cards=_model_cards(services_of(request).settings),
        structured_data=structured_data.breadcrumbs(page, language, [("/models", language("Models"))]),
    )


async def model_page(request: Request, language: Language, model: CatalogModel) -> Response:
    """Render the page of one model."""
    services = services_of(request)
    settings = services.settings
    page = page_context(request, f"/models/{model.id}", language)
    price = settings.price(model)
    pace = await services.estimator.pace(model.id)
    questions = faq(model, settings, language)
    text = MODEL_TEXTS.get(model.id)
    model_samples = samples.samples_of(model)
    return render(
        request,
        "model.html",
        page,
        scripts=SCRIPTS,
        model=model,
        others=[other for other in catalog.MODELS if other is not model],
        text=text,
        samples=model_samples,
        settings=settings,
        price=price,
        seconds=pace.seconds if pace else None,
        contents=_contents(language, has_text=text is not None, has_samples=len(model_samples) > 1),
        features=features(model, settings, language),
        schema=schema_table.schema_rows(model, language),
        questions=questions,
        errors=_error_rows(),
        key_variable=snippets.KEY_VARIABLE,
        submission=snippets.submission(model, page.origin),
        polling=snippets.polling(page.origin),
        uploading=snippets.uploading(page.origin),
        accepted=snippets.accepted(),
        completed=snippets.completed(model, page.origin, price.minimum),
        structured_data=structured_data.model_page_data(page, language, model, questions),
    )


async def not_found_page(request: Request, language: Language) -> Response:
    """Render the 404 page for people."""
    return render(request, "not_found.html", page_context(request, "/", language, indexed=False), status=404)


def features(model: CatalogModel, settings: Settings, language: Language) -> list[str]:
    """Return the features of a model, from its parameters and the operator's limits."""
    names = {param.name for param in model.params}
    scales = [language("{n}×", n=choice) for choice in model.param("scale_factor").choices if choice != 1]
    formats = [f"`{choice}`" for choice in OutputFormat]
    model_features = [
        language("Upscales by {scales}, up to {limit} megapixels",
                 scales=language.either(scales), limit=language.number(settings.max_output_megapixels)),
        language("Accepts PNG, JPEG, WebP, GIF, TIFF, BMP, AVIF and HEIC files up to {limit} MB",
                 limit=language.number(settings.max_image_bytes / 2**20, 0)),
        language("Returns {formats}; keeps colour profile and orientation, and transparency unless it is `jpg`",
                 formats=language.either(formats)),
    ]  # fmt: skip
    if "seed" in names:
        model_features.append(language("Reproducible results with a seed"))
    if "prompt" in names:
        model_features.append(language("Prompts and negative prompts, if diffusion weights are installed"))
    return [
        *model_features,
        language("Live progress, queue position and estimated time"),
        language("Signed webhooks and idempotent retries"),
    ]


def faq(model: CatalogModel, settings: Settings, language: Language) -> list[tuple[str, str]]:
    """Return questions and answers: general ones, and those about the model before the last."""
    days = language.plural("{n} day", "{n} days", settings.retention_days)
    text = MODEL_TEXTS.get(model.id)
    model_questions = [(language(question), language(answer)) for question, answer in text.questions] if text else []
    return [
        (
            language("Is there an API for {label}?", label=model.label),
            language(
                "Yes: `POST /v2/images/upscale` with `model` set to `{id}`. Clients of hosted services already use this"
                " job API, so existing programs only need a new address and API key.",
                id=model.id,
            ),
        ),
        (
            language("How many parameters does it have?"),
            language(
                "There are {count}, inside `{key}`. Only `image` is required.",
                count=language.number(len(model.params)),
                key=model.params_key,
            ),
        ),
        (
            language("What does a failed job cost?"),
            language("Nothing. Credits are refunded automatically, also when you cancel a job before it finishes."),
        ),
        *model_questions,
        (
            language("Where do my images go?"),
            language(
                "Nowhere else: this server processes and stores them. Results are deleted after {days}, or immediately"
                " with `DELETE /v2/jobs/JOB_ID/files`.",
                days=days,
            ),
        ),
    ]


def _model_cards(settings: Settings) -> list[ModelCard]:
    return [
        ModelCard(model=model, price=settings.price(model), sample=next(iter(samples.samples_of(model)), None))
        for model in catalog.MODELS
    ]


def _contents(language: Language, *, has_text: bool, has_samples: bool) -> list[tuple[str, str]]:
    """Return id and title of the page's sections."""
    sections = [
        ("why", language("Highlights"), has_text),
        ("samples", language("Samples"), has_samples),
        ("overview", language("Overview"), True),
        ("start", language("Quick start"), True),
        ("lifecycle", language("Job lifecycle"), True),
        ("schema", language("Input schema"), True),
        ("pricing", language("Pricing"), True),
        ("faq", language("FAQ"), True),
    ]
    return [(section_id, title) for section_id, title, exists in sections if exists]


def _error_rows() -> Sequence[tuple[int, str, str]]:
    """Return status, code and meaning of the errors that callers meet."""
    statuses = {kind.code: kind.status for kind in _error_types(HiresfixError)}
    return sorted((statuses[code], code, ERRORS[code]) for code in _DOCUMENTED_ERRORS)


def _error_types(kind: type[HiresfixError]) -> list[type[HiresfixError]]:
    return [kind, *(subtype for child in kind.__subclasses__() for subtype in _error_types(child))]


def paths() -> list[str]:
    """Return the paths of all indexed pages, without language."""
    return ["/", "/models", *(f"/models/{model.id}" for model in catalog.MODELS)]
