"""Readiness of this process: named checks, limited in time and cost.

Asking never hangs: a check that does not answer within `TIMEOUT_SECONDS` has failed, and is not started again while it
hangs. Asking is cheap: a result is reused for `MAX_AGE_SECONDS`, and concurrent requests share one run. Results are
public, so they name no hosts, paths or accounts.

The module does not know what the checks do. Which of them are required is the operator's decision.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import structlog

from hiresfix.server.platform import metrics

log = structlog.get_logger(__name__)

MAX_AGE_SECONDS = 2.0
TIMEOUT_SECONDS = 3.0
NO_EXCEPTIONS: Mapping[str, float] = MappingProxyType({})

Check = Callable[[], Awaitable[str | None]]
"""Returns the problem in words for the public, None if there is none. An exception is a failure without words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckResult:
    """Result and duration of a check; `problem` is None if it passed."""

    problem: str | None
    milliseconds: int


class Health:
    """The checks of one process. `required`: those it cannot serve without."""

    def __init__(
        self, checks: Mapping[str, Check], *, required: Collection[str], max_age: Mapping[str, float] = NO_EXCEPTIONS
    ) -> None:
        """Set up the checks. `max_age`: seconds a result is reused, where it is not `MAX_AGE_SECONDS`."""
        self._probes = {name: _Probe(name, check, max_age.get(name, MAX_AGE_SECONDS)) for name, check in checks.items()}
        self._required = required

    async def results(self) -> Mapping[str, CheckResult]:
        """Return the current result of each check."""
        results = await asyncio.gather(*(probe.result() for probe in self._probes.values()))
        return dict(zip(self._probes, results, strict=True))

    def can_serve(self, results: Mapping[str, CheckResult]) -> bool:
        """Return whether all required checks passed."""
        return all(result.problem is None for name, result in results.items() if name in self._required)

    async def aclose(self) -> None:
        """Cancel checks that still run."""
        for probe in self._probes.values():
            probe.close()


class _Probe:
    def __init__(self, name: str, check: Check, max_age: float) -> None:
        self._name = name
        self._check = check
        self._max_age = max_age
        self._run_task: asyncio.Task[CheckResult] | None = None
        self._last = CheckResult(problem=None, milliseconds=0)
        self._valid_until = 0.0

    async def result(self) -> CheckResult:
        if time.monotonic() >= self._valid_until:
            task = self._run_task = self._run_task or asyncio.create_task(self._run())
            done, _ = await asyncio.wait({task}, timeout=TIMEOUT_SECONDS)
            late = CheckResult(problem="does not answer in time", milliseconds=round(1000 * TIMEOUT_SECONDS))
            self._note(task.result() if done else late)
            if done and self._run_task is task:
                self._run_task = None
        return self._last

    async def _run(self) -> CheckResult:
        started = time.perf_counter()
        try:
            problem = await self._check()
        except Exception as error:  # any exception means that the check failed
            log.debug("health.check_failed", check=self._name, reason=type(error).__name__)
            problem = "failed"
        return CheckResult(problem=problem, milliseconds=round(1000 * (time.perf_counter() - started)))

    def _note(self, result: CheckResult) -> None:
        if result.problem != self._last.problem:
            write = log.warning if result.problem else log.info
            write("health.changed", check=self._name, problem=result.problem)
        self._last, self._valid_until = result, time.monotonic() + self._max_age
        metrics.READY.labels(self._name).set(result.problem is None)

    def close(self) -> None:
        if self._run_task is not None:
            self._run_task.cancel()
