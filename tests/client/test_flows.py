"""Flows without network or clock: requests, attempts and pauses."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import pytest

from hiresfix import errors
from hiresfix.client import (
    AsyncClient,
    Client,
    RetryPolicy,
    ServerUnreachable,
    UnexpectedAnswer,
    downloads,
    flows,
    job_watch,
)
from hiresfix.client.effects import (
    Close,
    ConnectionLost,
    Flow,
    Notify,
    Open,
    Read,
    Request,
    ResponseHead,
    Run,
    Sleep,
    Yield,
)
from hiresfix.client.flows import JobRequest
from hiresfix.client.retry import RETRYABLE_STATUSES
from hiresfix.client.server_sent_events import EventReader
from hiresfix.client.values import Job

Answer = tuple[int, dict[str, str], bytes] | ConnectionLost


class FakeWorld:
    """Driver that answers a flow from a script and records its requests. Time passes only while the flow sleeps."""

    def __init__(self, answers: Iterable[Answer]) -> None:
        self.answers = iter(answers)
        self.requests: list[Request] = []
        self.pauses: list[float] = []
        self.items: list[object] = []
        self.now = 0.0
        self._body: list[bytes] = []

    def retry(self, **options: Any) -> RetryPolicy:
        keys = iter(range(1, 1000))
        return RetryPolicy(
            clock=lambda: self.now, jitter=lambda limit: limit, new_key=lambda: f"key-{next(keys)}", **options
        )

    def run(self, flow: Flow[Any]) -> Any:
        answer: Any = None
        error: Exception | None = None
        while True:
            try:
                effect = flow.throw(error) if error else flow.send(answer)
            except StopIteration as done:
                return done.value
            answer, error = None, None
            try:
                answer = self._perform(effect)
            except ConnectionLost as lost:
                error = lost

    def _perform(self, effect: object) -> Any:
        match effect:
            case Open(request=request):
                self.requests.append(request)
                answer = next(self.answers)
                if isinstance(answer, ConnectionLost):
                    raise answer
                self._body = [answer[2], b""]
                return ResponseHead(status=answer[0], headers=answer[1])
            case Read():
                return self._body.pop(0)
            case Sleep(seconds=seconds):
                self.pauses.append(seconds)
                self.now += seconds
            case Run(work=work):
                return work()
            case Notify(listener=listener, arguments=arguments):
                listener(*arguments)
            case Yield(item=item):
                self.items.append(item)
            case Close():
                pass
        return None


def ok(body: object) -> Answer:
    return 200, {}, json.dumps(body).encode()


def error_answer(status: int, **headers: str) -> Answer:
    return status, {name.replace("_", "-"): value for name, value in headers.items()}, b'{"error": "no"}'


ME: Answer = ok({"user": {}, "team": {}, "apiKey": None})
AWAY = ConnectionLost("connection refused")
REQUEST = JobRequest(image="https://example.com/p.png", model="clarity-upscale", params={})


@pytest.mark.parametrize("status", sorted(RETRYABLE_STATUSES | {429}))
def test_retryable_statuses_back_off_up_to_limit(status: int) -> None:
    world = FakeWorld([error_answer(status)] * 7 + [ME])
    world.run(flows.me(world.retry(retries=7)))
    assert world.pauses == [0.5, 1, 2, 4, 8, 8, 8]


@pytest.mark.parametrize("status", [400, 401, 402, 403, 404, 409, 410, 413, 501])
def test_permanent_errors_are_not_retried(status: int) -> None:
    world = FakeWorld([error_answer(status)])
    with pytest.raises(errors.HiresfixError):
        world.run(flows.me(world.retry()))
    assert (len(world.requests), world.pauses) == (1, [])


@pytest.mark.parametrize(
    ("headers", "pause"),
    [
        ({"retry_after": "7"}, 7.5),
        ({"retry_after": "1.9"}, 2.4),
        ({"retry_after": "Sun, 22 Nov 2026 08:00:30 GMT", "date": "Sun, 22 Nov 2026 08:00:10 GMT"}, 20.5),
        ({"retry_after": "Sun, 22 Nov 2026 08:00:30 GMT"}, 0.5),
        ({"retry_after": "soon"}, 0.5),
        ({}, 0.5),
    ],
    ids=["seconds", "fraction", "date", "date alone", "invalid", "missing"],
)
def test_pause_is_retry_after_plus_jitter(headers: dict[str, str], pause: float) -> None:
    world = FakeWorld([error_answer(429, **headers), ME])
    world.run(flows.me(world.retry()))
    assert world.pauses == [pause]


def test_too_long_retry_after_raises_at_once() -> None:
    world = FakeWorld([error_answer(503, retry_after="3600")])
    with pytest.raises(errors.Unavailable) as caught:
        world.run(flows.me(world.retry(longest_pause=120)))
    assert caught.value.retry_after == 3600
    assert world.pauses == []


def test_jitter_is_full() -> None:
    pauses = [RetryPolicy().pause(3, None) for _ in range(200)]
    assert all(pause is not None and 0 <= pause <= 4 for pause in pauses)
    assert min(pause or 0 for pause in pauses) < 1
    assert max(pause or 0 for pause in pauses) > 3


def test_idempotency_key_is_kept_across_attempts() -> None:
    accepted = ok({"jobId": "7", "status": "QUEUED"})
    world = FakeWorld([AWAY, error_answer(500), error_answer(429), accepted, accepted])
    retry = world.retry()
    world.run(flows.submit(retry, REQUEST))
    world.run(flows.submit(retry, REQUEST))
    keys = [request.headers["Idempotency-Key"] for request in world.requests]
    assert keys == ["key-1"] * 4 + ["key-2"]
    assert len({request.body for request in world.requests if request.body is not None}) == 1


def test_own_idempotency_key_is_kept_or_error_answer() -> None:
    world = FakeWorld([ok({"jobId": "7", "status": "QUEUED"})])
    world.run(flows.submit(world.retry(), REQUEST, key="order-4711"))
    assert world.requests[0].headers["Idempotency-Key"] == "order-4711"
    for call in (flows.submit(world.retry(), REQUEST, key="Schlüssel"), flows.upload(world.retry(), b"p", key="a\nb")):
        with pytest.raises(errors.InvalidRequest, match="Idempotency-Key: Must be of printable ASCII"):
            world.run(call)
    assert len(world.requests) == 1


def test_longest_call_limits_all_attempts() -> None:
    world = FakeWorld([error_answer(503, retry_after="100")] * 50)
    with pytest.raises(errors.Unavailable):
        world.run(flows.me(world.retry(retries=49, longest_call=350)))
    assert world.pauses == [100.5, 101, 102]


def test_redirects_are_not_followed() -> None:
    world = FakeWorld([(301, {"location": "https://upscale.example/v2/me"}, b"<html>")])
    with pytest.raises(UnexpectedAnswer, match=r"https://upscale\.example/v2/me\. Set HIRESFIX_URL"):
        world.run(flows.me(world.retry()))
    assert len(world.requests) == 1


def test_attempts_are_limited() -> None:
    world = FakeWorld([AWAY] * 10)
    with pytest.raises(ServerUnreachable):
        world.run(flows.me(world.retry(retries=3)))
    assert len(world.requests) == 4


def job(status: str, progress: int = 0) -> Answer:
    return ok({"id": "7", "status": status, "progress": progress})


def stream(*jobs: Answer) -> Answer:
    body = b"".join(
        b"event: progress\ndata: " + answer[2] + b"\n\n" for answer in jobs if not isinstance(answer, ConnectionLost)
    )
    return 200, {"content-type": "text/event-stream; charset=utf-8"}, b"retry: 2000\n\n:\n\n" + body


def watch(world: FakeWorld, **options: Any) -> Job:
    last: Job = world.run(job_watch.watch_job(world.retry(), "7", lambda job: Yield(item=job), **options))
    return last


def states(world: FakeWorld) -> list[tuple[str, int]]:
    return [(item.status, item.progress) for item in world.items if isinstance(item, Job)]


def test_one_stream_reports_all_states() -> None:
    world = FakeWorld([stream(job("QUEUED"), job("PROCESSING", 30), job("PROCESSING", 30), job("COMPLETED", 100))])
    assert watch(world).status == "COMPLETED"
    assert states(world) == [("QUEUED", 0), ("PROCESSING", 30), ("COMPLETED", 100)]
    assert (len(world.requests), world.pauses) == (1, [])


@pytest.mark.parametrize(
    "no_stream",
    [
        error_answer(404),
        error_answer(405),
        error_answer(501),
        error_answer(429, retry_after="9"),
        ok({}),
        (204, {}, b""),
        (302, {"location": "/"}, b""),
    ],
    ids=["404", "405", "501", "429", "json", "204", "302"],
)
def test_polling_slows_down_without_stream(no_stream: Answer) -> None:
    world = FakeWorld([no_stream, *[job("PROCESSING", 5)] * 9, job("COMPLETED", 100)])
    assert watch(world).progress == 100
    assert world.pauses == pytest.approx([0.75, 1.125, 1.6875, 2.53125, 3.796875, 5, 5, 5, 5], rel=0.5)
    assert world.pauses[-1] == 5
    assert states(world) == [("PROCESSING", 5), ("COMPLETED", 100)]


def test_reconnecting_reports_no_state_twice() -> None:
    world = FakeWorld([stream(job("QUEUED")), stream(job("QUEUED"), job("PROCESSING", 9)), stream(job("FAILED"))])
    assert watch(world).status == "FAILED"
    assert states(world) == [("QUEUED", 0), ("PROCESSING", 9), ("FAILED", 0)]
    assert world.pauses == [2, 2]


def test_watch_waits_for_server_until_patience_ends() -> None:
    world = FakeWorld([AWAY, error_answer(503), stream(job("QUEUED")), AWAY, AWAY, stream(job("COMPLETED", 100))])
    assert watch(world).status == "COMPLETED"
    dead = FakeWorld([stream(job("QUEUED")), *[AWAY] * 1000])
    with pytest.raises(ServerUnreachable, match="Job 7 goes on there"):
        watch(dead)
    assert 300 < dead.now < 330


@pytest.mark.parametrize("status", [401, 403, 404])
def test_watch_raises_permanent_errors_at_once(status: int) -> None:
    world = FakeWorld([error_answer(status), error_answer(status)])
    with pytest.raises(errors.HiresfixError):
        watch(world)
    assert world.pauses == []


# Results ------------------------------------------------------------------------------------------------------------

FILE = bytes(range(100))
TAG = '"one"'


def file_answer(end: int, start: int = 0, data: bytes = FILE, *, tag: str = "") -> Answer:
    """Answer with the bytes of a file from `start`, cut off at `end`."""
    headers = {"content-length": str(len(data) - start), "etag": tag}
    if not start:
        return 200, headers, data[:end]
    return 206, {**headers, "content-range": f"bytes {start}-{len(data) - 1}/{len(data)}"}, data[start:end]


def fetch(world: FakeWorld, **options: Any) -> bytes:
    finished = Job(id="7", status="COMPLETED", images=("/files/7.png",))
    data: bytes = world.run(downloads.download(world.retry(**options), finished))
    assert all(not request.authenticated for request in world.requests)
    return data


def ranges(world: FakeWorld) -> list[str | None]:
    return [request.headers.get("Range") for request in world.requests]


def test_cut_download_resumes_at_last_byte() -> None:
    world = FakeWorld([file_answer(30, tag=TAG), AWAY, file_answer(90, 30, tag=TAG), file_answer(100, 90, tag=TAG)])
    assert fetch(world) == FILE
    assert ranges(world) == [None, "bytes=30-", "bytes=30-", "bytes=90-"]
    assert {request.headers.get("If-Range") for request in world.requests[1:]} == {'"one"'}


def test_attempts_with_progress_do_not_count() -> None:
    world = FakeWorld([file_answer(end + 10, end, tag=TAG) for end in range(0, 100, 10)])
    assert fetch(world, retries=1, longest_call=10) == FILE
    assert world.now > 4


@pytest.mark.parametrize(
    "second",
    [
        file_answer(100, data=FILE[::-1], tag='"two"'),
        file_answer(100, 60, tag=TAG),
        file_answer(100, 30, data=FILE + FILE, tag=TAG),
        file_answer(100, 30, data=FILE[::-1], tag='"two"'),
        (206, {"etag": TAG}, FILE[30:]),
        (416, {"content-range": "bytes */20"}, b""),
    ],
    ids=["another file", "another part", "another length", "another tag", "no range", "too short"],
)
def test_parts_of_different_files_are_never_joined(second: Answer) -> None:
    new = FILE[::-1]
    world = FakeWorld([file_answer(30, tag=TAG), second, file_answer(100, data=new, tag='"two"')])
    assert fetch(world) == new


@pytest.mark.parametrize("tag", ["", 'W/"one"'], ids=["no tag", "weak tag"])
def test_download_restarts_without_strong_etag(tag: str) -> None:
    world = FakeWorld([file_answer(30, tag=tag), AWAY, file_answer(100)])
    assert fetch(world) == FILE
    assert ranges(world) == [None] * 3


def test_length_of_encoded_body_is_ignored() -> None:
    world = FakeWorld([(200, {"content-length": "7", "content-encoding": "br", "etag": TAG}, FILE)])
    assert fetch(world) == FILE


def test_download_without_progress_is_given_up() -> None:
    world = FakeWorld([file_answer(30)] * 50)
    with pytest.raises(ServerUnreachable, match="30 of 100 bytes arrived"):
        fetch(world, retries=3)
    assert len(world.requests) == 4


# Streams ------------------------------------------------------------------------------------------------------------


def feed(*pieces: bytes) -> list[tuple[str, str]]:
    reader = EventReader()
    return [(event.name, event.data) for piece in pieces for event in reader.feed(piece)]


def test_events_parse_from_any_pieces() -> None:
    text = "retry: 5\n\n: beat\n\nevent: a\ndata: 1\ndata:2\n\r\ndata: ü\r\n\r\nid: 3\n\ndata: last".encode()
    expected = [("a", "1\n2"), ("message", "ü")]
    assert feed(text) == expected
    assert feed(*(text[index : index + 1] for index in range(len(text)))) == expected


def test_endless_event_is_error_answer() -> None:
    with pytest.raises(ValueError, match="without end"):
        feed(*[b"x" * 65536] * 20)
    with pytest.raises(ValueError, match="without end"):
        feed(*[b"data: " + b"x" * 65536 + b"\n"] * 20)


def test_repeated_cursor_ends_the_list() -> None:
    page = ok({"jobs": [{"id": "1", "status": "QUEUED"}], "nextCursor": "c", "hasMore": True})
    world = FakeWorld([page, page])
    world.run(flows.list_jobs(world.retry(), {}, None))
    assert len(world.items) == 2


def test_flows_do_no_io_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flows use clock, network and randomness only through effects and their retry policy."""

    def forbidden(*arguments: object) -> None:
        pytest.fail("a flow did I/O")

    monkeypatch.setattr("time.sleep", forbidden)
    monkeypatch.setattr("socket.socket", forbidden)
    world = FakeWorld([error_answer(500), ME])
    world.run(flows.me(world.retry()))


def test_old_keyword_terms_still_works() -> None:
    policy = RetryPolicy(retries=1)
    for kind in (Client, AsyncClient):
        with pytest.warns(DeprecationWarning, match=r"Client\(retry=\.\.\.\)"):
            assert kind(api_key="afk_x", terms=policy).retry is policy
