"""Report of `benchmarks.api`: results as JSON, the tables made from it, and an estimate for a fleet of GPUs.

No number in the tables or in docs/operator.md is written by hand: a test makes them again from the JSON and compares.
"""

from __future__ import annotations

import json
import math
import os
import platform
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
JSON = RESULTS / "api.json"
TABLES = RESULTS / "api.md"
OPERATOR = Path(__file__).parents[1] / "docs" / "operator.md"
BEGIN, END = "<!-- made by python -m benchmarks.api from benchmarks/results/api.json -->\n", "<!-- end -->\n"

GPU_COUNT = 1000
GPU_SECONDS = 10.0
"""GPU time of a job, assumed: a clarity-upscale to 4 megapixels takes between 1 and 60 s."""
POLL_SECONDS = 2.0
SOURCE_MB, RESULT_MB = 2.0, 12.0
"""A photo in, a PNG of 4 to 8 megapixels out; assumed."""
FETCHES_PER_RESULT = 1.5
"""Assumed."""
LEASE_SECONDS = 15.0

MANY_USERS_SOURCE = "data URI, 600 users"
"""Source with so many users in turn that no idle sandbox process is reused."""

Results = dict[str, Any]


def load() -> Results:
    """Return the saved results; empty if there are none."""
    return dict(json.loads(JSON.read_text())) if JSON.exists() else {}


def save(results: Results) -> None:
    """Write the results so far, so that an interrupted run keeps its finished parts."""
    JSON.write_text(json.dumps(_rounded(results), indent=1) + "\n")


def _rounded(value: Any) -> Any:
    match value:
        case float():
            return float(f"{value:.4g}")
        case dict():
            return {name: _rounded(one) for name, one in value.items()}
        case list() | tuple():
            return [_rounded(one) for one in value]
    return value


def machine() -> str:
    """Describe the processor as far as the system tells."""
    names = [line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    return f"{os.cpu_count()} cores, {names[0] if names else platform.machine()}"


def _lines(path: str) -> Sequence[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return ()


def pace() -> float:
    """Return wall time divided by CPU time of a busy loop: 1 on an idle machine, more on a shared one."""
    wall, processor = time.perf_counter(), time.process_time()
    while time.process_time() - processor < 0.3:
        math.isqrt(10**100)
    return (time.perf_counter() - wall) / (time.process_time() - processor)


def write_documents(results: Results) -> None:
    """Write the tables, and the part of docs/operator.md that has numbers in it."""
    results = _rounded(results)
    TABLES.write_text(report(results))
    OPERATOR.write_text(replace_model(OPERATOR.read_text(), results))


def replace_model(page: str, results: Results) -> str:
    """Return the operator page with a new model between its two marks."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + BEGIN + "\n" + fleet(results) + "\n" + END + after


# --- tables ---


def report(results: Results) -> str:
    """Return all results as Markdown."""
    sections = {
        "submissions": _submissions,
        "turnaround": _turnaround,
        "polling": _polling,
        "growth": _growth,
        "peers": _peers,
    }
    lines = ["# Cost of the service without the engine", "", *_INTRODUCTION]
    for name, section in sections.items():
        if name in results:
            part = results[name]
            lines += ["", *section(part["rows"]), "", _condition(part["conditions"])]
    return "\n".join(lines) + "\n"


_INTRODUCTION = (
    "`python -m benchmarks.api --peers --write` makes this page. Client, API, worker and PostgreSQL share the",
    "cores of the machine. A 64x64 PNG, 50 teams, fsync and synchronous_commit on, files synced into a folder.",
    "The columns API, PostgreSQL and client are CPU time per answer in ms, user and system, with all descendants. *Two",
    "cores* is 2 / their sum, client included: answers per second of two cores of this speed with no other load.",
    "Crowding is wall time divided by CPU time of a busy loop: 1 is an idle machine.",
)


def _condition(conditions: Mapping[str, Any]) -> str:
    short = "quick run, " if conditions["quick"] else ""
    return (
        f"*{conditions['machine']}; {short}Python {conditions['python']}, load average {conditions['load_average']}, "
        f"crowding {conditions['pace']}.*"
    )


def table(names: Sequence[str], rows: Sequence[Sequence[str]], *, words: int = 1) -> list[str]:
    """Return a Markdown table; the first `words` columns are text, the others numbers."""
    ruler = ["---"] * words + ["--:"] * (len(names) - words)
    return [f"| {' | '.join(cells)} |" for cells in (names, ruler, *rows)]


def _number(value: float) -> str:
    """Format with at most three digits."""
    if value >= 100:
        return f"{value:,.0f}".replace(",", " ")
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def two_cores(processor_ms: Mapping[str, float]) -> float:
    """Return answers per second of two cores without other load."""
    return 2000 / sum(processor_ms.values())


def _submissions(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    names = ["PostgreSQL", "image by", "API processes", "per second", "p50 ms", "p95 ms", "p99 ms", "alone p50 ms"]
    names += ["API", "PostgreSQL ", "client", "two cores"]
    lines = [
        [row["database"], row["way"], str(row["processes"])]
        + [_number(row[name]) for name in ("per_second", "p50_ms", "p95_ms", "p99_ms", "alone_p50_ms")]
        + [_number(row["processor_ms"].get(name, 0.0)) for name in ("api", "postgresql", "client")]
        + [_number(two_cores(row["processor_ms"]))]
        for row in rows
    ]
    return [
        "## Submissions",
        "",
        "16 at a time; each is validated, decoded in a sandbox process of its user, stored, charged and committed.",
        "`alone` is one at a time. With 50 users an image reuses an idle sandbox process, with 600 it needs a new one;",
        "an upload was decoded when it arrived. API includes the sandbox processes; the file server for URLs is not",
        "counted.",
        "",
        *table(names, lines, words=2),
    ]


def _turnaround(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    names = ["PostgreSQL", "p50 ms", "p95 ms", "p99 ms", "until a worker starts, p50", "at the worker, p50"]
    columns = ("p50_ms", "p95_ms", "p99_ms", "started_p50_ms", "worked_p50_ms")
    lines = [[row["database"], *(_number(row[name]) for name in columns)] for row in rows]
    return [
        "## Turnaround",
        "",
        "From a submission with `Prefer: wait` to the answer with the finished job, one job at a time, with a fake",
        "engine that repeats pixels: the time of a job besides its engine.",
        "",
        *table(names, lines),
    ]


def _polling(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    names = ["PostgreSQL", "per second", "p50 ms", "p95 ms", "p99 ms", "alone p99 ms", "API", "PostgreSQL ", "client"]
    names += ["API cores", "PostgreSQL cores"]
    lines = [
        [row["database"]]
        + [_number(row[name]) for name in ("per_second", "p50_ms", "p95_ms", "p99_ms", "slowest_alone_ms")]
        + [_number(row["processor_ms"][name]) for name in ("api", "postgresql", "client")]
        + [_number(row["api_cores"]), _number(row["postgresql_cores"])]
        for row in rows
    ]
    return [
        "## Polling",
        "",
        "`GET /v2/jobs/{id}` of 10 000 waiting jobs, each with its position and ETA. Cores: those needed to poll all",
        "of them every 2 s; event streams and webhooks cost nothing while nothing happens.",
        "",
        *table(names, lines),
    ]


def _growth(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    heads = [f"{_number(row['finished'])} jobs" for row in rows]
    heads[-1] += f", {_number(rows[-1]['waiting'])} waiting"
    lines = [
        [step, *(f"{_number(row['milliseconds'][step])} ms, {row['blocks'][step]}" for row in rows)]
        for step in rows[0]["milliseconds"]
    ]
    return [
        "## Growth of the jobs table",
        "",
        "Median milliseconds of each step on one connection to an external PostgreSQL, commit included, and the 8 KiB",
        "blocks it touches, which do not depend on other load. The plans that ran are in `api-plans/`.",
        "",
        *table(["step", *heads], lines),
    ]


def _peers(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    names = ["server", "at a time", "per second", "p50 ms", "p95 ms", "p99 ms", "409s each", "server ", "client"]
    lines = [
        [row["server"], str(row["connections"])]
        + [_number(row[name]) for name in ("per_second", "p50_ms", "p95_ms", "p99_ms", "refused")]
        + [_number(row["processor_ms"][name]) for name in ("server", "client")]
        for row in rows
    ]
    return [
        "## Comparison with servers that store nothing",
        "",
        "The same fake engine, image and client. They answer when the image is done: compare with the turnaround",
        "above. They have no accounts, credits, limits or idempotency; no jobs that survive a crash, further attempts",
        "or leases; no webhooks, lists or stored results; no sandbox for decoding. Cog's server runs one prediction",
        "at a time and answers 409 while it cleans up: the client repeats the request; the latency includes all tries.",
        "",
        *table(names, lines),
    ]


# --- estimate for a fleet ---


def fleet(results: Results) -> str:
    """Return what 1,000 GPUs need from everything else, from the measured costs; for docs/operator.md."""
    submit = _external_row(results, "submissions", way=MANY_USERS_SOURCE, processes=1)["processor_ms"]
    poll = _external_row(results, "polling")["processor_ms"]
    steps = results["growth"]["rows"][-2]["milliseconds"]
    jobs = GPU_COUNT / GPU_SECONDS
    unfinished = jobs * (GPU_SECONDS + _external_row(results, "turnaround")["p50_ms"] / 1000)
    polls = unfinished / POLL_SECONDS
    renewals = GPU_SECONDS / (LEASE_SECONDS / 5)
    commits = {"submission": 1, "task taken and ended": 2, "claim": 1, "settlement": 1, "lease": renewals}
    each = sum(commits.values())
    database = jobs * (steps["submit"] + steps["claim"] + steps["settle"] + renewals * steps["renew"])
    database += polls * poll["postgresql"]
    rows = [
        ("jobs", f"{_number(jobs)} a second", f"{GPU_COUNT} GPUs, {GPU_SECONDS:.0f} s a job (assumed)"),
        (
            "API, submissions",
            f"{_number(jobs * submit['api'] / 1000)} cores",
            f"{_number(submit['api'])} ms of processor each, decoding included (measured)",
        ),
        (
            "API, polling",
            f"{_number(polls * poll['api'] / 1000)} cores",
            f"{_number(unfinished)} open jobs every {POLL_SECONDS:.0f} s, {_number(poll['api'])} ms each (measured)",
        ),
        (
            "PostgreSQL, commits",
            f"{_number(jobs * each)} a second",
            f"{_number(each)} a job: " + ", ".join(f"{_number(n)} {name}" for name, n in commits.items()),
        ),
        (
            "PostgreSQL, time",
            f"at most {_number(database / 1000)} cores",
            "waiting at a million jobs, round trips and neighbours included, and polls (measured)",
        ),
        (
            "store",
            f"{_number(2 * jobs * SOURCE_MB)} + {_number(jobs * RESULT_MB * (1 + FETCHES_PER_RESULT))} MB/s",
            f"{SOURCE_MB:.0f} MB in and read, {RESULT_MB:.0f} MB out and fetched {FETCHES_PER_RESULT} times (assumed)",
        ),
        (
            "webhooks",
            f"{_number(jobs)} to {_number(jobs * (2 + renewals))} a second",
            "the end alone, or progress with every lease",
        ),
    ]
    return "\n".join(table(["what", "how much", "from"], rows, words=3))


def _external_row(results: Results, part: str, **values: Any) -> Mapping[str, Any]:
    """Return the row of the external PostgreSQL with these values."""
    for row in results[part]["rows"]:
        if row["database"].startswith("external") and all(row[name] == value for name, value in values.items()):
            return dict(row)
    raise SystemExit(f"The results have no {part} on an external PostgreSQL. Run python -m benchmarks.api --write.")
