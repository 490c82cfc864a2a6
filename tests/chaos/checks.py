"""Checks that must pass once everything has finished: API, tables, files and webhook receiver, seen from outside.

`record_transitions` makes the database record every update of a job's state, even one that keeps the state, so that
"exactly once" is counted instead of inferred.
"""

from __future__ import annotations

import hashlib
import io
import json
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, LiteralString

import httpx
import psycopg
from PIL import Image

from hiresfix import webhook_signing
from tests.chaos.clients import SCALE, AcceptedJob, CallerRecord, get_job
from tests.chaos.environment import HTTP, Environment
from tests.chaos.faults import FaultRecord

ALLOWED_TRANSITIONS = {
    ("QUEUED", "PROCESSING"),
    ("PROCESSING", "QUEUED"),
    ("PROCESSING", "COMPLETED"),
    ("PROCESSING", "FAILED"),
}
"""Of jobs that nobody cancels; a transition from a state to itself is not allowed."""

_RECORD: LiteralString = """
    create table chaos_transitions (
        id bigint generated always as identity, job uuid, old text, new text, worker text,
        given_back boolean, at timestamptz not null default clock_timestamp());
    create function chaos_record() returns trigger language plpgsql as $$ begin
        insert into chaos_transitions (job, old, new, worker, given_back)
        values (new.id, old.state, new.state, old.worker, new.attempt < old.attempt);
        return null;
    end $$;
    create trigger chaos_record after update of state on jobs
        for each row execute function chaos_record();
"""


def record_transitions(url: str) -> None:
    with psycopg.connect(url) as connection:
        connection.execute(_RECORD)


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckResult:
    """Result of one check: how many things were checked, and the problems found."""

    name: str
    checked: int
    problems: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultCosts:
    """Cost of the faults, in attempts and repetitions."""

    states: Mapping[str, int]
    attempts: int
    lost_to_kills: int
    lost_to_freezes: int
    lost_otherwise: int
    given_back: int
    deliveries: int
    delivery_attempts: int
    duplicate_events: int
    results_bytes: int


def rows(url: str, query: LiteralString, *args: Any) -> list[tuple[Any, ...]]:
    with psycopg.connect(url, connect_timeout=5) as connection:
        return connection.execute(query, args or None).fetchall()


def wait_until_finished(service: Environment, patience: float, on_wait: Callable[[int], None]) -> list[str]:
    """Wait until all jobs and deliveries are finished; returns what is still unfinished after `patience` seconds."""
    deadline = time.monotonic() + patience
    while True:
        stuck = unfinished(service.database.url)
        on_wait(len(stuck))
        if not stuck or time.monotonic() > deadline:
            return stuck
        time.sleep(0.5)


def unfinished(url: str) -> list[str]:
    jobs = rows(url, "select id, state, attempt from jobs where state in ('QUEUED', 'PROCESSING')")
    deliveries = rows(
        url, "select id, attempt, next_attempt_at, waiting from webhook_deliveries where state = 'PENDING'"
    )
    return [
        *(f"job {job} is {state} in attempt {attempt}" for job, state, attempt in jobs),
        *(
            f"delivery {delivery} is PENDING after attempt {attempt}, due {due}, waiting {waiting}"
            for delivery, attempt, due, waiting in deliveries
        ),
    ]


def idle_workers(service: Environment) -> list[str]:
    """Return the workers that have completed no job since their last start."""
    latest = rows(service.database.url, "select distinct worker from jobs where state = 'COMPLETED'")
    pids = {int(worker.rpartition(":")[2]) for (worker,) in latest}
    return [
        f"{process.name} (process {process.pid}) has completed no job since its last start"
        for process in service.workers
        if not process.is_running or process.pid not in pids
    ]


class Checks:
    """All checks, for a service that has finished everything."""

    def __init__(self, service: Environment, record: CallerRecord) -> None:
        self._service = service
        self._record = record
        self._url = service.database.url
        self._accepted: dict[str, AcceptedJob] = {accepted.job: accepted for accepted in record.accepted.values()}
        self._states: dict[str, str] = {str(job): state for job, state in rows(self._url, "select id, state from jobs")}

    def run(self, *, submitted: int, stuck: list[str]) -> list[CheckResult]:
        """Run all checks. submitted: number of submissions; stuck: what `wait_until_finished` returned."""
        jobs, record = len(self._states), self._record
        checks: list[tuple[str, int, Iterator[str]]] = [
            ("every submission was accepted exactly once", submitted, self._wrong_acceptances(submitted)),
            ("nothing is stuck", jobs, iter(stuck)),
            ("every accepted job is COMPLETED or FAILED exactly once", jobs, self._wrong_ends()),
            ("every state transition of a job is allowed", self._count_transitions(), self._wrong_transitions()),
            ("a final state that a caller saw never changes", len(record.final_states), self._changed_ends()),
            ("every result opens and has the right size", self._count("COMPLETED"), self._wrong_results()),
            ("the store has no image without a record", len(self._images()), self._unrecorded_images()),
            ("every balance equals the sum of its ledger", jobs, self._wrong_balances()),
            ("each job was charged once; failed jobs were refunded once", jobs, self._wrong_charges()),
            ("the receiver got every end once, signed and correct", jobs, self._wrong_events()),
            ("no caller got a 500, or a 404 for an own job", sum(record.answers.values()), iter(record.errors)),
            ("all workers work again, without help", len(self._service.workers), iter(idle_workers(self._service))),
        ]
        return [CheckResult(name=name, checked=count, problems=tuple(problems)) for name, count, problems in checks]

    def _count(self, state: str) -> int:
        return sum(other == state for other in self._states.values())

    def _wrong_acceptances(self, submitted: int) -> Iterator[str]:
        if len(self._record.accepted) != submitted:
            yield f"{len(self._record.accepted)} of {submitted} submissions were accepted"
        if len(self._accepted) != len(self._record.accepted):
            yield "two submissions got the same job"
        for job in self._accepted.keys() ^ self._states.keys():
            yield f"job {job} is {'missing' if job in self._accepted else 'from no submission'}"

    def _wrong_ends(self) -> Iterator[str]:
        ends: Counter[str] = Counter()
        for job, new in rows(self._url, "select job, new from chaos_transitions"):
            ends[str(job)] += new in ("COMPLETED", "FAILED")
        for job, state in self._states.items():
            if ends[job] != 1 or state not in ("COMPLETED", "FAILED"):
                yield f"job {job} is {state} and ended {ends[job]} times"

    def _count_transitions(self) -> int:
        return int(rows(self._url, "select count(*) from chaos_transitions")[0][0])

    def _wrong_transitions(self) -> Iterator[str]:
        for job, old, new in rows(self._url, "select job, old, new from chaos_transitions order by id"):
            if (old, new) not in ALLOWED_TRANSITIONS:
                yield f"job {job} went from {old} to {new}"

    def _changed_ends(self) -> Iterator[str]:
        for job, seen in self._record.final_states.items():
            if self._states.get(job) != seen:
                yield f"job {job} was {seen} and is {self._states.get(job)}"

    def _wrong_results(self) -> Iterator[str]:
        for job, accepted_job in self._accepted.items():
            answer = get_job(self._service.url, accepted_job)
            if answer is None or answer.status_code != 200 or answer.json()["status"] != self._states.get(job):
                yield f"job {job}: the API does not return it"
            elif self._states.get(job) == "COMPLETED":
                yield from self._result_problems(answer.json(), accepted_job)

    def _result_problems(self, job: dict[str, Any], accepted_job: AcceptedJob) -> Iterator[str]:
        try:
            answer = HTTP.get(job["result"]["images"][0])
        except httpx.TransportError as error:
            yield f"job {accepted_job.job}: its result cannot be fetched: {error}"
            return
        if answer.status_code != 200:
            yield f"job {accepted_job.job}: its result returns {answer.status_code}"
            return
        try:
            with Image.open(io.BytesIO(answer.content)) as image:
                image.load()
        except OSError as error:
            yield f"job {accepted_job.job}: its result does not open: {error}"
            return
        if image.size != (SCALE * accepted_job.side, SCALE * accepted_job.side):
            yield f"job {accepted_job.job}: its result has {image.size}"
        if hashlib.sha256(answer.content).hexdigest() != answer.headers["etag"].strip('"'):
            yield f"job {accepted_job.job}: its result differs from its ETag"

    def _images(self) -> set[str]:
        folder = self._service.disk.folder
        return {str(file.relative_to(folder)) for file in (folder / "results").rglob("*") if file.is_file()}

    def _unrecorded_images(self) -> Iterator[str]:
        """Yield images that are neither a job's result nor recorded for deletion."""
        known = rows(self._url, "select result ->> 'key' from jobs union select key from strays")
        yield from sorted(self._images() - {key for (key,) in known})

    def _wrong_balances(self) -> Iterator[str]:
        query: LiteralString = (
            "select t.id, credits, coalesce((select sum(amount) from ledger l where l.team_id = t.id), 0) from teams t"
        )
        for team, balance, total in rows(self._url, query):
            if balance != total:
                yield f"team {team} has {balance} credits, and {total} by its ledger"

    def _wrong_charges(self) -> Iterator[str]:
        booked: defaultdict[str, list[tuple[str, int]]] = defaultdict(list)
        for job, kind, amount in rows(self._url, "select job_id, kind, amount from ledger where job_id is not null"):
            booked[str(job)].append((kind, amount))
        prices = {str(job): cost for job, cost in rows(self._url, "select id, cost from jobs")}
        for job, state in self._states.items():
            due = [("charge", -prices[job]), *([("refund", prices[job])] if state == "FAILED" else [])]
            if sorted(booked[job]) != due or prices[job] < 1:
                yield f"job {job} is {state} and was booked {booked[job]}"

    def _wrong_events(self) -> Iterator[str]:
        events: defaultdict[str, set[tuple[str, str, str]]] = defaultdict(set)
        for received in self._service.receiver.received:
            body = json.loads(received.body)
            events[body["jobId"]].add((body["event"], body["status"], received.headers["X-Webhook-Id"]))
            accepted_job = self._accepted.get(body["jobId"])
            if accepted_job is None or not webhook_signing.verify(
                received.body,
                received.headers.get(webhook_signing.SIGNATURE_HEADER),
                webhook_signing.digest_api_key(accepted_job.api_key),
            ):
                yield f"job {body['jobId']}: it was events of with a broken signature"
        for job, state in self._states.items():
            if [(event, status) for event, status, _ in events[job]] != [(state.lower(), state)]:
                yield f"job {job} is {state} and got the events {events[job]}"
        for delivery, state in rows(self._url, "select id, state from webhook_deliveries where state <> 'DELIVERED'"):
            yield f"delivery {delivery} is {state}"

    def costs(self, faults: FaultRecord) -> FaultCosts:
        """Return how much work was repeated, and which faults caused it."""
        starts = rows(self._url, "select count(*) from chaos_transitions where new = 'PROCESSING'")[0][0]
        lost: Counter[str] = Counter()
        for worker, given_back, at in rows(
            self._url,
            "select worker, given_back, extract(epoch from at)::float8 from chaos_transitions"
            " where old = 'PROCESSING' and new <> 'COMPLETED'",
        ):
            lost["given back" if given_back else faults.cause_of_loss(int(worker.rpartition(":")[2]), at)] += 1
        events = Counter(json.loads(received.body)["jobId"] for received in self._service.receiver.received)
        attempts, deliveries = rows(
            self._url, "select (select count(*) from webhook_attempts), (select count(*) from webhook_deliveries)"
        )[0]
        return FaultCosts(
            states=dict(Counter(self._states.values())),
            attempts=starts,
            lost_to_kills=lost["killed"],
            lost_to_freezes=lost["frozen"],
            lost_otherwise=lost["otherwise"],
            given_back=lost["given back"],
            deliveries=deliveries,
            delivery_attempts=attempts,
            duplicate_events=sum(times - 1 for times in events.values()),
            results_bytes=rows(self._url, "select coalesce(sum((result ->> 'bytes')::int), 0)::int from jobs")[0][0],
        )
