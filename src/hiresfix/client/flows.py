"""How to talk to a server: every call, written once, as generators without I/O (`hiresfix.client.effects`).

Guarantees: what is asked again is either harmless to ask twice or carries an Idempotency-Key, made once for a call and
sent with every attempt. Pauses are random between nothing and a bound that doubles, on top of what `Retry-After` asks
for; a server that asks for longer than `Terms.longest_pause` is refused at once, and no attempt begins later than
`Terms.longest_call` after the first. An answer that is a refusal is raised as the error it stands for.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from random import uniform
from typing import Any, Self, TypeAlias

from hiresfix.client import inputs
from hiresfix.client.effects import Close, Do, Flow, Give, Head, Lost, Open, Read, Request, Sleep
from hiresfix.client.errors import ServerUnreachable, UnexpectedAnswer
from hiresfix.client.failures import error_of, retry_after
from hiresfix.client.inputs import Image, Source
from hiresfix.client.values import Job, JobPage, Me, Model, Preview, Upload, spelled_out
from hiresfix.errors import HiresfixError, InvalidRequest
from hiresfix.models import catalog

Report: TypeAlias = Callable[[int, int], object]
"""Hears of bytes sent, of how many in all."""

REPEATED = frozenset({408, 425, 500, 502, 503, 504})
"""Statuses after which asking again can help. 429 too, always: it says that nothing was done."""
FIRST_PAUSE, LONGEST_BACKOFF = 0.5, 8.0
_UPLOADS = uuid.UUID("7f1f2c7e-6a3b-5d0e-9a52-3d0e6b1c8f4a")
MOST_BODY = 64 << 20
"""Bytes of an answer that is no picture."""


def _up_to(most: float) -> float:
    return uniform(0.0, most)  # noqa: S311  # spreads requests, guards nothing


def _random_key() -> str:
    return str(uuid.uuid4())


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """On which terms a client asks. Times are seconds.

    retries: attempts after the first. longest_pause: the most that a `Retry-After` may ask for. longest_call: how long
    after its first attempt a call may still be tried again. patience: how long a server may be away while a job is
    waited for. inline_bytes: pictures up to this size travel inside the submission, larger ones are uploaded first; 0
    uploads all. `clock`, `jitter` (0 to its argument) and `new_key` are the world's.
    """

    retries: int = 5
    longest_pause: float = 120.0
    longest_call: float = 900.0
    patience: float = 300.0
    inline_bytes: int = 192 * 1024
    clock: Callable[[], float] = time.monotonic
    jitter: Callable[[float], float] = _up_to
    new_key: Callable[[], str] = _random_key

    def pause(self, attempt: int, asked: float | None) -> float | None:
        """How long to wait after attempt number `attempt`, from 0; None: longer than there is patience for."""
        if asked is not None and asked > self.longest_pause:
            return None
        return (asked or 0.0) + self.jitter(min(LONGEST_BACKOFF, FIRST_PAUSE * 2**attempt))


# Exchanges ----------------------------------------------------------------------------------------------------------


def exchange(request: Request) -> Flow[tuple[Head, bytes]]:
    """One request and all of its answer. Raises Lost."""
    head: Head = yield Open(request=request)
    return head, (yield from rest())


def rest() -> Flow[bytes]:
    """What is left of the open answer, which is then closed."""
    pieces, length = list[bytes](), 0
    while piece := (yield Read()):
        pieces.append(piece)
        length += len(piece)
        if length > MOST_BODY:
            raise UnexpectedAnswer(f"The answer has more than {MOST_BODY >> 20} MiB. Is the URL that of a server?")
    yield Close()
    return b"".join(pieces)


def unreachable(lost: Lost) -> ServerUnreachable:
    return ServerUnreachable(f"The server did not answer: {lost}. Check HIRESFIX_URL and that the server is running.")


@dataclass(slots=True)
class Attempts:
    """How often one call was tried, and since when."""

    terms: Terms
    began: float
    failed: int = 0

    @classmethod
    def of(cls, terms: Terms) -> Self:
        return cls(terms, terms.clock())

    def begin_anew(self) -> None:
        """There was progress: what failed before counts no more."""
        self.began, self.failed = self.terms.clock(), 0

    def rest(self, error: HiresfixError, *, again: bool, asked: float | None) -> Flow[None]:
        """Sleep until the next attempt; raises the error where there is to be none."""
        pause = self.terms.pause(self.failed, asked)
        if not again or self.failed >= self.terms.retries or pause is None:
            raise error
        if self.terms.clock() + pause - self.began > self.terms.longest_call:
            raise error
        self.failed += 1
        yield Sleep(seconds=pause)


def call(terms: Terms, request: Request) -> Flow[Any]:
    """The JSON that a request is answered with, asked for as often as `terms` allow. Raises HiresfixError."""
    attempts = Attempts.of(terms)
    while True:
        try:
            head, body = yield from exchange(request)
        except Lost as lost:
            error: HiresfixError = unreachable(lost)
            asked, again = None, request.repeatable
        else:
            if head.status < 400:
                return _json(head, body)
            error, asked = error_of(head, body), retry_after(head.headers)
            again = head.status == 429 or (request.repeatable and head.status in REPEATED)
        yield from attempts.rest(error, again=again, asked=asked)


def _json(head: Head, body: bytes) -> Any:
    if 300 <= head.status < 400:  # not followed: the key is for the server that was named
        there = head.headers.get("location", "somewhere else")
        raise UnexpectedAnswer(f"The server sends callers on to {there}. Set HIRESFIX_URL to the address it has there.")
    try:
        return json.loads(body)
    except ValueError as error:
        kind = head.headers.get("content-type", "nothing that it names")
        raise UnexpectedAnswer(f"Expected JSON, got {kind} ({head.status}). Is the URL that of a server?") from error


# Small calls --------------------------------------------------------------------------------------------------------


def me(terms: Terms) -> Flow[Me]:
    return Me.read((yield from call(terms, Request(method="GET", url="/v2/me"))))


def models(terms: Terms, modality: str | None = None) -> Flow[tuple[Model, ...]]:
    query = {"modality": modality} if modality else {}
    return Model.read_all((yield from call(terms, Request(method="GET", url="/v2/models", query=query))))


def get(terms: Terms, job: str) -> Flow[Job]:
    return Job.read((yield from call(terms, Request(method="GET", url=job_path(job)))))


def cancel(terms: Terms, job: str) -> Flow[Job]:
    """Repeating it is safe: a job that is over already is a Conflict, as it is the first time."""
    return Job.read((yield from call(terms, Request(method="POST", url=job_path(job) + "/cancel"))))


def listing(terms: Terms, query: Mapping[str, str | None], most: int | None) -> Flow[None]:
    """Gives the jobs of all pages, the newest first, at most `most`."""
    wanted = {name: value for name, value in query.items() if value is not None}
    given, cursor = 0, ""
    while True:
        asked = Request(method="GET", url="/v2/jobs", query={**wanted, **({"cursor": cursor} if cursor else {})})
        page = JobPage.read((yield from call(terms, asked)))
        for job in page.jobs:
            if most is not None and given >= most:
                return
            yield Give(item=job)
            given += 1
        if not page.cursor or page.cursor == cursor:
            return
        cursor = page.cursor


def job_query(
    *, status: str | None, model: str | None, scope: str | None, page_size: int | None
) -> dict[str, str | None]:
    """What `listing` asks for, by the API's names; None is not asked for."""
    return {"status": status, "model": model, "scope": scope, "limit": None if page_size is None else str(page_size)}


def job_path(job: object) -> str:
    """Raises InvalidRequest for an id that would lead somewhere else, TypeError for what is none."""
    if not isinstance(job, str):
        raise TypeError(f"A job is named by its id, a str, not {type(job).__name__}.")
    if not job or not all(character.isalnum() or character in "-_" for character in job):
        raise InvalidRequest({"id": [f"{job!r} is no job's id. Use the one that the submission was answered with."]})
    return f"/v2/jobs/{job}"


# Pictures in --------------------------------------------------------------------------------------------------------


def _key(terms: Terms, given: str | None) -> str:
    """The caller's Idempotency-Key, or a new one. Raises InvalidRequest for one that no header can hold."""
    if given and not (given.isascii() and given.isprintable()):
        raise InvalidRequest({"Idempotency-Key": ["Must be of printable ASCII characters, for example a UUID."]})
    return given or terms.new_key()


def upload(terms: Terms, image: Image, *, key: str | None = None, report: Report | None = None) -> Flow[Upload]:
    """Hand a picture in, streamed from where it is; `report(sent, total)` hears of bytes, anew with each attempt."""
    key = _key(terms, key)
    source = yield Do(work=partial(inputs.source_of, image))
    return (yield from _upload(terms, source, key, report))


def _upload(terms: Terms, source: Source, key: str, report: Report | None) -> Flow[Upload]:
    content_type, body = inputs.multipart(source, report)
    request = Request(
        method="POST",
        url="/v2/uploads",
        headers={"Content-Type": content_type, "Idempotency-Key": key},
        body=body,
    )
    return Upload.read((yield from call(terms, request)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What is to be made of which picture. `params` by the API's names, or short; webhook None: nobody is told."""

    image: Image
    model: str
    params: Mapping[str, Any]
    webhook_url: str | None = None
    webhook_events: tuple[str, ...] | None = None


def submit(terms: Terms, order: Order, *, key: str | None = None, report: Report | None = None) -> Flow[Job]:
    """Submit, uploading first what is too large to go along; `key` is made here if the caller has none."""
    key = _key(terms, key)
    body = yield from _body(terms, order, key, report)
    headers = {"Content-Type": "application/json", "Idempotency-Key": key}
    request = Request(method="POST", url="/v2/images/upscale", headers=headers, body=body)
    return Job.read((yield from call(terms, request)))


def preview(terms: Terms, order: Order) -> Flow[Preview]:
    """What `submit` would cost. Nothing is charged; repeating it is safe."""
    request = Request(
        method="POST",
        url="/v2/images/upscale",
        query={"dryRun": "true"},
        headers={"Content-Type": "application/json"},
        body=(yield from _body(terms, order, terms.new_key(), None)),
    )
    return Preview.read((yield from call(terms, request)))


def _body(terms: Terms, order: Order, key: str, report: Report | None) -> Flow[bytes]:
    params = spelled_out(order.params)
    params_key = yield from _params_key(terms, order.model)
    params = {"image": (yield from _address(terms, order.image, key, report)), **params}
    asked: dict[str, Any] = {"model": order.model, params_key: params}
    if order.webhook_url:
        asked["webhookUrl"] = order.webhook_url
    if order.webhook_events is not None:
        asked["webhookEvents"] = list(order.webhook_events)
    try:
        return json.dumps(asked, allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise InvalidRequest({"_root": [f"A parameter cannot be sent: {error}."]}) from error


def _address(terms: Terms, image: Image, key: str, report: Report | None) -> Flow[str]:
    """The URL by which a submission names the picture: its own, a data URI, or that of an upload made now.

    The upload's key follows from the submission's, so that the same call made again names the same URL.
    """
    if (url := inputs.url_of(image)) is not None:
        return url
    source: Source = yield Do(work=partial(inputs.source_of, image))
    if source.size <= terms.inline_bytes:
        data: bytes = yield Do(work=source.read)
        return inputs.data_uri(data)
    uploaded = yield from _upload(terms, source, str(uuid.uuid5(_UPLOADS, key)), report)
    return uploaded.url


def _params_key(terms: Terms, model: str) -> Flow[str]:
    """Where a model's parameters go: as this release knows it, or as the server says."""
    known = catalog.find_model(model)
    if known is not None:
        return known.params_key
    offered = yield from models(terms)
    for entry in offered:
        if entry.id == model and entry.params_key:
            return entry.params_key
    names = ", ".join(entry.id for entry in offered if entry.params_key)
    raise InvalidRequest({"model": [f"Expected one of {names}"]})
