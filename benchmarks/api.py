"""Cost of the service without the engine: submissions, turnaround, polling, growth of the database, and peers.

    python -m benchmarks.api [--quick] [--part NAME ...] [--peers] [--write]

Everything runs in real processes on this machine, shared with the client: CPU time is reported per part, and a rate for
"two cores" is 2 divided by the sum. `benchmarks.api_report` describes the parts. With --write the results are saved
part by part in `results/api.json`; `results/api.md`, the query plans and the numbers in docs/operator.md are made from
it. `--write --part none` makes only the documents again.
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

from benchmarks import api_report, database_growth, peers, service_stack
from benchmarks.http_load import LoadResult, drive, percentile, request
from benchmarks.service_stack import Customer, Postgres, ServiceStack, embedded_postgres, external_postgres

SUBMIT = "/v2/images/upscale"
SIDE = 64
TEAMS = 50
MANY_USERS = 600
"""Users who submit in turn: more than there are idle sandbox processes."""
CONNECTIONS = 16
OPEN_JOBS = 10_000
POLL_SECONDS = 2.0

console = Console(stderr=True)


@dataclass(frozen=True, kw_only=True)
class LoadPlan:
    """Duration of the parts: seconds of load, jobs in sequence, rows of the jobs table."""

    seconds: float
    jobs: int
    rows: tuple[int, ...]
    repetitions: int
    keep_plans: bool = False


FULL = LoadPlan(seconds=6, jobs=60, rows=(10_000, 100_000, 1_000_000), repetitions=40)
QUICK = LoadPlan(seconds=4, jobs=25, rows=(10_000, 100_000, 1_000_000), repetitions=15)

DATABASES: Sequence[Callable[[], AbstractContextManager[Postgres]]] = (embedded_postgres, external_postgres)


def small_png() -> bytes:
    """Return a small PNG of smooth colour, because the cost of decoding is not measured here."""
    y, x = np.mgrid[0:SIDE, 0:SIDE]
    file = io.BytesIO()
    Image.fromarray(np.stack([x * 3, y * 3, x + y], -1).astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


def submission(key: str, image: str, more: str = "") -> bytes:
    body = {"model": "faithful-upscale", "faithfulUpscaleParams": {"image": image, "scaleFactor": 2}}
    return request("POST", SUBMIT, key=key, body=json.dumps(body).encode(), more=more)


def data_uri() -> str:
    return "data:image/png;base64," + base64.b64encode(small_png()).decode()


# --- submissions ---


def submissions(plan: LoadPlan) -> list[dict[str, Any]]:
    """Measure by database and number of API processes; with one process also by image source."""
    rows = []
    for start in DATABASES:
        with start() as postgres, service_stack.stack(postgres) as service:
            many_users = service_stack.customers(service.database_url, MANY_USERS)
            for processes in (1, 2, 4):
                service.api(processes)
                for source_name in IMAGE_SOURCES if processes == 1 else ("data URI",):
                    customers = many_users if source_name == api_report.MANY_USERS_SOURCE else many_users[:TEAMS]
                    with IMAGE_SOURCES[source_name](service) as image_of:
                        requests = [submission(customer.key, image_of(customer)) for customer in customers]
                        row = _submit(service, plan, requests)
                    rows.append({"database": postgres.name, "way": source_name, "processes": processes, **row})
                    console.print(rows[-1])
                service.stop("api")
    return rows


def _submit(service: ServiceStack, plan: LoadPlan, requests: Sequence[bytes]) -> dict[str, Any]:
    _warm_up(service, requests, 202)
    before = service.processor_seconds()
    load = _run(service, requests, plan.seconds, CONNECTIONS, 202)
    parts = _per_answer(before, service.processor_seconds(), load)
    alone = _run(service, requests, plan.seconds / 2, 1, 202)
    return {**_summary(load), "processor_ms": parts, "alone_p50_ms": alone.percentile(50)}


def _run(service: ServiceStack, requests: Sequence[bytes], seconds: float, connections: int, status: int) -> LoadResult:
    load = asyncio.run(drive(service.port, itertools.cycle(requests), connections=connections, seconds=seconds))
    load.require(status)
    return load


def _warm_up(service: ServiceStack, requests: Sequence[bytes], status: int) -> None:
    """Warm up by number of requests: each connection prepares a statement at its sixth use."""
    some = itertools.islice(itertools.cycle(requests), 20 * CONNECTIONS)
    asyncio.run(drive(service.port, some, connections=CONNECTIONS, seconds=service_stack.TIMEOUT_SECONDS)).require(
        status
    )


def _per_answer(before: dict[str, float], after: dict[str, float], load: LoadResult) -> dict[str, float]:
    """Return milliseconds of CPU time per answer, by part."""
    seconds_by_part = {name: seconds - before.get(name, 0.0) for name, seconds in after.items()}
    seconds_by_part["client"] = load.client_seconds
    return {name: 1000 * seconds / len(load.latencies) for name, seconds in seconds_by_part.items()}


def _summary(load: LoadResult) -> dict[str, float]:
    shares = {f"p{share}_ms": load.percentile(share) for share in (50, 95, 99)}
    return {"per_second": load.rate, **shares, "answers": len(load.latencies)}


ImageSource = Callable[[ServiceStack], AbstractContextManager[Callable[[Customer], str]]]
"""Context manager; its value maps a customer to the image address of a submission."""


@contextmanager
def _by_data_uri(service: ServiceStack) -> Iterator[Callable[[Customer], str]]:
    yield lambda customer: data_uri()


@contextmanager
def _by_upload(service: ServiceStack) -> Iterator[Callable[[Customer], str]]:
    def upload(customer: Customer) -> str:
        head = b'--b\r\nContent-Disposition: form-data; name="file"; filename="p.png"\r\n\r\n'
        upload_request = Request(
            f"http://127.0.0.1:{service.port}/v2/uploads",
            head + small_png() + b"\r\n--b--\r\n",
            {"X-API-Key": customer.key, "Content-Type": "multipart/form-data; boundary=b"},
        )
        with urlopen(upload_request, timeout=60) as answer:
            return str(json.load(answer)["url"])

    yield upload


@contextmanager
def _by_url(service: ServiceStack) -> Iterator[Callable[[Customer], str]]:
    """Serve the image from a file server on this machine, whose CPU time is separate."""
    port = service_stack.free_port()
    (service.home / "p.png").write_bytes(small_png())
    service.start("site", ["-m", "http.server", str(port), "--bind", "127.0.0.1", "--directory", str(service.home)])
    service.wait_for_port(port, "site")
    yield lambda customer: f"http://127.0.0.1:{port}/p.png"
    service.stop("site")


IMAGE_SOURCES: dict[str, ImageSource] = {
    "data URI": _by_data_uri,
    api_report.MANY_USERS_SOURCE: _by_data_uri,
    "upload": _by_upload,
    "URL": _by_url,
}


# --- turnaround ---


_STAGES = """
    select extract(epoch from started_at - created_at)::float8, extract(epoch from completed_at - started_at)::float8
    from jobs where state = 'COMPLETED' order by created_at desc limit %s
"""


def turnaround(plan: LoadPlan) -> list[dict[str, Any]]:
    """Run jobs in sequence with `Prefer: wait`: the cost of a job besides its engine."""
    rows = []
    for start in DATABASES:
        with start() as postgres, service_stack.stack(postgres) as service:
            customers = service_stack.customers(service.database_url, TEAMS)
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


def _jobs(service: ServiceStack, requests: Sequence[bytes], count: int) -> LoadResult:
    some = itertools.islice(itertools.cycle(requests), count)
    load = asyncio.run(drive(service.port, some, connections=1, seconds=service_stack.TIMEOUT_SECONDS))
    load.require(200)
    return load


# --- polling ---


def polling(plan: LoadPlan) -> list[dict[str, Any]]:
    """Measure GET /v2/jobs/{id} of 10 000 open jobs with one API process."""
    rows = []
    for start in DATABASES:
        with start() as postgres, service_stack.stack(postgres) as service:
            customers = service_stack.customers(service.database_url, TEAMS)
            jobs = database_growth.queue_up(service.database_url, customers, OPEN_JOBS)
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
    """Return a request per job, in random order, with the key of its team."""
    polls = [
        request("GET", f"/v2/jobs/{job}", key=customer.key)
        for customer, job_ids in zip(customers, jobs, strict=True)
        for job in job_ids
    ]
    random.Random(0).shuffle(polls)
    return polls


# --- all parts ---


PARTS: dict[str, Callable[[LoadPlan], list[dict[str, Any]]]] = {
    "submissions": submissions,
    "turnaround": turnaround,
    "polling": polling,
    "growth": lambda plan: database_growth.measure(plan.rows, plan.repetitions, keep_plans=plan.keep_plans),
    "peers": lambda plan: peers.measure(data_uri(), plan.seconds),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.api", description="Cost of the service without the engine."
    )
    parser.add_argument("--part", action="append", choices=[*PARTS, "none"], help="only this part; repeatable")
    parser.add_argument("--peers", action="store_true", help="also other servers, in a temporary environment")
    parser.add_argument("--quick", action="store_true", help="shorter runs")
    parser.add_argument("--write", action="store_true", help="save the results and make the documents from them")
    arguments = parser.parse_args()
    plan = replace(QUICK if arguments.quick else FULL, keep_plans=arguments.write)
    parts = arguments.part or [name for name in PARTS if name != "peers" or arguments.peers]
    results = api_report.load() if arguments.write else {}
    for name, part in PARTS.items():
        if name not in parts:
            continue
        started = time.perf_counter()
        before = api_report.pace()
        rows = part(plan)
        results[name] = {
            "rows": rows,
            "conditions": _conditions(arguments.quick, before, time.perf_counter() - started),
        }
        if arguments.write:
            api_report.save(results)
    if arguments.write:
        api_report.write_documents(results)
    else:
        print(api_report.report(results))


def _conditions(quick: bool, pace: float, seconds: float) -> dict[str, Any]:
    """Return the conditions of a run: a shared machine is slower than its hardware."""
    return {
        "machine": api_report.machine(),
        "python": sys.version.split()[0],
        "quick": quick,
        "seconds": round(seconds),
        "load_average": round(psutil.getloadavg()[0], 1),
        "pace": round(pace, 2),
    }


if __name__ == "__main__":
    main()
