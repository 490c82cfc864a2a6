"""Following a job to its end: by the server's event stream where there is one, else by looking again and again.

Guarantees: a broken stream, a server that is away or one that has had enough of us costs time and nothing else, for up
to `Terms.patience` at a stretch; every state that is learnt is told once and in order. A generator without I/O.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass

from hiresfix.client.effects import Close, Effect, Flow, Head, Lost, Open, Read, Request, Sleep
from hiresfix.client.errors import JobTimedOut, ServerUnreachable, UnexpectedAnswer
from hiresfix.client.failures import error_of, retry_after
from hiresfix.client.flows import REPEATED, Terms, exchange, job_path, rest
from hiresfix.client.server_sent_events import EventReader
from hiresfix.client.values import Job
from hiresfix.errors import HiresfixError

FIRST_LOOK, SLOWEST_LOOK, GROWTH = 0.5, 5.0, 1.5
"""Seconds between two looks where there is no stream: the first pause, the longest, and how it grows."""
SILENCE = 45.0
"""Seconds without a word after which a stream is taken for dead; servers send a comment every 15."""
WORTH_A_STREAM = 20.0
"""With fewer seconds left than a stream's silence may last, the deadline is met by looking."""
COME_AGAIN = 2.0


class _Trouble(Exception):
    """The server could not tell just now; `error` is what to raise once patience ends."""

    def __init__(self, error: HiresfixError, asked: float | None = None) -> None:
        super().__init__(str(error))
        self.error = error
        self.asked = asked


@dataclass(slots=True, kw_only=True)
class _Watch:
    """One job being followed."""

    terms: Terms
    id: str
    tell: Callable[[Job], Effect]
    deadline: float | None
    streams: bool = True
    last: Job | None = None
    between: float = FIRST_LOOK
    failures: int = 0
    failing_since: float = 0.0

    @property
    def left(self) -> float:
        return float("inf") if self.deadline is None else self.deadline - self.terms.clock()

    @property
    def may_listen(self) -> bool:
        return self.streams and self.left > WORTH_A_STREAM

    def note(self, job: Job) -> Flow[None]:
        """Tell of it, if it is news."""
        self.failures = 0
        news = self.last is None or (job.status, job.progress) != (self.last.status, self.last.progress)
        self.last = job
        if news:
            self.between = FIRST_LOOK
            yield self.tell(job)

    def rest(self, trouble: _Trouble) -> float:
        """How long to leave the server alone; raises the error once it was away for too long."""
        now = self.terms.clock()
        if not self.failures:
            self.failing_since = now
        pause = self.terms.pause(self.failures, trouble.asked)
        if pause is None or now - self.failing_since > self.terms.patience:
            raise trouble.error
        self.failures += 1
        return pause


def follow(terms: Terms, job: str, tell: Callable[[Job], Effect], *, seconds: float | None = None) -> Flow[Job]:
    """The job when it is over, whatever its end; `tell` makes an effect of every state on the way and of the end.

    Raises JobTimedOut after `seconds`, and what the server refuses for good.
    """
    job_path(job)
    watch = _Watch(terms=terms, id=job, tell=tell, deadline=None if seconds is None else terms.clock() + seconds)
    while True:
        try:
            over = yield from (_listen(watch) if watch.may_listen else _look(watch))
            pause = COME_AGAIN if watch.streams else watch.between
        except _Trouble as trouble:
            over, pause = None, watch.rest(trouble)
        if over:
            return over
        if watch.left <= 0:
            raise _late(watch, seconds or 0.0)
        watch.between = min(SLOWEST_LOOK, watch.between * GROWTH)
        yield Sleep(seconds=min(pause, max(watch.left, 0.0)))


def _late(watch: _Watch, seconds: float) -> JobTimedOut:
    last = watch.last or Job(id=watch.id, status="QUEUED")
    return JobTimedOut(
        f"Job {watch.id} was not over after {seconds:g} s ({last.status}, {last.progress} %). It goes on: wait again.",
        last,
    )


def _look(watch: _Watch) -> Flow[Job | None]:
    """The job as it is; returned if it is over."""
    try:
        head, body = yield from exchange(Request(method="GET", url=job_path(watch.id)))
    except Lost as lost:
        raise _away(watch, lost) from lost
    if head.status >= 400:
        raise _refused(head, body)
    job = Job.read(_json(body))
    yield from watch.note(job)
    return job if job.is_over else None


def _listen(watch: _Watch) -> Flow[Job | None]:
    """Follow the stream until the job is over, the stream ends, or the time for streams has passed.

    What is no stream turns listening off; the look that follows says whether there is anything wrong.
    """
    request = Request(
        method="GET", url=job_path(watch.id) + "/events", headers={"Accept": "text/event-stream"}, silence=SILENCE
    )
    try:
        head: Head = yield Open(request=request)
        if head.status != 200 or not head.headers.get("content-type", "").startswith("text/event-stream"):
            body = yield from rest()
            if head.status in REPEATED:
                raise _refused(head, body)
            watch.streams = False
            return (yield from _look(watch))
        return (yield from _hear(watch))
    except Lost as lost:
        raise _away(watch, lost) from lost


def _hear(watch: _Watch) -> Flow[Job | None]:
    reader = EventReader()
    while piece := (yield Read()):
        try:
            events = list(reader.feed(piece))
        except ValueError as error:
            raise Lost(str(error)) from error
        for event in events:
            job = Job.read(_json(event.data.encode()))
            yield from watch.note(job)
            if job.is_over:
                yield Close()
                return job
        if not watch.may_listen:
            break
    yield Close()
    return None


def _json(body: bytes) -> object:
    try:
        found: object = json.loads(body)
    except ValueError as error:
        raise UnexpectedAnswer("The server told of a job in something that is no JSON.") from error
    return found


def _away(watch: _Watch, lost: Lost) -> _Trouble:
    return _Trouble(
        ServerUnreachable(
            f"The server has not answered for {watch.terms.patience:g} s: {lost}. Job {watch.id} goes on there; "
            "wait for it again later."
        )
    )


def _refused(head: Head, body: bytes) -> Exception:
    """Trouble, where it may pass; the error itself, where it stays."""
    error = error_of(head, body)
    if head.status == 429 or head.status in REPEATED:
        return _Trouble(error, retry_after(head.headers))
    return error
