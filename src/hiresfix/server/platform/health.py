"""Whether this process can serve: named checks, bounded in time and in cost.

Guarantees: asking never hangs (a check that does not answer within `PATIENCE` has failed, and is not started again
while it hangs), and costs next to nothing (an answer is good for `FRESH` seconds, and all who ask meanwhile share one
look). What is told says nothing of hosts, paths or accounts: anybody may ask.

It does not know what the checks look at. Which of them keep the process from serving is the operator's to say.
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

FRESH = 2.0
PATIENCE = 3.0
NO_OTHERS: Mapping[str, float] = MappingProxyType({})

Check = Callable[[], Awaitable[str | None]]
"""Returns what is wrong, in words for anybody; None: nothing. An exception is a failure without words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """How a check went, and in how many milliseconds; `problem` is None where all is well."""

    problem: str | None
    milliseconds: int


class Health:
    """The checks of one process. `required`: those without which it cannot serve."""

    def __init__(
        self, checks: Mapping[str, Check], *, required: Collection[str], fresh: Mapping[str, float] = NO_OTHERS
    ) -> None:
        """fresh: seconds an answer is good for, of checks where that is not `FRESH`."""
        self._probes = {name: _Probe(name, check, fresh.get(name, FRESH)) for name, check in checks.items()}
        self._required = required

    async def findings(self) -> Mapping[str, Finding]:
        """How each check stands, a moment old at most."""
        found = await asyncio.gather(*(probe.finding() for probe in self._probes.values()))
        return dict(zip(self._probes, found, strict=True))

    def can_serve(self, findings: Mapping[str, Finding]) -> bool:
        return all(finding.problem is None for name, finding in findings.items() if name in self._required)

    async def aclose(self) -> None:
        """Give up what still hangs."""
        for probe in self._probes.values():
            probe.close()


class _Probe:
    def __init__(self, name: str, check: Check, fresh: float) -> None:
        self._name = name
        self._check = check
        self._fresh = fresh
        self._look: asyncio.Task[Finding] | None = None
        self._found = Finding(problem=None, milliseconds=0)
        self._good_until = 0.0

    async def finding(self) -> Finding:
        if time.monotonic() >= self._good_until:
            look = self._look = self._look or asyncio.create_task(self._run())
            done, _ = await asyncio.wait({look}, timeout=PATIENCE)
            late = Finding(problem="does not answer in time", milliseconds=round(1000 * PATIENCE))
            self._note(look.result() if done else late)
            if done and self._look is look:
                self._look = None
        return self._found

    async def _run(self) -> Finding:
        started = time.perf_counter()
        try:
            problem = await self._check()
        except Exception as error:  # whatever it is: the check has failed, and says so
            log.debug("health.check_failed", check=self._name, reason=type(error).__name__)
            problem = "failed"
        return Finding(problem=problem, milliseconds=round(1000 * (time.perf_counter() - started)))

    def _note(self, found: Finding) -> None:
        if found.problem != self._found.problem:
            note = log.warning if found.problem else log.info
            note("health.changed", check=self._name, problem=found.problem)
        self._found, self._good_until = found, time.monotonic() + self._fresh
        metrics.READY.labels(self._name).set(found.problem is None)

    def close(self) -> None:
        if self._look is not None:
            self._look.cancel()
