"""The figures of `benchmarks.api`, kept and told: a JSON file, tables made from it, and what follows for a fleet.

Nothing in the tables or in docs/operator.md is written by hand: a test makes them again from the JSON and compares.
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

GPUS = 1000
GPU_SECONDS = 10.0
"""A job takes a GPU, assumed: a clarity-upscale to 4 megapixels is between 1 and 60 s."""
POLLED_EVERY = 2.0
SOURCE_MB, RESULT_MB = 2.0, 12.0
"""A photograph in, a PNG of 4 to 8 megapixels out; assumed."""
DOWNLOADS = 1.5
"""Of each result; assumed."""
LEASE_SECONDS = 15.0

OF_STRANGERS = "data URI, 600 users"
"""Of submissions: so many in turn that no decoding process is found again."""

Results = dict[str, Any]


def load() -> Results:
    """What was kept, or nothing."""
    return dict(json.loads(JSON.read_text())) if JSON.exists() else {}


def keep(results: Results) -> None:
    """Write what is known by now; an interrupted run keeps the parts it finished."""
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
    """The processor, as far as the system tells."""
    names = [line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    return f"{os.cpu_count()} cores, {names[0] if names else platform.machine()}"


def _lines(path: str) -> Sequence[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return ()


def pace() -> float:
    """Wall time of a busy moment by its processor time: 1 on a machine of one's own, more where others compute."""
    wall, processor = time.perf_counter(), time.process_time()
    while time.process_time() - processor < 0.3:
        math.isqrt(10**100)
    return (time.perf_counter() - wall) / (time.process_time() - processor)


def write_documents(results: Results) -> None:
    """The tables, and the part of docs/operator.md that has numbers in it."""
    results = _rounded(results)
    TABLES.write_text(report(results))
    OPERATOR.write_text(with_model(OPERATOR.read_text(), results))


def with_model(page: str, results: Results) -> str:
    """The operator's page with the model made anew between its two marks."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + BEGIN + "\n" + fleet(results) + "\n" + END + after


# The tables


def report(results: Results) -> str:
    """All that was measured, as Markdown."""
    sections = {
        "submissions": _submissions,
        "turnaround": _turnaround,
        "polling": _polling,
        "growth": _growth,
        "peers": _peers,
    }
    lines = ["# What the machinery costs, without the engine", "", *_INTRODUCTION]
    for name, section in sections.items():
        if name in results:
            part = results[name]
            lines += ["", *section(part["rows"]), "", _condition(part["conditions"])]
    return "\n".join(lines) + "\n"


_INTRODUCTION = (
    "`python -m benchmarks.api --peers --write` makes this page. Client, API, worker and PostgreSQL share the",
    "machine's cores. A 64x64 PNG, 50 teams, fsync and synchronous_commit on, files synced into a folder.",
    "ms of processor are what one answer takes of each part, user and system time with all processes below; *two",
    "cores* is 2 / their sum, the client's included: what two cores of this speed would do if nobody else used them.",
    "crowding is wall time by processor time of a busy loop: 1 is a machine of one's own.",
)


def _condition(given: Mapping[str, Any]) -> str:
    short = "quick run, " if given["quick"] else ""
    return (
        f"*{given['machine']}; {short}Python {given['python']}, load average {given['load_average']}, "
        f"crowding {given['pace']}.*"
    )


def table(names: Sequence[str], rows: Sequence[Sequence[str]], *, words: int = 1) -> list[str]:
    """Markdown; the first `words` columns are text, the others numbers."""
    ruler = ["---"] * words + ["--:"] * (len(names) - words)
    return [f"| {' | '.join(cells)} |" for cells in (names, ruler, *rows)]


def _number(value: float) -> str:
    """Three digits, no more."""
    if value >= 100:
        return f"{value:,.0f}".replace(",", " ")
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def two_cores(processor_ms: Mapping[str, float]) -> float:
    """Answers a second if two cores did nothing else."""
    return 2000 / sum(processor_ms.values())


def _submissions(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    names = ["PostgreSQL", "picture by", "API processes", "per second", "p50 ms", "p95 ms", "p99 ms", "alone p50 ms"]
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
        "16 at a time, each validated, decoded in a process of its user's, stored, charged and committed; `alone` is",
        "one at a time. Of 50 users the next picture finds the process of the one before, of 600 it needs a new one;",
        "an upload was decoded when it was handed in. API includes the decoding processes; the server of the files",
        "that URLs name is not counted.",
        "",
        *table(names, lines, words=2),
    ]


def _turnaround(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    names = ["PostgreSQL", "p50 ms", "p95 ms", "p99 ms", "until a worker starts, p50", "at the worker, p50"]
    columns = ("p50_ms", "p95_ms", "p99_ms", "started_p50_ms", "worked_p50_ms")
    lines = [[row["database"], *(_number(row[name]) for name in columns)] for row in rows]
    return [
        "## Turn-around",
        "",
        "From a submission with `Prefer: wait` to the answer with the finished job, one job at a time, the engine",
        "doubled by one that repeats pixels: what a job takes besides its engine.",
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
        "`GET /v2/jobs/{id}` of 10 000 waiting jobs, each with its position and time to wait. The cores are those that",
        "polling all of them every 2 s takes; event streams and webhooks cost nothing while nothing happens.",
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
        "## As the table grows",
        "",
        "Median milliseconds of each step on one connection to an external PostgreSQL, commit included, and the",
        "blocks of 8 KiB it touches, which no neighbour on the machine changes. Plans as they ran: `api-plans/`.",
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
        "## Beside servers that keep nothing",
        "",
        "The same double of the engine, picture and client. They answer when the picture is done: to be held against",
        "the turn-around above. What they do not do: accounts, credits, limits, idempotency; a job that outlives a",
        "crash, further attempts, leases; webhooks, lists, results to fetch later; pictures decoded apart from the",
        "process that serves everybody. Cog's server takes one prediction at a time and answers 409 while it",
        "clears up after it: the client asks again until it is taken, and the latency is that of all its tries.",
        "",
        *table(names, lines),
    ]


# What follows for a fleet


def fleet(results: Results) -> str:
    """What 1,000 GPUs ask of everything else, from the measured costs; for docs/operator.md."""
    submit = _of(results, "submissions", way=OF_STRANGERS, processes=1)["processor_ms"]
    poll = _of(results, "polling")["processor_ms"]
    steps = results["growth"]["rows"][-2]["milliseconds"]
    jobs = GPUS / GPU_SECONDS
    unfinished = jobs * (GPU_SECONDS + _of(results, "turnaround")["p50_ms"] / 1000)
    polls = unfinished / POLLED_EVERY
    renewals = GPU_SECONDS / (LEASE_SECONDS / 5)
    commits = {"submission": 1, "task taken and ended": 2, "claim": 1, "settlement": 1, "lease": renewals}
    each = sum(commits.values())
    database = jobs * (steps["submit"] + steps["claim"] + steps["settle"] + renewals * steps["renew"])
    database += polls * poll["postgresql"]
    rows = [
        ("jobs", f"{_number(jobs)} a second", f"{GPUS} GPUs, {GPU_SECONDS:.0f} s a job (assumed)"),
        (
            "API, submissions",
            f"{_number(jobs * submit['api'] / 1000)} cores",
            f"{_number(submit['api'])} ms of processor each, decoding included (measured)",
        ),
        (
            "API, polling",
            f"{_number(polls * poll['api'] / 1000)} cores",
            f"{_number(unfinished)} open jobs every {POLLED_EVERY:.0f} s, {_number(poll['api'])} ms each (measured)",
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
            f"{_number(2 * jobs * SOURCE_MB)} + {_number(jobs * RESULT_MB * (1 + DOWNLOADS))} MB/s",
            f"{SOURCE_MB:.0f} MB in and read, {RESULT_MB:.0f} MB out and fetched {DOWNLOADS} times (assumed)",
        ),
        (
            "webhooks",
            f"{_number(jobs)} to {_number(jobs * (2 + renewals))} a second",
            "the end alone, or progress with every lease",
        ),
    ]
    return "\n".join(table(["what", "how much", "from"], rows, words=3))


def _of(results: Results, part: str, **wanted: Any) -> Mapping[str, Any]:
    """The row of the external PostgreSQL with these values."""
    for row in results[part]["rows"]:
        if row["database"].startswith("external") and all(row[name] == value for name, value in wanted.items()):
            return dict(row)
    raise SystemExit(f"The results have no {part} on an external PostgreSQL. Run python -m benchmarks.api --write.")
