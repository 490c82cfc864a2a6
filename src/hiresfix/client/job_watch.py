"""Watch of a job until it is over: over the server's event stream, or by polling if there is none.

Guarantees: a broken stream, an unreachable server and rate limits only cost time, for up to `RetryPolicy.patience` at a
stretch. Every new state is reported once and in order. A generator without I/O.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass

from hiresfix.client.effects import Close, ConnectionLost, Effect, Flow, Open, Read, Request, ResponseHead, Sleep
from hiresfix.client.errors import JobTimedOut, ServerUnreachable, UnexpectedAnswer
from hiresfix.client.failures import error_of, retry_after
from hiresfix.client.flows import exchange, job_path, read_body
from hiresfix.client.retry import RETRYABLE_STATUSES, RetryPolicy
from hiresfix.client.server_sent_events import EventReader
from hiresfix.client.values import Job
from hiresfix.errors import HiresfixError
from hiresfix.states import JobState

FIRST_POLL_PAUSE, MAX_POLL_PAUSE, POLL_PAUSE_GROWTH = 0.5, 5.0, 1.5
"""Pause between two polls: the first and the longest in seconds, and the factor from one to the next."""
STREAM_TIMEOUT = 45.0
"""Seconds of silence after which a stream counts as dead; servers send a comment every 15."""
MIN_STREAM_SECONDS = 20.0
"""With fewer seconds left, poll: a silent stream could outlast the deadline."""
RECONNECT_PAUSE = 2.0


class _TemporaryFailure(Exception):
    """The server could not answer now. `error` is what to raise when patience ends."""

    def __init__(self, error: HiresfixError, retry_after: float | None = None) -> None:
        super().__init__(str(error))
        self.error = error
        self.retry_after = retry_after


@dataclass(slots=True, kw_only=True)
class _Watch:
    """State of one watch."""

    retry: RetryPolicy
    job_id: str
    notify: Callable[[Job], Effect]
    deadline: float | None
    has_stream: bool = True
    last: Job | None = None
    poll_pause: float = FIRST_POLL_PAUSE
    failures: int = 0
    failing_since: float = 0.0

    @property
    def seconds_left(self) -> float:
        return float("inf") if self.deadline is None else self.deadline - self.retry.clock()

    @property
    def may_stream(self) -> bool:
        return self.has_stream and self.seconds_left > MIN_STREAM_SECONDS

    def note(self, job: Job) -> Flow[None]:
        """Record the job's state, and report it if it is new."""
        self.failures = 0
        is_new = self.last is None or (job.status, job.progress) != (self.last.status, self.last.progress)
        self.last = job
        if is_new:
            self.poll_pause = FIRST_POLL_PAUSE
            yield self.notify(job)

    def backoff(self, failure: _TemporaryFailure) -> float:
        """Return the pause before the next attempt. Raises the error if the server was away for too long."""
        now = self.retry.clock()
        if not self.failures:
            self.failing_since = now
        pause = self.retry.pause(self.failures, failure.retry_after)
        if pause is None or now - self.failing_since > self.retry.patience:
            raise failure.error
        self.failures += 1
        return pause


def watch_job(
    retry: RetryPolicy, job_id: str, notify: Callable[[Job], Effect], *, timeout: float | None = None
) -> Flow[Job]:
    """Return the job when it is over, with or without a result.

    Args:
        retry: the client's retry policy.
        job_id: the job to watch.
        notify: makes the effect that reports a new state; called for every one, the last included.
        timeout: seconds; None for as long as it takes.

    Raises:
        JobTimedOut: the job was not over within `timeout`.
        HiresfixError: an error answer that will not go away.
    """
    job_path(job_id)
    deadline = None if timeout is None else retry.clock() + timeout
    watch = _Watch(retry=retry, job_id=job_id, notify=notify, deadline=deadline)
    while True:
        try:
            finished = yield from (_stream(watch) if watch.may_stream else _poll(watch))
            pause = RECONNECT_PAUSE if watch.has_stream else watch.poll_pause
        except _TemporaryFailure as failure:
            finished, pause = None, watch.backoff(failure)
        if finished:
            return finished
        if watch.seconds_left <= 0:
            last = watch.last or Job(id=job_id, status=JobState.QUEUED)
            raise JobTimedOut(
                f"Job {job_id} was not over after {timeout or 0.0:g} s ({last.status}, {last.progress} %). "
                "It goes on: wait for it again.",
                last,
            )
        watch.poll_pause = min(MAX_POLL_PAUSE, watch.poll_pause * POLL_PAUSE_GROWTH)
        yield Sleep(seconds=min(pause, max(watch.seconds_left, 0.0)))


def _poll(watch: _Watch) -> Flow[Job | None]:
    """Ask for the job once; return it if it is over."""
    try:
        head, body = yield from exchange(Request(method="GET", url=job_path(watch.job_id)))
    except ConnectionLost as lost:
        raise _unreachable(watch, lost) from lost
    if head.status >= 400:
        raise _error(head, body)
    job = Job.read(_json(body))
    yield from watch.note(job)
    return job if job.is_over else None


def _stream(watch: _Watch) -> Flow[Job | None]:
    """Follow the event stream until the job is over, the stream ends, or the deadline is near.

    An answer that is not an event stream turns streaming off; the poll that follows reports the real error, if any.
    """
    request = Request(
        method="GET",
        url=job_path(watch.job_id) + "/events",
        headers={"Accept": "text/event-stream"},
        read_timeout=STREAM_TIMEOUT,
    )
    try:
        head: ResponseHead = yield Open(request=request)
        if head.status != 200 or not head.headers.get("content-type", "").startswith("text/event-stream"):
            body = yield from read_body()
            if head.status in RETRYABLE_STATUSES:
                raise _error(head, body)
            watch.has_stream = False
            return (yield from _poll(watch))
        return (yield from _read_events(watch))
    except ConnectionLost as lost:
        raise _unreachable(watch, lost) from lost


def _read_events(watch: _Watch) -> Flow[Job | None]:
    reader = EventReader()
    while piece := (yield Read()):
        try:
            events = list(reader.feed(piece))
        except ValueError as error:
            raise ConnectionLost(str(error)) from error
        for event in events:
            job = Job.read(_json(event.data.encode()))
            yield from watch.note(job)
            if job.is_over:
                yield Close()
                return job
        if not watch.may_stream:
            break
    yield Close()
    return None


def _json(body: bytes) -> object:
    try:
        value: object = json.loads(body)
    except ValueError as error:
        raise UnexpectedAnswer(
            "The server sent a job that is not JSON. Check that the URL is that of a server."
        ) from error
    return value


def _unreachable(watch: _Watch, lost: ConnectionLost) -> _TemporaryFailure:
    return _TemporaryFailure(
        ServerUnreachable(
            f"The server has not answered for {watch.retry.patience:g} s: {lost}. Job {watch.job_id} goes on there; "
            "wait for it again later."
        )
    )


def _error(head: ResponseHead, body: bytes) -> Exception:
    """Return a temporary failure if the error may go away, else the error itself."""
    error = error_of(head, body)
    if head.status == 429 or head.status in RETRYABLE_STATUSES:
        return _TemporaryFailure(error, retry_after(head.headers))
    return error
