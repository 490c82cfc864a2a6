"""Upload images before submitting them, and delete the files of a job."""

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

from hiresfix import messages, states, wire
from hiresfix.errors import (
    Conflict,
    FetchError,
    HiresfixError,
    ImageError,
    InvalidRequest,
    QuotaExceeded,
    RequestTooLarge,
    StorageFailed,
)
from hiresfix.server import idempotency, storage_keys, uploads
from hiresfix.server.accounts.authentication import Caller
from hiresfix.server.api.dependencies import Services, caller_of, job_body, parse_job_id, services_of, small_body
from hiresfix.server.api.openapi import answer, header, operation
from hiresfix.server.http.plain_route import PlainRoute
from hiresfix.server.http.rate_limit import Bucket
from hiresfix.server.jobs import lifecycle, retention
from hiresfix.server.uploads import ProbedImage, UploadRecord
from hiresfix.units import MEBIBYTE
from hiresfix.wire import schemas
from hiresfix.wire.uploads import parse_upload_url

router = APIRouter(route_class=PlainRoute)

UPLOADS = "/v2/uploads"
MULTIPART_OVERHEAD_BYTES = 64 * 1024
"""What a multipart body may hold besides the file."""
MAX_OTHER_FIELDS = 10
MAX_FIELD_BYTES = 4096

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
            "Upload an image, or give its URL, for use in submissions for two hours.",
            {201: answer("Upload", "The upload.")},
            errors={400: "ValidationError", 409: "ErrorResponse", 502: "ErrorResponse"},
            parameters=[header("Idempotency-Key", "Makes retries safe: the same key and file give the same upload.")],
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
    """Keep an image for a while under a URL that submissions can name; answer 201. Costs nothing.

    For JSON with a `url` the server fetches the image, so that the studio can preview a remote image.
    """
    services, caller = services_of(request), await caller_of(request, Bucket.UPLOADS)
    key = wire.idempotency_key(request.headers.get("idempotency-key"))
    services.disk.require_room()  # before the body is read, which is spooled to our disk
    if request.headers.get("content-type", "").lower().startswith("application/json"):
        data = await _fetch(request, services)
        async with services.decode_slots:
            return await _keep(services, caller, data, key, field="url")
    async with _form(request, services.settings.max_image_bytes) as form:
        file = _only_file(form, services.settings.max_image_bytes)
        async with services.decode_slots:  # files wait on disk for a slot, so few are in memory at once
            data = await file.read()
            return await _keep(services, caller, data, key)


async def _fetch(request: Request, services: Services) -> bytes:
    url = parse_upload_url(await small_body(request), request.headers.get("content-type"))
    try:
        return await uploads.fetch(url, services.settings)
    except FetchError as error:
        raise InvalidRequest({"url": [error.message]}) from error


async def _keep(
    services: Services, caller: Caller, data: bytes, key: str | None, *, field: str = "file"
) -> JSONResponse:
    """Probe and store the image, or return the upload of an earlier request with this key.

    `field` is the field of the request that problems with the image are reported at.
    """
    fingerprint = uploads.fingerprint(data)
    if key:
        async with services.database.transaction() as tx:
            existing_upload = await idempotency.find_result(tx, caller, route=UPLOADS, key=key, fingerprint=fingerprint)
        if existing_upload:
            return await _replay(services, existing_upload)
    try:
        async with services.database.transaction() as tx:
            await uploads.require_quota(tx, caller, len(data), quota=services.settings.upload_quota_bytes)
        stored = await _store(services, caller, await uploads.probe(data, services.sandbox, caller=caller), key)
    except (ImageError, QuotaExceeded) as error:
        raise InvalidRequest({field: [error.message]}) from error
    except StorageFailed as error:
        raise StorageFailed("Upload failed") from error
    except idempotency.Replayed as winner:
        return await _replay(services, winner.result_id)
    return JSONResponse(wire.upload(stored, public_url=services.settings.public_url), status_code=201)


async def _store(services: Services, caller: Caller, probed: ProbedImage, key: str | None) -> UploadRecord:
    """Store the bytes, then the row and the idempotency row in one transaction: an upload with a row has its file."""
    upload_id = uuid4()
    storage_key = storage_keys.upload(upload_id)
    await services.storage.put(storage_key, probed.data, probed.header.media_type)
    try:
        async with services.database.transaction() as tx:
            if key:
                fingerprint = uploads.fingerprint(probed.data)
                await idempotency.bind(tx, caller, route=UPLOADS, key=key, fingerprint=fingerprint, upload=upload_id)
            return await uploads.record(
                tx,
                upload_id,
                caller,
                probed,
                quota=services.settings.upload_quota_bytes,
                lifetime=timedelta(hours=services.settings.upload_retention_hours),
            )
    except (HiresfixError, idempotency.Replayed):
        # Rolled back for certain; after a lost connection the commit may have happened, and maintenance cleans up.
        with contextlib.suppress(StorageFailed):
            await services.storage.delete(storage_key)
        raise


async def _replay(services: Services, upload_id: UUID) -> JSONResponse:
    async with services.database.transaction() as tx:
        existing = await uploads.get(tx, upload_id)
    body = wire.upload(existing, public_url=services.settings.public_url)
    return JSONResponse(body, status_code=201, headers={"Idempotency-Replayed": "true"})


@contextlib.asynccontextmanager
async def _form(request: Request, max_bytes: int) -> AsyncGenerator[FormData]:
    """Yield the parts of the body, files spooled to disk until the block ends. Raises InvalidRequest."""
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise InvalidRequest({"file": [_HOW]})
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise InvalidRequest({"file": ["Compressed request bodies are not accepted. Send the file as it is."]})
    parser = MultiPartParser(
        Headers(scope=request.scope),
        _bounded(request, max_bytes),
        max_files=2,  # so that a second one can be reported
        max_fields=MAX_OTHER_FIELDS,
        max_part_size=MAX_FIELD_BYTES,
    )
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise InvalidRequest({"file": [f"{error.message.rstrip('.')}. {_HOW}"]}) from error
    except UnicodeError as error:  # Python knows charsets that only ever fail, such as "undefined"
        raise InvalidRequest({"file": [f"The charset of the Content-Type cannot be read. {_HOW}"]}) from error
    except RequestTooLarge as error:
        raise _too_large(max_bytes) from error
    try:
        yield form
    finally:
        await form.close()


async def _bounded(request: Request, max_bytes: int) -> AsyncGenerator[bytes]:
    received = 0
    async for chunk in request.stream():
        received += len(chunk)
        if received > max_bytes + MULTIPART_OVERHEAD_BYTES:
            raise RequestTooLarge
        yield chunk


def _only_file(form: FormData, max_bytes: int) -> UploadFile:
    files = [part for _, part in form.multi_items() if isinstance(part, UploadFile)]
    if len(files) > 1:
        raise InvalidRequest({"file": ["Expected one file. Upload the others in separate requests."]})
    file = form.get("file")
    if file is None:
        raise InvalidRequest({"file": [f"Required. {_HOW}"]})
    if not isinstance(file, UploadFile):
        raise InvalidRequest({"file": [f"Expected a file. {_HOW}"]})
    if not file.size:
        raise InvalidRequest({"file": [messages.UPLOAD_EMPTY()]})
    if file.size > max_bytes:
        raise _too_large(max_bytes)
    return file


def _too_large(max_bytes: int) -> InvalidRequest:
    return InvalidRequest({"file": [messages.FILE_TOO_LARGE(limit=messages.plain_number(max_bytes / MEBIBYTE))]})


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
    """Delete a finished job's input and result now; the job stays, `expired`. Repeating it is not an error."""
    services, caller = services_of(request), await caller_of(request)
    async with services.database.transaction() as tx:
        job = await lifecycle.get(tx, parse_job_id(job_id), caller=caller)
    if job.state not in states.TERMINAL:
        raise Conflict(messages.JOB_NOT_FINISHED())
    # Files first, marks after: if the store fails here, the marks are still true and the request can be repeated.
    await services.storage.delete(storage_keys.source(job.id))
    await services.storage.delete_prefix(storage_keys.result_prefix(job.id))
    async with services.database.transaction() as tx:
        await retention.mark_source_purged(tx, job.id)
        if job.result is not None:
            await retention.mark_result_purged(tx, job.id)
        job = await lifecycle.get(tx, job.id)
    return JSONResponse(await job_body(services, job), headers={"Cache-Control": "no-store"})
