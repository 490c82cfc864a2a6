"""Both clients against a real server, from one suite."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from hiresfix import errors
from hiresfix.client import (
    Client,
    Job,
    JobCancelled,
    JobFailed,
    JobTimedOut,
    ServerUnreachable,
    Terms,
    UnexpectedAnswer,
)
from tests.client.conftest import HASTY, Answer, Asked, Connect, Line, Stranger, Town, passed_on, told
from tests.conftest import Site, png
from tests.server.conftest import Api, wait_until


@contextmanager
def meanwhile(work: Callable[[], object]) -> Iterator[None]:
    """Something that happens on the server's side while the client waits."""
    thread = threading.Thread(target=work)
    thread.start()
    yield
    thread.join()


# One job ------------------------------------------------------------------------------------------------------------


def test_a_job_is_submitted_waited_for_and_saved(client: Client, town: Town, picture: Path, tmp_path: Path) -> None:
    job = client.images.upscale(picture, scale=2, seed=7, creativity=0.5)
    assert job.status == "QUEUED"
    seen: list[Job] = []

    def work() -> None:
        wait_until(lambda: seen)
        town.progress(job.id, 40)
        wait_until(lambda: seen[-1].progress == 40)
        town.finish(job.id)

    with meanwhile(work):
        done = job.wait(on_progress=seen.append, timeout=60)
    assert [(state.status, state.progress) for state in seen] == [("QUEUED", 0), ("PROCESSING", 40), ("COMPLETED", 100)]
    assert (done.seed, done.width, done.credit_cost) == (7, 48, 3)
    assert (job.refresh().input or {})["creativity"] == 0.5
    assert done.created_at is not None
    assert done.completed_at is not None
    assert done.completed_at >= done.created_at
    saved = job.save(tmp_path / "new" / "out.png")
    assert saved.read_bytes() == png(48, 34)
    assert [path.name for path in saved.parent.iterdir()] == ["out.png"]
    assert job.save(tmp_path).name == f"{job.id}.png"
    for name in ("out.jpg", "out.TIFF"):
        with pytest.raises(ValueError, match=r"The result is a png file\. Name it out\.png"):
            job.save(tmp_path / name)
    result = job.result()
    assert (result.width, result.height) == (48, 34)
    with pytest.raises(ValueError, match="is a png file"):
        result.save(tmp_path / "out.webp")
    assert (result.image.size, result.seed, result.metadata["engine"]) == ((48, 34), 7, "test")
    assert result.save(tmp_path / "again.png").read_bytes() == result.data


def test_one_call_does_it_all(client: Client, town: Town, picture: Path, tmp_path: Path) -> None:
    states: list[Job] = []

    def work() -> None:
        wait_until(lambda: states)
        town.finish(states[0].id, kind="jpeg")

    with meanwhile(work):
        out = client.upscale(picture, tmp_path / "out.jpg", scale=4, on_progress=states.append, timeout=60)
    assert out == tmp_path / "out.jpg"
    assert out.stat().st_size
    told_input = client.jobs.get(states[0].id).job.input
    assert told_input is not None
    assert (told_input["scale_factor"], told_input["output_format"]) == (4, "jpg")


@pytest.mark.parametrize(("name", "options"), [("out.tiff", {}), ("out", {}), ("out.png", {"output_format": "jpg"})])
def test_a_name_that_no_format_fits_is_refused_before_anything_is_sent(
    client: Client, town: Town, picture: Path, tmp_path: Path, name: str, options: Any
) -> None:
    before = town.jobs
    with pytest.raises(ValueError, match=r"use \.png|does not go into"):
        client.upscale(picture, tmp_path / name, **options)
    assert town.jobs == before


def _pillow(path: Path) -> Image.Image:
    with Image.open(path) as found:
        found.load()
        return found


_WAYS: dict[str, Callable[[Path], Any]] = {
    "path": lambda path: path,
    "str": str,
    "bytes": lambda path: path.read_bytes(),
    "bytearray": lambda path: bytearray(path.read_bytes()),
    "file": lambda path: io.BytesIO(path.read_bytes()),
    "pillow": _pillow,
    "array": lambda path: np.asarray(_pillow(path)),
}


@pytest.mark.parametrize(
    ("way", "size"), [*((way, "picture") for way in _WAYS), ("path", "large"), ("file", "large"), ("pillow", "large")]
)
def test_a_picture_may_be_given_in_many_ways(
    client: Client, town: Town, request: pytest.FixtureRequest, way: str, size: str
) -> None:
    path: Path = request.getfixturevalue(size)
    uploads = town.value("select count(*) from uploads")
    job = client.images.upscale(_WAYS[way](path))
    with _pillow(path) as expected:
        source = town.value("select source from jobs where id = %s", job.id)
        assert (source["width"], source["height"]) == expected.size
    assert town.value("select count(*) from uploads") - uploads == (size == "large")


def test_a_picture_may_be_given_by_its_url(client: Client, site: Site) -> None:
    url = site.add("/p.png", png(9, 8))
    job = client.images.upscale(url, model="faithful-upscale", content="anime")
    assert job.refresh().input == {
        "image": url, "scale_factor": 2, "content": "anime", "sharpen": 0.0, "output_format": "png"
    }  # fmt: skip


def test_a_turned_cmyk_image_of_pillow_arrives_as_it_is_seen(client: Client, town: Town) -> None:
    image = Image.new("CMYK", (30, 20))
    image.getexif()[0x0112] = 6
    job = client.images.upscale(image)
    source = town.value("select source from jobs where id = %s", job.id)
    assert (source["width"], source["height"], source["media_type"]) == (20, 30, "image/tiff")


@pytest.mark.parametrize(
    ("image", "error", "hint"),
    [
        ("nowhere.png", errors.PictureError, "nowhere.png cannot be read"),
        (b"", errors.PictureError, "no bytes"),
        (io.StringIO("text"), TypeError, "mode 'rb'"),
        (7, TypeError, "not int"),
        (".", errors.PictureError, "not a file"),
        (np.zeros((4, 5, 3)), TypeError, r"uint8, and this one is \(4, 5, 3\) of float64\. Convert it"),
    ],
    ids=["missing", "empty", "text", "number", "folder", "floats"],
)
def test_what_is_no_picture_is_refused_here(client: Client, image: Any, error: type[Exception], hint: str) -> None:
    with pytest.raises(error, match=hint):
        client.images.upscale(image)


def test_a_job_that_failed_or_was_cancelled_says_so_and_carries_itself(
    client: Client, town: Town, picture: Path
) -> None:
    failed, cancelled = client.images.upscale(picture), client.images.upscale(picture)
    town.fail(failed.id)
    with pytest.raises(JobFailed, match="It broke") as caught:
        failed.wait(timeout=60)
    assert (caught.value.job.id, caught.value.job.status, caught.value.code) == (failed.id, "FAILED", "job_failed")
    assert cancelled.cancel().status == "CANCELLED"
    with pytest.raises(JobCancelled):
        cancelled.result(timeout=60)
    with pytest.raises(errors.Conflict):
        client.jobs.cancel(cancelled.id)


@pytest.mark.parametrize("seconds", [0.3, 21.0], ids=["by looking", "by the stream"])
def test_waiting_ends_when_the_time_is_up_and_can_go_on(
    connect: Connect, town: Town, picture: Path, seconds: float
) -> None:
    now = [0.0]
    client = connect(url=town.url, api_key=town.key, terms=Terms(clock=lambda: now[0]))
    job = client.images.upscale(picture)

    def passing(state: Job) -> None:
        now[0] += 30

    with pytest.raises(JobTimedOut, match="It goes on") as caught:
        job.wait(passing, timeout=seconds)
    assert (caught.value.job.id, caught.value.job.status) == (job.id, "QUEUED")
    town.finish(job.id)
    assert job.wait(timeout=60).status == "COMPLETED"


@pytest.mark.parametrize(
    ("job", "line"),
    [
        (Job(id="7", status="QUEUED", queue_position=3, eta_seconds=12), "QUEUED, 3 before it, about 12 s"),
        (Job(id="7", status="QUEUED"), "QUEUED"),
        (Job(id="7", status="PROCESSING", progress=40, eta_seconds=0), "PROCESSING 40 %, about 0 s"),
        (Job(id="7", status="COMPLETED", progress=100, images=("u",), eta_seconds=0), "COMPLETED"),
        (
            Job(id="7", status="FAILED", error="It broke. Try another picture."),
            "FAILED: It broke. Try another picture.",
        ),
    ],
    ids=lambda value: value.status if isinstance(value, Job) else None,
)
def test_a_job_is_printed_in_a_line(job: Job, line: str) -> None:
    assert str(job) == line


def test_events_are_told_one_by_one_and_end_with_the_job(client: Client, town: Town, picture: Path) -> None:
    job = client.images.upscale(picture)
    states = job.events(timeout=60)
    assert next(states).status == "QUEUED"
    town.progress(job.id, 70)
    assert next(states).progress == 70
    town.fail(job.id)
    assert [state.status for state in states] == ["FAILED"]
    assert [state.status for state in client.jobs.events(job.id)] == ["FAILED"]


def test_who_stops_listening_leaves_nothing_open(client: Client, town: Town, picture: Path) -> None:
    states = client.images.upscale(picture).events()
    next(states)
    states.close()  # type: ignore[attr-defined] # both faces give generators
    wait_until(lambda: not town.app.state.service.streams)


# The rest of the API ------------------------------------------------------------------------------------------------


def test_lists_go_on_from_page_to_page(connect: Connect, start_api: Callable[..., Api], picture: Path) -> None:
    api = start_api()
    client = connect(url=api.url, api_key=api.key)
    assert list(client.jobs.list()) == []
    ids = [client.images.upscale(picture, model="faithful-upscale").id for _ in range(7)]
    assert [job.id for job in client.jobs.list(page_size=3)] == ids[::-1]
    assert [job.id for job in client.jobs.list(page_size=3, limit=4)] == ids[:2:-1]
    assert list(client.jobs.list(status="FAILED")) == []
    with pytest.raises(errors.InvalidRequest) as caught:
        next(client.jobs.list(status="LOST"))
    assert "status" in caught.value.details


def test_me_models_and_prices(client: Client, picture: Path) -> None:
    me = client.me()
    assert (me.role, me.key_name, me.plan) == ("OWNER", "test", "free")
    assert me.credits
    assert {model.id: model.cost_min for model in client.models()} == {"clarity-upscale": 3, "faithful-upscale": 1}
    assert client.models("video") == ()
    preview = client.images.preview(picture, scale=4)
    assert (preview.credit_cost, preview.width, preview.height, preview.sufficient) == (3, 96, 68, True)


def test_an_upload_is_streamed_and_told_of_and_can_be_named_again(client: Client, large: Path) -> None:
    heard: list[tuple[int, int]] = []
    upload = client.uploads.create(large, on_progress=lambda sent, total: heard.append((sent, total)))
    assert (upload.byte_size, upload.content_type) == (large.stat().st_size, "image/png")
    assert upload.expires_at is not None
    sent, totals = zip(*heard, strict=True)
    assert len(sent) > 3
    assert list(sent) == sorted(sent)
    assert set(totals) == {sent[-1]}
    assert client.images.upscale(upload.url).status == "QUEUED"
    assert client.images.upscale(upload).status == "QUEUED"


def test_the_same_key_is_the_same_job_even_with_an_upload(client: Client, town: Town, large: Path) -> None:
    before = town.jobs
    first, again = (client.images.upscale(large, idempotency_key=f"mine-{id(client)}") for _ in range(2))
    assert first.id == again.id
    assert town.jobs == before + 1
    with pytest.raises(errors.Conflict):
        client.images.upscale(large, idempotency_key=f"mine-{id(client)}", seed=9)


# Refusals -----------------------------------------------------------------------------------------------------------


def test_what_the_server_refuses_is_raised_as_what_the_server_raised(
    connect: Connect, client: Client, town: Town, picture: Path
) -> None:
    with pytest.raises(errors.InvalidRequest, match=r"clarityUpscaleParams\.creativity: Must be between 0 and 1") as e:
        client.images.upscale(picture, creativity=3)
    assert e.value.details == {"clarityUpscaleParams.creativity": ["Must be between 0 and 1"]}
    assert e.value.request_id
    with pytest.raises(errors.InvalidRequest, match="Did you mean 'creativity'"):
        client.images.upscale(picture, extra={"creativty": 1})
    with pytest.raises(errors.InvalidRequest, match="clarity-upscale, faithful-upscale"):
        client.images.upscale(picture, model="topaz")
    with pytest.raises(errors.InvalidJobId):
        client.jobs.get("nonsense")
    with pytest.raises(errors.InvalidRequest, match="no job's id"):
        client.jobs.get("../me")
    with pytest.raises(TypeError, match="by its id, a str, not int"):
        client.jobs.get(7)  # type: ignore[arg-type] # the mistake is the test
    with pytest.raises(errors.NotFound):
        client.jobs.get("00000000-0000-4000-8000-000000000000").wait()
    with pytest.raises(errors.NotFound):
        list(client.jobs.events("00000000-0000-4000-8000-000000000000"))
    with pytest.raises(errors.Unauthenticated):
        connect(url=town.url, api_key="afk_wrong").me()
    with pytest.raises(errors.InvalidRequest, match=r"clarityUpscaleParams\.image"):
        client.images.upscale(b"no picture at all")
    with pytest.raises(TypeError, match="scale or scale_factor"):
        client.images.upscale(picture, scale=2, scale_factor=2)


def test_too_few_credits_and_a_full_queue_are_told_with_their_numbers(
    connect: Connect, start_api: Callable[..., Api], picture: Path
) -> None:
    api = start_api(max_queued_jobs=1)
    client = connect(url=api.url, api_key=api.key, terms=Terms(longest_pause=0))
    client.images.upscale(picture)
    with pytest.raises(errors.RateLimited) as full:
        client.images.upscale(picture)
    assert full.value.retry_after >= 1
    api.do("update teams set credits = 1")
    api.do("update jobs set state = 'FAILED', completed_at = now()")
    with pytest.raises(errors.InsufficientCredits, match="3 needed, 1 there") as poor:
        client.images.upscale(picture)
    assert (poor.value.required, poor.value.available) == (3, 1)


def test_a_result_that_is_deleted_is_expired(client: Client, town: Town, picture: Path, tmp_path: Path) -> None:
    job = client.images.upscale(picture)
    town.finish(job.id)
    job.wait(timeout=60)
    town.do("update jobs set purged_at = now() where id = %s", job.id)
    with pytest.raises(errors.Expired):
        job.save(tmp_path / "out.png")
    with pytest.raises(errors.Expired):
        client.jobs.get(job.id).result()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.png"]


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        ({"url": "ftp://x"}, "no server's address"),
        ({"url": "http://"}, "no server's address"),
        ({"api_key": ""}, "HIRESFIX_API_KEY"),
        ({"api_key": "afk_ü"}, "Copy it again"),
    ],
    ids=["scheme", "host", "none", "letters"],
)
def test_a_client_that_cannot_work_is_refused_at_once(
    connect: Connect, monkeypatch: pytest.MonkeyPatch, options: dict[str, str], hint: str
) -> None:
    monkeypatch.delenv("HIRESFIX_API_KEY", raising=False)
    with pytest.raises(errors.ConfigurationError, match=hint):
        connect(**{"api_key": "afk_x", **options})


def test_address_and_key_come_from_the_environment_and_are_not_shown(
    connect: Connect, town: Town, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HIRESFIX_URL", f"{town.url}/v2/")
    monkeypatch.setenv("HIRESFIX_API_KEY", f" {town.key}\n")
    assert connect().me().email
    assert town.key not in repr(Client())
    assert town.url in repr(Client())


# Trouble ------------------------------------------------------------------------------------------------------------


def test_a_connection_that_is_cut_in_mid_upload_costs_neither_a_second_upload_nor_a_second_job(
    connect: Connect, town: Town, lay: Callable[..., Line], large: Path
) -> None:
    line = lay()
    line.cut_after = large.stat().st_size // 2
    heard: list[int] = []
    jobs, uploads = town.jobs, town.value("select count(*) from uploads")
    client = connect(url=line.url, api_key=town.key)
    job = client.images.upscale(large, on_upload=lambda sent, total: heard.append(sent))
    assert line.cuts == 1
    assert heard != sorted(heard)  # it began anew
    assert job.status == "QUEUED"
    assert town.jobs == jobs + 1
    assert town.value("select count(*) from uploads") == uploads + 1


def test_an_answer_that_is_lost_after_the_job_was_made_is_the_same_job_when_asked_again(
    connect: Connect, town: Town, stranger: Stranger, picture: Path
) -> None:
    """The server accepts and is paid, the answer never arrives: the worst moment."""
    lost: list[str] = []

    def answer(asked: Asked) -> Answer | None:
        given = passed_on(town, asked)
        if not lost:
            lost.append(json.loads(given[2])["jobId"])
            return None
        return given

    stranger.answer = answer
    before = town.jobs
    job = connect(url=stranger.url, api_key=town.key).images.upscale(picture)
    assert lost == [job.id]
    assert town.jobs == before + 1
    assert len({asked.headers["idempotency-key"] for asked in stranger.asked}) == 1


def test_a_storm_of_429s_is_weathered_and_every_call_makes_one_job(
    connect: Connect, town: Town, stranger: Stranger, picture: Path
) -> None:
    refused: set[str] = set()

    def answer(asked: Asked) -> Answer:
        attempts = [other for other in stranger.asked if other.headers["idempotency-key"] == key(asked)]
        if len(attempts) < 3:
            refused.add(key(asked))
            return told(429, {"error": "Rate limit exceeded", "code": "rate_limited"}, **{"Retry-After": "0"})
        return passed_on(town, asked)

    def key(asked: Asked) -> str:
        return str(asked.headers["idempotency-key"])

    stranger.answer = answer
    before = town.jobs
    client = connect(url=stranger.url, api_key=town.key)
    with ThreadPoolExecutor(10) as pool:
        jobs = list(pool.map(lambda _: client.images.upscale(picture), range(10)))
    assert len({job.id for job in jobs}) == len(refused) == 10
    assert town.jobs == before + 10
    assert len(stranger.asked) == 30


def test_a_storm_that_does_not_end_is_told_and_has_made_nothing(
    connect: Connect, town: Town, stranger: Stranger, picture: Path
) -> None:
    stranger.answer = lambda asked: told(429, {"error": "Rate limit exceeded"}, **{"Retry-After": "0"})
    with pytest.raises(errors.RateLimited):
        connect(url=stranger.url, api_key=town.key).images.upscale(picture)
    assert len(stranger.asked) == 1 + HASTY.retries


def test_a_line_that_breaks_while_waiting_goes_unnoticed(
    connect: Connect, town: Town, lay: Callable[..., Line], picture: Path
) -> None:
    line = lay()
    job = connect(url=line.url, api_key=town.key).images.upscale(picture)
    seen: list[int] = []

    def work() -> None:
        wait_until(lambda: seen)
        line.drop_all()
        town.progress(job.id, 30)
        wait_until(lambda: seen[-1] == 30)
        line.drop_all()
        town.finish(job.id)

    with meanwhile(work):
        job.wait(on_progress=lambda state: seen.append(state.progress), timeout=120)
    assert seen == [0, 30, 100]


def test_a_server_that_is_not_there_is_told_after_the_last_attempt(connect: Connect, picture: Path) -> None:
    client = connect(url="http://127.0.0.1:9", api_key="afk_x", terms=Terms(retries=1, jitter=lambda most: 0))
    with pytest.raises(ServerUnreachable, match="HIRESFIX_URL"):
        client.images.upscale(picture)


def test_a_result_that_is_cut_is_fetched_again_and_half_of_one_is_never_seen(
    connect: Connect, town: Town, stranger: Stranger, picture: Path, tmp_path: Path
) -> None:
    whole = png(60, 40)
    served: list[int] = []

    def answer(asked: Asked) -> Answer | None:
        if asked.path.startswith("/v2/"):
            return told(200, {"id": "j", "status": "COMPLETED", "result": {"images": ["/files/j.png"]}})
        assert "x-api-key" not in asked.headers
        served.append(len(served))
        if len(served) < 3:  # once cut short, once as long as said but for nothing
            return 200, {"Content-Length": str(len(whole))}, whole[: len(whole) // 2 * (2 - len(served))]
        return 200, {}, whole

    stranger.answer = answer
    client = connect(url=stranger.url, api_key="afk_x")
    target = tmp_path / "out.png"
    target.write_bytes(b"what was there before")
    assert client.jobs.get("j").save(target).read_bytes() == whole
    assert len(served) == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.png", "out.png"]
    served.clear()
    stubborn = connect(url=stranger.url, api_key="afk_x", terms=Terms(retries=0))
    with pytest.raises(ServerUnreachable, match="could not be fetched"):
        stubborn.jobs.get("j").save(target)
    assert target.read_bytes() == whole
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.png", "out.png"]


def test_a_real_servers_result_is_gone_on_with_where_it_was_cut(
    connect: Connect, town: Town, stranger: Stranger, picture: Path, tmp_path: Path
) -> None:
    asked_for: list[str | None] = []

    def answer(asked: Asked) -> Answer:
        wanted = {name: asked.headers[name] for name in ("range", "if-range") if name in asked.headers}
        answer = httpx.get(town.url + asked.path, headers={"X-API-Key": town.key, **wanted}, timeout=60)
        if asked.path.startswith("/v2/"):
            return answer.status_code, {}, answer.content.replace(town.url.encode(), stranger.url.encode())
        asked_for.append(wanted.get("range"))
        headers = {name: answer.headers[name] for name in ("Content-Length", "ETag", "Content-Range")
                   if name in answer.headers}  # fmt: skip
        return answer.status_code, headers, answer.content[: None if wanted else len(answer.content) // 2]

    job = connect(url=town.url, api_key=town.key).images.upscale(picture)
    whole = town.finish(job.id, png(400, 300))
    stranger.answer = answer
    there = connect(url=stranger.url, api_key=town.key)
    assert there.jobs.get(job.id).save(tmp_path / "out.png").read_bytes() == whole
    first, second = asked_for
    assert first is None
    assert second is not None
    assert 0 < int(second.removeprefix("bytes=").removesuffix("-")) <= len(whole) // 2
    asked_for.clear()
    assert there.jobs.get(job.id).result().data == whole
    assert len(asked_for) == 2


def test_a_place_that_cannot_be_written_is_refused_before_anything_is_paid_for(
    client: Client, town: Town, picture: Path, tmp_path: Path
) -> None:
    before = town.jobs
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(IsADirectoryError, match=r"folder\.png"):
        client.upscale(picture, tmp_path / "folder.png")
    with pytest.raises(NotADirectoryError, match=r"in\.png"):
        client.upscale(picture, picture / "new" / "out.png")
    assert town.jobs == before


def test_the_environments_proxy_is_asked_and_one_that_cannot_be_is_told(
    connect: Connect, stranger: Stranger, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HTTP_PROXY", stranger.url)
    stranger.answer = lambda asked: told(200, {"models": []})
    assert connect(url="http://upscale.invalid", api_key="afk_x").models() == ()
    assert [asked.path for asked in stranger.asked] == ["http://upscale.invalid/v2/models"]
    for wrong in ("socks://127.0.0.1:9", "socks5://127.0.0.1:9"):
        monkeypatch.setenv("ALL_PROXY", wrong)
        with pytest.raises(errors.ConfigurationError, match="ALL_PROXY"):
            connect(url="http://upscale.invalid", api_key="afk_x")


# Other people's servers ---------------------------------------------------------------------------------------------


def test_a_server_with_nothing_but_the_contract_is_enough(
    connect: Connect, stranger: Stranger, picture: Path, tmp_path: Path
) -> None:
    """No event streams, no codes, no data URIs, results as bare URLs, fields that nobody knows or nobody sends."""
    looks: list[str] = []

    def answer(asked: Asked) -> Answer:
        if asked.path == "/v2/uploads":
            return told(201, {"id": "u", "url": f"{stranger.url}/u.png", "colour": "green"})
        if asked.path == "/v2/images/upscale":
            assert json.loads(asked.body)["clarityUpscaleParams"]["image"] == f"{stranger.url}/u.png"
            return told(202, {"jobId": "7", "status": "QUEUED", "mood": "good"})
        if asked.path == "/v2/jobs/7":
            looks.append(asked.path)
            if len(looks) < 3:
                return told(200, {"id": "7", "status": "PROCESSING", "progress": 10 * len(looks), "new": {"a": [1]}})
            return told(200, {"id": "7", "status": "COMPLETED", "result": f"{stranger.url}/r.png", "progress": 100})
        if asked.path == "/r.png":
            return 200, {}, b"bytes"
        return told(404, {"error": "Not found"})

    stranger.answer = answer
    client = connect(url=stranger.url, api_key="afk_x", terms=Terms(inline_bytes=0))
    seen: list[int] = []
    out = client.upscale(picture, tmp_path / "out.png", on_progress=lambda job: seen.append(job.progress))
    assert out.read_bytes() == b"bytes"
    assert seen == [10, 20, 100]
    job = client.jobs.get("7").job
    assert (job.seed, job.created_at, job.metadata, job.raw["status"]) == (None, None, None, "COMPLETED")


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (400, b'{"error": "Invalid job id"}', errors.InvalidRequest),
        (401, b'{"error": "Invalid API key"}', errors.Unauthenticated),
        (402, b'{"error": "Insufficient credits", "creditsRequired": "3"}', errors.InsufficientCredits),
        (404, b"<html>", errors.NotFound),
        (405, b"{}", errors.MethodNotAllowed),
        (409, b"{}", errors.Conflict),
        (418, b'{"error": "teapot"}', UnexpectedAnswer),
        (500, b"", errors.HiresfixError),
        (501, b'{"error": {"not": "a string"}}', errors.NotOffered),
        (200, b"<html>hello</html>", UnexpectedAnswer),
        (200, b"[]", UnexpectedAnswer),
        (200, b'{"models": 7}', UnexpectedAnswer),
        (302, b"", UnexpectedAnswer),
    ],
    ids=lambda value: str(value) if isinstance(value, int) else None,
)
def test_odd_answers_are_errors_of_ours(
    connect: Connect, stranger: Stranger, status: int, body: bytes, expected: type[Exception]
) -> None:
    stranger.answer = lambda asked: (status, {"X-Request-Id": "r-1"}, body)
    with pytest.raises(expected) as caught:
        connect(url=stranger.url, api_key="afk_x", terms=Terms(retries=0)).models()
    assert type(caught.value) is expected
    if status >= 400:
        assert isinstance(caught.value, errors.HiresfixError)
        assert caught.value.request_id == "r-1"


def test_a_model_that_only_the_server_knows_is_asked_for_as_the_server_says(
    connect: Connect, stranger: Stranger, picture: Path
) -> None:
    def answer(asked: Asked) -> Answer:
        if asked.path == "/v2/models":
            return told(200, {"models": [{"id": "dream-upscale", "paramsKey": "dreamParams"}, {"id": "song"}]})
        return told(202, {"jobId": "7", "status": "QUEUED"})

    stranger.answer = answer
    connect(url=stranger.url, api_key="afk_x").images.upscale(
        picture, model="dream-upscale", extra={"depth": 3}, webhook_url="https://you.example/", webhook_events="failed"
    )
    sent = json.loads(stranger.asked[-1].body)
    assert sent["webhookEvents"] == ["failed"]
    assert sent["model"] == "dream-upscale"
    assert sent["dreamParams"]["depth"] == 3
