"""The verdict as tables: for the terminal, and as Markdown and JSON to be kept."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table

from tests.chaos.faults import Kind
from tests.chaos.play import Outcome
from tests.chaos.verdict import Finding

TITLE = "Everything goes wrong, and nothing is lost"
HOW = """`make chaos`, seed {plan.seed}: {plan.jobs} jobs on {plan.workers} workers, handed in over {plan.seconds:g} s,
on {machine}. What is promised, and how that is looked at: `tests/chaos/verdict.py`.
"""


def tables(outcome: Outcome) -> Iterator[Table]:
    for title, header, lines in _tables(outcome):
        table = Table(*header, title=title)
        for line in lines:
            table.add_row(*map(str, line))
        yield table


def _tables(outcome: Outcome) -> Iterator[tuple[str, tuple[str, ...], list[tuple[Any, ...]]]]:
    yield "Faults", ("fault", "times", "seconds", "what it cost"), _faults(outcome)
    yield "What it cost in all", ("", ""), _costs(outcome)
    found = [(finding.rule, finding.looked_at, _wrong(finding)) for finding in outcome.findings]
    yield "What was lost", ("promise", "looked at", "broken"), found


def _wrong(finding: Finding) -> str | int:
    return f"{len(finding.wrong)}: {'; '.join(finding.wrong[:5])}" if finding.wrong else 0


def _faults(outcome: Outcome) -> list[tuple[Any, ...]]:
    figures, notes, damage = outcome.figures, outcome.notes, outcome.damage
    lost = f"{figures.lost_to_freezes} attempts"
    costs = {
        Kind.KILL_WORKER: f"{figures.lost_to_kills} attempts",
        Kind.FREEZE_WORKER: lost,
        Kind.FREEZE_BEFORE_SETTLEMENT: "in the other line of freezes" if Kind.FREEZE_WORKER in damage.done else lost,
        Kind.HUNT_JOB: f"{figures.states.get('FAILED', 0)} jobs failed, and were refunded",
        Kind.KILL_API: f"{notes.answers['no answer']} requests repeated",
        Kind.KILL_API_BEFORE_ANSWER: f"{notes.replayed} jobs found again by their Idempotency-Key",
        Kind.FILL_DISK: f"{figures.given_back} attempts given back, {notes.answers['502']} requests repeated",
        Kind.DROP_STORE: "in the line above",
        Kind.STOP_DATABASE: f"{notes.answers['503']} requests repeated",
        Kind.CRASH_DATABASE: "in the lines above",
        Kind.STOP_RECEIVER: f"{figures.delivery_attempts - figures.deliveries} deliveries repeated",
    }
    lines = []
    for name in sorted(damage.done):
        kind = next(kind for kind in sorted(Kind, key=len, reverse=True) if name.startswith(kind))
        lines.append((name, damage.done[name], damage.seconds[name] or "", costs[kind]))
    return [*lines, *((name, 0, "", reason) for name, reason in damage.skipped.items())]


def _costs(outcome: Outcome) -> list[tuple[Any, ...]]:
    figures = outcome.figures
    return [
        ("jobs accepted", sum(figures.states.values())),
        *((f"jobs {state}", count) for state, count in sorted(figures.states.items())),
        ("attempts begun", figures.attempts),
        ("attempts lost with a killed worker", figures.lost_to_kills),
        ("attempts lost to a freeze", figures.lost_to_freezes),
        ("attempts lost otherwise (database or store away)", figures.lost_otherwise),
        ("attempts given back unharmed", figures.given_back),
        ("answers to callers", ", ".join(f"{n} × {what}" for what, n in sorted(outcome.notes.answers.items()))),
        ("webhook events", figures.deliveries),
        ("webhook attempts", figures.delivery_attempts),
        ("events that arrived once more", figures.told_twice),
        ("processes started", ", ".join(f"{name}: {lives}" for name, lives in outcome.lives.items())),
        ("seconds, start to verdict", round(outcome.seconds)),
    ]


def write(outcome: Outcome, folder: Path) -> None:
    """`chaos.md` and `chaos.json`."""
    plan = outcome.plan
    parts = [f"# {TITLE}\n", HOW.format(plan=plan, machine=machine())]
    for title, header, lines in _tables(outcome):
        rules = ["---", *("--:" if isinstance(cell, int) else "---" for cell in lines[0][1:])]
        parts.append(f"## {title}\n")
        rows = [header, rules, *lines]
        parts.append("\n".join("| " + " | ".join(map(str, line)) + " |" for line in rows) + "\n")
    (folder / "chaos.md").write_text("\n".join(parts))
    kept = {
        "machine": machine(),
        "seed": outcome.plan.seed,
        "seconds": round(outcome.seconds, 1),
        "faults": dict(outcome.damage.done),
        "skipped": outcome.damage.skipped,
        "figures": asdict(outcome.figures),
        "answers": dict(outcome.notes.answers),
        "replayed": outcome.notes.replayed,
        "findings": [asdict(finding) for finding in outcome.findings],
    }
    (folder / "chaos.json").write_text(json.dumps(kept, indent=1, sort_keys=True, default=dict) + "\n")


def machine() -> str:
    """Processor, cores and memory in a few words."""
    model = platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = (line.partition(":")[2] for line in cpuinfo.read_text().splitlines() if line.startswith("model name"))
        model = " ".join(next(names, model).split())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{os.cpu_count()} cores of {model}, {memory:.0f} GiB"
