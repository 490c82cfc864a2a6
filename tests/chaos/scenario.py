"""One chaos scenario: callers, faults and the service run together; then everything finishes, then the checks."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.chaos import checks, clients, environment
from tests.chaos.checks import CheckResult, Checks, FaultCosts
from tests.chaos.clients import CallerRecord
from tests.chaos.environment import Environment
from tests.chaos.faults import FaultInjector, FaultPlan, FaultRecord

TEAMS = 2
CALLERS = 4
START_SECONDS = 240.0
CLOSING_JOBS = 4
"""Jobs per worker after the last fault: each worker must complete one."""
CLOSING_ROUNDS = 5
"""Maximum rounds of closing jobs until every worker has completed one; on a busy machine one may miss a round."""

ProgressDisplay = Callable[[int, int, set[str]], None]
"""Called repeatedly with the number of accepted jobs, the number of unfinished things (-1: not counted), and the names
of the active faults."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScenarioResult:
    plan: FaultPlan
    seconds: float
    faults: FaultRecord
    callers: CallerRecord
    starts: dict[str, int]
    """How often each process was started, by its name."""
    checks: Sequence[CheckResult]
    costs: FaultCosts

    @property
    def passed(self) -> bool:
        return not any(check.problems for check in self.checks)


def run(
    plan: FaultPlan,
    home: Path,
    show: ProgressDisplay,
    *,
    after_checks: Callable[[Environment, CallerRecord], None] = lambda service, record: None,
) -> ScenarioResult:
    """Run the scenario. Raises only for errors of the scenario itself; errors of the service are in the checks.

    Args:
        plan: the jobs and faults.
        home: an empty folder.
        show: displays the progress.
        after_checks: called after the checks, while the service still runs.
    """
    started = time.monotonic()
    with environment.start(home, workers=plan.workers, settings=plan.settings) as service:

        def all_up() -> bool:
            return service.is_ready() and len(service.active_workers()) == plan.workers

        checks.record_transitions(service.database.url)
        _wait(all_up, "The service did not start")
        keys = [clients.sign_up(service.url, f"team-{number}") for number in range(TEAMS)]
        record, injector = CallerRecord(), FaultInjector(service, plan)
        stop, no_more_faults = threading.Event(), threading.Event()
        with _threads(stop, no_more_faults) as start:
            start(clients.watch, service.url, record, stop)
            lanes = [start(injector.run, lane, no_more_faults) for lane in plan.lanes]
            callers = [
                start(_submit_on_schedule, service, keys, plan, caller, record, injector, stop)
                for caller in range(CALLERS)
            ]
            while not all(task.done() for task in (*lanes, *callers)):
                show(len(record.accepted), -1, injector.record.active)
                _raise_errors((*lanes, *callers))
                if all(task.done() for task in callers) and not service.has_open_jobs():
                    no_more_faults.set()  # there is nothing left that a fault could hit
                time.sleep(0.2)
            _raise_errors((*lanes, *callers))
            service.fuse.unlink(missing_ok=True)
            _wait(all_up, "The service did not come back")
            submitted = plan.jobs
            for _ in range(CLOSING_ROUNDS):
                for number in range(submitted, submitted + CLOSING_JOBS * plan.workers):
                    clients.submit(service.url, service.receiver.url, keys, number, record, stop)
                submitted += CLOSING_JOBS * plan.workers
                stuck = checks.wait_until_finished(
                    service, plan.patience, lambda unfinished: show(len(record.accepted), unfinished, set())
                )
                if stuck or not checks.idle_workers(service):
                    break
        final = Checks(service, record)
        result = ScenarioResult(
            plan=plan,
            seconds=time.monotonic() - started,
            faults=injector.record,
            callers=record,
            starts={process.name: process.starts for process in (service.api, *service.workers)},
            checks=final.run(submitted=submitted, stuck=stuck),
            costs=final.costs(injector.record),
        )
        after_checks(service, record)
        return result


def _submit_on_schedule(
    service: Environment,
    keys: Sequence[str],
    plan: FaultPlan,
    caller: int,
    record: CallerRecord,
    injector: FaultInjector,
    stop: threading.Event,
) -> None:
    """Submit every `CALLERS`-th job of the plan, at its time or as soon after it as service and faults allow."""
    started = time.monotonic()
    for number in range(caller, plan.jobs, CALLERS):
        stop.wait(max(0.0, started + plan.seconds * number / plan.jobs - time.monotonic()))
        while number > plan.jobs * (injector.progress + plan.ahead) and service.has_open_jobs():
            if stop.wait(0.5):
                break
        clients.submit(service.url, service.receiver.url, keys, number, record, stop)


@contextlib.contextmanager
def _threads(*stops: threading.Event) -> Iterator[Callable[..., Future[None]]]:
    """Yield a function that starts threads; at the end, in any case, set the events that stop them."""
    with ThreadPoolExecutor(max_workers=32) as pool:
        try:
            yield pool.submit
        finally:
            for stop in stops:
                stop.set()


def _raise_errors(tasks: Sequence[Future[None]]) -> None:
    for task in tasks:
        if task.done():
            task.result()


def _wait(condition: Callable[[], object], problem: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{problem} within {START_SECONDS:g} s. See the logs in its folder.")
        time.sleep(0.1)
