"""Both clients against a real server, in one suite."""

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

from hiresfix import errors, messages
from hiresfix.client import (
    Client,
    Job,
    JobCancelled,
    JobFailed,
    JobTimedOut,
    RetryPolicy,
    ServerUnreachable,
    UnexpectedAnswer,
)
from tests.client.conftest import SHORT_PAUSES, Connect, TcpProxy
from tests.conftest import Site, png
from tests.fake_server import Answer, FakeServer, ReceivedRequest, forward, json_answer
from tests.live_server import LiveServer
from tests.server.conftest import Api, wait_until


@contextmanager
def in_background(work: Callable[[], object]) -> Iterator[None]:
    """Do work on the server's side while the client waits."""
    thread = threading.Thread(target=work)
    thread.start()
    yield
    thread.join()


# One job ------------------------------------------------------------------------------------------------------------


def test_submit_wait_and_save(client: Client, live_server: LiveServer, image: Path, tmp_path: Path) -> None:
    job = client.images.upscale(image, scale=2, seed=7, creativity=0.5)
    assert job.status == "QUEUED"
    seen: list[Job] = []

    def work() -> None:
        wait_until(lambda: seen)
        live_server.progress(job.id, 40)
        wait_until(lambda: seen[-1].progress == 40)
        live_server.finish(job.id)

    with in_background(work):
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


def test_upscale_submits_waits_and_saves(client: Client, live_server: LiveServer, image: Path, tmp_path: Path) -> None:
    states: list[Job] = []

    def work() -> None:
        wait_until(lambda: states)
        live_server.finish(states[0].id, kind="jpeg")

    with in_background(work):
        out = client.upscale(image, tmp_path / "out.jpg", scale=4, on_progress=states.append, timeout=60)
    assert out == tmp_path / "out.jpg"
    assert out.stat().st_size
    job_input = client.jobs.get(states[0].id).job.input
    assert job_input is not None
    assert (job_input["scale_factor"], job_input["output_format"]) == (4, "jpg")


@pytest.mark.parametrize(("name", "options"), [("out.tiff", {}), ("out", {}), ("out.png", {"output_format": "jpg"})])
def test_wrong_suffix_is_refused_before_sending(
    client: Client, live_server: LiveServer, image: Path, tmp_path: Path, name: str, options: Any
) -> None:
    before = live_server.jobs
    with pytest.raises(ValueError, match=r"use \.png|does not fit"):
        client.upscale(image, tmp_path / name, **options)
    assert live_server.jobs == before


def _pillow(path: Path) -> Image.Image:
    with Image.open(path) as opened:
        opened.load()
        return opened


_INPUTS: dict[str, Callable[[Path], Any]] = {
    "path": lambda path: path,
    "str": str,
    "bytes": lambda path: path.read_bytes(),
    "bytearray": lambda path: bytearray(path.read_bytes()),
    "file": lambda path: io.BytesIO(path.read_bytes()),
    "pillow": _pillow,
    "array": lambda path: np.asarray(_pillow(path)),
}


@pytest.mark.parametrize(
    ("kind", "size"),
    [
        *((kind, "image") for kind in _INPUTS),
        ("path", "large_image"),
        ("file", "large_image"),
        ("pillow", "large_image"),
    ],
)
def test_every_kind_of_image_input(
    client: Client, live_server: LiveServer, request: pytest.FixtureRequest, kind: str, size: str
) -> None:
    path: Path = request.getfixturevalue(size)
    uploads = live_server.value("select count(*) from uploads")
    job = client.images.upscale(_INPUTS[kind](path))
    with _pillow(path) as expected:
        source = live_server.value("select source from jobs where id = %s", job.id)
        assert (source["width"], source["height"]) == expected.size
    assert live_server.value("select count(*) from uploads") - uploads == (size == "large_image")


def test_image_given_by_url(client: Client, site: Site) -> None:
    url = site.add("/p.png", png(9, 8))
    job = client.images.upscale(url, model="faithful-upscale", content="anime")
    assert job.refresh().input == {
        "image": url, "scale_factor": 2, "content": "anime", "sharpen": 0.0, "output_format": "png"
    }  # fmt: skip


def test_rotated_cmyk_pillow_image_is_upright(client: Client, live_server: LiveServer) -> None:
    image = Image.new("CMYK", (30, 20))
    image.getexif()[0x0112] = 6
    job = client.images.upscale(image)
    source = live_server.value("select source from jobs where id = %s", job.id)
    assert (source["width"], source["height"], source["media_type"]) == (20, 30, "image/tiff")


@pytest.mark.parametrize(
    ("image", "error", "hint"),
    [
        ("nowhere.png", errors.ImageError, "nowhere.png cannot be read"),
        (b"", errors.ImageError, "no bytes"),
        (io.StringIO("text"), TypeError, "mode 'rb'"),
        (7, TypeError, "not int"),
        (".", errors.ImageError, "not a file"),
        (np.zeros((4, 5, 3)), TypeError, r"uint8, and this one is \(4, 5, 3\) of float64\. Convert it"),
    ],
    ids=["missing", "empty", "text", "number", "folder", "floats"],
)
def test_invalid_image_input_is_refused_locally(client: Client, image: Any, error: type[Exception], hint: str) -> None:
    with pytest.raises(error, match=hint):
        client.images.upscale(image)


def test_failed_and_cancelled_jobs_raise_with_job(client: Client, live_server: LiveServer, image: Path) -> None:
    failed, cancelled = client.images.upscale(image), client.images.upscale(image)
    live_server.fail(failed.id)
    with pytest.raises(JobFailed, match="It broke") as caught:
        failed.wait(timeout=60)
    assert (caught.value.job.id, caught.value.job.status, caught.value.code) == (failed.id, "FAILED", "job_failed")
    assert (caught.value.reason, caught.value.params) == (None, {})
    assert cancelled.cancel().status == "CANCELLED"
    with pytest.raises(JobCancelled):
        cancelled.result(timeout=60)
    with pytest.raises(errors.Conflict) as refused:
        client.jobs.cancel(cancelled.id)
    assert (refused.value.reason, refused.value.params) == ("job_already_over", {"state": "CANCELLED"})


def test_failed_job_carries_reason_and_params(client: Client, live_server: LiveServer, image: Path) -> None:
    job = client.images.upscale(image)
    live_server.fail(job.id, messages.IMAGE_DAMAGED(kind="PNG"))
    with pytest.raises(JobFailed, match="PNG file is damaged") as caught:
        job.wait(timeout=60)
    assert (caught.value.reason, caught.value.params) == ("image_damaged", {"kind": "PNG"})


@pytest.mark.parametrize("seconds", [0.3, 21.0], ids=["polling", "stream"])
def test_wait_times_out_and_can_resume(connect: Connect, live_server: LiveServer, image: Path, seconds: float) -> None:
    now = [0.0]
    client = connect(url=live_server.url, api_key=live_server.key, retry=RetryPolicy(clock=lambda: now[0]))
    job = client.images.upscale(image)

    def advance_clock(state: Job) -> None:
        now[0] += 30

    with pytest.raises(JobTimedOut, match="It goes on") as caught:
        job.wait(advance_clock, timeout=seconds)
    assert (caught.value.job.id, caught.value.job.status) == (job.id, "QUEUED")
    live_server.finish(job.id)
    assert job.wait(timeout=60).status == "COMPLETED"


@pytest.mark.parametrize(
    ("job", "line"),
    [
        (Job(id="7", status="QUEUED", queue_position=3, eta_seconds=12), "QUEUED, 3 ahead of it, about 12 s"),
        (Job(id="7", status="QUEUED"), "QUEUED"),
        (Job(id="7", status="PROCESSING", progress=40, eta_seconds=0), "PROCESSING 40 %, about 0 s"),
        (Job(id="7", status="COMPLETED", progress=100, images=("u",), eta_seconds=0), "COMPLETED"),
        (
            Job(id="7", status="FAILED", error="It broke. Try another image."),
            "FAILED: It broke. Try another image.",
        ),
    ],
    ids=lambda value: value.status if isinstance(value, Job) else None,
)
def test_job_prints_as_one_line(job: Job, line: str) -> None:
    assert str(job) == line


def test_events_yield_states_until_job_is_over(client: Client, live_server: LiveServer, image: Path) -> None:
    job = client.images.upscale(image)
    states = job.events(timeout=60)
    assert next(states).status == "QUEUED"
    live_server.progress(job.id, 70)
    assert next(states).progress == 70
    live_server.fail(job.id)
    assert [state.status for state in states] == ["FAILED"]
    assert [state.status for state in client.jobs.events(job.id)] == ["FAILED"]


def test_closing_events_closes_the_stream(client: Client, live_server: LiveServer, image: Path) -> None:
    states = client.images.upscale(image).events()
    next(states)
    states.close()  # type: ignore[attr-defined] # both clients return generators
    wait_until(lambda: not live_server.app.state.services.streams)


# The rest of the API ------------------------------------------------------------------------------------------------


def test_job_list_follows_pages(connect: Connect, start_api: Callable[..., Api], image: Path) -> None:
    api = start_api()
    client = connect(url=api.url, api_key=api.key)
    assert list(client.jobs.list()) == []
    ids = [client.images.upscale(image, model="faithful-upscale").id for _ in range(7)]
    assert [job.id for job in client.jobs.list(page_size=3)] == ids[::-1]
    assert [job.id for job in client.jobs.list(page_size=3, limit=4)] == ids[:2:-1]
    assert list(client.jobs.list(status="FAILED")) == []
    with pytest.raises(errors.InvalidRequest) as caught:
        next(client.jobs.list(status="LOST"))
    assert "status" in caught.value.details


def test_me_models_and_preview(client: Client, image: Path) -> None:
    me = client.me()
    assert (me.role, me.key_name, me.plan) == ("OWNER", "test", "free")
    assert me.credits
    assert {model.id: model.cost_min for model in client.models()} == {"clarity-upscale": 3, "faithful-upscale": 1}
    assert client.models("video") == ()
    preview = client.images.preview(image, scale=4)
    assert (preview.credit_cost, preview.width, preview.height, preview.sufficient) == (3, 96, 68, True)


def test_upload_reports_progress_and_is_reusable(client: Client, large_image: Path) -> None:
    reports: list[tuple[int, int]] = []
    upload = client.uploads.create(large_image, on_progress=lambda sent, total: reports.append((sent, total)))
    assert (upload.byte_size, upload.content_type) == (large_image.stat().st_size, "image/png")
    assert upload.expires_at is not None
    sent, totals = zip(*reports, strict=True)
    assert len(sent) > 3
    assert list(sent) == sorted(sent)
    assert set(totals) == {sent[-1]}
    assert client.images.upscale(upload.url).status == "QUEUED"
    assert client.images.upscale(upload).status == "QUEUED"


def test_same_idempotency_key_returns_same_job(client: Client, live_server: LiveServer, large_image: Path) -> None:
    before = live_server.jobs
    first, again = (client.images.upscale(large_image, idempotency_key=f"mine-{id(client)}") for _ in range(2))
    assert first.id == again.id
    assert live_server.jobs == before + 1
    with pytest.raises(errors.Conflict):
        client.images.upscale(large_image, idempotency_key=f"mine-{id(client)}", seed=9)


# Refusals -----------------------------------------------------------------------------------------------------------


def test_server_errors_keep_class_and_details(
    connect: Connect, client: Client, live_server: LiveServer, image: Path
) -> None:
    with pytest.raises(errors.InvalidRequest, match=r"clarityUpscaleParams\.creativity: Must be between 0 and 1") as e:
        client.images.upscale(image, creativity=3)
    assert e.value.details == {"clarityUpscaleParams.creativity": ["Must be between 0 and 1"]}
    assert e.value.request_id
    with pytest.raises(errors.InvalidRequest, match="Did you mean 'creativity'"):
        client.images.upscale(image, extra={"creativty": 1})
    with pytest.raises(errors.InvalidRequest, match="clarity-upscale, faithful-upscale"):
        client.images.upscale(image, model="topaz")
    with pytest.raises(errors.InvalidJobId):
        client.jobs.get("nonsense")
    with pytest.raises(errors.InvalidRequest, match="not a job id"):
        client.jobs.get("../me")
    with pytest.raises(TypeError, match="A job id is a str, not int"):
        client.jobs.get(7)  # type: ignore[arg-type] # the mistake is the test
    with pytest.raises(errors.NotFound):
        client.jobs.get("00000000-0000-4000-8000-000000000000").wait()
    with pytest.raises(errors.NotFound):
        list(client.jobs.events("00000000-0000-4000-8000-000000000000"))
    with pytest.raises(errors.Unauthenticated):
        connect(url=live_server.url, api_key="afk_wrong").me()
    with pytest.raises(errors.InvalidRequest, match=r"clarityUpscaleParams\.image"):
        client.images.upscale(b"not an image at all")
    with pytest.raises(TypeError, match="scale or scale_factor"):
        client.images.upscale(image, scale=2, scale_factor=2)


def test_credits_and_full_queue_errors_carry_numbers(
    connect: Connect, start_api: Callable[..., Api], image: Path
) -> None:
    api = start_api(max_queued_jobs=1)
    client = connect(url=api.url, api_key=api.key, retry=RetryPolicy(longest_pause=0))
    client.images.upscale(image)
    with pytest.raises(errors.RateLimited) as full:
        client.images.upscale(image)
    assert full.value.retry_after >= 1
    api.do("update teams set credits = 1")
    api.do("update jobs set state = 'FAILED', completed_at = now()")
    with pytest.raises(errors.InsufficientCredits, match="3 needed, 1 available") as poor:
        client.images.upscale(image)
    assert (poor.value.required, poor.value.available) == (3, 1)


def test_deleted_result_raises_expired(client: Client, live_server: LiveServer, image: Path, tmp_path: Path) -> None:
    job = client.images.upscale(image)
    live_server.finish(job.id)
    job.wait(timeout=60)
    live_server.do("update jobs set purged_at = now() where id = %s", job.id)
    with pytest.raises(errors.Expired):
        job.save(tmp_path / "out.png")
    with pytest.raises(errors.Expired):
        client.jobs.get(job.id).result()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.png"]


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        ({"url": "ftp://x"}, "not the address of a server"),
        ({"url": "http://"}, "not the address of a server"),
        ({"api_key": ""}, "HIRESFIX_API_KEY"),
        ({"api_key": "afk_ü"}, "Copy it again"),
    ],
    ids=["scheme", "host", "none", "letters"],
)
def test_invalid_address_or_key_is_refused(
    connect: Connect, monkeypatch: pytest.MonkeyPatch, options: dict[str, str], hint: str
) -> None:
    monkeypatch.delenv("HIRESFIX_API_KEY", raising=False)
    with pytest.raises(errors.ConfigurationError, match=hint):
        connect(**{"api_key": "afk_x", **options})


def test_environment_configures_client_and_repr_hides_key(
    connect: Connect, live_server: LiveServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HIRESFIX_URL", f"{live_server.url}/v2/")
    monkeypatch.setenv("HIRESFIX_API_KEY", f" {live_server.key}\n")
    assert connect().me().email
    assert live_server.key not in repr(Client())
    assert live_server.url in repr(Client())


# Trouble ------------------------------------------------------------------------------------------------------------


def test_cut_upload_creates_one_upload_and_job(
    connect: Connect, live_server: LiveServer, start_proxy: Callable[..., TcpProxy], large_image: Path
) -> None:
    proxy = start_proxy()
    proxy.cut_after = large_image.stat().st_size // 2
    reports: list[int] = []
    jobs, uploads = live_server.jobs, live_server.value("select count(*) from uploads")
    client = connect(url=proxy.url, api_key=live_server.key)
    job = client.images.upscale(large_image, on_upload=lambda sent, total: reports.append(sent))
    assert proxy.cuts == 1
    assert reports != sorted(reports)  # the upload started again
    assert job.status == "QUEUED"
    assert live_server.jobs == jobs + 1
    assert live_server.value("select count(*) from uploads") == uploads + 1


def test_lost_answer_does_not_create_second_job(
    connect: Connect, live_server: LiveServer, fake_server: FakeServer, image: Path
) -> None:
    """The worst moment: the server has charged for the job, and its answer never arrives."""
    lost: list[str] = []

    def answer(request: ReceivedRequest) -> Answer | None:
        response = forward(live_server.url, request)
        if not lost:
            lost.append(json.loads(response[2])["jobId"])
            return None
        return response

    fake_server.answer = answer
    before = live_server.jobs
    job = connect(url=fake_server.url, api_key=live_server.key).images.upscale(image)
    assert lost == [job.id]
    assert live_server.jobs == before + 1
    assert len({request.headers["idempotency-key"] for request in fake_server.requests}) == 1


def test_rate_limited_calls_each_create_one_job(
    connect: Connect, live_server: LiveServer, fake_server: FakeServer, image: Path
) -> None:
    refused: set[str] = set()

    def answer(request: ReceivedRequest) -> Answer:
        attempts = [other for other in fake_server.requests if other.headers["idempotency-key"] == key(request)]
        if len(attempts) < 3:
            refused.add(key(request))
            return json_answer(429, {"error": "Rate limit exceeded", "code": "rate_limited"}, **{"Retry-After": "0"})
        return forward(live_server.url, request)

    def key(request: ReceivedRequest) -> str:
        return str(request.headers["idempotency-key"])

    fake_server.answer = answer
    before = live_server.jobs
    client = connect(url=fake_server.url, api_key=live_server.key)
    with ThreadPoolExecutor(10) as pool:
        jobs = list(pool.map(lambda _: client.images.upscale(image), range(10)))
    assert len({job.id for job in jobs}) == len(refused) == 10
    assert live_server.jobs == before + 10
    assert len(fake_server.requests) == 30


def test_endless_rate_limit_raises(
    connect: Connect, live_server: LiveServer, fake_server: FakeServer, image: Path
) -> None:
    fake_server.answer = lambda request: json_answer(429, {"error": "Rate limit exceeded"}, **{"Retry-After": "0"})
    with pytest.raises(errors.RateLimited):
        connect(url=fake_server.url, api_key=live_server.key).images.upscale(image)
    assert len(fake_server.requests) == 1 + SHORT_PAUSES.retries


def test_wait_survives_broken_connections(
    connect: Connect, live_server: LiveServer, start_proxy: Callable[..., TcpProxy], image: Path
) -> None:
    proxy = start_proxy()
    job = connect(url=proxy.url, api_key=live_server.key).images.upscale(image)
    seen: list[int] = []

    def work() -> None:
        wait_until(lambda: seen)
        proxy.drop_all()
        live_server.progress(job.id, 30)
        wait_until(lambda: seen[-1] == 30)
        proxy.drop_all()
        live_server.finish(job.id)

    with in_background(work):
        job.wait(on_progress=lambda state: seen.append(state.progress), timeout=120)
    assert seen == [0, 30, 100]


def test_unreachable_server_raises_after_last_attempt(connect: Connect, image: Path) -> None:
    client = connect(url="http://127.0.0.1:9", api_key="afk_x", retry=RetryPolicy(retries=1, jitter=lambda most: 0))
    with pytest.raises(ServerUnreachable, match="HIRESFIX_URL"):
        client.images.upscale(image)


def test_cut_download_never_leaves_partial_file(
    connect: Connect, live_server: LiveServer, fake_server: FakeServer, image: Path, tmp_path: Path
) -> None:
    whole = png(60, 40)
    served: list[int] = []

    def answer(request: ReceivedRequest) -> Answer | None:
        if request.path.startswith("/v2/"):
            return json_answer(200, {"id": "j", "status": "COMPLETED", "result": {"images": ["/files/j.png"]}})
        assert "x-api-key" not in request.headers
        served.append(len(served))
        if len(served) < 3:  # first half of the bytes, then none
            return 200, {"Content-Length": str(len(whole))}, whole[: len(whole) // 2 * (2 - len(served))]
        return 200, {}, whole

    fake_server.answer = answer
    client = connect(url=fake_server.url, api_key="afk_x")
    target = tmp_path / "out.png"
    target.write_bytes(b"previous content")
    assert client.jobs.get("j").save(target).read_bytes() == whole
    assert len(served) == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.png", "out.png"]
    served.clear()
    impatient = connect(url=fake_server.url, api_key="afk_x", retry=RetryPolicy(retries=0))
    with pytest.raises(ServerUnreachable, match="could not be fetched"):
        impatient.jobs.get("j").save(target)
    assert target.read_bytes() == whole
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.png", "out.png"]


def test_cut_download_resumes_on_real_server(
    connect: Connect, live_server: LiveServer, fake_server: FakeServer, image: Path, tmp_path: Path
) -> None:
    ranges: list[str | None] = []

    def answer(request: ReceivedRequest) -> Answer:
        range_headers = {name: request.headers[name] for name in ("range", "if-range") if name in request.headers}
        answer = httpx.get(
            live_server.url + request.path, headers={"X-API-Key": live_server.key, **range_headers}, timeout=60
        )
        if request.path.startswith("/v2/"):
            return answer.status_code, {}, answer.content.replace(live_server.url.encode(), fake_server.url.encode())
        ranges.append(range_headers.get("range"))
        headers = {name: answer.headers[name] for name in ("Content-Length", "ETag", "Content-Range")
                   if name in answer.headers}  # fmt: skip
        return answer.status_code, headers, answer.content[: None if range_headers else len(answer.content) // 2]

    job = connect(url=live_server.url, api_key=live_server.key).images.upscale(image)
    whole = live_server.finish(job.id, png(400, 300))
    fake_server.answer = answer
    client = connect(url=fake_server.url, api_key=live_server.key)
    assert client.jobs.get(job.id).save(tmp_path / "out.png").read_bytes() == whole
    first, second = ranges
    assert first is None
    assert second is not None
    assert 0 < int(second.removeprefix("bytes=").removesuffix("-")) <= len(whole) // 2
    ranges.clear()
    assert client.jobs.get(job.id).result().data == whole
    assert len(ranges) == 2


def test_unwritable_path_is_refused_before_paying(
    client: Client, live_server: LiveServer, image: Path, tmp_path: Path
) -> None:
    before = live_server.jobs
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(IsADirectoryError, match=r"folder\.png"):
        client.upscale(image, tmp_path / "folder.png")
    with pytest.raises(NotADirectoryError, match=r"in\.png"):
        client.upscale(image, image / "new" / "out.png")
    assert live_server.jobs == before


def test_proxy_comes_from_environment(
    connect: Connect, fake_server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HTTP_PROXY", fake_server.url)
    fake_server.answer = lambda request: json_answer(200, {"models": []})
    assert connect(url="http://upscale.invalid", api_key="afk_x").models() == ()
    assert [request.path for request in fake_server.requests] == ["http://upscale.invalid/v2/models"]
    for invalid in ("socks://127.0.0.1:9", "socks5://127.0.0.1:9"):
        monkeypatch.setenv("ALL_PROXY", invalid)
        with pytest.raises(errors.ConfigurationError, match="ALL_PROXY"):
            connect(url="http://upscale.invalid", api_key="afk_x")


# Other vendors' servers -----------------------------------------------------------------------------------------------


def test_minimal_server_is_enough(connect: Connect, fake_server: FakeServer, image: Path, tmp_path: Path) -> None:
    """No event streams, codes or data URIs; bare URLs as results; unknown and missing fields."""
    polls: list[str] = []

    def answer(request: ReceivedRequest) -> Answer:
        if request.path == "/v2/uploads":
            return json_answer(201, {"id": "u", "url": f"{fake_server.url}/u.png", "colour": "green"})
        if request.path == "/v2/images/upscale":
            assert json.loads(request.body)["clarityUpscaleParams"]["image"] == f"{fake_server.url}/u.png"
            return json_answer(202, {"jobId": "7", "status": "QUEUED", "mood": "good"})
        if request.path == "/v2/jobs/7":
            polls.append(request.path)
            if len(polls) < 3:
                return json_answer(
                    200, {"id": "7", "status": "PROCESSING", "progress": 10 * len(polls), "new": {"a": [1]}}
                )
            return json_answer(
                200, {"id": "7", "status": "COMPLETED", "result": f"{fake_server.url}/r.png", "progress": 100}
            )
        if request.path == "/r.png":
            return 200, {}, b"bytes"
        return json_answer(404, {"error": "Not found"})

    fake_server.answer = answer
    client = connect(url=fake_server.url, api_key="afk_x", retry=RetryPolicy(inline_bytes=0))
    seen: list[int] = []
    out = client.upscale(image, tmp_path / "out.png", on_progress=lambda job: seen.append(job.progress))
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
def test_unusual_answers_raise_hiresfix_errors(
    connect: Connect, fake_server: FakeServer, status: int, body: bytes, expected: type[Exception]
) -> None:
    fake_server.answer = lambda request: (status, {"X-Request-Id": "r-1"}, body)
    with pytest.raises(expected) as caught:
        connect(url=fake_server.url, api_key="afk_x", retry=RetryPolicy(retries=0)).models()
    assert type(caught.value) is expected
    if status >= 400:
        assert isinstance(caught.value, errors.HiresfixError)
        assert caught.value.request_id == "r-1"


def test_unknown_model_uses_params_key_of_server(connect: Connect, fake_server: FakeServer, image: Path) -> None:
    def answer(request: ReceivedRequest) -> Answer:
        if request.path == "/v2/models":
            return json_answer(200, {"models": [{"id": "dream-upscale", "paramsKey": "dreamParams"}, {"id": "song"}]})
        return json_answer(202, {"jobId": "7", "status": "QUEUED"})

    fake_server.answer = answer
    connect(url=fake_server.url, api_key="afk_x").images.upscale(
        image, model="dream-upscale", extra={"depth": 3}, webhook_url="https://you.example/", webhook_events="failed"
    )
    body = json.loads(fake_server.requests[-1].body)
    assert body["webhookEvents"] == ["failed"]
    assert body["model"] == "dream-upscale"
    assert body["dreamParams"]["depth"] == 3
