"""`Client`: the blocking client. `hiresfix.client.async_client` has the same calls for asyncio.

    with hiresfix.Client() as client:                               # HIRESFIX_URL, HIRESFIX_API_KEY
        client.upscale("in.jpg", "out.png", scale=2, creativity=0.35)

        job = client.images.upscale("in.jpg", scale=4)
        job.wait(on_progress=lambda job: print(job.status, job.progress))
        job.save("out.png")

A method here picks a flow (`hiresfix.client.flows`, `job_watch`, `downloads`) and runs it. The flow holds the logic for
both clients. Every method may raise `hiresfix.errors.HiresfixError`; docstrings list only further exceptions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import httpx

from hiresfix.client import arguments, downloads, drivers, flows, job_watch
from hiresfix.client.arguments import DEFAULT_MODEL, AnyPath, OnProgress
from hiresfix.client.effects import Flow, OnUpload
from hiresfix.client.failures import require_result
from hiresfix.client.inputs import Image
from hiresfix.client.result import Result
from hiresfix.client.retry import RetryPolicy
from hiresfix.client.values import Event, Job, Me, ModelInfo, Params, Preview, Scope, Upload
from hiresfix.states import JobState

T = TypeVar("T")


class JobHandle:
    """A job on the server, with its last known state (`job`)."""

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
        """QUEUED, PROCESSING, COMPLETED, FAILED or CANCELLED, as last known."""
        return self.job.status

    @property
    def progress(self) -> int:
        """Percent, as last known."""
        return self.job.progress

    def refresh(self) -> Job:
        """Ask the server for the current state."""
        self.job = self._client._run(flows.get(self._client.retry, self.id))
        return self.job

    def wait(self, on_progress: OnProgress | None = None, *, timeout: float | None = None) -> Job:
        """Wait until the job has its result. Survives lost connections and restarts of the server.

        Args:
            on_progress: called with every new state.
            timeout: seconds; None for as long as it takes.

        Raises:
            JobFailed: the job failed.
            JobCancelled: the job was cancelled.
            JobTimedOut: the job was not over within `timeout`.
        """
        if self.job.status != JobState.COMPLETED or not self.job.images:
            notify = arguments.notifier(on_progress)
            self.job = self._client._run(job_watch.watch_job(self._client.retry, self.id, notify, timeout=timeout))
        return require_result(self.job)

    def events(self, *, timeout: float | None = None) -> Iterator[Job]:
        """Yield every new state of the job until it is over, with or without a result. Raises JobTimedOut."""
        watch = job_watch.watch_job(self._client.retry, self.id, arguments.yield_job, timeout=timeout)
        for job in self._client._iterate(watch):
            self.job = job
            yield job

    def result(self, on_progress: OnProgress | None = None, *, timeout: float | None = None) -> Result:
        """Wait, then download the image into memory. Raises as `wait` does, and Expired for a deleted result."""
        job = self.wait(on_progress, timeout=timeout)
        return Result(job=job, data=self._client._run(downloads.download(self._client.retry, job)))

    def save(self, path: AnyPath, on_progress: OnProgress | None = None, *, timeout: float | None = None) -> Path:
        """Wait, then write the image to `path`, completely or not at all. Into a folder under the job's id.

        Returns the path of the file. Raises as `result` does, ValueError for the suffix of another format, and OSError.
        """
        job = self.wait(on_progress, timeout=timeout)
        return self._client._run(downloads.save(self._client.retry, job, Path(path)))

    def cancel(self) -> Job:
        """Cancel the job and get its credits back. Raises Conflict if it is already over."""
        self.job = self._client._run(flows.cancel(self._client.retry, self.id))
        return self.job


class Images:
    """`client.images`: submit and preview jobs."""

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
        """Submit an image; returns as soon as the job is accepted and paid for.

        Args:
            image: a path, URL, bytes, open file, PIL.Image, array or upload. Large images are uploaded first, streamed.
            model: one of `client.models()`.
            webhook_url: address that receives the job's events (`hiresfix.verify_webhook`).
            webhook_events: "progress", "completed", "failed" or several of them; by default the last two.
            idempotency_key: your own key. For a day, the same call with the same key returns the same job, also from
                another process.
            on_upload: called with bytes sent and bytes in total.
            extra: parameters that this release does not know yet.
            params: parameters of the model, see `help(hiresfix.Client)`. The others have their defaults.
        """
        request = arguments.job_request(image, model, params, extra, webhook_url, webhook_events)
        flow = flows.submit(self._client.retry, request, key=idempotency_key, on_upload=on_upload)
        return JobHandle(self._client, self._client._run(flow))

    def preview(
        self,
        image: Image,
        *,
        model: str = DEFAULT_MODEL,
        extra: dict[str, Any] | None = None,
        **params: Unpack[Params],
    ) -> Preview:
        """Return the price and the output size of an `upscale` call. Charges nothing."""
        request = arguments.job_request(image, model, params, extra)
        return self._client._run(flows.preview(self._client.retry, request))


class Jobs:
    """`client.jobs`: find, list, watch and cancel jobs."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def get(self, id: str) -> JobHandle:  # noqa: A002  # the API's own name
        """Return a job by its id. Raises NotFound."""
        return JobHandle(self._client, self._client._run(flows.get(self._client.retry, id)))

    def list(
        self,
        *,
        status: str | None = None,
        model: str | None = None,
        scope: Scope | None = None,
        page_size: int | None = None,
        limit: int | None = None,
    ) -> Iterator[JobHandle]:
        """Yield jobs, newest first, at most `limit`. Pages are fetched as they are needed."""
        query = flows.job_query(status=status, model=model, scope=scope, page_size=page_size)
        for job in self._client._iterate(flows.list_jobs(self._client.retry, query, limit)):
            yield JobHandle(self._client, job)

    def events(self, id: str, *, timeout: float | None = None) -> Iterator[Job]:  # noqa: A002
        """Yield every new state of a job until it is over. Raises JobTimedOut."""
        return self._client._iterate(job_watch.watch_job(self._client.retry, id, arguments.yield_job, timeout=timeout))

    def cancel(self, id: str) -> Job:  # noqa: A002
        """Cancel a job and get its credits back. Raises NotFound, and Conflict if it is already over."""
        return self._client._run(flows.cancel(self._client.retry, id))


class Uploads:
    """`client.uploads`: upload images."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def create(
        self, image: Image, *, idempotency_key: str | None = None, on_progress: OnUpload | None = None
    ) -> Upload:
        """Upload an image, streamed. Submissions can name its `url` until it expires."""
        flow = flows.upload(self._client.retry, image, key=idempotency_key, on_upload=on_progress)
        return self._client._run(flow)


class Client:
    """Client of a hiresfix server. Threads may share it. Close it, or use it in a `with` block.

        with hiresfix.Client() as client:  # server and key from HIRESFIX_URL and HIRESFIX_API_KEY
            client.upscale("in.jpg", "out.png", scale=2, creativity=0.35)

    Calls, each with its own help:

        client.upscale(image, out)              submit, wait and save in one call
        client.images.upscale(image)            submit; a JobHandle to wait(), save(path), result(), events(), cancel()
        client.images.preview(image)            price and output size in advance
        client.jobs.get(id), .list(), .events(id), .cancel(id)
        client.uploads.create(image)            upload an image once, use its url many times
        client.me(), client.models()            owner of the key and credits left; models and prices

    Parameters, all optional, as keyword arguments of `upscale` and `preview`:

        scale            1, 2, 4, 8 (default 2): multiplier of both sides
        creativity       0 to 1 (default 0.35): how much new detail may be invented
        resemblance      0 to 3 (default 0.6): how closely the result follows the input
        dynamic          1 to 50 (default 6): contrast and crispness
        steps            1 to 100 (default 18): refinement steps
        sharpen          0 to 10 (default 0): sharpening at the end
        prompt           what kind of detail to add
        negative_prompt  what to avoid
        seed             the same seed makes the same image again
        output_format    png, jpg, webp (default png)
        content          photo, anime (default photo); only of the model faithful-upscale, which otherwise has only
                         scale, sharpen and output_format
    """

    def __init__(
        self,
        *,
        url: str | None = None,
        api_key: str | None = None,
        timeout: float | httpx.Timeout | None = None,
        proxy: str | httpx.Proxy | None = None,
        retry: RetryPolicy | None = None,
        http_client: httpx.Client | None = None,
        terms: RetryPolicy | None = None,
    ) -> None:
        """Open a client.

        Args:
            url: address of the server; default HIRESFIX_URL, else `hiresfix serve` on this machine.
            api_key: default HIRESFIX_API_KEY.
            timeout: seconds without any data, 60 by default (10 to connect).
            proxy: default HTTPS_PROXY, HTTP_PROXY or ALL_PROXY, except for hosts in NO_PROXY.
            retry: retries, pauses and patience.
            http_client: your own httpx client, for all its other options. It is not closed here.
            terms: old name of `retry`.

        Raises:
            ConfigurationError: the address, key or proxy cannot be used.
        """
        self._endpoint = arguments.endpoint(url, api_key)
        self.retry = arguments.retry_policy(retry, terms)
        self._owns_http = http_client is None
        self._http = http_client or arguments.open_http(httpx.Client, timeout, proxy)
        self.images, self.jobs, self.uploads = Images(self), Jobs(self), Uploads(self)

    def __repr__(self) -> str:
        return f"<Client {self.url}>"

    @property
    def url(self) -> str:
        """Address of the server."""
        return self._endpoint.address

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        if self._owns_http:
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
        """Submit an image, wait, and save the result as `out`. Returns its path.

        Args:
            image: as in `images.upscale`, like `model`, `idempotency_key`, `extra` and `params`.
            out: path of the result; the suffix decides the format.
            model: one of `client.models()`.
            on_progress: called with every new state (`Job`).
            timeout: seconds that the job may take after it was accepted; None for as long as it takes.
            idempotency_key: your own key.
            extra: parameters that this release does not know yet.
            params: parameters of the model, see `help(hiresfix.Client)`.

        Raises:
            JobFailed: the job failed.
            JobCancelled: the job was cancelled.
            JobTimedOut: the job was not over within `timeout`.
            ValueError: the suffix of `out` cannot be written; raised before anything is sent.
            OSError: `out` cannot be written; raised before anything is sent.
        """
        params = arguments.with_format_of(out, params)
        self._run(downloads.check_writable(Path(out)))
        job = self.images.upscale(image, model=model, idempotency_key=idempotency_key, extra=extra, **params)
        return job.save(out, on_progress, timeout=timeout)

    def me(self) -> Me:
        """Return the owner of the key and the team's credits."""
        return self._run(flows.me(self.retry))

    def models(self, modality: str | None = None) -> tuple[ModelInfo, ...]:
        """Return the server's models with prices and parameters."""
        return self._run(flows.models(self.retry, modality))

    def _run(self, flow: Flow[T]) -> T:
        """Run a flow on this client's connections."""
        return drivers.run(self._http, self._endpoint, flow)

    def _iterate(self, flow: Flow[Any]) -> Iterator[Job]:
        """Run a flow and yield its items."""
        yield from drivers.iterate(self._http, self._endpoint, flow)
