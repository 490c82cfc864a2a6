"""`AsyncClient`: what `Client` does, to be awaited.

    async with hiresfix.AsyncClient() as client:
        job = await client.images.upscale("in.jpg", scale=4)
        async for state in job.events():
            print(state.status, state.progress)
        await job.save("out.png")

Files are read and written in threads, so nothing here keeps the event loop waiting.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import httpx

from hiresfix.client import arguments, downloads, drivers, flows, job_watch
from hiresfix.client.arguments import DEFAULT_MODEL, AnyPath, OnProgress, OnUpload
from hiresfix.client.drivers import Returned
from hiresfix.client.effects import Flow
from hiresfix.client.failures import outcome
from hiresfix.client.flows import Terms
from hiresfix.client.inputs import Image
from hiresfix.client.result import Result
from hiresfix.client.values import Event, Job, Me, Model, Params, Preview, Scope, Upload

T = TypeVar("T")


class AsyncJobHandle:
    """As `JobHandle`, to be awaited."""

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
        """QUEUED, PROCESSING, COMPLETED, FAILED or CANCELLED, as last heard."""
        return self.job.status

    @property
    def progress(self) -> int:
        """Percent, as last heard."""
        return self.job.progress

    async def refresh(self) -> Job:
        """Ask for the job as it is now."""
        self.job = await self._client._run(flows.get(self._client.terms, self.id))
        return self.job

    async def wait(self, on_progress: OnProgress | None = None, *, timeout: float | None = None) -> Job:  # noqa: ASYNC109  # the end of waiting is told with the job
        """As `JobHandle.wait`."""
        if self.job.status != "COMPLETED" or not self.job.images:
            watch = job_watch.follow(self._client.terms, self.id, arguments.telling(on_progress), seconds=timeout)
            self.job = await self._client._run(watch)
        return outcome(self.job)

    async def events(self, *, timeout: float | None = None) -> AsyncGenerator[Job]:  # noqa: ASYNC109
        """As `JobHandle.events`."""
        watch = job_watch.follow(self._client.terms, self.id, arguments.giving, seconds=timeout)
        async with aclosing(self._client._each(watch)) as states:
            async for job in states:
                self.job = job
                yield job

    async def result(self, on_progress: OnProgress | None = None, *, timeout: float | None = None) -> Result:  # noqa: ASYNC109
        """As `JobHandle.result`."""
        job = await self.wait(on_progress, timeout=timeout)
        return Result(job=job, data=await self._client._run(downloads.download(self._client.terms, job)))

    async def save(self, path: AnyPath, on_progress: OnProgress | None = None, *, timeout: float | None = None) -> Path:  # noqa: ASYNC109
        """As `JobHandle.save`."""
        job = await self.wait(on_progress, timeout=timeout)
        return await self._client._run(downloads.save(self._client.terms, job, Path(path)))

    async def cancel(self) -> Job:
        """As `JobHandle.cancel`."""
        self.job = await self._client._run(flows.cancel(self._client.terms, self.id))
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
        """As `Images.upscale`."""
        order = arguments.order(image, model, params, extra, webhook_url, webhook_events)
        client = self._client
        job = await client._run(flows.submit(client.terms, order, key=idempotency_key, report=on_upload))
        return AsyncJobHandle(client, job)

    async def preview(
        self,
        image: Image,
        *,
        model: str = DEFAULT_MODEL,
        extra: dict[str, Any] | None = None,
        **params: Unpack[Params],
    ) -> Preview:
        """As `Images.preview`."""
        return await self._client._run(flows.preview(self._client.terms, arguments.order(image, model, params, extra)))


class AsyncJobs:
    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    async def get(self, id: str) -> AsyncJobHandle:  # noqa: A002
        """As `Jobs.get`."""
        return AsyncJobHandle(self._client, await self._client._run(flows.get(self._client.terms, id)))

    async def list(
        self,
        *,
        status: str | None = None,
        model: str | None = None,
        scope: Scope | None = None,
        page_size: int | None = None,
        limit: int | None = None,
    ) -> AsyncGenerator[AsyncJobHandle]:
        """As `Jobs.list`."""
        query = flows.job_query(status=status, model=model, scope=scope, page_size=page_size)
        async with aclosing(self._client._each(flows.listing(self._client.terms, query, limit))) as found:
            async for job in found:
                yield AsyncJobHandle(self._client, job)

    def events(self, id: str, *, timeout: float | None = None) -> AsyncGenerator[Job]:  # noqa: A002
        """As `Jobs.events`."""
        return self._client._each(job_watch.follow(self._client.terms, id, arguments.giving, seconds=timeout))

    async def cancel(self, id: str) -> Job:  # noqa: A002
        """As `Jobs.cancel`."""
        return await self._client._run(flows.cancel(self._client.terms, id))


class AsyncUploads:
    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    async def create(
        self, image: Image, *, idempotency_key: str | None = None, on_progress: OnUpload | None = None
    ) -> Upload:
        """As `Uploads.create`."""
        client = self._client
        return await client._run(flows.upload(client.terms, image, key=idempotency_key, report=on_progress))


class AsyncClient:
    """As `Client`, whose help has all the calls and knobs; here they are awaited.

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
        terms: Terms | None = None,
        http_client: httpx.AsyncClient | None = None,
    ) -> None:
        """As `Client`."""
        self._server = arguments.server(url, api_key)
        self.terms = terms or Terms()
        self._own = http_client is None
        self._http = http_client or arguments.opened(httpx.AsyncClient, timeout, proxy)
        self.images, self.jobs, self.uploads = AsyncImages(self), AsyncJobs(self), AsyncUploads(self)

    def __repr__(self) -> str:
        return f"<AsyncClient {self.url}>"

    @property
    def url(self) -> str:
        """The server's address."""
        return self._server.address

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        if self._own:
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
        """As `Client.upscale`."""
        params = arguments.into(out, params)
        await self._run(downloads.writable(Path(out)))
        job = await self.images.upscale(image, model=model, idempotency_key=idempotency_key, extra=extra, **params)
        return await job.save(out, on_progress, timeout=timeout)

    async def me(self) -> Me:
        """As `Client.me`."""
        return await self._run(flows.me(self.terms))

    async def models(self, modality: str | None = None) -> tuple[Model, ...]:
        """As `Client.models`."""
        return await self._run(flows.models(self.terms, modality))

    async def _run(self, flow: Flow[T]) -> T:
        """Run a flow on this client's connections."""
        return await drivers.async_run(self._http, self._server, flow)

    async def _each(self, flow: Flow[Any]) -> AsyncGenerator[Job]:
        """Run a flow and yield what it gives."""
        async with aclosing(drivers.async_steps(self._http, self._server, flow)) as items:
            async for item in items:
                if isinstance(item, Returned):
                    return
                yield item
