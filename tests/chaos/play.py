"""One performance: callers, faults and the service together, then calm, then the verdict."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.chaos import clients, stage, verdict
from tests.chaos.clients import Notes
from tests.chaos.faults import Damage, Plan, Saboteur
from tests.chaos.stage import Stage
from tests.chaos.verdict import Examination, Figures, Finding

TEAMS = 2
CALLERS = 4
START_SECONDS = 240.0
CLOSING_JOBS = 4
"""For each worker, after the last fault: each of them must have a share."""

Show = Callable[[int, int, set[str]], None]
"""Told again and again: how many jobs are accepted, how many things are unfinished, and which faults are on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    plan: Plan
    seconds: float
    damage: Damage
    notes: Notes
    lives: dict[str, int]
    findings: Sequence[Finding]
    figures: Figures

    @property
    def is_whole(self) -> bool:
        """Nothing was lost."""
        return not any(finding.wrong for finding in self.findings)


def play(plan: Plan, home: Path, show: Show) -> Outcome:
    """Raises only what is wrong with the performance itself; what is wrong with the service is in the findings."""
    began = time.monotonic()
    with stage.opened(home, workers=plan.workers) as on:
        verdict.record_transitions(on.database.url)
        _wait(lambda: on.is_ready() and len(on.at_work()) == plan.workers, "The service did not start")
        keys = [clients.sign_up(on.url, f"team-{number}") for number in range(TEAMS)]
        notes, saboteur = Notes(), Saboteur(on, seed=plan.seed)
        with _threads() as (start, stop):
            start(clients.watch, on.url, notes, stop)
            enough = threading.Event()
            lanes = [start(saboteur.run, lane, enough) for lane in plan.lanes]
            callers = [start(_submit_in_time, on, keys, plan, caller, notes, stop) for caller in range(CALLERS)]
            while not all(work.done() for work in (*lanes, *callers)):
                show(len(notes.promises), -1, saboteur.damage.now)
                _raise_any((*lanes, *callers))
                if all(work.done() for work in callers) and not on.has_open_jobs():
                    enough.set()  # nothing is left that a fault could hit
                time.sleep(0.2)
            _raise_any((*lanes, *callers))
            on.fuse.unlink(missing_ok=True)
            _wait(lambda: on.is_ready() and len(on.at_work()) == plan.workers, "The service did not come back")
            submitted = plan.jobs + CLOSING_JOBS * plan.workers
            for number in range(plan.jobs, submitted):
                clients.submit(on.url, on.receiver.url, keys, number, notes, stop)
            stuck = verdict.wait_for_calm(on, notes, lambda accepted, left: show(accepted, left, set()))
        examination = Examination(on, notes)
        return Outcome(
            plan=plan,
            seconds=time.monotonic() - began,
            damage=saboteur.damage,
            notes=notes,
            lives={kept.name: kept.lives for kept in (on.api, *on.workers)},
            findings=examination.findings(submitted=submitted, stuck=stuck),
            figures=examination.figures(killed=saboteur.damage.killed, frozen=saboteur.damage.frozen),
        )


def _submit_in_time(
    on: Stage, keys: Sequence[str], plan: Plan, caller: int, notes: Notes, stop: threading.Event
) -> None:
    """Every `CALLERS`-th job of the plan, each at its time or as soon after as the service lets us."""
    began = time.monotonic()
    for number in range(caller, plan.jobs, CALLERS):
        stop.wait(max(0.0, began + plan.seconds * number / plan.jobs - time.monotonic()))
        clients.submit(on.url, on.receiver.url, keys, number, notes, stop)


@contextlib.contextmanager
def _threads() -> Iterator[tuple[Callable[..., Future[None]], threading.Event]]:
    """Something that starts threads, and the event that sends them all home at the end."""
    stop = threading.Event()
    with ThreadPoolExecutor(max_workers=32) as pool:
        try:
            yield pool.submit, stop
        finally:
            stop.set()


def _raise_any(works: Sequence[Future[None]]) -> None:
    for work in works:
        if work.done():
            work.result()


def _wait(condition: Callable[[], object], complaint: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{complaint} within {START_SECONDS:g} s; its logs say why.")
        time.sleep(0.1)
