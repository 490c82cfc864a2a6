"""The result of a chaos scenario as tables: for the terminal, and as Markdown and JSON files."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table

from tests.chaos.checks import CheckResult
from tests.chaos.faults import FaultKind
from tests.chaos.scenario import ScenarioResult

TITLE = "Everything fails, and nothing is lost"
INTRODUCTION = """`make chaos`, seed {plan.seed}: {plan.jobs} jobs on {plan.workers} workers, submitted over
{plan.seconds:g} s, on {machine}. The checks are in `tests/chaos/checks.py`.
"""


def tables(result: ScenarioResult) -> Iterator[Table]:
    for title, header, lines in _tables(result):
        table = Table(*header, title=title)
        for line in lines:
            table.add_row(*map(str, line))
        yield table


def _tables(result: ScenarioResult) -> Iterator[tuple[str, tuple[str, ...], list[tuple[Any, ...]]]]:
    yield "Faults", ("fault", "times", "seconds", "cost"), _faults(result)
    yield "Total cost", ("", ""), _costs(result)
    checks = [(check.name, check.checked, _problems(check)) for check in result.checks]
    yield "Checks", ("check", "checked", "problems"), checks


def _problems(check: CheckResult) -> str | int:
    return f"{len(check.problems)}: {'; '.join(check.problems[:5])}" if check.problems else 0


def _faults(result: ScenarioResult) -> list[tuple[Any, ...]]:
    costs, callers, faults = result.costs, result.callers, result.faults
    frozen = f"{costs.lost_to_freezes} attempts"
    both_freezes = FaultKind.FREEZE_WORKER in faults.done
    cost_by_kind = {
        FaultKind.KILL_WORKER: f"{costs.lost_to_kills} attempts",
        FaultKind.FREEZE_WORKER: frozen,
        FaultKind.FREEZE_BEFORE_SETTLEMENT: "counted in the other line of freezes" if both_freezes else frozen,
        FaultKind.HUNT_JOB: f"{costs.states.get('FAILED', 0)} jobs failed and were refunded",
        FaultKind.KILL_API: f"{callers.answers['no answer']} requests repeated",
        FaultKind.KILL_API_BEFORE_ANSWER: f"{callers.replayed} jobs found again by their Idempotency-Key",
        FaultKind.FILL_DISK: f"{costs.given_back} attempts given back, {callers.answers['502']} requests repeated",
        FaultKind.DROP_STORE: "counted in the line above",
        FaultKind.STOP_DATABASE: f"{callers.answers['503']} requests repeated",
        FaultKind.CRASH_DATABASE: "counted in the lines above",
        FaultKind.STOP_RECEIVER: f"{costs.delivery_attempts - costs.deliveries} deliveries repeated",
    }
    lines = []
    for name in sorted(faults.done):
        kind = next(kind for kind in sorted(FaultKind, key=len, reverse=True) if name.startswith(kind))
        lines.append((name, faults.done[name], faults.seconds[name] or "", cost_by_kind[kind]))
    return [*lines, *((name, 0, "", reason) for name, reason in faults.skipped.items())]


def _costs(result: ScenarioResult) -> list[tuple[Any, ...]]:
    costs = result.costs
    return [
        ("jobs accepted", sum(costs.states.values())),
        *((f"jobs {state}", count) for state, count in sorted(costs.states.items())),
        ("attempts started", costs.attempts),
        ("attempts lost with a killed worker", costs.lost_to_kills),
        ("attempts lost to a freeze", costs.lost_to_freezes),
        ("attempts lost otherwise (database or store unavailable)", costs.lost_otherwise),
        ("attempts given back without loss", costs.given_back),
        ("answers to callers", ", ".join(f"{n} × {answer}" for answer, n in sorted(result.callers.answers.items()))),
        ("webhook events", costs.deliveries),
        ("webhook attempts", costs.delivery_attempts),
        ("events that arrived twice", costs.duplicate_events),
        ("processes started", ", ".join(f"{name}: {starts}" for name, starts in result.starts.items())),
        ("seconds, start to last check", round(result.seconds)),
    ]


def write(result: ScenarioResult, folder: Path) -> None:
    """Write `chaos.md` and `chaos.json`."""
    plan = result.plan
    parts = [f"# {TITLE}\n", INTRODUCTION.format(plan=plan, machine=machine())]
    for title, header, lines in _tables(result):
        rules = ["---", *("--:" if isinstance(cell, int) else "---" for cell in lines[0][1:])]
        parts.append(f"## {title}\n")
        rows = [header, rules, *lines]
        parts.append("\n".join("| " + " | ".join(map(str, line)) + " |" for line in rows) + "\n")
    (folder / "chaos.md").write_text("\n".join(parts))
    data = {
        "machine": machine(),
        "seed": result.plan.seed,
        "seconds": round(result.seconds, 1),
        "faults": dict(result.faults.done),
        "skipped": result.faults.skipped,
        "costs": asdict(result.costs),
        "answers": dict(result.callers.answers),
        "replayed": result.callers.replayed,
        "checks": [asdict(check) for check in result.checks],
    }
    (folder / "chaos.json").write_text(json.dumps(data, indent=1, sort_keys=True, default=dict) + "\n")


def machine() -> str:
    """Describe processor, cores and memory in a few words."""
    model = platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = (line.partition(":")[2] for line in cpuinfo.read_text().splitlines() if line.startswith("model name"))
        model = " ".join(next(names, model).split())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{os.cpu_count()} cores of {model}, {memory:.0f} GiB"
