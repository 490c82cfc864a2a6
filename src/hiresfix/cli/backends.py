"""Backends of `hiresfix upscale`: the engine on this machine, or a server."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from hiresfix.cli.inputs import UpscaleTask
from hiresfix.cli.resume_log import ResumeLog
from hiresfix.recipe import Recipe
from hiresfix.states import JobState

if TYPE_CHECKING:
    from hiresfix.client import Client, Job, JobHandle
    from hiresfix.engine.upscaler import Upscaler

PATIENT_RETRIES, PATIENT_SECONDS = 200, 600.0
"""Retry policy once the server has accepted a job."""
OnProgress: TypeAlias = Callable[[float, str], None]
"""Called with a fraction from 0 to 1 and what is being done; empty for the upscaling itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskResult:
    """Facts about a finished task."""

    summary: str
    notes: tuple[str, ...] = ()
    seed: int | None = None
    width: int | None = None
    height: int | None = None
    job: str | None = None


class Backend(Protocol):
    """Runs one task; several threads may call it if `max_parallel` is above 1. A failure leaves no file behind."""

    @property
    def max_parallel(self) -> int: ...
    def upscale(self, task: UpscaleTask, on_progress: OnProgress) -> TaskResult: ...
    def close(self) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalBackend:
    """The engine on this machine."""

    upscaler: Upscaler
    recipe: Recipe
    strip: bool
    max_parallel: int = 1

    def upscale(self, task: UpscaleTask, on_progress: OnProgress) -> TaskResult:
        from hiresfix import images, local
        from hiresfix.files import PartFile

        data = task.source.read_bytes()
        header = images.read_header(data, images.ImageLimits())
        result = local.upscale_bytes(
            data,
            self.recipe,
            self.upscaler,
            keep_metadata=not self.strip,
            on_progress=lambda fraction: on_progress(fraction, ""),
        )
        encoded = result.encode()
        with PartFile(task.target) as part:
            part.write(encoded.data)
            part.finish()
        return TaskResult(
            summary=f"{header.width}x{header.height} -> {encoded.width}x{encoded.height}, seed {result.seed}",
            notes=(*result.metadata["warnings"], *result.decoded.notes, *encoded.notes),
            seed=result.seed,
            width=encoded.width,
            height=encoded.height,
        )

    def close(self) -> None:
        """Do nothing: no resource is held open."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteBackend:
    """A server. Resumes what any earlier run submitted and did not fetch, without paying twice."""

    client: Client
    model: str
    params: Mapping[str, Any]
    log: ResumeLog
    fingerprint: str
    max_parallel: int

    def upscale(self, task: UpscaleTask, on_progress: OnProgress) -> TaskResult:
        from hiresfix.client import JobEnded

        handle = self._job(task, on_progress)
        # The server has accepted a job, so it is the right one and worth waiting for.
        self.client.retry = replace(
            self.client.retry, retries=PATIENT_RETRIES, longest_call=PATIENT_SECONDS, patience=PATIENT_SECONDS
        )
        try:
            handle.save(task.target, lambda state: on_progress(state.progress / 100, _activity(state)))
        except JobEnded:
            self.log.forget(task)
            raise
        job = handle.job
        size = f"{job.width}x{job.height}" if job.width and job.height else "done"
        return TaskResult(
            summary=f"{size}, seed {job.seed}" if job.seed is not None else size,
            notes=tuple((job.metadata or {}).get("warnings", ())),
            seed=job.seed,
            width=job.width,
            height=job.height,
            job=job.id,
        )

    def close(self) -> None:
        self.client.close()

    def _job(self, task: UpscaleTask, on_progress: OnProgress) -> JobHandle:
        """Return the job of an earlier run, or submit a new one."""
        from hiresfix.errors import Conflict, NotFound

        unfinished = self.log.resume(task, self.fingerprint)
        if unfinished.job is not None:
            try:
                job = self.client.jobs.get(unfinished.job)
            except NotFound:
                job = None
            if job is not None and job.status not in (JobState.FAILED, JobState.CANCELLED) and not job.job.expired:
                return job
            unfinished = self.log.restart(task, self.fingerprint)
        try:
            job = self._submit(task, unfinished.key, on_progress)
        except Conflict:  # the key was used for an image that has changed since
            unfinished = self.log.restart(task, self.fingerprint)
            job = self._submit(task, unfinished.key, on_progress)
        self.log.record_job(task, job.id)
        return job

    def _submit(self, task: UpscaleTask, key: str, on_progress: OnProgress) -> JobHandle:
        return self.client.images.upscale(
            task.source,
            model=self.model,
            idempotency_key=key,
            on_upload=lambda sent, total: on_progress(0.0, f"uploading {100 * sent // total} %"),
            extra=dict(self.params),
        )


def _activity(job: Job) -> str:
    if job.status == JobState.QUEUED:
        return f"queued, {job.queue_position} ahead of it" if job.queue_position else "queued"
    return ""
