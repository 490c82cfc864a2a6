"""`AsyncClient`: the calls of `Client`, for asyncio.

    async with hiresfix.AsyncClient() as client:
        job = await client.images.upscale("in.jpg", scale=4)
        async for state in job.events():
            print(state.status, state.progress)
        await job.save("out.png")

Files are read and written in threads, so nothing here blocks the event loop.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import httpx

from hiresfix.client import arguments, downloads, drivers, flows, job_watch
from hiresfix.client.arguments import DEFAULT_MODEL, AnyPath, OnProgress
from hiresfix.client.drivers import Returned
from hiresfix.client.effects import Flow, OnUpload
from hiresfix.client.failures import require_result
from hiresfix.client.inputs import Image
from hiresfix.client.result import Result
from hiresfix.client.retry import RetryPolicy
from hiresfix.client.values import Event, Job, Me, ModelInfo, Params, Preview, Scope, Upload
from hiresfix.states import JobState

T = TypeVar("T")


class AsyncJobHandle:
    """`JobHandle` for asyncio."""

    def __init__(self, client: AsyncClient, job: Job) -> None:
        self._client = client
        self.job = job

    def __repr__(self) -> str:
        return f"<AsyncJobHandle {self.id} {self.status} {self.progress} %>"

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

    async def refresh(self) -> Job:
        """Ask the server for the current state."""
        self.job = await self._client._run(flows.get(self._client.retry, self.id))
        return self.job

    async def wait(self, on_progress: OnProgress | None = None, *, timeout: float | None = None) -> Job:  # noqa: ASYNC109  # JobTimedOut carries the job
        """Like `JobHandle.wait`."""
        if self.job.status != JobState.COMPLETED or not self.job.images:
            notify = arguments.notifier(on_progress)
            watch = job_watch.watch_job(self._client.retry, self.id, notify, timeout=timeout)
            self.job = await self._client._run(watch)
        return require_result(self.job)

    async def events(self, *, timeout: float | None = None) -> AsyncGenerator[Job]:  # noqa: ASYNC109
        """Like `JobHandle.events`."""
        watch = job_watch.watch_job(self._client.retry, self.id, arguments.yield_job, timeout=timeout)
        async with aclosing(self._client._iterate(watch)) as states:
            async for job in states:
                self.job = job
                yield job

    async def result(self, on_progress: OnProgress | None = None, *, timeout: float | None = None) -> Result:  # noqa: ASYNC109
        """Like `JobHandle.result`."""
        job = await self.wait(on_progress, timeout=timeout)
        return Result(job=job, data=await self._client._run(downloads.download(self._client.retry, job)))

    async def save(self, path: AnyPath, on_progress: OnProgress | None = None, *, timeout: float | None = None) -> Path:  # noqa: ASYNC109
        """Like `JobHandle.save`."""
        job = await self.wait(on_progress, timeout=timeout)
        return await self._client._run(downloads.save(self._client.retry, job, Path(path)))

    async def cancel(self) -> Job:
        """Like `JobHandle.cancel`."""
        self.job = await self._client._run(flows.cancel(self._client.retry, self.id))
        return self.job


class AsyncImages:
    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    async def upscale(
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
    ) -> AsyncJobHandle:
        """Like `Images.upscale`."""
        request = arguments.job_request(image, model, params, extra, webhook_url, webhook_events)
        flow = flows.submit(self._client.retry, request, key=idempotency_key, on_upload=on_upload)
        return AsyncJobHandle(self._client, await self._client._run(flow))

    async def preview(
        self,
        image: Image,
        *,
        model: str = DEFAULT_MODEL,
        extra: dict[str, Any] | None = None,
        **params: Unpack[Params],
    ) -> Preview:
        """Like `Images.preview`."""
        request = arguments.job_request(image, model, params, extra)
        return await self._client._run(flows.preview(self._client.retry, request))


class AsyncJobs:
    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    async def get(self, id: str) -> AsyncJobHandle:  # noqa: A002
        """Like `Jobs.get`."""
        return AsyncJobHandle(self._client, await self._client._run(flows.get(self._client.retry, id)))

    async def list(
        self,
        *,
        status: str | None = None,
        model: str | None = None,
        scope: Scope | None = None,
        page_size: int | None = None,
        limit: int | None = None,
    ) -> AsyncGenerator[AsyncJobHandle]:
        """Like `Jobs.list`."""
        query = flows.job_query(status=status, model=model, scope=scope, page_size=page_size)
        async with aclosing(self._client._iterate(flows.list_jobs(self._client.retry, query, limit))) as jobs:
            async for job in jobs:
                yield AsyncJobHandle(self._client, job)

    def events(self, id: str, *, timeout: float | None = None) -> AsyncGenerator[Job]:  # noqa: A002
        """Like `Jobs.events`."""
        return self._client._iterate(job_watch.watch_job(self._client.retry, id, arguments.yield_job, timeout=timeout))

    async def cancel(self, id: str) -> Job:  # noqa: A002
        """Like `Jobs.cancel`."""
        return await self._client._run(flows.cancel(self._client.retry, id))


class AsyncUploads:
    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    async def create(
        self, image: Image, *, idempotency_key: str | None = None, on_progress: OnUpload | None = None
    ) -> Upload:
        """Like `Uploads.create`."""
        flow = flows.upload(self._client.retry, image, key=idempotency_key, on_upload=on_progress)
        return await self._client._run(flow)


class AsyncClient:
    """`Client` for asyncio; `help(hiresfix.Client)` lists all calls and parameters.

    async with hiresfix.AsyncClient() as client:
        await client.upscale("in.jpg", "out.png", scale=2, creativity=0.35)
    """

    def __init__(
        self,
        *,
        url: str | None = None,
        api_key: str | None = None,
        timeout: float | httpx.Timeout | None = None,
        proxy: str | httpx.Proxy | None = None,
        retry: RetryPolicy | None = None,
        http_client: httpx.AsyncClient | None = None,
        terms: RetryPolicy | None = None,
    ) -> None:
        """Like `Client`."""
        self._endpoint = arguments.endpoint(url, api_key)
        self.retry = arguments.retry_policy(retry, terms)
        self._owns_http = http_client is None
        self._http = http_client or arguments.open_http(httpx.AsyncClient, timeout, proxy)
        self.images, self.jobs, self.uploads = AsyncImages(self), AsyncJobs(self), AsyncUploads(self)

    def __repr__(self) -> str:
        return f"<AsyncClient {self.url}>"

    @property
    def url(self) -> str:
        """Address of the server."""
        return self._endpoint.address

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections."""
        if self._owns_http:
            await self._http.aclose()

    async def upscale(
        self,
        image: Image,
        out: AnyPath,
        *,
        model: str = DEFAULT_MODEL,
        on_progress: OnProgress | None = None,
        timeout: float | None = None,  # noqa: ASYNC109
        idempotency_key: str | None = None,
        extra: dict[str, Any] | None = None,
        **params: Unpack[Params],
    ) -> Path:
        """Like `Client.upscale`."""
        params = arguments.with_format_of(out, params)
        await self._run(downloads.check_writable(Path(out)))
        job = await self.images.upscale(image, model=model, idempotency_key=idempotency_key, extra=extra, **params)
        return await job.save(out, on_progress, timeout=timeout)

    async def me(self) -> Me:
        """Like `Client.me`."""
        return await self._run(flows.me(self.retry))

    async def models(self, modality: str | None = None) -> tuple[ModelInfo, ...]:
        """Like `Client.models`."""
        return await self._run(flows.models(self.retry, modality))

    async def _run(self, flow: Flow[T]) -> T:
        """Run a flow on this client's connections."""
        return await drivers.async_run(self._http, self._endpoint, flow)

    async def _iterate(self, flow: Flow[Any]) -> AsyncGenerator[Job]:
        """Run a flow and yield its items."""
        async with aclosing(drivers.async_iterate(self._http, self._endpoint, flow)) as items:
            async for item in items:
                if isinstance(item, Returned):
                    return
                yield item
