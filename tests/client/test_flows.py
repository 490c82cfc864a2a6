"""The protocol without a network or a clock: what is asked, how often, and how long is waited in between."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import pytest

from hiresfix import errors
from hiresfix.client import ServerUnreachable, Terms, UnexpectedAnswer, downloads, flows, job_watch
from hiresfix.client.effects import Close, Do, Flow, Give, Head, Lost, Open, Read, Request, Sleep, Tell
from hiresfix.client.flows import Order
from hiresfix.client.server_sent_events import EventReader
from hiresfix.client.values import Job

Answer = tuple[int, dict[str, str], bytes] | Lost


class World:
    """Answers a flow from a script and notes what it asked for; time passes only while the flow sleeps."""

    def __init__(self, answers: Iterable[Answer]) -> None:
        self.answers = iter(answers)
        self.requests: list[Request] = []
        self.pauses: list[float] = []
        self.given: list[object] = []
        self.now = 0.0
        self._body: list[bytes] = []

    def terms(self, **more: Any) -> Terms:
        keys = iter(range(1, 1000))
        return Terms(clock=lambda: self.now, jitter=lambda most: most, new_key=lambda: f"key-{next(keys)}", **more)

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
            except Lost as lost:
                error = lost

    def _perform(self, effect: object) -> Any:
        match effect:
            case Open(request=request):
                self.requests.append(request)
                found = next(self.answers)
                if isinstance(found, Lost):
                    raise found
                self._body = [found[2], b""]
                return Head(status=found[0], headers=found[1])
            case Read():
                return self._body.pop(0)
            case Sleep(seconds=seconds):
                self.pauses.append(seconds)
                self.now += seconds
            case Do(work=work):
                return work()
            case Tell(listener=listener, arguments=arguments):
                listener(*arguments)
            case Give(item=item):
                self.given.append(item)
            case Close():
                pass
        return None


def ok(body: object) -> Answer:
    return 200, {}, json.dumps(body).encode()


def refused(status: int, **headers: str) -> Answer:
    return status, {name.replace("_", "-"): value for name, value in headers.items()}, b'{"error": "no"}'


ME: Answer = ok({"user": {}, "team": {}, "apiKey": None})
AWAY = Lost("nobody there")
ORDER = Order(image="https://example.com/p.png", model="clarity-upscale", params={})


@pytest.mark.parametrize("status", sorted(flows.REPEATED | {429}))
def test_what_may_pass_is_asked_again_with_pauses_that_grow_to_a_bound(status: int) -> None:
    world = World([refused(status)] * 7 + [ME])
    world.run(flows.me(world.terms(retries=7)))
    assert world.pauses == [0.5, 1, 2, 4, 8, 8, 8]


@pytest.mark.parametrize("status", [400, 401, 402, 403, 404, 409, 410, 413, 501])
def test_what_will_stay_is_asked_once(status: int) -> None:
    world = World([refused(status)])
    with pytest.raises(errors.HiresfixError):
        world.run(flows.me(world.terms()))
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
    ids=["seconds", "fraction", "date", "date alone", "nonsense", "nothing"],
)
def test_retry_after_is_waited_for_and_a_little_more_so_that_not_all_come_at_once(
    headers: dict[str, str], pause: float
) -> None:
    world = World([refused(429, **headers), ME])
    world.run(flows.me(world.terms()))
    assert world.pauses == [pause]


def test_a_server_that_asks_for_too_long_a_pause_is_refused_at_once() -> None:
    world = World([refused(503, retry_after="3600")])
    with pytest.raises(errors.Unavailable) as caught:
        world.run(flows.me(world.terms(longest_pause=120)))
    assert caught.value.retry_after == 3600
    assert world.pauses == []


def test_jitter_is_full() -> None:
    pauses = [Terms().pause(3, None) for _ in range(200)]
    assert all(pause is not None and 0 <= pause <= 4 for pause in pauses)
    assert min(pause or 0 for pause in pauses) < 1
    assert max(pause or 0 for pause in pauses) > 3


def test_a_submission_keeps_its_key_over_all_attempts_and_the_next_has_another() -> None:
    accepted = ok({"jobId": "7", "status": "QUEUED"})
    world = World([AWAY, refused(500), refused(429), accepted, accepted])
    terms = world.terms()
    world.run(flows.submit(terms, ORDER))
    world.run(flows.submit(terms, ORDER))
    keys = [request.headers["Idempotency-Key"] for request in world.requests]
    assert keys == ["key-1"] * 4 + ["key-2"]
    assert len({request.body for request in world.requests if request.body is not None}) == 1


def test_a_key_of_the_callers_own_is_kept_and_one_that_no_header_holds_is_refused() -> None:
    world = World([ok({"jobId": "7", "status": "QUEUED"})])
    world.run(flows.submit(world.terms(), ORDER, key="order-4711"))
    assert world.requests[0].headers["Idempotency-Key"] == "order-4711"
    for call in (flows.submit(world.terms(), ORDER, key="Schlüssel"), flows.upload(world.terms(), b"p", key="a\nb")):
        with pytest.raises(errors.InvalidRequest, match="Idempotency-Key: Must be of printable ASCII"):
            world.run(call)
    assert len(world.requests) == 1


def test_attempts_end_in_time_whatever_the_server_asks_for() -> None:
    world = World([refused(503, retry_after="100")] * 50)
    with pytest.raises(errors.Unavailable):
        world.run(flows.me(world.terms(retries=49, longest_call=350)))
    assert world.pauses == [100.5, 101, 102]


def test_a_server_that_sends_callers_elsewhere_is_not_followed_with_the_key_and_says_where() -> None:
    world = World([(301, {"location": "https://upscale.example/v2/me"}, b"<html>")])
    with pytest.raises(UnexpectedAnswer, match=r"https://upscale\.example/v2/me\. Set HIRESFIX_URL"):
        world.run(flows.me(world.terms()))
    assert len(world.requests) == 1


def test_attempts_end() -> None:
    world = World([AWAY] * 10)
    with pytest.raises(ServerUnreachable):
        world.run(flows.me(world.terms(retries=3)))
    assert len(world.requests) == 4


def job(status: str, progress: int = 0) -> Answer:
    return ok({"id": "7", "status": status, "progress": progress})


def stream(*jobs: Answer) -> Answer:
    body = b"".join(b"event: progress\ndata: " + found[2] + b"\n\n" for found in jobs if not isinstance(found, Lost))
    return 200, {"content-type": "text/event-stream; charset=utf-8"}, b"retry: 2000\n\n:\n\n" + body


def follow(world: World, **more: Any) -> Job:
    found: Job = world.run(job_watch.follow(world.terms(), "7", lambda job: Give(item=job), **more))
    return found


def states(world: World) -> list[tuple[str, int]]:
    return [(item.status, item.progress) for item in world.given if isinstance(item, Job)]


def test_one_stream_is_enough_where_nothing_breaks() -> None:
    world = World([stream(job("QUEUED"), job("PROCESSING", 30), job("PROCESSING", 30), job("COMPLETED", 100))])
    assert follow(world).status == "COMPLETED"
    assert states(world) == [("QUEUED", 0), ("PROCESSING", 30), ("COMPLETED", 100)]
    assert (len(world.requests), world.pauses) == (1, [])


@pytest.mark.parametrize(
    "no_stream",
    [
        refused(404),
        refused(405),
        refused(501),
        refused(429, retry_after="9"),
        ok({}),
        (204, {}, b""),
        (302, {"location": "/"}, b""),
    ],
    ids=["404", "405", "501", "429", "json", "204", "302"],
)
def test_without_a_stream_it_looks_again_and_again_ever_slower(no_stream: Answer) -> None:
    world = World([no_stream, *[job("PROCESSING", 5)] * 9, job("COMPLETED", 100)])
    assert follow(world).progress == 100
    assert world.pauses == pytest.approx([0.75, 1.125, 1.6875, 2.53125, 3.796875, 5, 5, 5, 5], rel=0.5)
    assert world.pauses[-1] == 5
    assert states(world) == [("PROCESSING", 5), ("COMPLETED", 100)]


def test_a_stream_that_ends_early_is_opened_again_and_nothing_is_told_twice() -> None:
    world = World([stream(job("QUEUED")), stream(job("QUEUED"), job("PROCESSING", 9)), stream(job("FAILED"))])
    assert follow(world).status == "FAILED"
    assert states(world) == [("QUEUED", 0), ("PROCESSING", 9), ("FAILED", 0)]
    assert world.pauses == [2, 2]


def test_a_server_that_is_away_is_waited_for_with_patience_that_ends() -> None:
    world = World([AWAY, refused(503), stream(job("QUEUED")), AWAY, AWAY, stream(job("COMPLETED", 100))])
    assert follow(world).status == "COMPLETED"
    gone = World([stream(job("QUEUED")), *[AWAY] * 1000])
    with pytest.raises(ServerUnreachable, match="Job 7 goes on there"):
        follow(gone)
    assert 300 < gone.now < 330


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_job_that_cannot_be_seen_is_no_reason_to_wait(status: int) -> None:
    world = World([refused(status), refused(status)])
    with pytest.raises(errors.HiresfixError):
        follow(world)
    assert world.pauses == []


# Results ------------------------------------------------------------------------------------------------------------

FILE = bytes(range(100))
TAG = '"one"'


def sent(end: int, start: int = 0, data: bytes = FILE, *, tag: str = "") -> Answer:
    """What comes of a file before the line breaks, or all of it: from `start` on what was asked for by Range."""
    headers = {"content-length": str(len(data) - start), "etag": tag}
    if not start:
        return 200, headers, data[:end]
    return 206, {**headers, "content-range": f"bytes {start}-{len(data) - 1}/{len(data)}"}, data[start:end]


def fetched(world: World, **terms: Any) -> bytes:
    finished = Job(id="7", status="COMPLETED", images=("/files/7.png",))
    data: bytes = world.run(downloads.download(world.terms(**terms), finished))
    assert all(not request.keyed for request in world.requests)
    return data


def ranges(world: World) -> list[str | None]:
    return [request.headers.get("Range") for request in world.requests]


def test_a_result_that_is_cut_is_gone_on_with_and_what_came_is_not_asked_for_again() -> None:
    world = World([sent(30, tag=TAG), AWAY, sent(90, 30, tag=TAG), sent(100, 90, tag=TAG)])
    assert fetched(world) == FILE
    assert ranges(world) == [None, "bytes=30-", "bytes=30-", "bytes=90-"]
    assert {request.headers.get("If-Range") for request in world.requests[1:]} == {'"one"'}


def test_attempts_that_bring_something_do_not_count() -> None:
    world = World([sent(end + 10, end, tag=TAG) for end in range(0, 100, 10)])
    assert fetched(world, retries=1, longest_call=10) == FILE
    assert world.now > 4


@pytest.mark.parametrize(
    "second",
    [
        sent(100, data=FILE[::-1], tag='"two"'),
        sent(100, 60, tag=TAG),
        sent(100, 30, data=FILE + FILE, tag=TAG),
        sent(100, 30, data=FILE[::-1], tag='"two"'),
        (206, {"etag": TAG}, FILE[30:]),
        (416, {"content-range": "bytes */20"}, b""),
    ],
    ids=["another file", "another part", "another length", "another tag", "no range", "too short"],
)
def test_parts_of_two_files_are_never_put_together(second: Answer) -> None:
    new = FILE[::-1]
    world = World([sent(30, tag=TAG), second, sent(100, data=new, tag='"two"')])
    assert fetched(world) == new


@pytest.mark.parametrize("tag", ["", 'W/"one"'], ids=["no tag", "weak tag"])
def test_where_the_server_does_not_say_which_file_it_is_all_of_it_is_asked_for_again(tag: str) -> None:
    world = World([sent(30, tag=tag), AWAY, sent(100)])
    assert fetched(world) == FILE
    assert ranges(world) == [None] * 3


def test_the_length_of_what_came_packed_is_not_that_of_the_file() -> None:
    world = World([(200, {"content-length": "7", "content-encoding": "br", "etag": TAG}, FILE)])
    assert fetched(world) == FILE


def test_a_result_that_always_breaks_at_the_same_place_is_given_up() -> None:
    world = World([sent(30)] * 50)
    with pytest.raises(ServerUnreachable, match="30 of 100 bytes came"):
        fetched(world, retries=3)
    assert len(world.requests) == 4


# Streams ------------------------------------------------------------------------------------------------------------


def feed(*pieces: bytes) -> list[tuple[str, str]]:
    reader = EventReader()
    return [(event.name, event.data) for piece in pieces for event in reader.feed(piece)]


def test_events_are_read_however_their_bytes_are_cut() -> None:
    text = "retry: 5\n\n: beat\n\nevent: a\ndata: 1\ndata:2\n\r\ndata: ü\r\n\r\nid: 3\n\ndata: last".encode()
    expected = [("a", "1\n2"), ("message", "ü")]
    assert feed(text) == expected
    assert feed(*(text[index : index + 1] for index in range(len(text)))) == expected


def test_an_event_without_end_is_refused() -> None:
    with pytest.raises(ValueError, match="without end"):
        feed(*[b"x" * 65536] * 20)
    with pytest.raises(ValueError, match="without end"):
        feed(*[b"data: " + b"x" * 65536 + b"\n"] * 20)


def test_a_list_that_names_the_same_page_for_ever_ends() -> None:
    page = ok({"jobs": [{"id": "1", "status": "QUEUED"}], "nextCursor": "c", "hasMore": True})
    world = World([page, page])
    world.run(flows.listing(world.terms(), {}, None))
    assert len(world.given) == 2


def test_terms_are_enough_for_a_world_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing in a flow reaches for a clock, a socket or chance but through its terms."""

    def forbidden(*arguments: object) -> None:
        pytest.fail("a flow did I/O")

    monkeypatch.setattr("time.sleep", forbidden)
    monkeypatch.setattr("socket.socket", forbidden)
    world = World([refused(500), ME])
    world.run(flows.me(world.terms()))
