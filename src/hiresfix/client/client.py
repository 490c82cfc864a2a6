"""`Client` and `AsyncClient`: the same calls, one blocking, one to be awaited.

    with hiresfix.Client() as client:                               # HIRESFIX_URL, HIRESFIX_API_KEY
        client.upscale("in.jpg", "out.png", scale=2, creativity=0.35)

        job = client.images.upscale("in.jpg", scale=4)
        job.wait(on_progress=lambda job: print(job.status, job.progress))
        job.save("out.png")

A method here names a flow (`hiresfix.client.flows`, `waiting`) and has it run; what a call does is written there, once.
Raises `hiresfix.errors.HiresfixError` and its like everywhere; methods say only what else.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import httpx

from hiresfix.client import arguments, downloads, drivers, flows, job_watch
from hiresfix.client.arguments import DEFAULT_MODEL, AnyPath, OnProgress, OnUpload
from hiresfix.client.effects import Flow
from hiresfix.client.failures import outcome
from hiresfix.client.flows import Terms
from hiresfix.client.inputs import Image
from hiresfix.client.result import Result
from hiresfix.client.values import Event, Job, Me, Model, Params, Preview, Scope, Upload

T = TypeVar("T")


class JobHandle:
    """A job on a server, and what was last heard of it (`job`)."""

    def __init__(self, client: Client, job: Job) -> None:
        self._client = client
        self.job = job

    def __repr__(self) -> str:
        return f"<JobHandle {self.id} {self.status} {self.progress} %>"

    @property
    def id(self) -> str:
        return self.job.id

    @property
    def status(self) -> str:
        """QUEUED, PROCESSING, COMPLETED, FAILED or CANCELLED, as last heard."""
        return self.job.status

    @property
    def progress(self) -> int:
        """Percent, as last heard."""
        return self.job.progress

    def refresh(self) -> Job:
        """Ask for the job as it is now."""
        self.job = self._client._run(flows.get(self._client.terms, self.id))
        return self.job

    def wait(self, on_progress: OnProgress | None = None, *, timeout: float | None = None) -> Job:
        """Wait until the job has its result, through lost connections and restarts of the server.

        timeout: seconds, None for as long as it takes. Raises JobFailed, JobCancelled, JobTimedOut.
        """
        if self.job.status != "COMPLETED" or not self.job.images:
            watch = job_watch.follow(self._client.terms, self.id, arguments.telling(on_progress), seconds=timeout)
            self.job = self._client._run(watch)
        return outcome(self.job)

    def events(self, *, timeout: float | None = None) -> Iterator[Job]:
        """Yields every new state of the job, to the one in which it is over, whatever that is. Raises JobTimedOut."""
        for job in self._client._each(job_watch.follow(self._client.terms, self.id, arguments.giving, seconds=timeout)):
            self.job = job
            yield job

    def result(self, on_progress: OnProgress | None = None, *, timeout: float | None = None) -> Result:
        """Wait, and fetch the picture into memory. Raises as `wait` does, and Expired for a result that is deleted."""
        job = self.wait(on_progress, timeout=timeout)
        return Result(job=job, data=self._client._run(downloads.download(self._client.terms, job)))

    def save(self, path: AnyPath, on_progress: OnProgress | None = None, *, timeout: float | None = None) -> Path:
        """Wait, and write the picture to `path`, whole or not at all; into a folder under the job's id.

        Returns where it is. Raises as `result` does, ValueError for the suffix of another format, and OSError.
        """
        job = self.wait(on_progress, timeout=timeout)
        return self._client._run(downloads.save(self._client.terms, job, Path(path)))

    def cancel(self) -> Job:
        """End the job; its credits come back. Raises Conflict if it is over already."""
        self.job = self._client._run(flows.cancel(self._client.terms, self.id))
        return self.job


class Images:
    """`client.images`."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def upscale(
        self,
        image: Image,
        *,
        model: str = DEFAULT_MODEL,
        webhook_url: str | None = None,
        webhook_events: Event | Sequence[Event] | None = None,
        idempotency_key: str | None = None,
        on_upload: OnUpload | None = None,
        extra: dict[str, Any] | None = None,
        **params: Unpack[Params],
    ) -> JobHandle:
        """Submit a picture; returns as soon as the job is accepted and paid for.

        image: a path, URL, bytes, open file, PIL.Image, array or upload; what is large is uploaded first, streamed.
        params: the knobs, see `help(hiresfix.Client)`; what is not given is at its default.
        webhook_url: where the server is to tell what becomes of the job (`hiresfix.verify_webhook`). webhook_events:
        which of progress, completed, failed; the last two by default.
        idempotency_key: pass your own to get the same job for the same call, also from another process, for a day.
        on_upload: called with bytes sent and bytes in all. extra: parameters that this release has no name for.
        """
        order = arguments.order(image, model, params, extra, webhook_url, webhook_events)
        client = self._client
        return JobHandle(client, client._run(flows.submit(client.terms, order, key=idempotency_key, report=on_upload)))

    def preview(
        self,
        image: Image,
        *,
        model: str = DEFAULT_MODEL,
        extra: dict[str, Any] | None = None,
        **params: Unpack[Params],
    ) -> Preview:
        """What `upscale` would cost and make; nothing is charged."""
        return self._client._run(flows.preview(self._client.terms, arguments.order(image, model, params, extra)))


class Jobs:
    """`client.jobs`."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def get(self, id: str) -> JobHandle:  # noqa: A002  # the API's own name
        """A job by its id. Raises NotFound."""
        return JobHandle(self._client, self._client._run(flows.get(self._client.terms, id)))

    def list(
        self,
        *,
        status: str | None = None,
        model: str | None = None,
        scope: Scope | None = None,
        page_size: int | None = None,
        limit: int | None = None,
    ) -> Iterator[JobHandle]:
        """Jobs, the newest first, page after page as they are asked for; at most `limit` of them."""
        query = flows.job_query(status=status, model=model, scope=scope, page_size=page_size)
        for job in self._client._each(flows.listing(self._client.terms, query, limit)):
            yield JobHandle(self._client, job)

    def events(self, id: str, *, timeout: float | None = None) -> Iterator[Job]:  # noqa: A002
        """Every new state of a job, to its end."""
        return self._client._each(job_watch.follow(self._client.terms, id, arguments.giving, seconds=timeout))

    def cancel(self, id: str) -> Job:  # noqa: A002
        """End a job; its credits come back. Raises Conflict if it is over already, NotFound."""
        return self._client._run(flows.cancel(self._client.terms, id))


class Uploads:
    """`client.uploads`."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def create(
        self, image: Image, *, idempotency_key: str | None = None, on_progress: OnUpload | None = None
    ) -> Upload:
        """Hand in a picture, streamed from where it is; submissions can name its `url` for a while."""
        client = self._client
        return client._run(flows.upload(client.terms, image, key=idempotency_key, report=on_progress))


class Client:
    """A server that enlarges pictures. May be shared by threads; close it, or use it in a `with`.

        with hiresfix.Client() as client:  # HIRESFIX_URL and HIRESFIX_API_KEY say where, and who asks
            client.upscale("in.jpg", "out.png", scale=2, creativity=0.35)

    What there is, each with help of its own:

        client.upscale(image, out)              submit, wait and save in one call
        client.images.upscale(image)            submit; a JobHandle to wait(), save(path), result(), events(), cancel()
        client.images.preview(image)            what that would cost, and make
        client.jobs.get(id), .list(), .events(id), .cancel(id)
        client.uploads.create(image)            hand a picture in once, name its url often
        client.me(), client.models()            whose the key is and the credits left; what is on offer

    The knobs, all optional, as keyword arguments of `upscale` and `preview`:

        scale            1, 2, 4, 8 (default 2): how many times wider and higher
        creativity       0 to 1 (0.35): how much detail may be invented
        resemblance      0 to 3 (0.6): how tightly to follow the picture
        dynamic          1 to 50 (6): contrast and crispness
        steps            1 to 100 (18): refinement steps
        sharpen          0 to 10 (0): sharpening at the end
        prompt, negative_prompt                 what kind of detail to add, and to avoid
        seed             the same one makes the same picture again
        output_format    png, jpg, webp (png)
        content          photo, anime (photo); of the model faithful-upscale, which has scale, sharpen and output_format
    """

    def __init__(
        self,
        *,
        url: str | None = None,
        api_key: str | None = None,
        timeout: float | httpx.Timeout | None = None,
        proxy: str | httpx.Proxy | None = None,
        terms: Terms | None = None,
        http_client: httpx.Client | None = None,
    ) -> None:
        """url, api_key: by default HIRESFIX_URL, or this machine's `hiresfix serve`, and HIRESFIX_API_KEY.

        timeout: seconds of silence, 60 by default (10 to connect). proxy: by default HTTPS_PROXY, HTTP_PROXY or
        ALL_PROXY, but for hosts in NO_PROXY. terms: retries, patience and so on. http_client: your own, with whatever
        else httpx can do; it is not closed here. Raises ConfigurationError.
        """
        self._server = arguments.server(url, api_key)
        self.terms = terms or Terms()
        self._own = http_client is None
        self._http = http_client or arguments.opened(httpx.Client, timeout, proxy)
        self.images, self.jobs, self.uploads = Images(self), Jobs(self), Uploads(self)

    def __repr__(self) -> str:
        return f"<Client {self.url}>"

    @property
    def url(self) -> str:
        """The server's address."""
        return self._server.address

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        if self._own:
            self._http.close()

    def upscale(
        self,
        image: Image,
        out: AnyPath,
        *,
        model: str = DEFAULT_MODEL,
        on_progress: OnProgress | None = None,
        timeout: float | None = None,
        idempotency_key: str | None = None,
        extra: dict[str, Any] | None = None,
        **params: Unpack[Params],
    ) -> Path:
        """Submit, wait, and save as `out`, whose suffix says the format. Returns where it is.

        image, knobs: as `images.upscale`. on_progress: called with every new state (`Job`). timeout: seconds that the
        job may take once it is accepted, None for as long as it takes. Raises JobFailed, JobCancelled, JobTimedOut;
        before anything is sent ValueError for a suffix, and OSError for a place, that cannot be written.
        """
        params = arguments.into(out, params)
        self._run(downloads.writable(Path(out)))
        job = self.images.upscale(image, model=model, idempotency_key=idempotency_key, extra=extra, **params)
        return job.save(out, on_progress, timeout=timeout)

    def me(self) -> Me:
        """Whose the key is, and the team's credits."""
        return self._run(flows.me(self.terms))

    def models(self, modality: str | None = None) -> tuple[Model, ...]:
        """What is on offer, with prices and parameters."""
        return self._run(flows.models(self.terms, modality))

    def _run(self, flow: Flow[T]) -> T:
        """Run a flow on this client's connections."""
        return drivers.run(self._http, self._server, flow)

    def _each(self, flow: Flow[Any]) -> Iterator[Job]:
        """Run a flow and yield what it gives."""
        yield from drivers.steps(self._http, self._server, flow)
