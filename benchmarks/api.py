"""What the service's machinery costs, without the engine: submissions, turn-around, polling, growth, and peers.

    python -m benchmarks.api [--quick] [--part NAME ...] [--peers] [--write]

Everything is measured through real processes on this machine, which the client shares: processor time is told per
part, and a rate for "two cores" is 2 divided by all of it. The parts and what they say are in `benchmarks.figures`.
With --write the results are kept part by part in `results/api.json`, and `results/api.md`, the plans and the numbers
in docs/operator.md are made from it; `--write` alone with `--part none` makes the documents again.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import itertools
import json
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Any
from urllib.request import Request, urlopen
from uuid import UUID

import numpy as np
import psutil
import psycopg
from PIL import Image
from rich.console import Console

from benchmarks import figures, growth, peers, stack
from benchmarks.load import Load, drive, percentile, request
from benchmarks.stack import Customer, Postgres, Stack, embedded_postgres, external_postgres

SUBMIT = "/v2/images/upscale"
SIDE = 64
TEAMS = 50
STRANGERS = 600
"""Users who submit in turn: more than decoding processes are kept for."""
CONNECTIONS = 16
OPEN_JOBS = 10_000
POLL_SECONDS = 2.0

console = Console(stderr=True)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How long the parts take. seconds: of load; jobs: run one after the other; rows: of the jobs table."""

    seconds: float
    jobs: int
    rows: tuple[int, ...]
    repetitions: int
    keep_plans: bool = False


FULL = Plan(seconds=6, jobs=60, rows=(10_000, 100_000, 1_000_000), repetitions=40)
QUICK = Plan(seconds=4, jobs=25, rows=(10_000, 100_000, 1_000_000), repetitions=15)

DATABASES: Sequence[Callable[[], AbstractContextManager[Postgres]]] = (embedded_postgres, external_postgres)


def picture() -> bytes:
    """A small PNG of smooth colour: what it costs to decode is not what is measured here."""
    y, x = np.mgrid[0:SIDE, 0:SIDE]
    file = io.BytesIO()
    Image.fromarray(np.stack([x * 3, y * 3, x + y], -1).astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


def submission(key: str, image: str, more: str = "") -> bytes:
    body = {"model": "faithful-upscale", "faithfulUpscaleParams": {"image": image, "scaleFactor": 2}}
    return request("POST", SUBMIT, key=key, body=json.dumps(body).encode(), more=more)


def data_uri() -> str:
    return "data:image/png;base64," + base64.b64encode(picture()).decode()


# Submissions


def submissions(plan: Plan) -> list[dict[str, Any]]:
    """By database and number of API processes; by one process also for each way of naming the picture."""
    rows = []
    for start in DATABASES:
        with start() as postgres, stack.stack(postgres) as service:
            strangers = stack.customers(service.database_url, STRANGERS)
            for processes in (1, 2, 4):
                service.api(processes)
                for way in WAYS if processes == 1 else ("data URI",):
                    customers = strangers if way == figures.OF_STRANGERS else strangers[:TEAMS]
                    with WAYS[way](service) as image_of:
                        requests = [submission(customer.key, image_of(customer)) for customer in customers]
                        row = _submit(service, plan, requests)
                    rows.append({"database": postgres.name, "way": way, "processes": processes, **row})
                    console.print(rows[-1])
                service.stop("api")
    return rows


def _submit(service: Stack, plan: Plan, requests: Sequence[bytes]) -> dict[str, Any]:
    _warm_up(service, requests, 202)
    before = service.processor_seconds()
    load = _run(service, requests, plan.seconds, CONNECTIONS, 202)
    parts = _per_answer(before, service.processor_seconds(), load)
    alone = _run(service, requests, plan.seconds / 2, 1, 202)
    return {**_summary(load), "processor_ms": parts, "alone_p50_ms": alone.percentile(50)}


def _run(service: Stack, requests: Sequence[bytes], seconds: float, connections: int, status: int) -> Load:
    load = asyncio.run(drive(service.port, itertools.cycle(requests), connections=connections, seconds=seconds))
    load.require(status)
    return load


def _warm_up(service: Stack, requests: Sequence[bytes], status: int) -> None:
    """Each of a process's connections prepares a statement at its sixth use: by number, not by time."""
    some = itertools.islice(itertools.cycle(requests), 20 * CONNECTIONS)
    asyncio.run(drive(service.port, some, connections=CONNECTIONS, seconds=stack.PATIENCE)).require(status)


def _per_answer(before: dict[str, float], after: dict[str, float], load: Load) -> dict[str, float]:
    """Milliseconds of processor time by part."""
    taken = {name: seconds - before.get(name, 0.0) for name, seconds in after.items()}
    taken["client"] = load.client_seconds
    return {name: 1000 * seconds / len(load.latencies) for name, seconds in taken.items()}


def _summary(load: Load) -> dict[str, float]:
    shares = {f"p{share}_ms": load.percentile(share) for share in (50, 95, 99)}
    return {"per_second": load.rate, **shares, "answers": len(load.latencies)}


Named = Callable[[Stack], AbstractContextManager[Callable[[Customer], str]]]
"""While it is open: how a submission of a customer names its picture."""


@contextmanager
def _by_data_uri(service: Stack) -> Iterator[Callable[[Customer], str]]:
    yield lambda customer: data_uri()


@contextmanager
def _by_upload(service: Stack) -> Iterator[Callable[[Customer], str]]:
    def upload(customer: Customer) -> str:
        head = b'--b\r\nContent-Disposition: form-data; name="file"; filename="p.png"\r\n\r\n'
        asked = Request(
            f"http://127.0.0.1:{service.port}/v2/uploads",
            head + picture() + b"\r\n--b--\r\n",
            {"X-API-Key": customer.key, "Content-Type": "multipart/form-data; boundary=b"},
        )
        with urlopen(asked, timeout=60) as answer:
            return str(json.load(answer)["url"])

    yield upload


@contextmanager
def _by_url(service: Stack) -> Iterator[Callable[[Customer], str]]:
    """From a server of files on this machine, whose time is told apart."""
    port = stack.free_port()
    (service.home / "p.png").write_bytes(picture())
    service.start("site", ["-m", "http.server", str(port), "--bind", "127.0.0.1", "--directory", str(service.home)])
    service.wait_for_port(port, "site")
    yield lambda customer: f"http://127.0.0.1:{port}/p.png"
    service.stop("site")


WAYS: dict[str, Named] = {
    "data URI": _by_data_uri,
    figures.OF_STRANGERS: _by_data_uri,
    "upload": _by_upload,
    "URL": _by_url,
}


# Turn-around


_STAGES = """
    select extract(epoch from started_at - created_at)::float8, extract(epoch from completed_at - started_at)::float8
    from jobs where state = 'COMPLETED' order by created_at desc limit %s
"""


def turnaround(plan: Plan) -> list[dict[str, Any]]:
    """Jobs one after the other, each waited for by `Prefer: wait`: what a job costs besides its engine."""
    rows = []
    for start in DATABASES:
        with start() as postgres, stack.stack(postgres) as service:
            customers = stack.customers(service.database_url, TEAMS)
            service.api()
            service.worker()
            requests = [submission(customer.key, data_uri(), more="Prefer: wait=20\r\n") for customer in customers]
            _jobs(service, requests, plan.jobs // 3)
            load = _jobs(service, requests, plan.jobs)
            with psycopg.connect(service.database_url) as connection:
                stages = connection.execute(_STAGES, (plan.jobs,)).fetchall()
            waited, worked = ([1000 * row[column] for row in stages] for column in (0, 1))
            row = {"database": postgres.name, **_summary(load)}
            row |= {"started_p50_ms": percentile(waited, 50), "worked_p50_ms": percentile(worked, 50)}
            rows.append(row)
            console.print(row)
    return rows


def _jobs(service: Stack, requests: Sequence[bytes], count: int) -> Load:
    some = itertools.islice(itertools.cycle(requests), count)
    load = asyncio.run(drive(service.port, some, connections=1, seconds=stack.PATIENCE))
    load.require(200)
    return load


# Polling


def polling(plan: Plan) -> list[dict[str, Any]]:
    """GET /v2/jobs/{id} of 10 000 open jobs, by one API process."""
    rows = []
    for start in DATABASES:
        with start() as postgres, stack.stack(postgres) as service:
            customers = stack.customers(service.database_url, TEAMS)
            jobs = growth.queue_up(service.database_url, customers, OPEN_JOBS)
            service.api()
            requests = _polls(customers, jobs)
            _warm_up(service, requests, 200)
            before = service.processor_seconds()
            load = _run(service, requests, plan.seconds, CONNECTIONS, 200)
            parts = _per_answer(before, service.processor_seconds(), load)
            alone = _run(service, requests, plan.seconds / 2, 1, 200)
            row: dict[str, Any] = {"database": postgres.name, **_summary(load), "processor_ms": parts}
            row["slowest_alone_ms"] = alone.percentile(99)
            row["api_cores"] = OPEN_JOBS / POLL_SECONDS * parts["api"] / 1000
            row["postgresql_cores"] = OPEN_JOBS / POLL_SECONDS * parts["postgresql"] / 1000
            rows.append(row)
            console.print(row)
    return rows


def _polls(customers: Sequence[Customer], jobs: Sequence[Sequence[UUID]]) -> list[bytes]:
    """Every job once, in any order; the jobs of one team are polled with its key."""
    polls = [
        request("GET", f"/v2/jobs/{job}", key=customer.key)
        for customer, own in zip(customers, jobs, strict=True)
        for job in own
    ]
    random.Random(0).shuffle(polls)
    return polls


# All of it


PARTS: dict[str, Callable[[Plan], list[dict[str, Any]]]] = {
    "submissions": submissions,
    "turnaround": turnaround,
    "polling": polling,
    "growth": lambda plan: growth.measure(plan.rows, plan.repetitions, keep_plans=plan.keep_plans),
    "peers": lambda plan: peers.measure(data_uri(), plan.seconds),
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.api", description="What the machinery costs.")
    parser.add_argument("--part", action="append", choices=[*PARTS, "none"], help="only this; repeatable")
    parser.add_argument("--peers", action="store_true", help="other servers too, in an environment made for it")
    parser.add_argument("--quick", action="store_true", help="shorter runs")
    parser.add_argument("--write", action="store_true", help="keep the results and make the documents from them")
    given = parser.parse_args()
    plan = replace(QUICK if given.quick else FULL, keep_plans=given.write)
    wanted = given.part or [name for name in PARTS if name != "peers" or given.peers]
    results = figures.load() if given.write else {}
    for name, part in PARTS.items():
        if name not in wanted:
            continue
        started = time.perf_counter()
        before = figures.pace()
        found = part(plan)
        results[name] = {"rows": found, "conditions": _conditions(given.quick, before, time.perf_counter() - started)}
        if given.write:
            figures.keep(results)
    if given.write:
        figures.write_documents(results)
    else:
        print(figures.report(results))


def _conditions(quick: bool, pace: float, seconds: float) -> dict[str, Any]:
    """What has to be known to judge the figures: a machine that others use is slower than it is."""
    return {
        "machine": figures.machine(),
        "python": sys.version.split()[0],
        "quick": quick,
        "seconds": round(seconds),
        "load_average": round(psutil.getloadavg()[0], 1),
        "pace": round(pace, 2),
    }


if __name__ == "__main__":
    main()
