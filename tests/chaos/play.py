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
CLOSING_ROUNDS = 5
"""Of such jobs, until none of the workers went without: on a busy machine one of them may sleep through a round."""

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


def play(
    plan: Plan, home: Path, show: Show, *, encore: Callable[[Stage, Notes], None] = lambda on, notes: None
) -> Outcome:
    """Raises only what is wrong with the performance itself; what is wrong with the service is in the findings.

    encore: what to do with the service after the verdict, while it still runs.
    """
    began = time.monotonic()
    with stage.opened(home, workers=plan.workers, settings=plan.settings) as on:
        verdict.record_transitions(on.database.url)
        _wait(lambda: on.is_ready() and len(on.at_work()) == plan.workers, "The service did not start")
        keys = [clients.sign_up(on.url, f"team-{number}") for number in range(TEAMS)]
        notes, saboteur = Notes(), Saboteur(on, plan)
        stop, enough = threading.Event(), threading.Event()
        with _threads(stop, enough) as start:
            start(clients.watch, on.url, notes, stop)
            lanes = [start(saboteur.run, lane, enough) for lane in plan.lanes]
            callers = [
                start(_submit_in_time, on, keys, plan, caller, notes, saboteur, stop) for caller in range(CALLERS)
            ]
            while not all(work.done() for work in (*lanes, *callers)):
                show(len(notes.promises), -1, saboteur.damage.now)
                _raise_any((*lanes, *callers))
                if all(work.done() for work in callers) and not on.has_open_jobs():
                    enough.set()  # nothing is left that a fault could hit
                time.sleep(0.2)
            _raise_any((*lanes, *callers))
            on.fuse.unlink(missing_ok=True)
            _wait(lambda: on.is_ready() and len(on.at_work()) == plan.workers, "The service did not come back")
            submitted = plan.jobs
            for _ in range(CLOSING_ROUNDS):
                for number in range(submitted, submitted + CLOSING_JOBS * plan.workers):
                    clients.submit(on.url, on.receiver.url, keys, number, notes, stop)
                submitted += CLOSING_JOBS * plan.workers
                stuck = verdict.wait_for_calm(on, plan.patience, lambda left: show(len(notes.promises), left, set()))
                if stuck or not verdict.idle_workers(on):
                    break
        examination = Examination(on, notes)
        outcome = Outcome(
            plan=plan,
            seconds=time.monotonic() - began,
            damage=saboteur.damage,
            notes=notes,
            lives={kept.name: kept.lives for kept in (on.api, *on.workers)},
            findings=examination.findings(submitted=submitted, stuck=stuck),
            figures=examination.figures(saboteur.damage),
        )
        encore(on, notes)
        return outcome


def _submit_in_time(
    on: Stage,
    keys: Sequence[str],
    plan: Plan,
    caller: int,
    notes: Notes,
    saboteur: Saboteur,
    stop: threading.Event,
) -> None:
    """Every `CALLERS`-th job of the plan, each at its time or as soon after as service and faults let us."""
    began = time.monotonic()
    for number in range(caller, plan.jobs, CALLERS):
        stop.wait(max(0.0, began + plan.seconds * number / plan.jobs - time.monotonic()))
        while number > plan.jobs * (saboteur.progress + plan.ahead) and on.has_open_jobs():
            if stop.wait(0.5):
                break
        clients.submit(on.url, on.receiver.url, keys, number, notes, stop)


@contextlib.contextmanager
def _threads(*stops: threading.Event) -> Iterator[Callable[..., Future[None]]]:
    """Something that starts threads, and sends them all home at the end, whatever ended it."""
    with ThreadPoolExecutor(max_workers=32) as pool:
        try:
            yield pool.submit
        finally:
            for stop in stops:
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
