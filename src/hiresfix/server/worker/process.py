"""Worker process: takes jobs from the queue, runs the engine on them and settles them.

Guarantees: the device works on one image at a time; the lease is renewed while the engine makes progress and left to
expire when it does not; nothing is written to a job without its token; webhooks and maintenance run beside the engine
and are never blocked by it; SIGTERM lets the running job finish in time or gives it back. This is the only module of
the server that reaches the engine.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from uuid import UUID, uuid4

import structlog
from uvicorn.loops.auto import auto_loop_factory

from hiresfix import __version__, images, messages, wire
from hiresfix.engine import devices, limits
from hiresfix.engine.progress import ProgressCallback
from hiresfix.engine.upscaler import EngineResult, Upscaler
from hiresfix.errors import BadResult, Cancelled, HiresfixError, ImageError, NotUnderstood, PromptError, StorageFailed
from hiresfix.images import EncodedImage
from hiresfix.models.store import ModelStore
from hiresfix.recipe import Recipe
from hiresfix.server import uploads
from hiresfix.server.database import pool
from hiresfix.server.database.pool import Database, Tx
from hiresfix.server.database.task_queue import Queue
from hiresfix.server.http import metrics_server
from hiresfix.server.jobs import lifecycle, scheduler, worker_registry
from hiresfix.server.jobs.model import (
    AttemptOutcome,
    Claim,
    Completed,
    Failed,
    RejectedResult,
    StoredResult,
    StoreUnavailable,
    Unsupported,
)
from hiresfix.server.jobs.worker_registry import WorkerInfo
from hiresfix.server.platform import hardware, metrics, tracing
from hiresfix.server.sandbox.client import Sandbox
from hiresfix.server.settings import Settings, warn_if_open
from hiresfix.server.storage import Storage
from hiresfix.server.webhooks import delivery, events
from hiresfix.server.worker import self_test
from hiresfix.server.worker.maintenance import Maintenance, repeat
from hiresfix.states import JobState
from hiresfix.units import MEGAPIXEL

log = structlog.get_logger(__name__)

WEBHOOK_CONCURRENCY = 20
"""Webhook attempts in progress in this process; they mostly wait for the receiver and hold no connection."""
RETRY_SECONDS = 2.0
CHECK_SECONDS = 1.0
"""Time between two checks whether the job was cancelled."""
STOP_SECONDS = 2.0
STALLED_EXIT_CODE = 70

ENGINE_SHARE = 0.96
"""The engine's share of a job's progress; decoding, encoding and storing make up the rest."""

LOST = "lost"
_OUTCOME_LABELS = {
    JobState.COMPLETED: "completed",
    JobState.FAILED: "failed",
    JobState.QUEUED: "retried",
    LOST: "lost",
}
REJECTED = messages.JOB_RESULT_REJECTED()
UNEXPECTED = messages.JOB_INTERNAL_ERROR()


@dataclass(slots=True)
class Heartbeat:
    """Shared state of one attempt: the engine's thread reports progress, the loops beside it report a lost claim."""

    claim: Claim
    fraction: float = 0.0
    reported_at: float = field(default_factory=time.monotonic)
    lost: bool = False

    def report(self, fraction: float) -> None:
        """Store the engine's progress; stops the engine by raising Cancelled if the claim was lost."""
        self.fraction, self.reported_at = fraction, time.monotonic()
        if self.lost:
            raise Cancelled


StageTimer = Callable[[str], contextlib.AbstractContextManager[None]]
"""Returns a context manager that measures the stage of this name."""


class AttemptStages:
    """Measures the stages of one attempt; a stage that fails is not measured."""

    def __init__(self, claim: Claim, recipe: Recipe) -> None:
        self._model = claim.model
        self._megapixels = claim.source.width * claim.source.height * recipe.scale**2 / MEGAPIXEL

    def observe(self, stage: str, seconds: float) -> None:
        metrics.observe_stage(self._model, stage, self._megapixels, seconds)

    @contextlib.contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        started = time.perf_counter()
        with tracing.span(stage, hiresfix__megapixels=self._megapixels):
            yield
        self.observe(stage, time.perf_counter() - started)


class WorkerProcess:
    """One process's work on one device, until `run` is cancelled."""

    def __init__(
        self, settings: Settings, *, database: Database, storage: Storage, queue: Queue, sandbox: Sandbox
    ) -> None:
        self.settings = settings
        self.database = database
        self.storage = storage
        self.queue = queue
        self.sandbox = sandbox
        self._upscaler = Upscaler(settings.device, compiled=settings.compile)
        self.info = _worker_info(settings, self._upscaler)
        self._exact = False
        self._heartbeat: Heartbeat | None = None
        self._stop = asyncio.Event()
        queue.register(scheduler.TASK, queue=scheduler.QUEUE, run=self._run_task)
        queue.register(events.TASK, queue=events.QUEUE, run=self._deliver_task)

    async def run_self_test(self) -> None:
        """Run the self-test through the code path of a job. Raises EngineFailed if it fails."""
        started = time.perf_counter()

        def upscale(source: bytes, recipe: Recipe) -> EncodedImage:
            return self._upscale(source, recipe, lambda fraction: None, lambda stage: contextlib.nullcontext())[1]

        try:
            async with asyncio.timeout(self.settings.stall_seconds):
                sides = self_test.DISTINCT_SIDES if self.settings.compile else self_test.IMAGE_SIDES
                await asyncio.to_thread(self_test.run, upscale, self.settings.clarity, sides)
        except TimeoutError:
            log.error("worker.self_test_stalled", seconds=self.settings.stall_seconds)
            os._exit(STALLED_EXIT_CODE)  # its thread cannot be ended
        log.info("worker.self_tested", seconds=round(time.perf_counter() - started, 3))

    async def run(self, stop: asyncio.Event) -> None:
        """Work until `stop` is set; then let the running job finish, or give it back after `drain_seconds`."""
        self._stop = stop
        maintenance = Maintenance(
            settings=self.settings, database=self.database, storage=self.storage, queue=self.queue
        )
        await self._register()
        common, own = scheduler.queue_names(self.info.capacity)
        engine = asyncio.create_task(self.queue.work(queue=common, extra_queues=[own], concurrency=1))
        background = [
            asyncio.create_task(self.queue.work(queue=events.QUEUE, concurrency=WEBHOOK_CONCURRENCY)),
            asyncio.create_task(maintenance.run()),
            asyncio.create_task(repeat(self.settings.maintenance_seconds, self.send_heartbeat)),
        ]
        metrics.WORKER_UP.set(1)
        metrics.DEVICE_MEMORY.read = lambda: devices.memory_usage(self._upscaler.device)
        log.info("worker.started", worker=self.info.name, device=str(self._upscaler.device))
        await stop.wait()
        metrics.WORKER_UP.set(0)
        log.info("worker.draining", worker=self.info.name, busy=self._heartbeat is not None)
        engine.cancel()
        self.info = replace(self.info, draining=True)
        _, unfinished = await asyncio.wait([engine], timeout=self.settings.drain_seconds)
        if unfinished:
            await self._give_back()
            _, unfinished = await asyncio.wait([engine], timeout=STOP_SECONDS)
        for task in background:
            task.cancel()
        await asyncio.wait(background, timeout=STOP_SECONDS)
        await self._unregister()
        log.info("worker.stopped", worker=self.info.name)
        if unfinished:
            # The engine's thread is between two reports and cannot be ended; nothing it does counts any more.
            os._exit(0)

    async def send_heartbeat(self) -> None:
        """Tell the worker registry that this worker is alive."""
        async with self.database.transaction() as tx:
            await worker_registry.heartbeat(tx, self.info, every=self.settings.maintenance_seconds)

    async def _register(self) -> None:
        """Register before anything else looks for work: which tasks are enqueued depends on the registered workers."""
        try:
            await self.send_heartbeat()
        except pool.OUTAGE_ERRORS as error:
            log.warning("worker.not_announced", reason=type(error).__name__)

    async def _unregister(self) -> None:
        with contextlib.suppress(*pool.OUTAGE_ERRORS, TimeoutError):  # its missing heartbeats show it soon enough
            async with asyncio.timeout(STOP_SECONDS), self.database.transaction() as tx:
                await worker_registry.unregister(tx, self.info.id)

    async def _give_back(self) -> None:
        """Give the running job to another worker at once, without waiting for the engine to notice."""
        heartbeat = self._heartbeat
        if heartbeat is None:
            return
        heartbeat.lost = True
        try:
            async with self.database.transaction() as tx:
                given_back = await lifecycle.give_back(tx, self.queue, heartbeat.claim)
        except pool.OUTAGE_ERRORS as error:
            log.warning("job.not_given_back", reason=type(error).__name__)  # its lease will expire
        else:
            log.info("job.given_back" if given_back else "job.lost", job_id=str(heartbeat.claim.id))

    async def _deliver_task(self, delivery_id: str) -> None:
        policy = uploads.http_policy(self.settings)
        await delivery.deliver(self.database, self.queue, UUID(delivery_id), policy=policy)

    async def _run_task(self, job_id: str = "") -> None:
        """Run the next job. `job_id` is in tasks of the first release; the scheduler chooses the job, so ignore it."""
        capacity = self.info.capacity
        claim = await lifecycle.claim(
            self.database, worker=self.info.name, lease_seconds=self.settings.lease_seconds, capacity=capacity
        )
        if claim is None:  # the job was cancelled, is already claimed, or exceeds this worker's capacity
            async with self.database.transaction() as tx:
                await scheduler.wake_capable_workers(tx, self.queue, capacity)
            return
        structlog.contextvars.bind_contextvars(job_id=str(claim.id), attempt=claim.attempt, request_id=claim.request_id)
        log.info("job.claimed", model=claim.model)
        metrics.WORKER_BUSY.set(1)
        started = time.perf_counter()
        heartbeat = self._heartbeat = Heartbeat(claim)
        renewal = asyncio.create_task(self._keep_lease(heartbeat))
        try:
            with tracing.span("job", joins=claim.traceparent, **_span_attributes(claim)):
                outcome = await self._attempt(heartbeat)
        finally:
            renewal.cancel()
            self._heartbeat = None
            metrics.WORKER_BUSY.set(0)
        state = LOST if outcome is None else await self._settle(claim, outcome)
        seconds = time.perf_counter() - started
        metrics.ATTEMPTS.labels(claim.model, _OUTCOME_LABELS[state]).inc()
        if isinstance(outcome, Completed) and state == JobState.COMPLETED:
            megapixels = outcome.result.width * outcome.result.height / MEGAPIXEL
            metrics.observe_stage(claim.model, "total", megapixels, claim.age_seconds + seconds)
        log.info("job.settled", state=state, seconds=round(seconds, 3))
        if isinstance(outcome, StoreUnavailable):
            await self._wait_for_store()

    async def _keep_lease(self, heartbeat: Heartbeat) -> None:
        """Renew the lease every fifth of its length while the engine reports; notice a lost claim within a second."""
        interval = self.settings.lease_seconds / 5
        due = time.monotonic() + interval
        while not heartbeat.lost:
            await asyncio.sleep(min(CHECK_SECONDS, interval))
            if time.monotonic() - heartbeat.reported_at > self.settings.stall_seconds:
                # A thread that hangs cannot be ended, only its process. The lease expires, another worker takes the
                # job, and the supervisor restarts this process.
                log.error("job.stalled", seconds=self.settings.stall_seconds)
                os._exit(STALLED_EXIT_CODE)
            try:
                async with self.database.transaction() as tx:
                    if time.monotonic() < due:
                        current = await lifecycle.is_current(tx, heartbeat.claim)  # frees the device after a cancel
                    else:
                        current = await self._renew_lease(tx, heartbeat)
                        due = time.monotonic() + interval
            except pool.OUTAGE_ERRORS as error:
                # Go on: after a short outage the claim is still valid, and if not, the token shows it.
                log.warning("job.renewal_failed", reason=type(error).__name__)
                continue
            if not current:
                log.warning("job.lease_lost")
                heartbeat.lost = True

    async def _renew_lease(self, tx: Tx, heartbeat: Heartbeat) -> bool:
        progress = max(1, int(100 * ENGINE_SHARE * heartbeat.fraction))
        claim = heartbeat.claim
        current = await lifecycle.renew(tx, claim, progress=progress, lease_seconds=self.settings.lease_seconds)
        if current:
            await lifecycle.announce_progress(tx, self.queue, claim, public_url=self.settings.public_url)
        return current

    async def _attempt(self, heartbeat: Heartbeat) -> AttemptOutcome | None:
        """Upscale and store the image; None if the engine was stopped."""
        claim = heartbeat.claim
        try:
            recipe = claim.recipe()
            stages = AttemptStages(claim, recipe)
            stages.observe("wait", claim.wait_seconds)
            source = await self.storage.get(claim.source.key)
            self._set_exact(claim.rejected_before)
            upscaled, encoded = await asyncio.to_thread(self._upscale, source, recipe, heartbeat.report, stages.measure)
            expected = (claim.source.width * recipe.scale, claim.source.height * recipe.scale)
            if (encoded.width, encoded.height) != expected:
                raise BadResult(f"The result is {encoded.width}x{encoded.height}.")
            if heartbeat.lost:
                return None
            name = wire.result_name(claim.id, recipe.output_format)
            with stages.measure("store"):
                return Completed(result=await self._store_result(claim, upscaled, encoded, name))
        except Cancelled:
            return None
        except (ImageError, PromptError) as error:
            return Failed(error=error.message, retryable=False)
        except NotUnderstood as error:
            log.warning("job.unsupported", remedy=error.message)
            return Unsupported(error=UNEXPECTED)
        except BadResult as error:
            log.warning("job.result_rejected", reason=error.message)
            return RejectedResult(error=REJECTED)
        except StorageFailed as error:
            log.warning("job.attempt_failed", reason=error.message, cause=str(error.__cause__).partition("\n")[0])
            if not await self._is_store_available():
                return StoreUnavailable()
            return Failed(error=messages.JOB_RESULT_NOT_STORED(), retryable=True)
        except Exception as error:
            log.exception("job.attempt_failed")
            return Failed(error=UNEXPECTED, retryable=not isinstance(error, HiresfixError) or error.retryable)

    async def _is_store_available(self) -> bool:
        try:
            await self.storage.check()
        except (StorageFailed, *pool.OUTAGE_ERRORS):
            return False
        return True

    async def _wait_for_store(self) -> None:
        """Take no job while none could be read or stored; otherwise all waiting jobs would be tried in vain."""
        log.error("storage.unavailable")
        while not self._stop.is_set() and not await self._is_store_available():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), RETRY_SECONDS)
        log.info("storage.recovered")

    def _set_exact(self, exact: bool) -> None:
        """Load the networks in full precision, or in the usual one again: both at once may not fit."""
        if exact != self._exact:
            # A single job in full precision is not worth compiling for.
            compiled = self.settings.compile and not exact
            self._upscaler, self._exact = Upscaler(self.settings.device, exact=exact, compiled=compiled), exact

    def _upscale(
        self, source: bytes, recipe: Recipe, report: ProgressCallback, measure: StageTimer
    ) -> tuple[EngineResult, EncodedImage]:
        """Decode, upscale and encode, each measured as a stage; runs in a thread."""
        with measure("decode"):
            image = self.sandbox.decode(source)
        with measure("engine"):
            upscaled = self._upscaler.run(image, recipe, report)
        with measure("encode"):
            encoded = images.encode(upscaled.image, recipe.output_format, keep_metadata=self.settings.keep_metadata)
        return upscaled, encoded

    async def _store_result(
        self, claim: Claim, upscaled: EngineResult, encoded: EncodedImage, name: str
    ) -> StoredResult:
        key = claim.result_key
        await self.storage.put(key, encoded.data, encoded.media_type, name=name)
        notes = [*upscaled.metadata.get("warnings", []), *upscaled.image.notes, *encoded.notes]
        return StoredResult(
            key=key,
            sha256=hashlib.sha256(encoded.data).hexdigest(),
            media_type=encoded.media_type,
            bytes=len(encoded.data),
            width=encoded.width,
            height=encoded.height,
            metadata={**upscaled.metadata, "warnings": list(dict.fromkeys(notes))},
        )

    async def _settle(self, claim: Claim, outcome: AttemptOutcome) -> str:
        """Settle the attempt, retrying while the database is away; the token makes a repetition harmless."""

        async def settle() -> str:
            async with self.database.pipelined() as tx:
                state = await lifecycle.settle(tx, self.queue, claim, outcome, public_url=self.settings.public_url)
            if state is None and isinstance(outcome, Completed):
                await self._discard(claim, outcome.result.key)
            return state or LOST

        return await pool.retry_while_unavailable(settle, log_event="job.settlement_postponed")

    async def _discard(self, claim: Claim, key: str) -> None:
        """Delete a late attempt's image, unless it is the job's result: the answer to a commit may have been lost."""
        async with self.database.transaction() as tx:
            job = await lifecycle.get(tx, claim.id)
        if job.result is None or job.result["key"] != key:
            try:
                await self.storage.delete(key)
            except StorageFailed as error:
                log.warning("file.not_purged", key=key, reason=error.message)


def _worker_info(settings: Settings, upscaler: Upscaler) -> WorkerInfo:
    """Describe this process for the worker registry."""
    host, device = socket.gethostname(), upscaler.device
    host_bytes = settings.worker_memory_bytes or hardware.host_bytes()
    # Apple's GPUs share the host's memory.
    demands = limits.memory_demands(ModelStore.at_home().installed().values(), on_host=device.type != "cuda")
    return WorkerInfo(
        id=uuid4(),
        name=f"{host}:{os.getpid()}",
        host=host,
        device=str(device),
        memory_bytes=devices.total_bytes(device) or host_bytes,
        most_megapixels=settings.worker_megapixels or limits.max_megapixels(host_bytes, demands),
        tags=sorted({device.type, *settings.worker_tags}),
        version=__version__,
    )


def _span_attributes(claim: Claim) -> dict[str, tracing.SpanAttribute]:
    return {
        "hiresfix__job_id": str(claim.id),
        "hiresfix__request_id": claim.request_id,
        "hiresfix__attempt": claim.attempt,
        "hiresfix__model": claim.model,
    }


def run(settings: Settings, *, database_url: str) -> None:
    """Run one worker until SIGTERM or SIGINT."""
    with asyncio.Runner(loop_factory=auto_loop_factory()) as runner:
        runner.run(serve(settings, database_url=database_url))


async def serve(settings: Settings, *, database_url: str) -> None:
    """Run one worker as `run` does, in the running event loop."""
    warn_if_open(settings)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with (
        Sandbox(uploads.image_limits(settings)) as sandbox,
        Database(
            database_url, max_size=16, name="hiresfix-worker", timeout=settings.database_timeout_seconds
        ) as database,
        metrics_server.serving(settings),
    ):
        worker = WorkerProcess(
            settings,
            database=database,
            storage=uploads.open_storage(settings, database),
            queue=Queue(database_url),
            sandbox=sandbox,
        )
        if settings.self_test:
            await worker.run_self_test()
        with tracing.exporting(settings.telemetry_url, role="worker"):
            await worker.run(stop)
