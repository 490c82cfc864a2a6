"""The two ways to have a picture enlarged from the command line: by the engine here, or by a server."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

from hiresfix.cli.inputs import Errand
from hiresfix.cli.resume_log import Journal
from hiresfix.recipe import Recipe

if TYPE_CHECKING:
    from hiresfix.client import Client, Job, JobHandle
    from hiresfix.engine.upscaler import Upscaler

PATIENT_RETRIES, PATIENT_SECONDS = 200, 600.0
Report = Callable[[float, str], None]
"""Hears of a fraction from 0 to 1 and of what is being done."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """What to say about a result."""

    summary: str
    notes: tuple[str, ...] = ()
    seed: int | None = None
    width: int | None = None
    height: int | None = None
    job: str | None = None


class Enlarger(Protocol):
    """Does one errand; may be called by several threads if `most` is above 1. A failure leaves no file behind."""

    @property
    def most(self) -> int: ...
    def enlarge(self, errand: Errand, report: Report) -> Done: ...
    def close(self) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Here:
    """By this machine's engine."""

    upscaler: Upscaler
    recipe: Recipe
    strip: bool
    most: int = 1

    def enlarge(self, errand: Errand, report: Report) -> Done:
        from hiresfix import images, local
        from hiresfix.files import PartFile

        data = errand.source.read_bytes()
        header = images.read_header(data, images.Limits())
        made = local.enlarge(
            data, self.recipe, self.upscaler, keep_metadata=not self.strip, report=lambda done: report(done, "")
        )
        encoded = made.encode()
        with PartFile(errand.target) as part:
            part.write(encoded.data)
            part.finish()
        return Done(
            summary=f"{header.width}x{header.height} -> {encoded.width}x{encoded.height}, seed {made.seed}",
            notes=(*made.metadata["warnings"], *made.picture.notes, *encoded.notes),
            seed=made.seed,
            width=encoded.width,
            height=encoded.height,
        )

    def close(self) -> None:
        """Nothing is held open."""


@dataclass(frozen=True, slots=True, kw_only=True)
class There:
    """By a server. What was submitted and not fetched, by whichever run, is gone on with and not paid for twice."""

    client: Client
    model: str
    params: Mapping[str, Any]
    journal: Journal
    fingerprint: str

    most: int

    def enlarge(self, errand: Errand, report: Report) -> Done:
        from hiresfix.client import JobEnded

        job = self._job(errand, report)
        # Who has accepted something is the right server, and worth waiting for when the line breaks.
        self.client.terms = replace(
            self.client.terms, retries=PATIENT_RETRIES, longest_call=PATIENT_SECONDS, patience=PATIENT_SECONDS
        )
        try:
            job.save(errand.target, lambda state: report(state.progress / 100, _doing(state)))
        except JobEnded:
            self.journal.forget(errand)
            raise
        told = job.job
        size = f"{told.width}x{told.height}" if told.width and told.height else "done"
        return Done(
            summary=f"{size}, seed {told.seed}" if told.seed is not None else size,
            notes=tuple((told.metadata or {}).get("warnings", ())),
            seed=told.seed,
            width=told.width,
            height=told.height,
            job=told.id,
        )

    def close(self) -> None:
        self.client.close()

    def _job(self, errand: Errand, report: Report) -> JobHandle:
        from hiresfix.errors import Conflict, NotFound

        entry = self.journal.begin(errand, self.fingerprint)
        if entry.job is not None:
            try:
                job = self.client.jobs.get(entry.job)
            except NotFound:
                job = None
            if job is not None and job.status not in ("FAILED", "CANCELLED") and not job.job.expired:
                return job
            entry = self.journal.begin_anew(errand, self.fingerprint)
        try:
            job = self._submit(errand, entry.key, report)
        except Conflict:  # the key was used for a picture that has changed since
            entry = self.journal.begin_anew(errand, self.fingerprint)
            job = self._submit(errand, entry.key, report)
        self.journal.note_job(errand, job.id)
        return job

    def _submit(self, errand: Errand, key: str, report: Report) -> JobHandle:
        return self.client.images.upscale(
            errand.source,
            model=self.model,
            idempotency_key=key,
            on_upload=lambda sent, total: report(0.0, f"uploading {100 * sent // total} %"),
            extra=dict(self.params),
        )


def _doing(job: Job) -> str:
    if job.status == "QUEUED":
        return f"queued, {job.queue_position} before it" if job.queue_position else "queued"
    return ""
