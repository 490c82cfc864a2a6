"""Faults and their schedule, which follows from a seed: lanes of faults that run at the same time.

A fault has a beginning and, unless it is a kill, an end. Nothing helps the service except undoing the fault.
"""

from __future__ import annotations

import contextlib
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import LiteralString
from uuid import UUID

import psycopg

from hiresfix.server import storage_keys
from tests.chaos.environment import LEASE_SECONDS, Environment, SupervisedProcess

REQUEUE_SECONDS = 120.0


class FaultKind(StrEnum):
    KILL_WORKER = "worker killed (kill -9)"
    FREEZE_WORKER = "worker frozen past its lease, then woken"
    FREEZE_BEFORE_SETTLEMENT = "worker frozen between storing its image and settling, woken past its lease"
    HUNT_JOB = "every worker killed that takes a certain job, until the job fails"
    KILL_API = "API killed (kill -9)"
    KILL_API_BEFORE_ANSWER = "API killed between commit and answer"
    STOP_DATABASE = "PostgreSQL stopped"
    CRASH_DATABASE = "PostgreSQL killed (kill -9)"
    FILL_DISK = "disk under the store full"
    DROP_STORE = "store dropped"
    STOP_RECEIVER = "webhook receiver stopped"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One fault. pause: seconds before it in its lane; seconds: how long it lasts."""

    kind: FaultKind
    pause: float
    seconds: float = 0.0

    @property
    def name(self) -> str:
        shows_length = self.kind in (FaultKind.STOP_DATABASE, FaultKind.CRASH_DATABASE)
        return f"{self.kind}, {self.seconds:g} s" if shows_length else self.kind.value


Lane = Sequence[Fault]


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultPlan:
    """The jobs of a scenario, submitted evenly over `seconds`, and the lanes of faults that run meanwhile.

    Attributes:
        ahead: the share of jobs by which submissions may be ahead of the faults, on a machine where faults take
            longer; when no job is left to run, more are submitted anyway.
        settings: of the service, in addition to those of every scenario.
        patience: seconds for everything to finish after the last fault.
    """

    seed: int
    jobs: int
    seconds: float
    ahead: float
    workers: int
    settings: Mapping[str, str]
    patience: float
    lanes: Sequence[Lane]


def full(seed: int, *, jobs: int = 200) -> FaultPlan:
    """Plan all faults at once, for more than three minutes."""
    chance = random.Random(seed)

    def pauses(low: float, high: float) -> Callable[[], float]:
        return lambda: round(chance.uniform(low, high), 2)

    kill, freeze, often, seldom = pauses(3, 7), pauses(12, 25), pauses(8, 25), pauses(15, 30)
    frozen = 2.5 * LEASE_SECONDS
    freezes = [FaultKind.FREEZE_WORKER, FaultKind.FREEZE_BEFORE_SETTLEMENT] * 3
    api = [FaultKind.KILL_API_BEFORE_ANSWER] * 6 + [FaultKind.KILL_API] * 4
    database = [
        (FaultKind.STOP_DATABASE, 4.0),
        (FaultKind.CRASH_DATABASE, 4.0),
        (FaultKind.STOP_DATABASE, 45.0),
        (FaultKind.CRASH_DATABASE, 1.0),
    ]
    store = [(FaultKind.FILL_DISK, 20.0), (FaultKind.DROP_STORE, 20.0)] * 2
    chance.shuffle(api)
    chance.shuffle(database)
    return FaultPlan(
        seed=seed,
        jobs=jobs,
        seconds=200,
        ahead=0.1,
        workers=3,
        settings={},
        patience=420,  # a delivery that failed in two outages of its receiver waits 300 s
        lanes=(
            [Fault(kind=FaultKind.KILL_WORKER, pause=kill()) for _ in range(35)],
            [Fault(kind=kind, pause=freeze(), seconds=frozen) for kind in freezes],
            [Fault(kind=kind, pause=often()) for kind in api],
            [Fault(kind=kind, pause=seldom(), seconds=seconds) for kind, seconds in database],
            [Fault(kind=kind, pause=seldom(), seconds=seconds) for kind, seconds in store],
            [Fault(kind=FaultKind.STOP_RECEIVER, pause=seldom(), seconds=12.0) for _ in range(3)],
            [Fault(kind=FaultKind.HUNT_JOB, pause=seldom()) for _ in range(3)],
        ),
    )


def short(seed: int) -> FaultPlan:
    """Plan half a minute of faults, for every run of the tests."""
    return FaultPlan(
        seed=seed,
        jobs=24,
        seconds=12,
        ahead=1.0,
        workers=2,
        # Starting a worker takes most of the time here, and its self-test a good part of that.
        settings={"HIRESFIX_MAX_ATTEMPTS": "2", "HIRESFIX_SELF_TEST": "0"},
        patience=300,
        lanes=(
            [
                Fault(kind=FaultKind.FREEZE_BEFORE_SETTLEMENT, pause=0, seconds=1.5 * LEASE_SECONDS),
                Fault(kind=FaultKind.HUNT_JOB, pause=0),
            ],
            [Fault(kind=FaultKind.KILL_API_BEFORE_ANSWER, pause=1)],
            [Fault(kind=FaultKind.STOP_DATABASE, pause=7, seconds=3)],
        ),
    )


@dataclass(slots=True)
class FaultRecord:
    """What the faults did: how often, for how many seconds in all, and which workers they hit."""

    done: Counter[str] = field(default_factory=Counter)
    seconds: Counter[str] = field(default_factory=Counter)
    skipped: dict[str, str] = field(default_factory=dict)
    killed: set[int] = field(default_factory=set)
    frozen: list[tuple[int, float, float]] = field(default_factory=list)
    """Process id and start and end in Unix time, of workers that were killed later, too."""
    active: set[str] = field(default_factory=set)

    def cause_of_loss(self, worker: int, at: float) -> str:
        """Return the fault over which this worker lost its job at that time."""
        if any(worker == pid and began <= at <= ended for pid, began, ended in self.frozen):
            return "frozen"
        return "killed" if worker in self.killed else "otherwise"


class FaultInjector:
    """Injects the faults of a plan into the service."""

    def __init__(self, service: Environment, plan: FaultPlan) -> None:
        self._service = service
        self._chance = random.Random(plan.seed)
        self._planned = sum(map(len, plan.lanes))
        self._done_count = 0
        self._stopping = threading.Lock()
        self.record = FaultRecord()

    @property
    def progress(self) -> float:
        """Share of the plan that is done, 0..1."""
        return self._done_count / max(1, self._planned)

    def run(self, lane: Lane, stop: threading.Event) -> None:
        """Run a lane until it is done or `stop` is set; a fault that has begun is undone first."""
        for fault in lane:
            if stop.wait(fault.pause):
                return
            self._do(fault, stop)
            self._done_count += 1

    def _do(self, fault: Fault, stop: threading.Event) -> None:
        if fault.kind is FaultKind.FILL_DISK and not self._service.disk.is_mounted:
            self.record.skipped[fault.name] = "not run: this machine does not allow mounting a disk"
            return
        repair = self._break(fault.kind, stop)
        if repair is None:
            return
        self.record.done[fault.name] += 1
        self.record.seconds[fault.name] += round(fault.seconds)
        self.record.active.add(fault.name)
        time.sleep(fault.seconds)
        repair()
        self.record.active.discard(fault.name)

    def _break(self, kind: FaultKind, stop: threading.Event) -> Callable[[], object] | None:
        """Begin the fault; returns the function that ends it, or None if there was nothing to break."""
        service = self._service
        if kind is FaultKind.HUNT_JOB:
            return self._hunt(stop)
        if kind is FaultKind.KILL_API_BEFORE_ANSWER:
            return self._kill_api_before_answer(stop)
        if kind is FaultKind.KILL_API:
            return self._kill_api(stop)
        if kind is FaultKind.FREEZE_BEFORE_SETTLEMENT:
            late = self._stop_before_settlement(stop)
            return None if late is None else self._freeze(late)
        if kind in (FaultKind.KILL_WORKER, FaultKind.FREEZE_WORKER):
            victim = self._stop_busy_worker(stop, spare=kind is FaultKind.KILL_WORKER)
            return (
                None
                if victim is None
                else self._freeze(victim)
                if kind is FaultKind.FREEZE_WORKER
                else self._kill(victim)
            )
        ways: dict[FaultKind, tuple[Callable[[], object], Callable[[], object]]] = {
            FaultKind.STOP_DATABASE: (service.database.stop, service.database.start),
            FaultKind.CRASH_DATABASE: (service.database.crash, service.database.start),
            FaultKind.FILL_DISK: (service.disk.fill, service.disk.empty),
            FaultKind.DROP_STORE: (service.disk.drop, service.disk.bring_back),
            FaultKind.STOP_RECEIVER: (service.receiver.stop, service.receiver.start),
        }
        begin, end = ways[kind]
        begin()
        return end

    def _kill_api(self, stop: threading.Event) -> Callable[[], object] | None:
        """Kill the API once it answers; otherwise a machine where it starts slowly would never have one."""
        while not self._service.is_ready():
            if stop.wait(0.5):
                return None
        self._service.api.signal(signal.SIGKILL)
        return lambda: None

    def _kill_api_before_answer(self, stop: threading.Event) -> Callable[[], object] | None:
        """Let the API die when it accepts the next job."""
        fuse = self._service.fuse
        fuse.touch()
        while fuse.exists():
            if stop.wait(0.05):
                fuse.unlink(missing_ok=True)
                return None
        return lambda: None

    def _kill(self, victim: SupervisedProcess) -> Callable[[], object]:
        self.record.killed.add(victim.pid)
        victim.signal(signal.SIGKILL)
        victim.frozen = False
        return lambda: None

    def _hunt(self, stop: threading.Event) -> Callable[[], object] | None:
        """Kill every worker that takes one job with a large image; pick another job if that one completes."""
        job = None
        while not stop.wait(0.02):
            with contextlib.suppress(psycopg.OperationalError):
                job, state = self._pick_job(job)
                if state == "FAILED":
                    return lambda: None
                if state == "COMPLETED":
                    job = None
                if state == "PROCESSING" and (victim := self._try_to_stop(spared=0, job=job)):
                    self._kill(victim)
        return None

    def _pick_job(self, job: UUID | None) -> tuple[UUID | None, str | None]:
        """Return the job and its state; if it is None, the unfinished job with the largest image."""
        with psycopg.connect(self._service.database.url, connect_timeout=2) as connection:
            row = connection.execute(
                "select id, state from jobs where id = %(job)s or %(job)s::uuid is null"
                " and state in ('QUEUED', 'PROCESSING') order by source -> 'width' desc, created_at limit 1",
                {"job": job},
            ).fetchone()
        return row or (None, None)

    def _freeze(self, victim: SupervisedProcess) -> Callable[[], object]:
        began = time.time()

        def wake() -> None:
            self._wait_until_job_is_requeued(victim)
            self.record.frozen.append((victim.pid, began, time.time()))
            victim.signal(signal.SIGCONT)
            victim.frozen = False

        return wake

    def _wait_until_job_is_requeued(self, victim: SupervisedProcess) -> None:
        """Wait until the victim has lost its job, which takes longer than its lease on a slow machine."""
        deadline = time.monotonic() + REQUEUE_SECONDS
        while time.monotonic() < deadline:
            with contextlib.suppress(psycopg.OperationalError):
                if victim.pid not in busy_workers(self._service.database.url):
                    return
            time.sleep(0.1)

    def _stop_busy_worker(self, stop: threading.Event, *, spare: bool) -> SupervisedProcess | None:
        """Wait for a worker that has a job and stop it (SIGSTOP); None if `stop` is set before.

        spare: only while another worker is up; otherwise a machine where workers start slowly would finish no job.
        """
        while not stop.is_set():
            victim = self._try_to_stop(spared=1 if spare else 0)
            if victim is not None:
                return victim
            stop.wait(0.05)
        return None

    def _stop_before_settlement(self, stop: threading.Event) -> SupervisedProcess | None:
        """Stop a worker whose image is in the store, and of which the database does not know yet."""
        while not stop.is_set():
            with contextlib.suppress(psycopg.OperationalError):
                keys = pending_results(self._service.database.url)
                up = {process.pid: process for process in self._service.active_workers()}
                deadline = time.monotonic() + 0.2
                while time.monotonic() < deadline:
                    for worker, key in keys.items():
                        if worker in up and (self._service.disk.folder / key).exists():
                            if self._is_stopped_before_settlement(up[worker], key):
                                return up[worker]
                            deadline = 0.0
                    time.sleep(0.0005)
        return None

    def _is_stopped_before_settlement(self, victim: SupervisedProcess, key: str) -> bool:
        """Stop the worker; False if its settlement has begun, which locks the job's row, and it was continued."""
        with self._stopping:
            if victim not in self._service.active_workers():
                return False
            victim.frozen = True
            victim.signal(signal.SIGSTOP)
            with contextlib.suppress(psycopg.OperationalError):
                if (
                    pending_results(self._service.database.url, unlocked="for update skip locked").get(victim.pid)
                    == key
                ):
                    return True
            victim.signal(signal.SIGCONT)
            victim.frozen = False
            return False

    def _try_to_stop(self, *, spared: int, job: UUID | None = None) -> SupervisedProcess | None:
        """Stop a worker that has a job, or this job; None if there is none."""
        url = self._service.database.url
        with contextlib.suppress(psycopg.OperationalError), self._stopping:
            busy = busy_workers(url, job)
            up = self._service.active_workers()
            candidates = [process for process in up if process.pid in busy]
            if not candidates or len(up) <= spared:
                return None
            victim = self._chance.choice(candidates)
            victim.frozen = True
            victim.signal(signal.SIGSTOP)
            try:
                if victim.pid in busy_workers(url, job):
                    return victim
            except psycopg.OperationalError:
                pass
            victim.signal(signal.SIGCONT)  # it has just finished
            victim.frozen = False
        return None


def busy_workers(url: str, job: UUID | None = None) -> set[int]:
    """Return the process ids of the workers that have a job, or this job."""
    with psycopg.connect(url, connect_timeout=2) as connection:
        rows = connection.execute(
            "select worker from jobs where state = 'PROCESSING' and (%(job)s::uuid is null or id = %(job)s)",
            {"job": job},
        ).fetchall()
    return {int(worker.rpartition(":")[2]) for (worker,) in rows}


def pending_results(url: str, *, unlocked: LiteralString = "") -> dict[int, str]:
    """Return by process id where each busy worker will store its image. unlocked: SQL to skip locked jobs."""
    query: LiteralString = "select worker, id, token from jobs where state = 'PROCESSING' " + unlocked
    with psycopg.connect(url, connect_timeout=2) as connection:
        rows = connection.execute(query).fetchall()
    return {int(worker.rpartition(":")[2]): storage_keys.result(job, token) for worker, job, token in rows}
