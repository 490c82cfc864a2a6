"""Files that callers hand in before they use them, and the files of a job that they want gone."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator
from datetime import timedelta
from uuid import UUID, uuid4

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from starlette.datastructures import FormData, Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from hiresfix import states, wire
from hiresfix.errors import (
    Conflict,
    FetchError,
    HiresfixError,
    InvalidRequest,
    PictureError,
    QuotaExceeded,
    RequestTooLarge,
    StorageFailed,
)
from hiresfix.images import MEBIBYTE
from hiresfix.server import idempotency, uploads
from hiresfix.server.accounts.authentication import Caller
from hiresfix.server.api.dependencies import Service, caller_of, parse_job_id, service, shown, small_body
from hiresfix.server.api.openapi import answer, header, operation
from hiresfix.server.http.plain_route import Plain
from hiresfix.server.http.rate_limit import Bucket
from hiresfix.server.jobs import lifecycle
from hiresfix.server.uploads import Probed, Upload
from hiresfix.wire import records, schemas

router = APIRouter(route_class=Plain)

UPLOADS = "/v2/uploads"
FRAMING_BYTES = 64 * 1024
"""What a multipart body may hold beside the file."""
OTHER_FIELDS = 10
FIELD_BYTES = 4096

_HOW = "Send multipart/form-data with one part named 'file' that has a filename."


_MULTIPART = {
    "type": "object",
    "required": ["file"],
    "properties": {"file": {"type": "string", "contentMediaType": "application/octet-stream"}},
}


@router.post(
    UPLOADS,
    openapi_extra={
        **operation(
            "createUpload",
            "Hand in a picture, or its address, to be named in submissions for two hours.",
            {201: answer("Upload", "The upload.")},
            errors={400: "ValidationError", 409: "ErrorResponse", 502: "ErrorResponse"},
            parameters=[header("Idempotency-Key", "Makes trying again safe: the same key and file, the same upload.")],
        ),
        "requestBody": {
            "required": True,
            "content": {
                "multipart/form-data": {"schema": _MULTIPART},
                "application/json": {"schema": schemas.ref("UploadFromUrl")},
            },
        },
    },
)
async def upload(request: Request) -> JSONResponse:
    """Keep a picture for a while under a URL that a submission can name; answers 201. Costs nothing.

    JSON with a `url` has the server fetch it: for who wants to see a picture before it is submitted.
    """
    own, caller = service(request), await caller_of(request, Bucket.UPLOADS)
    key = wire.idempotency_key(request.headers.get("idempotency-key"))
    own.disk.require_room()  # before the body, which waits for its turn on a disk of ours
    if request.headers.get("content-type", "").lower().startswith("application/json"):
        data = await _fetched(request, own)
        async with own.decoding:
            return await _keep(own, caller, data, key, field="url")
    async with _form(request, own.settings.max_image_bytes) as form:
        file = _only_file(form, own.settings.max_image_bytes)
        async with own.decoding:  # files wait on disk for their turn, so few are in memory at once
            data = await file.read()
            return await _keep(own, caller, data, key)


async def _fetched(request: Request, own: Service) -> bytes:
    url = records.parse_upload_url(await small_body(request), request.headers.get("content-type"))
    try:
        return await uploads.fetch(url, own.settings)
    except FetchError as error:
        raise InvalidRequest({"url": [error.message]}) from error


async def _keep(own: Service, caller: Caller, data: bytes, key: str | None, *, field: str = "file") -> JSONResponse:
    """field: what of the request is at fault if the picture is none that we accept."""
    fingerprint = uploads.fingerprint(data)
    if key:
        async with own.database.transaction() as tx:
            before = await idempotency.recall(tx, caller, route=UPLOADS, key=key, fingerprint=fingerprint)
        if before:
            return await _replay(own, before)
    try:
        async with own.database.transaction() as tx:
            await uploads.room_for(tx, caller, len(data), quota=own.settings.upload_quota_bytes)
        kept = await _store(own, caller, await uploads.probe(data, own.quarantine, whose=caller), key)
    except (PictureError, QuotaExceeded) as error:
        raise InvalidRequest({field: [error.message]}) from error
    except StorageFailed as error:
        raise StorageFailed("Upload failed") from error
    except idempotency.Replayed as winner:
        return await _replay(own, winner.made)
    return JSONResponse(wire.upload(kept, public_url=own.settings.public_url), status_code=201)


async def _store(own: Service, caller: Caller, probed: Probed, key: str | None) -> Upload:
    """Bytes first, then row and idempotency row in one transaction: what is announced is there."""
    new = uuid4()
    stored = uploads.upload_key(new)
    await own.storage.put(stored, probed.data, probed.header.media_type)
    try:
        async with own.database.transaction() as tx:
            if key:
                fingerprint = uploads.fingerprint(probed.data)
                await idempotency.remember(tx, caller, route=UPLOADS, key=key, fingerprint=fingerprint, upload=new)
            return await uploads.record(
                tx,
                new,
                caller,
                probed,
                quota=own.settings.upload_quota_bytes,
                lifetime=timedelta(hours=own.settings.upload_hours),
            )
    except (HiresfixError, idempotency.Replayed):
        # Surely rolled back; after a lost connection the commit may have happened, and upkeep knows.
        with contextlib.suppress(StorageFailed):
            await own.storage.delete(stored)
        raise


async def _replay(own: Service, before: UUID) -> JSONResponse:
    async with own.database.transaction() as tx:
        found = await uploads.get(tx, before)
    body = wire.upload(found, public_url=own.settings.public_url)
    return JSONResponse(body, status_code=201, headers={"Idempotency-Replayed": "true"})


@contextlib.asynccontextmanager
async def _form(request: Request, most: int) -> AsyncGenerator[FormData]:
    """The parts of the body, files spooled to disk until the block ends. Raises InvalidRequest."""
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise InvalidRequest({"file": [_HOW]})
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise InvalidRequest({"file": ["Compressed request bodies are not accepted. Send the file as it is."]})
    parser = MultiPartParser(
        Headers(scope=request.scope),
        _bounded(request, most),
        max_files=2,  # so that a second one can be complained of
        max_fields=OTHER_FIELDS,
        max_part_size=FIELD_BYTES,
    )
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise InvalidRequest({"file": [f"{error.message.rstrip('.')}. {_HOW}"]}) from error
    except UnicodeError as error:  # Python knows charsets that only ever fail, such as "undefined"
        raise InvalidRequest({"file": [f"The charset of the Content-Type cannot be read. {_HOW}"]}) from error
    except RequestTooLarge as error:
        raise _too_large(most) from error
    try:
        yield form
    finally:
        await form.close()


async def _bounded(request: Request, most: int) -> AsyncGenerator[bytes]:
    received = 0
    async for chunk in request.stream():
        received += len(chunk)
        if received > most + FRAMING_BYTES:
            raise RequestTooLarge
        yield chunk


def _only_file(form: FormData, most: int) -> UploadFile:
    files = [part for _, part in form.multi_items() if isinstance(part, UploadFile)]
    if len(files) > 1:
        raise InvalidRequest({"file": ["Expected one file. Upload the others with requests of their own."]})
    file = form.get("file")
    if file is None:
        raise InvalidRequest({"file": [f"Required. {_HOW}"]})
    if not isinstance(file, UploadFile):
        raise InvalidRequest({"file": [f"Expected a file. {_HOW}"]})
    if not file.size:
        raise InvalidRequest({"file": ["The file is empty. Send a picture."]})
    if file.size > most:
        raise _too_large(most)
    return file


def _too_large(most: int) -> InvalidRequest:
    text = f"The file is larger than the limit of {most / MEBIBYTE:g} MiB. Compress it more or make it smaller."
    return InvalidRequest({"file": [text]})


@router.delete(
    "/v2/jobs/{job_id}/files",
    openapi_extra=operation(
        "deleteJobFiles",
        "Delete a finished job's input and result now.",
        {200: answer("Job", "The job, expired.")},
        errors={400: "ErrorResponse", 404: "ErrorResponse", 409: "ErrorResponse", 502: "ErrorResponse"},
    ),
)
async def delete_files(request: Request, job_id: str) -> JSONResponse:
    """Delete a finished job's input and result now; the job stays, `expired`. Again is no error."""
    own, caller = service(request), await caller_of(request)
    async with own.database.transaction() as tx:
        job = await lifecycle.get(tx, parse_job_id(job_id), caller=caller)
    if job.state not in states.TERMINAL:
        raise Conflict("The job is not finished. Cancel it, or wait for its end, and then delete its files.")
    # Files first, marks after: if the store fails here, the marks do not lie and the request can be repeated.
    await own.storage.delete(uploads.source_key(job.id))
    await own.storage.delete_prefix(f"results/{job.id}")
    async with own.database.transaction() as tx:
        await lifecycle.mark_source_purged(tx, job.id)
        if job.result is not None:
            await lifecycle.mark_result_purged(tx, job.id)
        job = await lifecycle.get(tx, job.id)
    return JSONResponse(await shown(own, job), headers={"Cache-Control": "no-store"})
