"""What goes wrong, and when: a schedule made of a seed, in lanes that run beside each other.

A fault has a beginning and, unless it is a kill, an end; nothing is done for the service beyond undoing the fault.
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

from hiresfix.server.jobs.orphaned_results import result_key
from tests.chaos.stage import LEASE_SECONDS, Kept, Stage

TAKEN_SECONDS = 120.0


class Kind(StrEnum):
    KILL_WORKER = "worker killed (kill -9)"
    FREEZE_WORKER = "worker frozen past its lease, then woken"
    FREEZE_BEFORE_SETTLEMENT = "worker frozen between storing its picture and settling, woken past its lease"
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
    """`pause`: seconds of quiet in its lane before it; `seconds`: how long it lasts."""

    kind: Kind
    pause: float
    seconds: float = 0.0

    @property
    def name(self) -> str:
        named_by_length = self.kind in (Kind.STOP_DATABASE, Kind.CRASH_DATABASE)
        return f"{self.kind}, {self.seconds:g} s" if named_by_length else self.kind.value


Lane = Sequence[Fault]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """So many jobs, handed in evenly over `seconds`, and the lanes of faults meanwhile.

    ahead: the share of the jobs by which they may be ahead of the faults, on a machine on which these take longer; who
    has nothing else to do is given more all the same.

    settings: of the service, beside what they are on every stage. patience: seconds for everything to end after the
    last fault.
    """

    seed: int
    jobs: int
    seconds: float
    ahead: float
    workers: int
    settings: Mapping[str, str]
    patience: float
    lanes: Sequence[Lane]


def full(seed: int, *, jobs: int = 200) -> Plan:
    """Everything at once, for a good three minutes."""
    chance = random.Random(seed)

    def pauses(low: float, high: float) -> Callable[[], float]:
        return lambda: round(chance.uniform(low, high), 2)

    kill, freeze, often, seldom = pauses(3, 7), pauses(12, 25), pauses(8, 25), pauses(15, 30)
    frozen = 2.5 * LEASE_SECONDS
    freezes = [Kind.FREEZE_WORKER, Kind.FREEZE_BEFORE_SETTLEMENT] * 3
    api = [Kind.KILL_API_BEFORE_ANSWER] * 6 + [Kind.KILL_API] * 4
    database = [
        (Kind.STOP_DATABASE, 4.0),
        (Kind.CRASH_DATABASE, 4.0),
        (Kind.STOP_DATABASE, 45.0),
        (Kind.CRASH_DATABASE, 1.0),
    ]
    store = [(Kind.FILL_DISK, 20.0), (Kind.DROP_STORE, 20.0)] * 2
    chance.shuffle(api)
    chance.shuffle(database)
    return Plan(
        seed=seed,
        jobs=jobs,
        seconds=200,
        ahead=0.1,
        workers=3,
        settings={},
        patience=420,  # a delivery that met two outages of its receiver waits 300 s
        lanes=(
            [Fault(kind=Kind.KILL_WORKER, pause=kill()) for _ in range(35)],
            [Fault(kind=kind, pause=freeze(), seconds=frozen) for kind in freezes],
            [Fault(kind=kind, pause=often()) for kind in api],
            [Fault(kind=kind, pause=seldom(), seconds=seconds) for kind, seconds in database],
            [Fault(kind=kind, pause=seldom(), seconds=seconds) for kind, seconds in store],
            [Fault(kind=Kind.STOP_RECEIVER, pause=seldom(), seconds=12.0) for _ in range(3)],
            [Fault(kind=Kind.HUNT_JOB, pause=seldom()) for _ in range(3)],
        ),
    )


def short(seed: int) -> Plan:
    """A taste of it, for every run of the tests."""
    return Plan(
        seed=seed,
        jobs=24,
        seconds=12,
        ahead=1.0,
        workers=2,
        # A start of a worker is what costs most here, and its proof a good part of that.
        settings={"HIRESFIX_MAX_ATTEMPTS": "2", "HIRESFIX_SELF_TEST": "0"},
        patience=300,
        lanes=(
            [
                Fault(kind=Kind.FREEZE_BEFORE_SETTLEMENT, pause=0, seconds=1.5 * LEASE_SECONDS),
                Fault(kind=Kind.HUNT_JOB, pause=0),
            ],
            [Fault(kind=Kind.KILL_API_BEFORE_ANSWER, pause=1)],
            [Fault(kind=Kind.STOP_DATABASE, pause=7, seconds=3)],
        ),
    )


@dataclass(slots=True)
class Damage:
    """What was done: how often, for how many seconds in all, and which workers it hit."""

    done: Counter[str] = field(default_factory=Counter)
    seconds: Counter[str] = field(default_factory=Counter)
    skipped: dict[str, str] = field(default_factory=dict)
    killed: set[int] = field(default_factory=set)
    frozen: list[tuple[int, float, float]] = field(default_factory=list)
    """From when to when (Unix time); one that was killed later was frozen all the same."""
    now: set[str] = field(default_factory=set)

    def whose_fault(self, worker: int, at: float) -> str:
        """Over what this worker lost its job at that time."""
        if any(worker == pid and began <= at <= ended for pid, began, ended in self.frozen):
            return "frozen"
        return "killed" if worker in self.killed else "otherwise"


class Saboteur:
    """Does what a plan says to a stage."""

    def __init__(self, stage: Stage, plan: Plan) -> None:
        self._stage = stage
        self._chance = random.Random(plan.seed)
        self._planned = sum(map(len, plan.lanes))
        self._through = 0
        self._catching = threading.Lock()
        self.damage = Damage()

    @property
    def progress(self) -> float:
        """How much of the plan is through, 0..1."""
        return self._through / max(1, self._planned)

    def run(self, lane: Lane, stop: threading.Event) -> None:
        """One lane, from its first pause until it is through or told to stop; what was broken is mended first."""
        for fault in lane:
            if stop.wait(fault.pause):
                return
            self._do(fault, stop)
            self._through += 1

    def _do(self, fault: Fault, stop: threading.Event) -> None:
        if fault.kind is Kind.FILL_DISK and not self._stage.disk.is_mounted:
            self.damage.skipped[fault.name] = "not run: this machine lets us mount no disk"
            return
        repair = self._break(fault.kind, stop)
        if repair is None:
            return
        self.damage.done[fault.name] += 1
        self.damage.seconds[fault.name] += round(fault.seconds)
        self.damage.now.add(fault.name)
        time.sleep(fault.seconds)
        repair()
        self.damage.now.discard(fault.name)

    def _break(self, kind: Kind, stop: threading.Event) -> Callable[[], object] | None:
        """Returns what mends it, or None if there was nothing to break."""
        stage = self._stage
        if kind is Kind.HUNT_JOB:
            return self._hunt(stop)
        if kind is Kind.KILL_API_BEFORE_ANSWER:
            return self._blow_fuse(stop)
        if kind is Kind.KILL_API:
            return self._kill_api(stop)
        if kind is Kind.FREEZE_BEFORE_SETTLEMENT:
            late = self._catch_before_settlement(stop)
            return None if late is None else self._freeze(late)
        if kind in (Kind.KILL_WORKER, Kind.FREEZE_WORKER):
            victim = self._catch_a_busy_worker(stop, spare=kind is Kind.KILL_WORKER)
            return (
                None if victim is None else self._freeze(victim) if kind is Kind.FREEZE_WORKER else self._kill(victim)
            )
        ways: dict[Kind, tuple[Callable[[], object], Callable[[], object]]] = {
            Kind.STOP_DATABASE: (stage.database.stop, stage.database.start),
            Kind.CRASH_DATABASE: (stage.database.crash, stage.database.start),
            Kind.FILL_DISK: (stage.disk.fill, stage.disk.empty),
            Kind.DROP_STORE: (stage.disk.drop, stage.disk.bring_back),
            Kind.STOP_RECEIVER: (stage.receiver.stop, stage.receiver.start),
        }
        begin, end = ways[kind]
        begin()
        return end

    def _kill_api(self, stop: threading.Event) -> Callable[[], object] | None:
        """Once it answers, or a machine on which it takes long to start would never have one."""
        while not self._stage.is_ready():
            if stop.wait(0.5):
                return None
        self._stage.api.signal(signal.SIGKILL)
        return lambda: None

    def _blow_fuse(self, stop: threading.Event) -> Callable[[], object] | None:
        """With the next job that is accepted."""
        fuse = self._stage.fuse
        fuse.touch()
        while fuse.exists():
            if stop.wait(0.05):
                fuse.unlink(missing_ok=True)
                return None
        return lambda: None

    def _kill(self, victim: Kept) -> Callable[[], object]:
        self.damage.killed.add(victim.pid)
        victim.signal(signal.SIGKILL)
        victim.frozen = False
        return lambda: None

    def _hunt(self, stop: threading.Event) -> Callable[[], object] | None:
        """Of a job with a large picture; of another one, if that one escapes."""
        prey = None
        while not stop.wait(0.02):
            with contextlib.suppress(psycopg.OperationalError):
                prey, state = self._prey(prey)
                if state == "FAILED":
                    return lambda: None
                if state == "COMPLETED":
                    prey = None
                if state == "PROCESSING" and (victim := self._try_to_catch(spared=0, job=prey)):
                    self._kill(victim)
        return None

    def _prey(self, job: UUID | None) -> tuple[UUID | None, str | None]:
        """The job, or if there is none yet the open one with the largest picture, and its state."""
        with psycopg.connect(self._stage.database.url, connect_timeout=2) as connection:
            found = connection.execute(
                "select id, state from jobs where id = %(job)s or %(job)s::uuid is null"
                " and state in ('QUEUED', 'PROCESSING') order by source -> 'width' desc, created_at limit 1",
                {"job": job},
            ).fetchone()
        return found or (None, None)

    def _freeze(self, victim: Kept) -> Callable[[], object]:
        began = time.time()

        def wake() -> None:
            self._wait_until_its_job_is_taken(victim)
            self.damage.frozen.append((victim.pid, began, time.time()))
            victim.signal(signal.SIGCONT)
            victim.frozen = False

        return wake

    def _wait_until_its_job_is_taken(self, victim: Kept) -> None:
        """Past its lease is past its lease, on a slow machine too."""
        deadline = time.monotonic() + TAKEN_SECONDS
        while time.monotonic() < deadline:
            with contextlib.suppress(psycopg.OperationalError):
                if victim.pid not in busy_workers(self._stage.database.url):
                    return
            time.sleep(0.1)

    def _catch_a_busy_worker(self, stop: threading.Event, *, spare: bool) -> Kept | None:
        """A worker stopped with a job in its hand, waited for; None when there is nothing to wait for any more.

        spare: only while another one is up, or a machine on which they take long to start would never finish a job.
        """
        while not stop.is_set():
            caught = self._try_to_catch(spared=1 if spare else 0)
            if caught is not None:
                return caught
            stop.wait(0.05)
        return None

    def _catch_before_settlement(self, stop: threading.Event) -> Kept | None:
        """A worker stopped when the store has its picture and the database does not know of that yet."""
        while not stop.is_set():
            with contextlib.suppress(psycopg.OperationalError):
                held = held_results(self._stage.database.url)
                up = {kept.pid: kept for kept in self._stage.at_work()}
                deadline = time.monotonic() + 0.2
                while time.monotonic() < deadline:
                    for worker, key in held.items():
                        if worker in up and (self._stage.disk.folder / key).exists():
                            if self._stops_before_settlement(up[worker], key):
                                return up[worker]
                            deadline = 0.0
                    time.sleep(0.0005)
        return None

    def _stops_before_settlement(self, victim: Kept, key: str) -> bool:
        """Also if the settlement has begun it came too late: the job's row is locked then."""
        with self._catching:
            if victim not in self._stage.at_work():
                return False
            victim.frozen = True
            victim.signal(signal.SIGSTOP)
            with contextlib.suppress(psycopg.OperationalError):
                if held_results(self._stage.database.url, unlocked="for update skip locked").get(victim.pid) == key:
                    return True
            victim.signal(signal.SIGCONT)
            victim.frozen = False
            return False

    def _try_to_catch(self, *, spared: int, job: UUID | None = None) -> Kept | None:
        """`job`: that it must have, if that matters."""
        url = self._stage.database.url
        with contextlib.suppress(psycopg.OperationalError), self._catching:
            busy = busy_workers(url, job)
            up = self._stage.at_work()
            found = [kept for kept in up if kept.pid in busy]
            if not found or len(up) <= spared:
                return None
            victim = self._chance.choice(found)
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
    """Process ids of the workers that hold a job, or this one."""
    with psycopg.connect(url, connect_timeout=2) as connection:
        rows = connection.execute(
            "select worker from jobs where state = 'PROCESSING' and (%(job)s::uuid is null or id = %(job)s)",
            {"job": job},
        ).fetchall()
    return {int(worker.rpartition(":")[2]) for (worker,) in rows}


def held_results(url: str, *, unlocked: LiteralString = "") -> dict[int, str]:
    """Where each worker that holds a job is going to store its picture; unlocked: of jobs that nobody writes to."""
    query: LiteralString = "select worker, id, token from jobs where state = 'PROCESSING' " + unlocked
    with psycopg.connect(url, connect_timeout=2) as connection:
        rows = connection.execute(query).fetchall()
    return {int(worker.rpartition(":")[2]): result_key(job, token) for worker, job, token in rows}
