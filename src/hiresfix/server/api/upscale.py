"""Accepting an enlargement: from the request's bytes to a job that is paid for and waits."""

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

from hiresfix import wire
from hiresfix.errors import (
    Expired,
    FetchError,
    HiresfixError,
    InsufficientCredits,
    InvalidRequest,
    NotFound,
    OverBudget,
    PictureError,
    StorageFailed,
)
from hiresfix.recipe import MAX_SEED, Recipe
from hiresfix.server import guarded_http, idempotency, uploads
from hiresfix.server.accounts.authentication import Caller
from hiresfix.server.api.dependencies import Service, caller_of, service
from hiresfix.server.api.openapi import answer, header, operation, query
from hiresfix.server.billing import budgets, ledger
from hiresfix.server.http.plain_route import Plain
from hiresfix.server.http.rate_limit import Bucket
from hiresfix.server.jobs import lifecycle, watch
from hiresfix.server.jobs.model import Source, Submission
from hiresfix.server.platform import tracing
from hiresfix.server.settings import Settings
from hiresfix.server.uploads import Probed
from hiresfix.wire import UpscaleRequest
from hiresfix.wire.queries import UPSCALE_QUERY

log = structlog.get_logger(__name__)
router = APIRouter(route_class=Plain)

UPSCALE = "/v2/images/upscale"
NO_HEADERS: Mapping[str, str] = MappingProxyType({})
PARSED_AT_ONCE = 64 * 1024
"""Bytes; a picture as a data URI takes half a second to parse, in which nobody else may be kept waiting."""


@router.post(
    UPSCALE,
    openapi_extra=operation(
        "upscaleImage",
        "Submit a picture to be enlarged.",
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
    """Accept an enlargement: validate, probe, charge and enqueue, then answer 202 with the job's id.

    With `Prefer: wait=N` (RFC 7240) the answer waits for the job, N seconds from the request's arrival and at most
    `max_wait_seconds`. Finished in time: 200 with the Job, which then also has the fields of the 202, so that who
    reads `jobId` and `status` needs to know nothing new. Otherwise the 202 as ever. Either says
    `Preference-Applied: wait=` with the seconds that were granted.

    With `?dryRun=true` it only validates and probes, and the answer tells what the rest would cost.
    """
    own, caller = service(request), await caller_of(request, Bucket.SUBMISSIONS)
    dry_run = wire.parse_dry_run(request.query_params.multi_items())
    body = await _body(request)
    key = wire.idempotency_key(request.headers.get("idempotency-key"))
    asked = await _parse(body, request.headers.get("content-type"), own.settings)
    if dry_run:
        return await _preview(own, caller, asked)
    if key and (before := await _recall(own, caller, key, asked)):
        return await _replay(request, own, before)
    own.disk.require_room()
    await _has_room_and_credits(own, caller, asked)
    order = await _order(own, caller, asked)
    try:
        with tracing.span("submit", hiresfix__model=asked.model.id, hiresfix__cost=order.cost):
            job = await _submit(own, caller, order, key=key, request_id=request.state.request_id)
    except idempotency.Replayed as winner:
        return await _replay(request, own, winner.made)
    log.info("job.accepted", job_id=str(job), model=asked.model.id, scale=order.recipe.scale)
    return await _answer(request, own, job)


async def _body(request: Request) -> bytes:
    """The request's body; it is bounded before it gets here."""
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise InvalidRequest({"_root": ["Compressed request bodies are not accepted. Send the JSON as it is."]})
    return await request.body()


async def _parse(body: bytes, content_type: str | None, settings: Settings) -> UpscaleRequest:
    if len(body) < PARSED_AT_ONCE:
        return wire.parse_upscale(body, content_type, ignore_unknown_keys=settings.ignore_unknown_keys)
    return await asyncio.to_thread(
        wire.parse_upscale, body, content_type, ignore_unknown_keys=settings.ignore_unknown_keys
    )


async def _recall(own: Service, caller: Caller, key: str, asked: UpscaleRequest) -> UUID | None:
    async with own.database.looking() as tx:
        return await idempotency.recall(tx, caller, route=UPSCALE, key=key, fingerprint=asked.fingerprint)


async def _replay(request: Request, own: Service, job: UUID) -> JSONResponse:
    async with own.database.looking() as tx:
        found = await lifecycle.get(tx, job)
    return await _answer(request, own, job, state=found.state, more_headers={"Idempotency-Replayed": "true"})


async def _answer(
    request: Request, own: Service, job: UUID, *, state: str = "QUEUED", more_headers: Mapping[str, str] = NO_HEADERS
) -> JSONResponse:
    headers = {"Location": f"/v2/jobs/{job}", **more_headers}
    wanted = wire.preferred_wait(request.headers.getlist("prefer")) or 0
    if granted := min(wanted, int(own.settings.max_wait_seconds)):
        headers["Preference-Applied"] = f"wait={granted}"
        left = granted - (time.monotonic() - request.state.arrived)
        if finished := await watch.finished(own.database, own.changes, job, seconds=left):
            body = wire.finished(finished, public_url=own.settings.public_url, kept_for=own.settings.retention)
            return JSONResponse(body, headers=headers)
    return JSONResponse(wire.accepted(job, state=state), status_code=202, headers=headers)


async def _has_room_and_credits(own: Service, caller: Caller, asked: UpscaleRequest) -> None:
    """A look before the costly probe; the transaction decides again about credits and budget."""
    pace = await own.outlook.pace(asked.model.id)
    most = own.settings.max_queued_jobs_total
    waiting = await own.outlook.waiting(most=most)
    async with own.database.looking() as tx:
        room = await lifecycle.room_for(
            tx,
            caller,
            per_team=own.settings.max_queued_jobs,
            in_total=most,
            waiting=waiting,
            seconds_a_job=pace.seconds if pace else None,
        )
        budget = await budgets.of_key(tx, caller.key) if room.budgeted else None
    least = own.settings.price(asked.model).least  # the price itself where it is flat
    if room.credits < least:
        raise InsufficientCredits(required=least, available=room.credits)
    if budget and budget.left < least:
        raise OverBudget(budget=budget.monthly, spent=budget.spent, required=least)


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """A request whose picture was looked at: what would be done, to what, and for how many credits."""

    asked: UpscaleRequest
    recipe: Recipe
    picture: Probed
    output: tuple[int, int]
    """Width and height of the result."""
    cost: int


async def _order(own: Service, caller: Caller, asked: UpscaleRequest) -> Order:
    """The one place where a price is made: the charge, a 402 and a dry run tell the same."""
    recipe = asked.model.recipe(asked.values, seed=randbelow(MAX_SEED + 1), preset=own.settings.preset(asked.model))
    await _check_hook(own, asked)
    picture = await _probe(own, caller, asked, recipe)
    output = picture.header.width * recipe.scale, picture.header.height * recipe.scale
    cost = own.settings.price(asked.model).of(*output)
    return Order(asked=asked, recipe=recipe, picture=picture, output=output, cost=cost)


async def _preview(own: Service, caller: Caller, asked: UpscaleRequest) -> JSONResponse:
    """What the request would cost; nothing is stored or charged, and too few credits are no error."""
    order = await _order(own, caller, asked)
    async with own.database.looking() as tx:
        available = await ledger.balance(tx, caller.team)
        budget = await budgets.of_key(tx, caller.key)
    pace = await own.outlook.pace(asked.model.id)
    header = order.picture.header
    body = wire.preview(
        asked.model,
        cost=order.cost,
        available=available,
        budget_left=budget.left if budget else None,
        source=(header.width, header.height),
        output=order.output,
        seconds_per_megapixel=pace.seconds_per_megapixel if pace else None,
    )
    return JSONResponse(body)


async def _check_hook(own: Service, asked: UpscaleRequest) -> None:
    if asked.hook is None:
        return
    try:
        await guarded_http.check_receiver(asked.hook.url, uploads.policy(own.settings))
    except FetchError as error:
        raise InvalidRequest({"webhookUrl": [error.message]}) from error


async def _probe(own: Service, caller: Caller, asked: UpscaleRequest, recipe: Recipe) -> Probed:
    """The picture, wherever it is; a fault of it or of its size is the caller's, named by its field."""
    try:
        picture: bytes | Probed | None = wire.data_uri(asked.image)
        if picture is None:
            picture = await _own_picture(own, asked.image)
        if picture is None:
            picture = await uploads.fetch(asked.image, own.settings)
        probed = picture if isinstance(picture, Probed) else await _decoded(own, caller, picture)
    except (FetchError, PictureError, NotFound, Expired) as error:
        raise wire.invalid_param(asked.model, "image", error.message) from error
    for param, check in (("scale_factor", uploads.check_output), ("output_format", uploads.check_format)):
        try:
            check(probed.header, recipe, own.settings)
        except PictureError as error:
            raise wire.invalid_param(asked.model, param, error.message) from error
    return probed


async def _decoded(own: Service, caller: Caller, data: bytes) -> Probed:
    async with own.decoding:
        return await uploads.probe(data, own.quarantine, whose=caller)


async def _own_picture(own: Service, url: str) -> bytes | Probed | None:
    """An upload or a result of ours, read from the store and never over HTTP; None for any other URL.

    What was decoded when it was handed in is not decoded again; the worker is going to, and would find it damaged.
    """
    upload = wire.own_upload(url, own.settings.public_url)
    if upload is not None:
        async with own.database.looking() as tx:
            kept = await uploads.get(tx, upload)
        data = await own.storage.get(kept.key)
        return uploads.recognised(kept, data) or data
    job = wire.own_result(url, own.settings.public_url)
    if job is None:
        return None
    async with own.database.looking() as tx:
        found = await lifecycle.get(tx, job)
    if found.result is None or found.expired:
        raise NotFound("The URL names a result that does not exist any more. Use another picture.")
    return await own.storage.get(found.result["key"])


async def _submit(
    own: Service,
    caller: Caller,
    order: Order,
    *,
    key: str | None,
    request_id: str,
) -> UUID:
    """Store the picture, then make job, charge, task and idempotency row in one transaction."""
    job, asked, probed = uuid4(), order.asked, order.picture
    source_key = await uploads.keep(own.storage, job, probed)
    new = Submission(
        id=job,
        caller=caller,
        request_id=request_id,
        model=asked.model.id,
        cost=order.cost,
        recipe=order.recipe,
        input=wire.stored_input(asked),
        source=Source(
            key=source_key,
            sha256=probed.sha256,
            media_type=probed.header.media_type,
            bytes=len(probed.data),
            width=probed.header.width,
            height=probed.header.height,
        ),
        hook_url=asked.hook.url if asked.hook else None,
        hook_events=asked.hook.events if asked.hook else (),
        max_attempts=own.settings.max_attempts,
        needs=own.settings.needs.get(asked.model.id, ()),
        traceparent=tracing.traceparent(),
    )
    try:
        async with own.database.pipelined() as tx:
            if key:
                await idempotency.remember(tx, caller, route=UPSCALE, key=key, fingerprint=asked.fingerprint, job=job)
            await lifecycle.submit(tx, own.queue, new)
        own.outlook.one_more()
    except (HiresfixError, idempotency.Replayed):
        # Surely rolled back. After a lost connection the commit may have happened: then the picture stays, and
        # upkeep removes it if no job turns up for it.
        with contextlib.suppress(StorageFailed):
            await own.storage.delete(source_key)
        raise
    return job
