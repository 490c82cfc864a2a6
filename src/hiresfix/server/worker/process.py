"""The worker process: takes jobs from the queue, runs the engine on them and settles them.

Guarantees: one picture at a time on the device; the lease is renewed while the engine makes progress and given
up when it does not; nothing is written to a job without its token; webhooks and upkeep run beside the engine
and are never blocked by it; SIGTERM finishes the running job in time or gives it back. The only module of the
server that reaches the engine.
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

from hiresfix import __version__, images, wire
from hiresfix.engine import devices, limits
from hiresfix.engine.progress import Report
from hiresfix.engine.upscaler import Upscaled, Upscaler
from hiresfix.errors import BadResult, Cancelled, HiresfixError, NotUnderstood, PictureError, PromptError, StorageFailed
from hiresfix.images import Encoded
from hiresfix.models.store import Store
from hiresfix.recipe import Recipe
from hiresfix.server import uploads
from hiresfix.server.database import pool
from hiresfix.server.database.pool import Database, Tx
from hiresfix.server.database.task_queue import Queue
from hiresfix.server.http import metrics_server
from hiresfix.server.jobs import lifecycle, scheduler, worker_registry
from hiresfix.server.jobs.model import Claim, Completed, Failed, Foreign, Hindered, Outcome, Refused, Result
from hiresfix.server.platform import hardware, metrics, tracing
from hiresfix.server.sandbox.client import Sandbox
from hiresfix.server.settings import Settings, warn_if_open
from hiresfix.server.storage import Storage
from hiresfix.server.webhooks import delivery, events
from hiresfix.server.worker import self_test
from hiresfix.server.worker.maintenance import Upkeep, every
from hiresfix.states import JobState

log = structlog.get_logger(__name__)

IO_CONCURRENCY = 20
"""Webhook attempts under way in this process; most of the time they wait for a stranger and hold no connection."""
RETRY_SECONDS = 2.0
LOOK_SECONDS = 1.0
"""Between two looks whether the job was cancelled."""
STOP_SECONDS = 2.0
STALLED_EXIT = 70

ENGINE_SHARE = 0.96
"""Of a job's progress; decoding, encoding and storing make up the rest."""

REFUSED = "The result failed its quality check. Your credits were returned. Try another seed or other settings."
_COUNTED_AS = {"COMPLETED": "completed", "FAILED": "failed", "QUEUED": "retried", "lost": "lost"}
UNEXPECTED = "The picture could not be enlarged because of an internal error. Your credits were returned."


@dataclass(slots=True)
class Beat:
    """One attempt, as the engine's thread and the loops beside it see it."""

    held: Claim
    fraction: float = 0.0
    heard: float = field(default_factory=time.monotonic)
    lost: bool = False

    def report(self, fraction: float) -> None:
        """The engine's progress; stops the engine when the job is no longer ours."""
        self.fraction, self.heard = fraction, time.monotonic()
        if self.lost:
            raise Cancelled


At = Callable[[str], contextlib.AbstractContextManager[None]]


class Stages:
    """What the stages of one attempt take; one that fails is not noted."""

    def __init__(self, held: Claim, recipe: Recipe) -> None:
        self._model = held.model
        self._megapixels = held.source.width * held.source.height * recipe.scale**2 / images.MEGAPIXEL

    def note(self, stage: str, seconds: float) -> None:
        metrics.observe_stage(self._model, stage, self._megapixels, seconds)

    @contextlib.contextmanager
    def at(self, stage: str) -> Iterator[None]:
        started = time.perf_counter()
        with tracing.span(stage, hiresfix__megapixels=self._megapixels):
            yield
        self.note(stage, time.perf_counter() - started)


class Worker:
    """One process's work on one device, until `run` is cancelled."""

    def __init__(
        self, settings: Settings, *, database: Database, storage: Storage, queue: Queue, quarantine: Sandbox
    ) -> None:
        self.settings = settings
        self.database = database
        self.storage = storage
        self.queue = queue
        self.quarantine = quarantine
        self._upscaler = Upscaler(settings.device, compiled=settings.compile)
        self.member = _member(settings, self._upscaler)
        self._exact = False
        self._beat: Beat | None = None
        self._stop = asyncio.Event()
        queue.on(scheduler.TASK, queue=scheduler.QUEUE, run=self._run_task)
        queue.on(events.TASK, queue=events.QUEUE, run=self._deliver_task)

    async def prove(self) -> None:
        """Enlarge a small known picture, by the way that jobs go. Raises EngineFailed for a worker that cannot."""
        started = time.perf_counter()

        def make(source: bytes, recipe: Recipe) -> Encoded:
            return self._make(source, recipe, lambda fraction: None, lambda stage: contextlib.nullcontext())[1]

        try:
            async with asyncio.timeout(self.settings.stall_seconds):
                sides = self_test.GENERAL_SIDES if self.settings.compile else self_test.SIDES
                await asyncio.to_thread(self_test.run, make, self.settings.clarity, sides)
        except TimeoutError:
            log.error("worker.self_test_stalled", seconds=self.settings.stall_seconds)
            os._exit(STALLED_EXIT)  # its thread cannot be ended
        log.info("worker.self_tested", seconds=round(time.perf_counter() - started, 3))

    async def run(self, stop: asyncio.Event) -> None:
        """Work until `stop` is set; then let the running job finish, or give it back after `drain_seconds`."""
        self._stop = stop
        upkeep = Upkeep(settings=self.settings, database=self.database, storage=self.storage, queue=self.queue)
        await self._join()
        everybodys, own = scheduler.queues(self.member.capacity)
        engine = asyncio.create_task(self.queue.work(queue=everybodys, beside=[own], concurrency=1))
        beside = [
            asyncio.create_task(self.queue.work(queue=events.QUEUE, concurrency=IO_CONCURRENCY)),
            asyncio.create_task(upkeep.run()),
            asyncio.create_task(every(self.settings.sweep_seconds, self.beat)),
        ]
        metrics.WORKER_UP.set(1)
        metrics.DEVICE_MEMORY.read = lambda: devices.usage(self._upscaler.device)
        log.info("worker.started", worker=self.member.name, device=str(self._upscaler.device))
        await stop.wait()
        metrics.WORKER_UP.set(0)
        log.info("worker.draining", worker=self.member.name, busy=self._beat is not None)
        engine.cancel()
        self.member = replace(self.member, draining=True)
        _, late = await asyncio.wait([engine], timeout=self.settings.drain_seconds)
        if late:
            await self._give_back()
            _, late = await asyncio.wait([engine], timeout=STOP_SECONDS)
        for task in beside:
            task.cancel()
        await asyncio.wait(beside, timeout=STOP_SECONDS)
        await self._leave()
        log.info("worker.stopped", worker=self.member.name)
        if late:
            # The engine's thread is between two reports and cannot be ended; nothing it does counts any more.
            os._exit(0)

    async def beat(self) -> None:
        """Tell the fleet that this worker lives."""
        async with self.database.transaction() as tx:
            await worker_registry.beat(tx, self.member, every=self.settings.sweep_seconds)

    async def _join(self) -> None:
        """Before anything else looks for work: what is called for depends on who is there."""
        try:
            await self.beat()
        except pool.OUTAGE as error:
            log.warning("worker.not_announced", reason=type(error).__name__)

    async def _leave(self) -> None:
        with contextlib.suppress(*pool.OUTAGE, TimeoutError):  # it will be missed soon enough
            async with asyncio.timeout(STOP_SECONDS), self.database.transaction() as tx:
                await worker_registry.leave(tx, self.member.id)

    async def _give_back(self) -> None:
        """Hand the running job to another worker at once, without waiting for the engine to notice."""
        beat = self._beat
        if beat is None:
            return
        beat.lost = True
        try:
            async with self.database.transaction() as tx:
                given_back = await lifecycle.give_back(tx, self.queue, beat.held)
        except pool.OUTAGE as error:
            log.warning("job.not_given_back", reason=type(error).__name__)  # its lease will lapse
        else:
            log.info("job.given_back" if given_back else "job.lost", job_id=str(beat.held.id))

    async def _deliver_task(self, delivery_id: str) -> None:
        policy = uploads.policy(self.settings)
        await delivery.deliver(self.database, self.queue, UUID(delivery_id), policy=policy)

    async def _run_task(self, job_id: str = "") -> None:
        """`job_id`: what tasks of the first release name; which job is next is decided here."""
        own = self.member.capacity
        held = await lifecycle.claim(
            self.database, worker=self.member.name, lease_seconds=self.settings.lease_seconds, capacity=own
        )
        if held is None:  # cancelled, or taken by whom another task called, or too much for this worker
            async with self.database.transaction() as tx:
                await scheduler.hand_on(tx, self.queue, own)
            return
        structlog.contextvars.bind_contextvars(job_id=str(held.id), attempt=held.attempt, request_id=held.request_id)
        log.info("job.claimed", model=held.model)
        metrics.WORKER_BUSY.set(1)
        started = time.perf_counter()
        beat = self._beat = Beat(held)
        renewal = asyncio.create_task(self._keep(held, beat))
        try:
            with tracing.span("job", joins=held.traceparent, **_facts(held)):
                outcome = await self._attempt(held, beat)
        finally:
            renewal.cancel()
            self._beat = None
            metrics.WORKER_BUSY.set(0)
        state = "lost" if outcome is None else await self._end(held, outcome)
        seconds = time.perf_counter() - started
        metrics.ATTEMPTS.labels(held.model, _COUNTED_AS[state]).inc()
        if isinstance(outcome, Completed) and state == JobState.COMPLETED:
            megapixels = outcome.result.width * outcome.result.height / images.MEGAPIXEL
            metrics.observe_stage(held.model, "total", megapixels, held.age + seconds)
        log.info("job.settled", state=state, seconds=round(seconds, 3))
        if isinstance(outcome, Hindered):
            await self._wait_for_store()

    async def _keep(self, held: Claim, beat: Beat) -> None:
        """Prolong the lease every fifth of it, for as long as the engine is heard of, and see at once if it is lost."""
        every = self.settings.lease_seconds / 5
        due = time.monotonic() + every
        while not beat.lost:
            await asyncio.sleep(min(LOOK_SECONDS, every))
            if time.monotonic() - beat.heard > self.settings.stall_seconds:
                # A thread that hangs cannot be ended, only its process can. The lease lapses, another worker takes
                # the job, and whoever supervises this process starts it anew.
                log.error("job.stalled", seconds=self.settings.stall_seconds)
                os._exit(STALLED_EXIT)
            try:
                async with self.database.transaction() as tx:
                    if time.monotonic() < due:
                        ours = await lifecycle.is_held(tx, held)  # a cancelled job must not hold the device up
                    else:
                        ours = await self._renew(tx, held, beat)
                        due = time.monotonic() + every
            except pool.OUTAGE as error:
                # Go on: if the outage is short the job is still ours, if not the token will tell.
                log.warning("job.renewal_failed", reason=type(error).__name__)
                continue
            if not ours:
                log.warning("job.lease_lost")
                beat.lost = True

    async def _renew(self, tx: Tx, held: Claim, beat: Beat) -> bool:
        progress = max(1, int(100 * ENGINE_SHARE * beat.fraction))
        ours = await lifecycle.renew(tx, held, progress=progress, lease_seconds=self.settings.lease_seconds)
        if ours:
            await lifecycle.announce_progress(tx, self.queue, held, public_url=self.settings.public_url)
        return ours

    async def _attempt(self, held: Claim, beat: Beat) -> Outcome | None:
        """Make and store the picture; None when the engine was told to stop."""
        try:
            recipe = held.recipe()
            stages = Stages(held, recipe)
            stages.note("wait", held.waited)
            source = await self.storage.get(held.source.key)
            self._be_exact(held.refused)
            upscaled, encoded = await asyncio.to_thread(self._make, source, recipe, beat.report, stages.at)
            if (encoded.width, encoded.height) != (held.source.width * recipe.scale, held.source.height * recipe.scale):
                raise BadResult(f"The result is {encoded.width}x{encoded.height}.")
            if beat.lost:
                return None
            name = wire.result_name(held.id, recipe.output_format)
            with stages.at("store"):
                return Completed(result=await self._store(held, upscaled, encoded, name))
        except Cancelled:
            return None
        except (PictureError, PromptError) as error:
            return Failed(error=error.message, retryable=False)
        except NotUnderstood as error:
            log.warning("job.not_understood", remedy=error.message)
            return Foreign(error=UNEXPECTED)
        except BadResult as error:
            log.warning("job.result_refused", reason=error.message)
            return Refused(error=REFUSED)
        except StorageFailed as error:
            log.warning("job.attempt_failed", reason=error.message, cause=str(error.__cause__).partition("\n")[0])
            if not await self._store_works():
                return Hindered()
            return Failed(error="The picture could not be stored. Your credits were returned.", retryable=True)
        except Exception as error:
            log.exception("job.attempt_failed")
            return Failed(error=UNEXPECTED, retryable=not isinstance(error, HiresfixError) or error.retryable)

    async def _store_works(self) -> bool:
        try:
            await self.storage.check()
        except (StorageFailed, *pool.OUTAGE):
            return False
        return True

    async def _wait_for_store(self) -> None:
        """Take no job as long as none could be read or stored; the line would go round and round."""
        log.error("store.away")
        while not self._stop.is_set() and not await self._store_works():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), RETRY_SECONDS)
        log.info("store.waited_for")

    def _be_exact(self, exact: bool) -> None:
        """Load the networks in full precision, or again in the usual one: both at once may not fit."""
        if exact != self._exact:
            # A single job in full precision is not worth compiling for.
            compiled = self.settings.compile and not exact
            self._upscaler, self._exact = Upscaler(self.settings.device, exact=exact, compiled=compiled), exact

    def _make(self, source: bytes, recipe: Recipe, report: Report, at: At) -> tuple[Upscaled, Encoded]:
        """In a thread: decode, enlarge, encode, each of them inside `at` of its name."""
        with at("decode"):
            picture = self.quarantine.decode(source)
        with at("engine"):
            upscaled = self._upscaler.run(picture, recipe, report)
        with at("encode"):
            encoded = images.encode(upscaled.picture, recipe.output_format, keep_metadata=self.settings.keep_metadata)
        return upscaled, encoded

    async def _store(self, held: Claim, upscaled: Upscaled, encoded: Encoded, name: str) -> Result:
        key = held.result_key
        await self.storage.put(key, encoded.data, encoded.media_type, name=name)
        notes = [*upscaled.metadata.get("warnings", []), *upscaled.picture.notes, *encoded.notes]
        return Result(
            key=key,
            sha256=hashlib.sha256(encoded.data).hexdigest(),
            media_type=encoded.media_type,
            bytes=len(encoded.data),
            width=encoded.width,
            height=encoded.height,
            metadata={**upscaled.metadata, "warnings": list(dict.fromkeys(notes))},
        )

    async def _end(self, held: Claim, outcome: Outcome) -> str:
        """Settle, for as long as it takes the database to answer; the token keeps it honest."""

        async def settle() -> str:
            async with self.database.pipelined() as tx:
                state = await lifecycle.settle(tx, self.queue, held, outcome, public_url=self.settings.public_url)
            if state is None and isinstance(outcome, Completed):
                await self._discard(held, outcome.result.key)
            return state or "lost"

        return await pool.insist(settle, postponed="job.settlement_postponed")

    async def _discard(self, held: Claim, key: str) -> None:
        """Delete a late attempt's picture, unless it is the job's after all: a commit whose answer was lost."""
        async with self.database.transaction() as tx:
            job = await lifecycle.get(tx, held.id)
        if job.result is None or job.result["key"] != key:
            try:
                await self.storage.delete(key)
            except StorageFailed as error:
                log.warning("file.not_purged", key=key, reason=error.message)


def _member(settings: Settings, upscaler: Upscaler) -> worker_registry.Worker:
    """What this process tells the fleet of itself."""
    host, device = socket.gethostname(), upscaler.device
    host_bytes = settings.worker_memory_bytes or hardware.host_bytes()
    # Apple's GPUs share the host's memory.
    demands = limits.demands(Store.at_home().installed().values(), on_host=device.type != "cuda")
    return worker_registry.Worker(
        id=uuid4(),
        name=f"{host}:{os.getpid()}",
        host=host,
        device=str(device),
        memory_bytes=devices.total_bytes(device) or host_bytes,
        most_megapixels=settings.worker_megapixels or limits.most_megapixels(host_bytes, demands),
        tags=sorted({device.type, *settings.worker_tags}),
        version=__version__,
    )


def _facts(held: Claim) -> dict[str, tracing.Fact]:
    """What a span tells of an attempt."""
    return {
        "hiresfix__job_id": str(held.id),
        "hiresfix__request_id": held.request_id,
        "hiresfix__attempt": held.attempt,
        "hiresfix__model": held.model,
    }


def run(settings: Settings, *, database_url: str) -> None:
    """Run one worker until SIGTERM or SIGINT."""
    with asyncio.Runner(loop_factory=auto_loop_factory()) as runner:
        runner.run(serve(settings, database_url=database_url))


async def serve(settings: Settings, *, database_url: str) -> None:
    """As `run`, in a loop that runs already."""
    warn_if_open(settings)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with (
        Sandbox(uploads.limits(settings)) as quarantine,
        Database(database_url, max_size=16, name="hiresfix-worker") as database,
        metrics_server.serving(settings),
    ):
        worker = Worker(
            settings,
            database=database,
            storage=uploads.store(settings, database),
            queue=Queue(database_url),
            quarantine=quarantine,
        )
        if settings.self_test:
            await worker.prove()
        with tracing.exporting(settings.telemetry_url, role="worker"):
            await worker.run(stop)
