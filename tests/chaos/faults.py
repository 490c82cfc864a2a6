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
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import psycopg

from tests.chaos.stage import LEASE_SECONDS, Kept, Stage

TAKEN_SECONDS = 120.0


class Kind(StrEnum):
    KILL_WORKER = "worker killed (kill -9)"
    FREEZE_WORKER = "worker frozen past its lease, then woken"
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
    """So many jobs, handed in evenly over `seconds`, and the lanes of faults meanwhile."""

    seed: int
    jobs: int
    seconds: float
    workers: int
    lanes: Sequence[Lane]


def full(seed: int, *, jobs: int = 200) -> Plan:
    """Everything at once, for a good three minutes."""
    chance = random.Random(seed)

    def pauses(low: float, high: float) -> Callable[[], float]:
        return lambda: round(chance.uniform(low, high), 2)

    kill, freeze, often, seldom = pauses(3, 7), pauses(12, 25), pauses(8, 25), pauses(15, 30)
    frozen = 2.5 * LEASE_SECONDS
    api = [Kind.KILL_API_BEFORE_ANSWER] * 6 + [Kind.KILL_API] * 4
    database = [
        (Kind.STOP_DATABASE, 4.0),
        (Kind.CRASH_DATABASE, 4.0),
        (Kind.STOP_DATABASE, 45.0),
        (Kind.CRASH_DATABASE, 1.0),
    ]
    store = [(Kind.FILL_DISK, 12.0), (Kind.DROP_STORE, 15.0)] * 2
    chance.shuffle(api)
    chance.shuffle(database)
    return Plan(
        seed=seed,
        jobs=jobs,
        seconds=200,
        workers=3,
        lanes=(
            [Fault(kind=Kind.KILL_WORKER, pause=kill()) for _ in range(35)],
            [Fault(kind=Kind.FREEZE_WORKER, pause=freeze(), seconds=frozen) for _ in range(6)],
            [Fault(kind=kind, pause=often()) for kind in api],
            [Fault(kind=kind, pause=seldom(), seconds=seconds) for kind, seconds in database],
            [Fault(kind=kind, pause=seldom(), seconds=seconds) for kind, seconds in store],
            [Fault(kind=Kind.STOP_RECEIVER, pause=seldom(), seconds=12.0) for _ in range(3)],
        ),
    )


def short(seed: int) -> Plan:
    """A taste of it, for every run of the tests."""
    return Plan(
        seed=seed,
        jobs=30,
        seconds=12,
        workers=2,
        lanes=(
            [
                Fault(kind=Kind.FREEZE_WORKER, pause=0, seconds=1.5 * LEASE_SECONDS),
                Fault(kind=Kind.KILL_WORKER, pause=0),
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
    frozen: set[int] = field(default_factory=set)
    now: set[str] = field(default_factory=set)


class Saboteur:
    """Does what a plan says to a stage."""

    def __init__(self, stage: Stage, *, seed: int) -> None:
        self._stage = stage
        self._chance = random.Random(seed)
        self._catching = threading.Lock()
        self.damage = Damage()

    def run(self, lane: Lane, stop: threading.Event) -> None:
        """One lane, from its first pause until it is through or told to stop; what was broken is mended first."""
        for fault in lane:
            if stop.wait(fault.pause):
                return
            if fault.kind is Kind.FILL_DISK and not self._stage.disk.is_mounted:
                self.damage.skipped[fault.name] = "not run: this machine lets us mount no disk"
                continue
            repair = self._break(fault.kind, stop)
            if repair is None:
                continue
            self.damage.done[fault.name] += 1
            self.damage.seconds[fault.name] += round(fault.seconds)
            self.damage.now.add(fault.name)
            time.sleep(fault.seconds)
            repair()
            self.damage.now.discard(fault.name)

    def _break(self, kind: Kind, stop: threading.Event) -> Callable[[], object] | None:
        """Returns what mends it, or None if there was nothing to break."""
        stage = self._stage
        if kind in (Kind.KILL_WORKER, Kind.FREEZE_WORKER):
            victim = self._catch_a_busy_worker(stop, spare=kind is Kind.KILL_WORKER)
            return (
                None if victim is None else self._freeze(victim) if kind is Kind.FREEZE_WORKER else self._kill(victim)
            )
        ways: dict[Kind, tuple[Callable[[], object], Callable[[], object]]] = {
            Kind.KILL_API: (lambda: stage.api.signal(signal.SIGKILL), lambda: None),
            Kind.KILL_API_BEFORE_ANSWER: (stage.fuse.touch, lambda: None),
            Kind.STOP_DATABASE: (stage.database.stop, stage.database.start),
            Kind.CRASH_DATABASE: (stage.database.crash, stage.database.start),
            Kind.FILL_DISK: (stage.disk.fill, stage.disk.empty),
            Kind.DROP_STORE: (stage.disk.drop, stage.disk.bring_back),
            Kind.STOP_RECEIVER: (stage.receiver.stop, stage.receiver.start),
        }
        begin, end = ways[kind]
        begin()
        return end

    def _kill(self, victim: Kept) -> Callable[[], object]:
        self.damage.killed.add(victim.pid)
        victim.signal(signal.SIGKILL)
        victim.frozen = False
        return lambda: None

    def _freeze(self, victim: Kept) -> Callable[[], object]:
        self.damage.frozen.add(victim.pid)

        def wake() -> None:
            self._wait_until_its_job_is_taken(victim)
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
            caught = self._try_to_catch(1 if spare else 0)
            if caught is not None:
                return caught
            stop.wait(0.05)
        return None

    def _try_to_catch(self, spared: int) -> Kept | None:
        url = self._stage.database.url
        with contextlib.suppress(psycopg.OperationalError), self._catching:
            busy = busy_workers(url)
            up = self._stage.at_work()
            found = [kept for kept in up if kept.pid in busy]
            if not found or len(up) <= spared:
                return None
            victim = self._chance.choice(found)
            victim.frozen = True
            victim.signal(signal.SIGSTOP)
            try:
                if victim.pid in busy_workers(url):
                    return victim
            except psycopg.OperationalError:
                pass
            victim.signal(signal.SIGCONT)  # it has just finished
            victim.frozen = False
        return None


def busy_workers(url: str) -> set[int]:
    """Process ids of the workers that hold a job."""
    with psycopg.connect(url, connect_timeout=2) as connection:
        rows = connection.execute("select worker from jobs where state = 'PROCESSING'").fetchall()
    return {int(worker.rpartition(":")[2]) for (worker,) in rows}
