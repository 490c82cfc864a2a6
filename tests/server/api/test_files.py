"""Results over HTTP: no key needed, ranges, validators, expiry (contract.md 6)."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from uuid import UUID

import httpx
import pytest

from hiresfix.server.database.pool import Database
from hiresfix.server.database.task_queue import Queue
from hiresfix.server.jobs import lifecycle
from hiresfix.server.jobs.model import Completed, StoredResult
from hiresfix.server.storage import Storage
from tests.conftest import Bucket, png
from tests.server.conftest import Api

DATA = bytes(range(256)) * 40


@pytest.fixture
def finished(api: Api, photo: str) -> str:
    """URL of the result of a job that completed with DATA."""
    return complete(api, photo)


def complete(api: Api, photo: str) -> str:
    job_id = api.submit({"image": photo}).json()["jobId"]
    asyncio.run(_complete(api, UUID(job_id)))
    with api.client() as client:
        (url,) = client.get(f"/v2/jobs/{job_id}").json()["result"]["images"]
    return str(url)


async def _complete(api: Api, job: UUID) -> None:
    key = f"results/{job}/made-by-hand.png"
    await Storage.open(api.settings.storage_location).put(key, DATA, "image/png", name=f"{job}-1.png")
    result = StoredResult(
        key=key,
        sha256=hashlib.sha256(DATA).hexdigest(),
        media_type="image/png",
        bytes=len(DATA),
        width=48,
        height=34,
        metadata={},
    )
    async with Database(api.database_url, max_size=1) as database:
        held = await lifecycle.claim(database, worker="w", lease_seconds=60)
        assert held is not None
        assert held.id == job
        async with database.transaction() as tx:
            await lifecycle.settle(tx, Queue(api.database_url), held, Completed(result=result), public_url=api.url)


def test_result_is_public_with_headers(finished: str) -> None:
    answer = httpx.get(finished)
    assert (answer.status_code, answer.content) == (200, DATA)
    assert answer.headers["content-type"] == "image/png"
    assert answer.headers["content-length"] == str(len(DATA))
    assert answer.headers["content-disposition"] == f'inline; filename="{finished.rpartition("/")[2]}"'
    head = httpx.head(finished)
    assert (head.content, head.headers["content-length"]) == (b"", str(len(DATA)))


@pytest.mark.parametrize(
    ("range_header", "status", "start", "end"),
    [
        ("bytes=0-9", 206, 0, 10),
        ("bytes=100-", 206, 100, len(DATA)),
        ("bytes=-5", 206, len(DATA) - 5, len(DATA)),
        ("bytes=10-999999999", 206, 10, len(DATA)),
        ("bytes=0-", 200, 0, len(DATA)),
        ("bytes=-999999999", 200, 0, len(DATA)),
        ("bytes=5-2", 200, 0, len(DATA)),
        ("bytes=0-" + "9" * 4400, 200, 0, len(DATA)),
        (f"bytes={len(DATA)}-", 416, 0, 0),
        ("bytes=-0", 416, 0, 0),
        ("bytes=-", 200, 0, len(DATA)),
        ("items=0-1", 200, 0, len(DATA)),
        ("bytes=0-1,3-4", 200, 0, len(DATA)),
    ],
)
def test_ranges_are_served(finished: str, range_header: str, status: int, start: int, end: int) -> None:
    answer = httpx.get(finished, headers={"Range": range_header})
    assert (answer.status_code, answer.content) == (status, DATA[start:end])
    if status == 206:
        assert answer.headers["content-range"] == f"bytes {start}-{end - 1}/{len(DATA)}"
    if status == 416:
        assert answer.headers["content-range"] == f"bytes */{len(DATA)}"


def test_etag_gives_304_or_whole_file(finished: str) -> None:
    etag = httpx.get(finished).headers["etag"]
    assert httpx.get(finished, headers={"If-None-Match": etag}).status_code == 304
    assert httpx.get(finished, headers={"If-None-Match": "*"}).status_code == 304
    assert httpx.get(finished, headers={"Range": "bytes=0-1", "If-Range": etag}).status_code == 206
    assert httpx.get(finished, headers={"Range": "bytes=0-1", "If-Range": '"other"'}).status_code == 200


def test_expired_result_is_410(api: Api, finished: str) -> None:
    api.do("update jobs set purged_at = now()")
    answer = httpx.get(finished)
    assert (answer.status_code, answer.json()["code"]) == (410, "expired")
    with api.client() as client:
        job = client.get("/v2/jobs/" + finished.rpartition("/")[2].removesuffix("-1.png")).json()
    assert (job["expired"], job["result"]["images"]) == (True, [finished])


def test_missing_file_is_410(api: Api, finished: str) -> None:
    for stored in (api.settings.home / "files" / "results").rglob("*.png"):
        stored.unlink()
    assert httpx.head(finished).status_code == 410
    assert httpx.get(finished).json()["code"] == "expired"


@pytest.mark.parametrize("change", [("-1.png", "-2.png"), ("-1.png", "-1.jpg"), ("-1.png", ".png"), ("-1", "-1.png/")])
def test_other_names_are_404(finished: str, change: tuple[str, str]) -> None:
    assert httpx.get(finished.replace(*change)).status_code == 404


def test_result_can_be_the_next_image(api: Api, finished: str) -> None:
    response = api.submit({"image": finished})
    (message,) = response.json()["details"]["clarityUpscaleParams.image"]
    assert "404" not in message  # reading DATA from the store showed that it is not an image
    assert "image" in message.lower()


# Where clients are sent on to the object store


@pytest.fixture
def sending(start_api: Callable[..., Api], bucket: Bucket) -> Api:
    return start_api(storage_url=bucket.url, result_urls="signed", result_url_seconds=600)


@pytest.fixture
def signed(sending: Api, photo: str) -> str:
    """As `finished`, kept in a private bucket, from which clients are to fetch it themselves."""
    return complete(sending, photo)


def test_result_redirects_to_the_store(signed: str, bucket: Bucket) -> None:
    sent = httpx.get(signed)
    assert sent.status_code == 302
    assert sent.headers["location"].startswith(f"{bucket.endpoint}/{bucket.name}/results/")
    assert "X-Amz-Expires=600&" in sent.headers["location"]
    assert sent.headers["cache-control"] == "private, max-age=300"
    answer = httpx.get(signed, follow_redirects=True)
    assert (answer.status_code, answer.content) == (200, DATA)
    assert answer.headers["content-type"] == "image/png"
    assert answer.headers["content-disposition"] == f'inline; filename="{signed.rpartition("/")[2]}"'


def test_range_redirects_to_the_store(signed: str) -> None:
    answer = httpx.get(signed, headers={"Range": "bytes=5-9"}, follow_redirects=True)
    assert (answer.status_code, answer.content) == (206, DATA[5:10])


def test_head_and_304_do_not_redirect(signed: str) -> None:
    head = httpx.head(signed)
    assert (head.status_code, head.headers["content-length"]) == (200, str(len(DATA)))
    assert httpx.get(signed, headers={"If-None-Match": head.headers["etag"]}).status_code == 304


def test_result_url_outlives_its_signatures(sending: Api, signed: str) -> None:
    first, second = (httpx.get(signed).headers["location"] for _ in range(2))
    assert first.partition("?")[0] == second.partition("?")[0]
    sending.do("update jobs set purged_at = now()")
    answer = httpx.get(signed, follow_redirects=True)
    assert (answer.status_code, answer.json()["code"]) == (410, "expired")


def test_redirected_result_can_be_the_next_image(sending: Api, signed: str) -> None:
    (message,) = sending.submit({"image": signed}).json()["details"]["clarityUpscaleParams.image"]
    assert "404" not in message  # as above


def test_public_endpoint_signs_urls(start_api: Callable[..., Api], bucket: Bucket, photo: str) -> None:
    api = start_api(storage_url=bucket.url, result_urls="signed", storage_public_endpoint="https://images.example.com")
    assert httpx.get(complete(api, photo)).headers["location"].startswith("https://images.example.com/")


def test_uploads_are_not_redirected(sending: Api) -> None:
    with sending.client() as client:
        url = client.post("/v2/uploads", files={"file": ("a.png", png(8, 8))}).json()["url"]
    assert httpx.get(url).content == png(8, 8)


def test_pages_may_show_images_of_the_store(sending: Api, bucket: Bucket) -> None:
    answer = httpx.get(sending.url, headers={"Accept": "text/html"}, follow_redirects=True)
    allowed = dict(part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; "))
    assert bucket.endpoint in allowed["img-src"].split()
    assert bucket.endpoint in allowed["connect-src"].split()
