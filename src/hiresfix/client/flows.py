"""Calls to a server, each written once, as generators without I/O (`hiresfix.client.effects`).

Guarantees: a request is only sent again if that is harmless, or if it carries an Idempotency-Key. The key is created
once for a call and sent with every attempt. `hiresfix.client.retry` decides on attempts and pauses. An error answer is
raised as the exception it stands for.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from hiresfix.client import inputs
from hiresfix.client.effects import (
    Close,
    ConnectionLost,
    Flow,
    OnUpload,
    Open,
    Read,
    Request,
    ResponseHead,
    Run,
    Yield,
)
from hiresfix.client.errors import ServerUnreachable, UnexpectedAnswer
from hiresfix.client.failures import error_of, retry_after
from hiresfix.client.inputs import Image, ImageSource
from hiresfix.client.retry import RETRYABLE_STATUSES, Attempts, RetryPolicy
from hiresfix.client.values import Job, JobPage, Me, ModelInfo, Preview, Upload, with_full_names
from hiresfix.errors import HiresfixError, InvalidRequest
from hiresfix.models import catalog

MAX_ANSWER_BYTES = 64 << 20
"""Largest answer that is not an image."""
_UPLOAD_KEYS = uuid.UUID("7f1f2c7e-6a3b-5d0e-9a52-3d0e6b1c8f4a")


# Exchanges ----------------------------------------------------------------------------------------------------------


def exchange(request: Request) -> Flow[tuple[ResponseHead, bytes]]:
    """Send one request and read its whole answer. Raises ConnectionLost."""
    head: ResponseHead = yield Open(request=request)
    return head, (yield from read_body())


def read_body() -> Flow[bytes]:
    """Read the rest of the open answer and close it."""
    pieces, length = list[bytes](), 0
    while piece := (yield Read()):
        pieces.append(piece)
        length += len(piece)
        if length > MAX_ANSWER_BYTES:
            raise UnexpectedAnswer(
                f"The answer has more than {MAX_ANSWER_BYTES >> 20} MiB. Check that the URL is that of a server."
            )
    yield Close()
    return b"".join(pieces)


def call(retry: RetryPolicy, request: Request) -> Flow[Any]:
    """Return the JSON that answers a request, retrying as `retry` allows. Raises HiresfixError."""
    attempts = Attempts.start(retry)
    while True:
        try:
            head, body = yield from exchange(request)
        except ConnectionLost as lost:
            error: HiresfixError = ServerUnreachable(
                f"The server did not answer: {lost}. Check HIRESFIX_URL and that the server is running."
            )
            pause, retryable = None, request.repeatable
        else:
            if head.status < 400:
                return _json(head, body)
            error, pause = error_of(head, body), retry_after(head.headers)
            retryable = head.status == 429 or (request.repeatable and head.status in RETRYABLE_STATUSES)
        yield from attempts.backoff(error, retryable=retryable, retry_after=pause)


def _json(head: ResponseHead, body: bytes) -> Any:
    if 300 <= head.status < 400:  # not followed: the key is only for the server that was named
        location = head.headers.get("location", "another address")
        raise UnexpectedAnswer(f"The server redirects to {location}. Set HIRESFIX_URL to its new address.")
    try:
        return json.loads(body)
    except ValueError as error:
        kind = head.headers.get("content-type", "no content type")
        raise UnexpectedAnswer(
            f"Expected JSON, got {kind} ({head.status}). Check that the URL is that of a server."
        ) from error


# Small calls --------------------------------------------------------------------------------------------------------


def me(retry: RetryPolicy) -> Flow[Me]:
    return Me.read((yield from call(retry, Request(method="GET", url="/v2/me"))))


def models(retry: RetryPolicy, modality: str | None = None) -> Flow[tuple[ModelInfo, ...]]:
    query = {"modality": modality} if modality else {}
    return ModelInfo.read_all((yield from call(retry, Request(method="GET", url="/v2/models", query=query))))


def get(retry: RetryPolicy, job_id: str) -> Flow[Job]:
    return Job.read((yield from call(retry, Request(method="GET", url=job_path(job_id)))))


def cancel(retry: RetryPolicy, job_id: str) -> Flow[Job]:
    """Cancel a job. Safe to repeat: a job that is already over is a Conflict every time."""
    return Job.read((yield from call(retry, Request(method="POST", url=job_path(job_id) + "/cancel"))))


def list_jobs(retry: RetryPolicy, query: Mapping[str, str | None], limit: int | None) -> Flow[None]:
    """Yield the jobs of all pages, newest first, at most `limit`."""
    filters = {name: value for name, value in query.items() if value is not None}
    count, cursor = 0, ""
    while True:
        request = Request(method="GET", url="/v2/jobs", query={**filters, **({"cursor": cursor} if cursor else {})})
        page = JobPage.read((yield from call(retry, request)))
        for job in page.jobs:
            if limit is not None and count >= limit:
                return
            yield Yield(item=job)
            count += 1
        if not page.cursor or page.cursor == cursor:
            return
        cursor = page.cursor


def job_query(
    *, status: str | None, model: str | None, scope: str | None, page_size: int | None
) -> dict[str, str | None]:
    """Return the query of `list_jobs` by the API's names; None means "no filter"."""
    return {"status": status, "model": model, "scope": scope, "limit": None if page_size is None else str(page_size)}


def job_path(job_id: object) -> str:
    """Return the path of a job.

    Raises InvalidRequest for an id that would lead to another path, TypeError for a value that is not a str.
    """
    if not isinstance(job_id, str):
        raise TypeError(f"A job id is a str, not {type(job_id).__name__}.")
    if not job_id or not all(character.isalnum() or character in "-_" for character in job_id):
        raise InvalidRequest({"id": [f"{job_id!r} is not a job id. Use the one in the answer to your submission."]})
    return f"/v2/jobs/{job_id}"


# Submissions --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRequest:
    """Image, model and parameters of a job. `params` by the API's names or the short ones."""

    image: Image
    model: str
    params: Mapping[str, Any]
    webhook_url: str | None = None
    webhook_events: tuple[str, ...] | None = None


def submit(
    retry: RetryPolicy, request: JobRequest, *, key: str | None = None, on_upload: OnUpload | None = None
) -> Flow[Job]:
    """Submit a job, uploading a large image first. Creates an idempotency key if the caller has none."""
    key = _idempotency_key(retry, key)
    body = yield from _body(retry, request, key, on_upload)
    headers = {"Content-Type": "application/json", "Idempotency-Key": key}
    return Job.read(
        (yield from call(retry, Request(method="POST", url="/v2/images/upscale", headers=headers, body=body)))
    )


def preview(retry: RetryPolicy, request: JobRequest) -> Flow[Preview]:
    """Return what `submit` would cost. Charges nothing; safe to repeat."""
    dry_run = Request(
        method="POST",
        url="/v2/images/upscale",
        query={"dryRun": "true"},
        headers={"Content-Type": "application/json"},
        body=(yield from _body(retry, request, retry.new_key(), None)),
    )
    return Preview.read((yield from call(retry, dry_run)))


def upload(
    retry: RetryPolicy, image: Image, *, key: str | None = None, on_upload: OnUpload | None = None
) -> Flow[Upload]:
    """Upload an image, streamed from where it is. `on_upload` starts from zero again with each attempt."""
    key = _idempotency_key(retry, key)
    source = yield Run(work=partial(inputs.source_of, image))
    return (yield from _upload(retry, source, key, on_upload))


def _idempotency_key(retry: RetryPolicy, key: str | None) -> str:
    """Return the caller's key or a new one. Raises InvalidRequest for a key that cannot be sent in a header."""
    if key and not (key.isascii() and key.isprintable()):
        raise InvalidRequest({"Idempotency-Key": ["Must be of printable ASCII characters, for example a UUID."]})
    return key or retry.new_key()


def _upload(retry: RetryPolicy, source: ImageSource, key: str, on_upload: OnUpload | None) -> Flow[Upload]:
    content_type, body = inputs.multipart(source, on_upload)
    request = Request(
        method="POST",
        url="/v2/uploads",
        headers={"Content-Type": content_type, "Idempotency-Key": key},
        body=body,
    )
    return Upload.read((yield from call(retry, request)))


def _body(retry: RetryPolicy, request: JobRequest, key: str, on_upload: OnUpload | None) -> Flow[bytes]:
    params = with_full_names(request.params)
    params_key = yield from _params_key(retry, request.model)
    params = {"image": (yield from _image_url(retry, request.image, key, on_upload)), **params}
    body: dict[str, Any] = {"model": request.model, params_key: params}
    if request.webhook_url:
        body["webhookUrl"] = request.webhook_url
    if request.webhook_events is not None:
        body["webhookEvents"] = list(request.webhook_events)
    try:
        return json.dumps(body, allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise InvalidRequest({"_root": [f"A parameter cannot be sent: {error}."]}) from error


def _image_url(retry: RetryPolicy, image: Image, key: str, on_upload: OnUpload | None) -> Flow[str]:
    """Return the URL by which a submission names its image: its own, a data URI, or that of a new upload.

    The upload's key is derived from the submission's, so that repeating the call names the same URL.
    """
    if (url := inputs.url_of(image)) is not None:
        return url
    source: ImageSource = yield Run(work=partial(inputs.source_of, image))
    if source.size <= retry.inline_bytes:
        data: bytes = yield Run(work=source.read)
        return inputs.data_uri(data)
    uploaded = yield from _upload(retry, source, str(uuid.uuid5(_UPLOAD_KEYS, key)), on_upload)
    return uploaded.url


def _params_key(retry: RetryPolicy, model_id: str) -> Flow[str]:
    """Return the field that holds a model's parameters, asking the server for a model unknown to this release."""
    known = catalog.find_model(model_id)
    if known is not None:
        return known.params_key
    offered = yield from models(retry)
    for model in offered:
        if model.id == model_id and model.params_key:
            return model.params_key
    names = ", ".join(model.id for model in offered if model.params_key)
    raise InvalidRequest({"model": [f"Expected one of {names}"]})
