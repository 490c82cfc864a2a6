"""POST /v2/uploads, the life of an upload, and deleting a job's files: contract.md 6, 7, 13."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from hiresfix.server.storage import Storage
from hiresfix.server.worker.maintenance import Maintenance
from tests import sample_images
from tests.conftest import Site, png
from tests.server.api.test_files import finished
from tests.server.conftest import Api

__all__ = ["finished"]


def send(api: Api, data: bytes, *, name: str = "file", headers: dict[str, str] | None = None) -> httpx.Response:
    with api.client(**(headers or {})) as client:
        return client.post("/v2/uploads", files={name: ("upload", data)})


def test_upload_is_served_until_it_expires(api: Api) -> None:
    data = png(20, 15)
    response = send(api, data)
    body = response.json()
    assert response.status_code == 201
    assert set(body) == {"id", "url", "kind", "contentType", "byteSize", "expiresAt"}
    assert (body["kind"], body["contentType"], body["byteSize"]) == ("image", "image/png", len(data))
    assert body["url"] == f"{api.url}/files/uploads/{body['id']}.png"
    ends = datetime.fromisoformat(body["expiresAt"]) - datetime.now(UTC)
    assert timedelta(hours=1, minutes=59) < ends <= timedelta(hours=2)
    served = httpx.get(body["url"])
    assert (served.content, served.headers["content-type"]) == (data, "image/png")
    assert served.headers["etag"] == f'"{hashlib.sha256(data).hexdigest()}"'
    assert served.headers["x-content-type-options"] == "nosniff"
    assert "sandbox" in served.headers["content-security-policy"]
    part = httpx.get(body["url"], headers={"Range": "bytes=2-5"})
    assert (part.status_code, part.content) == (206, data[2:6])
    api.do("update uploads set expires_at = now()")
    assert httpx.get(body["url"]).status_code == 410
    assert api.balance == 100


def test_magic_bytes_decide_the_media_type(api: Api) -> None:
    with api.client() as client:
        response = client.post("/v2/uploads", files={"file": ("x.exe", sample_images.jpeg(), "application/x-dosexec")})
    assert response.json()["contentType"] == "image/jpeg"
    assert response.json()["url"].endswith(".jpg")


def test_upload_by_url_is_fetched_and_stored(api: Api, photo: str) -> None:
    with api.client() as client:
        response = client.post("/v2/uploads", json={"url": photo})
        assert response.status_code == 201, response.text
        assert httpx.get(response.json()["url"]).content == httpx.get(photo).content
        for url, words in (
            (None, "Required"),
            ("ftp://example.com/x.png", "http(s)"),
            ("data:image/png;base64,AAAA", "http(s)"),
            (f"{photo}.gone", "404"),
        ):
            refused = client.post("/v2/uploads", json={"url": url})
            assert refused.status_code == 400
            assert words in refused.json()["details"]["url"][0]
        refused = client.post("/v2/uploads", json={"url": photo, "file": "x"})
        assert list(refused.json()["details"]) == ["_root"]
    assert api.balance == 100


def test_upload_by_url_must_be_an_image(api: Api, site: Site) -> None:
    with api.client() as client:
        refused = client.post("/v2/uploads", json={"url": site.add("/page.html", b"<html>")})
    assert (refused.status_code, list(refused.json()["details"])) == (400, ["url"])
    assert api.files == []


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ({"files": {"other": ("a", b"x")}}, "Required"),
        ({"data": {"file": "text"}, "files": {"other": ("a", b"x")}}, "Expected a file"),
        ({"files": {"file": ("a", b"")}}, "empty"),
        ({"files": [("file", ("a", png(3, 3))), ("file", ("b", png(3, 3)))]}, "one file"),
        ({"files": [("file", (str(at), b"x")) for at in range(9)]}, "Too many files"),
        ({"files": {"file": ("a", b"%PDF-1.7 no picture")}}, "not an image"),
        ({"files": {"file": ("a", png(40, 40)[:500])}}, "damaged"),
        ({"files": {"file": ("a", sample_images.forged_png())}}, "MP"),
        ({"content": b"x", "headers": {"Content-Type": "text/plain"}}, "multipart/form-data"),
        ({"content": b"", "headers": {"Content-Type": "multipart/form-data"}}, "boundary"),
        ({"content": b"rubbish", "headers": {"Content-Type": "multipart/form-data; boundary=x"}}, "multipart"),
        ({"content": b"--x\r\nX: y\r\n\r\nz", "headers": {"Content-Type": "multipart/form-data; boundary=x"}}, "name"),
        (
            {
                "content": b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nz\r\n--x--\r\n',
                "headers": {"Content-Type": "multipart/form-data; boundary=x; charset=undefined"},
            },
            "charset",
        ),
    ],
    ids=[
        "none",
        "field",
        "empty",
        "two",
        "many",
        "unknown",
        "cut",
        "bomb",
        "json",
        "no boundary",
        "rubbish",
        "unnamed",
        "charset",
    ],
)
def test_invalid_upload_is_400_with_reason(api: Api, request_: dict[str, Any], words: str) -> None:
    with api.client() as client:
        response = client.post("/v2/uploads", **request_)
    assert (response.status_code, response.json()["error"]) == (400, "Validation error")
    (message,) = response.json()["details"]["file"]
    assert words in message
    assert api.files == []
    api.assert_untouched()


@pytest.mark.parametrize("over", [1, 200_000, 40 * 1024 * 1024], ids=["a byte", "a little", "far"])
def test_file_over_25_mib_is_400(api: Api, over: int) -> None:
    data = bytes(25 * 1024 * 1024 + over)
    try:
        response = send(api, data)
    except httpx.WriteError:
        assert over > 36 * 1024 * 1024, "only far above the limit may the server close the connection early"
    else:
        assert response.status_code == 400
        assert "25 MiB" in response.json()["details"]["file"][0]
    assert api.files == []


def test_missing_key_is_401(api: Api) -> None:
    assert httpx.post(f"{api.url}/v2/uploads", files={"file": ("a", png(3, 3))}).status_code == 401


def test_failed_store_is_502_and_keeps_key_unused(api: Api) -> None:
    folder = api.settings.home / "files"
    folder.mkdir(exist_ok=True)
    blocker = folder / "uploads"
    blocker.write_bytes(b"a file where a folder must be")
    headers = {"Idempotency-Key": "k"}
    response = send(api, png(3, 3), headers=headers)
    assert (response.status_code, response.json()["error"]) == (502, "Upload failed")
    blocker.unlink()
    assert send(api, png(3, 3), headers=headers).status_code == 201


def test_idempotency_key_returns_the_same_upload(api: Api) -> None:
    headers = {"Idempotency-Key": "k"}
    first, again = send(api, png(3, 3), headers=headers), send(api, png(3, 3), headers=headers)
    assert (again.status_code, again.json()) == (201, first.json())
    assert again.headers["idempotency-replayed"] == "true"
    assert send(api, png(4, 4), headers=headers).status_code == 409
    assert len(api.files) == 1
    assert send(api, png(3, 3), headers={"Idempotency-Key": "k" * 256}).status_code == 400
    api.do("update uploads set expires_at = now()")
    fresh = send(api, png(3, 3), headers=headers)
    assert fresh.status_code == 201
    assert fresh.json()["id"] != first.json()["id"]


def test_racing_duplicates_create_one_upload(api: Api) -> None:
    with ThreadPoolExecutor(6) as pool:
        responses = list(pool.map(lambda _: send(api, png(5, 5), headers={"Idempotency-Key": "k"}), range(6)))
    assert {response.status_code for response in responses} == {201}
    assert len({response.json()["id"] for response in responses}) == 1
    assert len(api.files) == 1


def test_quota_holds_for_racing_uploads(start_api: Callable[..., Api]) -> None:
    data = png(30, 30)
    api = start_api(upload_quota_bytes=2 * len(data))
    with ThreadPoolExecutor(5) as pool:
        responses = list(pool.map(lambda _: send(api, data), range(5)))
    assert sorted(response.status_code for response in responses) == [201, 201, 400, 400, 400]
    refusal = next(response for response in responses if response.status_code == 400)
    assert "quota" in refusal.json()["details"]["file"][0]
    assert len(api.files) == 2
    api.do("update uploads set expires_at = now()")
    assert send(api, data).status_code == 201


def test_job_outlives_its_upload(api: Api) -> None:
    url = send(api, png(20, 15)).json()["url"]
    accepted = api.submit({"image": url})
    assert accepted.status_code == 202
    api.do("update uploads set expires_at = now() - interval '1 hour'")
    assert asyncio.run(_purge_uploads(api)) == 1
    assert api.files == [f"sources/{accepted.json()['jobId']}"]
    refused = api.submit({"image": url})
    assert refused.status_code == 400
    assert "expired" in refused.json()["details"]["clarityUpscaleParams.image"][0]


def test_upload_within_grace_is_not_purged(api: Api) -> None:
    send(api, png(20, 15))
    api.do("update uploads set expires_at = now() - interval '9 minutes'")
    assert asyncio.run(_purge_uploads(api)) == 0
    assert len(api.files) == 1


async def _purge_uploads(api: Api) -> int:
    from hiresfix.server.database.pool import Database
    from hiresfix.server.database.task_queue import Queue

    async with Database(api.database_url, max_size=2) as database:
        maintenance = Maintenance(
            settings=api.settings,
            database=database,
            storage=Storage.open(api.settings.storage_location),
            queue=Queue(api.database_url),
        )
        return await maintenance.purge_uploads()


def test_deleting_job_files_is_idempotent(api: Api, finished: str) -> None:
    job = finished.rpartition("/")[2].removesuffix("-1.png")
    with api.client() as client:
        for _ in range(2):
            response = client.delete(f"/v2/jobs/{job}/files")
            assert (response.status_code, response.json()["expired"]) == (200, True)
    assert api.files == []
    assert httpx.get(finished).status_code == 410
    assert api.value("select source_purged_at is not null from jobs")


def test_files_of_running_or_foreign_job_stay(api: Api, photo: str) -> None:
    job = api.submit({"image": photo}).json()["jobId"]
    with api.client() as client:
        assert client.delete(f"/v2/jobs/{job}/files").status_code == 409
        assert client.delete("/v2/jobs/not-an-id/files").status_code == 400
        assert client.delete("/v2/jobs/00000000-0000-4000-8000-000000000000/files").status_code == 404
    assert httpx.delete(f"{api.url}/v2/jobs/{job}/files").status_code == 401
    assert api.files == [f"sources/{job}"]
