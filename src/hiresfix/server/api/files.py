"""Serve results and uploads: public by their unguessable name, with ETag, range requests and 410 once expired.

With the setting `result_urls=signed` a result redirects to a signed URL at the object store. The URL in a job stays
ours, so that it works as long as the result is kept, and answers 410 afterwards.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from hiresfix import wire
from hiresfix.errors import Expired, NotFound
from hiresfix.server import uploads
from hiresfix.server.api.dependencies import services_of
from hiresfix.server.api.openapi import answer, nothing, operation
from hiresfix.server.http.plain_route import PlainRoute
from hiresfix.server.jobs import lifecycle
from hiresfix.server.jobs.model import Job
from hiresfix.server.storage import Storage

router = APIRouter(route_class=PlainRoute)

_ANSWERS = {
    200: answer(description="The image.", media_type="image/*", ETag="SHA-256 of the file."),
    206: answer(description="The requested range.", media_type="image/*"),
    304: nothing("The cached copy is current."),
    416: nothing("The range cannot be satisfied."),
}
_REDIRECT = nothing(
    "A signed URL of the image, valid for a while; only if the operator enabled signed URLs.",
)
_ERRORS = {404: "ErrorResponse", 410: "ErrorResponse", 502: "ErrorResponse"}
_ONE_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class _File:
    """A file to send: its key in the store, its facts, and for how many seconds caches may keep it."""

    key: str
    bytes: int
    sha256: str
    media_type: str
    seconds: int


@router.api_route(
    "/files/images/{name}",
    methods=["GET", "HEAD"],
    openapi_extra=operation(
        "getResult",
        "A result, by its unguessable name.",
        {**_ANSWERS, 302: _REDIRECT},
        errors=_ERRORS,
        public=True,
    ),
)
async def result(request: Request, name: str) -> Response:
    """Send a job's result while it is kept."""
    job = await _find(request, wire.parse_result_path(f"/files/images/{name}"), name)
    assert job.result is not None
    facts = {field: job.result[field] for field in ("key", "bytes", "sha256", "media_type")}
    file = _File(**facts, seconds=3600)
    services = services_of(request)
    if request.method == "GET" and services.links is not None and not _is_known(request, file):
        return await _redirect(services.links, file, seconds=services.settings.result_url_seconds)
    return _serve(request, file, name)


async def _redirect(links: Storage, file: _File, *, seconds: float) -> Response:
    """Redirect to the store; the client repeats its Range there. Caches keep this for half the URL's life at most."""
    headers = {
        "Location": await links.sign(file.key, seconds=seconds),
        "Cache-Control": f"private, max-age={min(int(seconds / 2), file.seconds)}",
        "Cross-Origin-Resource-Policy": "cross-origin",
    }
    return Response(status_code=302, headers=headers)


@router.api_route(
    "/files/uploads/{name}",
    methods=["GET", "HEAD"],
    openapi_extra=operation(
        "getUpload", "An uploaded image, by its unguessable name.", _ANSWERS, errors=_ERRORS, public=True
    ),
)
async def upload(request: Request, name: str) -> Response:
    """Send an upload until it expires."""
    services, named = services_of(request), wire.parse_upload_path(f"/files/uploads/{name}")
    if named is None:
        raise NotFound("File not found")
    async with services.database.transaction() as tx:
        stored = await uploads.get(tx, named[0])
    if stored.extension != named[1]:
        raise NotFound("File not found")
    await services.storage.head(stored.key)
    remaining = int((stored.expires_at - datetime.now(UTC)).total_seconds())
    file = _File(
        key=stored.key,
        bytes=stored.bytes,
        sha256=stored.sha256,
        media_type=stored.media_type,
        seconds=min(max(remaining, 0), 3600),
    )
    return _serve(request, file, name)


def _serve(request: Request, file: _File, name: str) -> Response:
    size, etag = file.bytes, f'"{file.sha256}"'
    headers = {
        "ETag": etag,
        "Accept-Ranges": "bytes",
        "Cache-Control": f"public, max-age={file.seconds}, immutable",
        "Content-Disposition": f'inline; filename="{name}"',
        "Content-Type": file.media_type,
        "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; sandbox",
        "Cross-Origin-Resource-Policy": "cross-origin",  # the caller's pages show it; its name is the secret
        "X-Content-Type-Options": "nosniff",
    }
    if _is_known(request, file):
        return Response(status_code=304, headers=headers)
    span = _range(request, size, etag)
    if span is None:
        return Response(status_code=416, headers={**headers, "Content-Range": f"bytes */{size}"})
    start, end = span
    status = 206 if "range" in request.headers and (start, end) != (0, size) else 200
    headers["Content-Length"] = str(end - start)
    if status == 206:
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
    if request.method == "HEAD":
        return Response(status_code=status, headers=headers)
    body = services_of(request).storage.stream(file.key, start, end)
    return StreamingResponse(body, status_code=status, headers=headers)


def _is_known(request: Request, file: _File) -> bool:
    """Return whether the client has the file already."""
    if_none_match = request.headers.get("if-none-match", "")
    return f'"{file.sha256}"' in if_none_match or if_none_match.strip() == "*"


async def _find(request: Request, named: tuple[UUID, str] | None, name: str) -> Job:
    if named is None:
        raise NotFound("File not found")
    job_id, extension = named
    async with services_of(request).database.transaction() as tx:
        job = await lifecycle.get(tx, job_id)
    if job.result is None or job.output_format != extension:
        raise NotFound("File not found")
    try:
        # Before any header: once the answer has begun, a missing file could only cut it off.
        if not job.expired:
            await services_of(request).storage.head(job.result["key"])
            return job
    except NotFound:
        pass  # deleted a moment ago; the job will be marked soon
    raise Expired("This file has expired and was deleted.")


def _range(request: Request, size: int, etag: str) -> tuple[int, int] | None:
    """Return first byte and end of the requested range, or of the whole file; None: unsatisfiable."""
    match = _ONE_RANGE.fullmatch(request.headers.get("range", ""))
    condition = request.headers.get("if-range")
    if not match or match.groups() == ("", "") or condition not in (None, etag):
        return 0, size
    first, last = match.groups()
    if first and last and int(last) < int(first):
        return 0, size  # invalid, hence ignored (RFC 9110, 14.1.1)
    if first:
        start, end = int(first), min(int(last) + 1 if last else size, size)
    else:
        start, end = max(0, size - int(last)), size
    return (start, end) if start < end else None
