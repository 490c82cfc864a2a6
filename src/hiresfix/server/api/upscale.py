"""Accept an upscale: from the request's bytes to a job that is paid for and queued."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping
from dataclasses import dataclass
from secrets import randbelow
from types import MappingProxyType
from uuid import UUID, uuid4

import structlog
from fastapi import APIRouter
from fastapi.responses import JSONResponse
from starlette.requests import Request

from hiresfix import messages, wire
from hiresfix.errors import (
    Expired,
    FetchError,
    HiresfixError,
    ImageError,
    InsufficientCredits,
    InvalidRequest,
    NotFound,
    OverBudget,
    StorageFailed,
)
from hiresfix.recipe import MAX_SEED, Recipe
from hiresfix.server import guarded_http, idempotency, uploads
from hiresfix.server.accounts.authentication import Caller
from hiresfix.server.api.dependencies import Services, caller_of, services_of
from hiresfix.server.api.openapi import answer, header, operation, query
from hiresfix.server.billing import budgets, ledger
from hiresfix.server.http.plain_route import PlainRoute
from hiresfix.server.http.rate_limit import Bucket
from hiresfix.server.jobs import headroom, lifecycle, watch
from hiresfix.server.jobs.model import StoredSource, Submission
from hiresfix.server.platform import tracing
from hiresfix.server.settings import Settings
from hiresfix.server.uploads import ProbedImage
from hiresfix.states import JobState
from hiresfix.wire import UpscaleRequest
from hiresfix.wire.queries import UPSCALE_QUERY

log = structlog.get_logger(__name__)
router = APIRouter(route_class=PlainRoute)

UPSCALE = "/v2/images/upscale"
NO_HEADERS: Mapping[str, str] = MappingProxyType({})
MAX_INLINE_PARSE_BYTES = 64 * 1024
"""Larger bodies are parsed in a thread: an image as a data URI takes half a second, which must not block the loop."""


@router.post(
    UPSCALE,
    openapi_extra=operation(
        "upscaleImage",
        "Submit an image to be upscaled.",
        {
            200: answer(
                ("JobFinished", "JobPreview"),
                "Finished within the time of Prefer: wait, or the answer to a dry run.",
                Location="Path of the job.",
            ),
            202: answer("JobAccepted", "Accepted and paid for.", Location="Path of the job."),
        },
        errors={
            400: "ValidationError",
            402: "InsufficientCredits",
            403: ("ErrorResponse", "OverBudget"),
            408: "ErrorResponse",
            409: "ErrorResponse",
            413: "ErrorResponse",
            502: "ErrorResponse",
        },
        parameters=[
            *query(UPSCALE_QUERY),
            header("Idempotency-Key", "Up to 255 characters; the same key and request make one job in 24 hours."),
            header("Prefer", "`wait=N`: answer when the job is finished, or after N seconds."),
        ],
        body="ImageUpscaleRequest",
    ),
)
async def upscale(request: Request) -> JSONResponse:
    """Accept an upscale: validate, probe, charge and enqueue, then answer 202 with the job's id.

    With `Prefer: wait=N` (RFC 7240) the answer waits for the job, N seconds from the request's arrival and at most
    `max_wait_seconds`. If the job finishes in time, the answer is a 200 with the Job and the fields of the 202, so that
    a client that reads `jobId` and `status` needs no change. Otherwise it is the usual 202. Both have the header
    `Preference-Applied: wait=` with the granted seconds.

    With `?dryRun=true` the request is only validated and probed, and the answer is the price.
    """
    services, caller = services_of(request), await caller_of(request, Bucket.SUBMISSIONS)
    dry_run = wire.parse_dry_run(request.query_params.multi_items())
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise InvalidRequest({"_root": [messages.BODY_COMPRESSED()]})
    body = await request.body()
    key = wire.idempotency_key(request.headers.get("idempotency-key"))
    upscale_request = await _parse(body, request.headers.get("content-type"), services.settings)
    if dry_run:
        return await _preview(services, caller, upscale_request)
    if key:
        async with services.database.autocommit() as tx:
            existing_job = await idempotency.find_result(
                tx, caller, route=UPSCALE, key=key, fingerprint=upscale_request.fingerprint
            )
        if existing_job:
            return await _replay(request, services, existing_job)
    services.disk.require_room()
    await _require_headroom_and_credits(services, caller, upscale_request)
    priced = await _priced(services, caller, upscale_request)
    try:
        with tracing.span("submit", hiresfix__model=upscale_request.model.id, hiresfix__cost=priced.cost):
            job = await _submit(services, caller, priced, key=key, request_id=request.state.request_id)
    except idempotency.Replayed as winner:
        return await _replay(request, services, winner.result_id)
    log.info("job.accepted", job_id=str(job), model=upscale_request.model.id, scale=priced.recipe.scale)
    return await _answer(request, services, job)


async def _parse(body: bytes, content_type: str | None, settings: Settings) -> UpscaleRequest:
    if len(body) < MAX_INLINE_PARSE_BYTES:
        return wire.parse_upscale(body, content_type, ignore_unknown_keys=settings.ignore_unknown_keys)
    return await asyncio.to_thread(
        wire.parse_upscale, body, content_type, ignore_unknown_keys=settings.ignore_unknown_keys
    )


async def _replay(request: Request, services: Services, job_id: UUID) -> JSONResponse:
    async with services.database.autocommit() as tx:
        job = await lifecycle.get(tx, job_id)
    return await _answer(request, services, job_id, state=job.state, extra_headers={"Idempotency-Replayed": "true"})


async def _answer(
    request: Request,
    services: Services,
    job: UUID,
    *,
    state: str = JobState.QUEUED,
    extra_headers: Mapping[str, str] = NO_HEADERS,
) -> JSONResponse:
    headers = {"Location": f"/v2/jobs/{job}", **extra_headers}
    preferred = wire.preferred_wait(request.headers.getlist("prefer")) or 0
    if granted := min(preferred, int(services.settings.max_wait_seconds)):
        headers["Preference-Applied"] = f"wait={granted}"
        remaining = granted - (time.monotonic() - request.state.arrived)
        if finished := await watch.wait_until_finished(
            services.database, services.notifications, job, seconds=remaining
        ):
            settings = services.settings
            body = wire.finished(finished, public_url=settings.public_url, kept_for=settings.retention)
            return JSONResponse(body, headers=headers)
    return JSONResponse(wire.accepted(job, state=state), status_code=202, headers=headers)


async def _require_headroom_and_credits(services: Services, caller: Caller, upscale_request: UpscaleRequest) -> None:
    """Check queue, credits and budget before the costly probe; the transaction checks credits and budget again."""
    settings = services.settings
    pace = await services.estimator.pace(upscale_request.model.id)
    queued = await services.estimator.queued_jobs(limit=settings.max_queued_jobs_total)
    async with services.database.autocommit() as tx:
        room = await headroom.check(
            tx,
            caller,
            per_team=settings.max_queued_jobs,
            in_total=settings.max_queued_jobs_total,
            waiting=queued,
            seconds_per_job=pace.seconds if pace else None,
        )
        budget = await budgets.of_key(tx, caller.key) if room.has_budget else None
    minimum = settings.price(upscale_request.model).minimum  # the price itself where it is flat
    if room.credits < minimum:
        raise InsufficientCredits(required=minimum, available=room.credits)
    if budget and budget.remaining < minimum:
        raise OverBudget(budget=budget.monthly, spent=budget.spent, required=minimum)


@dataclass(frozen=True, slots=True, kw_only=True)
class PricedRequest:
    """A request whose image was probed: recipe, image, size of the result and price in credits."""

    request: UpscaleRequest
    recipe: Recipe
    image: ProbedImage
    output: tuple[int, int]
    """Width and height of the result."""
    cost: int


async def _priced(services: Services, caller: Caller, upscale_request: UpscaleRequest) -> PricedRequest:
    """Probe the image and price the request. Charge, 402 and dry run all use this price."""
    model, settings = upscale_request.model, services.settings
    recipe = model.recipe(upscale_request.values, seed=randbelow(MAX_SEED + 1), preset=settings.preset(model))
    await _check_webhook(services, upscale_request)
    image = await _probe(services, caller, upscale_request, recipe)
    output = image.header.width * recipe.scale, image.header.height * recipe.scale
    cost = settings.price(model).of(*output)
    return PricedRequest(request=upscale_request, recipe=recipe, image=image, output=output, cost=cost)


async def _preview(services: Services, caller: Caller, upscale_request: UpscaleRequest) -> JSONResponse:
    """Answer a dry run: nothing is stored or charged, and too few credits are not an error."""
    priced = await _priced(services, caller, upscale_request)
    async with services.database.autocommit() as tx:
        available = await ledger.balance(tx, caller.team)
        budget = await budgets.of_key(tx, caller.key)
    pace = await services.estimator.pace(upscale_request.model.id)
    header = priced.image.header
    body = wire.preview(
        upscale_request.model,
        cost=priced.cost,
        available=available,
        budget_left=budget.remaining if budget else None,
        source=(header.width, header.height),
        output=priced.output,
        seconds_per_megapixel=pace.seconds_per_megapixel if pace else None,
    )
    return JSONResponse(body)


async def _check_webhook(services: Services, upscale_request: UpscaleRequest) -> None:
    if upscale_request.webhook is None:
        return
    try:
        await guarded_http.check_receiver(upscale_request.webhook.url, uploads.http_policy(services.settings))
    except FetchError as error:
        raise InvalidRequest({"webhookUrl": [error.message]}) from error


async def _probe(services: Services, caller: Caller, upscale_request: UpscaleRequest, recipe: Recipe) -> ProbedImage:
    """Get the image from wherever it is and probe it; report a problem with it or its size at the parameter."""
    try:
        image: bytes | ProbedImage | None = wire.data_uri(upscale_request.image)
        if image is None:
            image = await _own_image(services, upscale_request.image)
        if image is None:
            image = await uploads.fetch(upscale_request.image, services.settings)
        if not isinstance(image, ProbedImage):
            async with services.decode_slots:
                image = await uploads.probe(image, services.sandbox, caller=caller)
    except (FetchError, ImageError, NotFound, Expired) as error:
        raise wire.invalid_param(upscale_request.model, "image", error.message) from error
    for param, check in (("scale_factor", uploads.check_output), ("output_format", uploads.check_format)):
        try:
            check(image.header, recipe, services.settings)
        except ImageError as error:
            raise wire.invalid_param(upscale_request.model, param, error.message) from error
    return image


async def _own_image(services: Services, url: str) -> bytes | ProbedImage | None:
    """Read an upload or result of ours from the store, never over HTTP; return None for any other URL.

    Uploads were decoded on receipt, so that is skipped here. The worker decodes again and catches corruption.
    """
    upload_id = wire.own_upload(url, services.settings.public_url)
    if upload_id is not None:
        async with services.database.autocommit() as tx:
            upload = await uploads.get(tx, upload_id)
        data = await services.storage.get(upload.key)
        return uploads.probed_upload(upload, data) or data
    job_id = wire.own_result(url, services.settings.public_url)
    if job_id is None:
        return None
    async with services.database.autocommit() as tx:
        job = await lifecycle.get(tx, job_id)
    if job.result is None or job.expired:
        raise NotFound(messages.RESULT_GONE())
    return await services.storage.get(job.result["key"])


async def _submit(
    services: Services, caller: Caller, priced: PricedRequest, *, key: str | None, request_id: str
) -> UUID:
    """Store the image, then create job, charge, task and idempotency row in one transaction."""
    job, upscale_request, image = uuid4(), priced.request, priced.image
    source_key = await uploads.store_source(services.storage, job, image)
    webhook = upscale_request.webhook
    submission = Submission(
        id=job,
        caller=caller,
        request_id=request_id,
        model=upscale_request.model.id,
        cost=priced.cost,
        recipe=priced.recipe,
        input=wire.stored_input(upscale_request),
        source=StoredSource(
            key=source_key,
            sha256=image.sha256,
            media_type=image.header.media_type,
            bytes=len(image.data),
            width=image.header.width,
            height=image.header.height,
        ),
        hook_url=webhook.url if webhook else None,
        hook_events=webhook.events if webhook else (),
        max_attempts=services.settings.max_attempts,
        needs=services.settings.required_tags.get(upscale_request.model.id, ()),
        traceparent=tracing.traceparent(),
    )
    try:
        async with services.database.pipelined() as tx:
            if key:
                await idempotency.bind(
                    tx, caller, route=UPSCALE, key=key, fingerprint=upscale_request.fingerprint, job=job
                )
            await lifecycle.submit(tx, services.queue, submission)
        services.estimator.count_submission()
    except (HiresfixError, idempotency.Replayed):
        # The transaction was rolled back for certain. After a lost connection the commit may have happened: then the
        # image stays, and maintenance removes it if no job exists for it.
        with contextlib.suppress(StorageFailed):
            await services.storage.delete(source_key)
        raise
    return job
