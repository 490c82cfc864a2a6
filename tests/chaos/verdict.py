"""What must be true when the dust has settled, seen from outside: the API, the tables, the files, the receiver.

`record_transitions` has the database write down every step of a job, also one that leaves its state as it is, so that
"exactly once" is counted and not concluded.
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

from hiresfix import signing
from tests.chaos.clients import SCALE, Notes, Promise, look
from tests.chaos.faults import Damage
from tests.chaos.stage import HTTP, Stage

LAWFUL = {
    ("QUEUED", "PROCESSING"),
    ("PROCESSING", "QUEUED"),
    ("PROCESSING", "COMPLETED"),
    ("PROCESSING", "FAILED"),
}
"""Steps of a job that nobody cancels. One that leads where the job is already is none of them."""

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
class Finding:
    """One thing that must hold: how many were looked at, and what was wrong with which."""

    rule: str
    looked_at: int
    wrong: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What the faults cost, in attempts and repetitions."""

    states: Mapping[str, int]
    attempts: int
    lost_to_kills: int
    lost_to_freezes: int
    lost_otherwise: int
    given_back: int
    deliveries: int
    delivery_attempts: int
    told_twice: int
    results_bytes: int


def rows(url: str, query: LiteralString, *args: Any) -> list[tuple[Any, ...]]:
    with psycopg.connect(url, connect_timeout=5) as connection:
        return connection.execute(query, args or None).fetchall()


def wait_for_calm(stage: Stage, patience: float, on_wait: Callable[[int], None]) -> list[str]:
    """Wait until every job is over and every delivery has ended; returns what is stuck after all patience."""
    deadline = time.monotonic() + patience
    while True:
        stuck = unfinished(stage.database.url)
        on_wait(len(stuck))
        if not stuck or time.monotonic() > deadline:
            return stuck
        time.sleep(0.5)


def unfinished(url: str) -> list[str]:
    jobs = rows(url, "select id, state, attempt from jobs where state in ('QUEUED', 'PROCESSING')")
    told = rows(url, "select id, attempt, next_attempt_at, waiting from webhook_deliveries where state = 'PENDING'")
    return [
        *(f"job {job} is {state} in attempt {attempt}" for job, state, attempt in jobs),
        *(f"delivery {one} is PENDING after attempt {n}, due {due}, waiting {w}" for one, n, due, w in told),
    ]


def idle_workers(stage: Stage) -> list[str]:
    """Those that have finished no job since they were last started."""
    latest = rows(stage.database.url, "select distinct worker from jobs where state = 'COMPLETED'")
    pids = {int(worker.rpartition(":")[2]) for (worker,) in latest}
    return [
        f"{kept.name} (process {kept.pid}) finished no job in its present life"
        for kept in stage.workers
        if not kept.is_running or kept.pid not in pids
    ]


class Examination:
    """Everything that is looked at, once calm."""

    def __init__(self, stage: Stage, notes: Notes) -> None:
        self._stage = stage
        self._notes = notes
        self._url = stage.database.url
        self._promised: dict[str, Promise] = {promise.job: promise for promise in notes.promises.values()}
        found = rows(self._url, "select id, state from jobs")
        self._states: dict[str, str] = {str(job): state for job, state in found}

    def findings(self, *, submitted: int, stuck: list[str]) -> list[Finding]:
        looked_at = len(self._states)
        checks: list[tuple[str, int, Iterator[str]]] = [
            ("every submission was accepted, and none twice", submitted, self._unkept(submitted)),
            ("nothing is stuck", looked_at, iter(stuck)),
            ("every accepted job is COMPLETED or FAILED, exactly once", looked_at, self._ended_oddly()),
            ("each step of a job is one of those that there are", self._steps(), self._unlawful_steps()),
            ("what a caller once saw of an end stays true", len(self._notes.ends), self._taken_back()),
            ("every result opens and has the right size", self._count("COMPLETED"), self._bad_results()),
            ("no picture lies in the store that nobody knows of", len(self._pictures()), self._forgotten_pictures()),
            ("the ledger's sum is every balance", looked_at, self._wrong_books()),
            ("each job was charged once; who failed got it back, once", looked_at, self._wrongly_charged()),
            ("every end was told to the receiver, signed and true", looked_at, self._untold()),
            ("no caller was answered 500, or 404 for a job of theirs", sum(self._notes.answers.values()),
             iter(self._notes.broken)),
            ("all of the workers work, and nobody touched them", len(self._stage.workers),
             iter(idle_workers(self._stage))),
        ]  # fmt: skip
        return [Finding(rule=rule, looked_at=count, wrong=tuple(wrong)) for rule, count, wrong in checks]

    def _count(self, state: str) -> int:
        return sum(found == state for found in self._states.values())

    def _unkept(self, submitted: int) -> Iterator[str]:
        if len(self._notes.promises) != submitted:
            yield f"{len(self._notes.promises)} of {submitted} submissions were accepted"
        if len(self._promised) != len(self._notes.promises):
            yield "two submissions were given the same job"
        for job in self._promised.keys() ^ self._states.keys():
            yield f"job {job} is {'not there' if job in self._promised else 'nobody asked for'}"

    def _ended_oddly(self) -> Iterator[str]:
        ends: Counter[str] = Counter()
        for job, new in rows(self._url, "select job, new from chaos_transitions"):
            ends[str(job)] += new in ("COMPLETED", "FAILED")
        for job, state in self._states.items():
            if ends[job] != 1 or state not in ("COMPLETED", "FAILED"):
                yield f"job {job} is {state} and ended {ends[job]} times"

    def _steps(self) -> int:
        found: int = rows(self._url, "select count(*) from chaos_transitions")[0][0]
        return found

    def _unlawful_steps(self) -> Iterator[str]:
        for job, old, new in rows(self._url, "select job, old, new from chaos_transitions order by id"):
            if (old, new) not in LAWFUL:
                yield f"job {job} went from {old} to {new}"

    def _taken_back(self) -> Iterator[str]:
        for job, seen in self._notes.ends.items():
            if self._states.get(job) != seen:
                yield f"job {job} was {seen} and is {self._states.get(job)}"

    def _bad_results(self) -> Iterator[str]:
        for job, promise in self._promised.items():
            answer = look(self._stage.url, promise)
            if answer is None or answer.status_code != 200 or answer.json()["status"] != self._states.get(job):
                yield f"job {job}: the API does not tell of it"
            elif self._states.get(job) == "COMPLETED":
                yield from self._problem_of(answer.json(), promise)

    def _problem_of(self, job: dict[str, Any], promise: Promise) -> Iterator[str]:
        try:
            answer = HTTP.get(job["result"]["images"][0])
        except httpx.TransportError as error:
            yield f"job {promise.job}: its result does not arrive: {error}"
            return
        if answer.status_code != 200:
            yield f"job {promise.job}: its result answers {answer.status_code}"
            return
        try:
            with Image.open(io.BytesIO(answer.content)) as picture:
                picture.load()
        except OSError as error:
            yield f"job {promise.job}: its result does not open: {error}"
            return
        if picture.size != (SCALE * promise.side, SCALE * promise.side):
            yield f"job {promise.job}: its result has {picture.size}"
        if hashlib.sha256(answer.content).hexdigest() != answer.headers["etag"].strip('"'):
            yield f"job {promise.job}: its result is not what was recorded"

    def _pictures(self) -> set[str]:
        folder = self._stage.disk.folder
        return {str(file.relative_to(folder)) for file in (folder / "results").rglob("*") if file.is_file()}

    def _forgotten_pictures(self) -> Iterator[str]:
        """Neither a job's result nor noted to be deleted."""
        known = rows(self._url, "select result ->> 'key' from jobs union select key from strays")
        yield from sorted(self._pictures() - {key for (key,) in known})

    def _wrong_books(self) -> Iterator[str]:
        query: LiteralString = (
            "select t.id, credits, coalesce((select sum(amount) from ledger l where l.team_id = t.id), 0) from teams t"
        )
        for team, balance, total in rows(self._url, query):
            if balance != total:
                yield f"team {team} has {balance} credits, and {total} by its ledger"

    def _wrongly_charged(self) -> Iterator[str]:
        booked: defaultdict[str, list[tuple[str, int]]] = defaultdict(list)
        for job, kind, amount in rows(self._url, "select job_id, kind, amount from ledger where job_id is not null"):
            booked[str(job)].append((kind, amount))
        prices = {str(job): cost for job, cost in rows(self._url, "select id, cost from jobs")}
        for job, state in self._states.items():
            due = [("charge", -prices[job]), *([("refund", prices[job])] if state == "FAILED" else [])]
            if sorted(booked[job]) != due or prices[job] < 1:
                yield f"job {job} is {state} and was booked {booked[job]}"

    def _untold(self) -> Iterator[str]:
        told: defaultdict[str, set[tuple[str, str, str]]] = defaultdict(set)
        for received in self._stage.receiver.received:
            body = json.loads(received.body)
            told[body["jobId"]].add((body["event"], body["status"], received.headers["X-Webhook-Id"]))
            promise = self._promised.get(body["jobId"])
            if promise is None or not signing.verify(
                received.body,
                received.headers.get(signing.SIGNATURE_HEADER),
                signing.digest_api_key(promise.api_key),
            ):
                yield f"job {body['jobId']}: it was told of with a wrong signature"
        for job, state in self._states.items():
            if [(event, status) for event, status, _ in told[job]] != [(state.lower(), state)]:
                yield f"job {job} is {state} and was told {told[job]}"
        for one, state in rows(self._url, "select id, state from webhook_deliveries where state <> 'DELIVERED'"):
            yield f"delivery {one} is {state}"

    def figures(self, damage: Damage) -> Figures:
        """How much work was repeated, and over whom it was lost."""
        starts = rows(self._url, "select count(*) from chaos_transitions where new = 'PROCESSING'")[0][0]
        lost: Counter[str] = Counter()
        for worker, given_back, at in rows(
            self._url,
            "select worker, given_back, extract(epoch from at)::float8 from chaos_transitions"
            " where old = 'PROCESSING' and new <> 'COMPLETED'",
        ):
            lost["given back" if given_back else damage.whose_fault(int(worker.rpartition(":")[2]), at)] += 1
        told = Counter(json.loads(received.body)["jobId"] for received in self._stage.receiver.received)
        attempts, deliveries = rows(
            self._url, "select (select count(*) from webhook_attempts), (select count(*) from webhook_deliveries)"
        )[0]
        return Figures(
            states=dict(Counter(self._states.values())),
            attempts=starts,
            lost_to_kills=lost["killed"],
            lost_to_freezes=lost["frozen"],
            lost_otherwise=lost["otherwise"],
            given_back=lost["given back"],
            deliveries=deliveries,
            delivery_attempts=attempts,
            told_twice=sum(times - 1 for times in told.values()),
            results_bytes=rows(self._url, "select coalesce(sum((result ->> 'bytes')::int), 0)::int from jobs")[0][0],
        )
