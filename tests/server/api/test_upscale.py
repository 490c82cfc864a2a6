"""POST /v2/images/upscale over real HTTP: contract.md 3, 4, 11, 13."""

from __future__ import annotations

import asyncio
import base64
import socket
import struct
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import httpcore
import httpx
import psycopg
import pytest
from psycopg import sql

from hiresfix.server import guarded_http, uploads
from hiresfix.server.database import pool
from hiresfix.server.database.pool import Database
from hiresfix.server.database.task_queue import Queue
from hiresfix.server.jobs import lifecycle, model
from hiresfix.server.webhooks import delivery, events
from tests.conftest import Site, png
from tests.server.conftest import Api


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def huge_png_header() -> bytes:
    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def test_valid_request_is_accepted(api: Api, photo: str) -> None:
    response = api.submit({"image": photo, "scale_factor": "2", "creativity": 0.35})
    assert response.status_code == 202
    assert set(response.json()) == {"jobId", "status"}
    assert response.json()["status"] == "QUEUED"
    assert response.headers["location"] == f"/v2/jobs/{response.json()['jobId']}"
    assert api.balance == 97
    assert api.value("select count(*) from procrastinate_jobs where status = 'todo'") == 1
    assert api.files == [f"sources/{response.json()['jobId']}"]


def test_job_shows_its_input(api: Api, photo: str) -> None:
    job_id = api.submit({"image": photo, "scale_factor": "4x", "seed": 5}).json()["jobId"]
    with api.client() as client:
        response = client.get(f"/v2/jobs/{job_id}")
    assert response.headers["cache-control"] == "no-store"
    job = response.json()
    assert job["id"] == job_id
    assert (job["status"], job["progress"], job["result"], job["error"]) == ("QUEUED", 0, None, None)
    assert (job["creditCost"], job["webhookStatus"], job["completedAt"], job["expired"]) == (3, None, None, False)
    assert (job["seed"], job["input"]["scale_factor"], job["input"]["image"]) == (5, 4, photo)


def test_faithful_model_is_accepted(api: Api, photo: str) -> None:
    body = {"model": "faithful-upscale", "faithfulUpscaleParams": {"image": photo, "content": "anime"}}
    with api.client() as client:
        response = client.post("/v2/images/upscale", json=body)
    assert response.status_code == 202
    assert api.balance == 99


def test_data_uri_is_stored_as_its_size(api: Api) -> None:
    image = png(9, 5)
    job_id = api.submit({"image": "data:image/png;base64," + base64.b64encode(image).decode()}).json()["jobId"]
    with api.client() as client:
        shown = client.get(f"/v2/jobs/{job_id}").json()["input"]["image"]
    assert len(shown) < 60
    assert str(len(image)) in shown
    assert api.value("select source ->> 'bytes' from jobs") == str(len(image))


@pytest.mark.parametrize("header", ["X-API-Key", "Authorization"])
def test_key_in_either_header(api: Api, photo: str, header: str) -> None:
    value = api.key if header == "X-API-Key" else f"Bearer {api.key}"
    body = {"model": "clarity-upscale", "clarityUpscaleParams": {"image": photo}}
    assert httpx.post(f"{api.url}/v2/images/upscale", json=body, headers={header: value}).status_code == 202


@pytest.mark.parametrize(
    ("headers", "status", "text"),
    [
        ({}, 401, "API key is required"),
        ({"X-API-Key": ""}, 401, "API key is required"),
        ({"X-API-Key": "afk_" + "0" * 40}, 401, "Invalid API key"),
        ({"X-API-Key": "nonsense"}, 401, "Invalid API key"),
        ({"Authorization": "Bearer afk_" + "1" * 40}, 401, "Invalid API key"),
        ({"Authorization": "Basic abc"}, 401, "API key is required"),
    ],
)
def test_wrong_keys_are_refused(api: Api, photo: str, headers: dict[str, str], status: int, text: str) -> None:
    response = httpx.post(f"{api.url}/v2/images/upscale", json={}, headers=headers)
    assert (response.status_code, response.json()["error"]) == (status, text)
    api.assert_untouched()


def test_revoked_and_inactive_keys_are_refused(api: Api, photo: str) -> None:
    api.do("update api_keys set active = false")
    assert (api.submit({"image": photo}).status_code, api.submit({}).json()["error"]) == (403, "API key is inactive")
    api.do("update api_keys set revoked_at = now()")
    assert (api.submit({"image": photo}).status_code, api.submit({}).json()["error"]) == (401, "Invalid API key")


@pytest.mark.parametrize(
    ("body", "details"),
    [
        ({}, {"clarityUpscaleParams": ["Required"]}),
        ({"clarityUpscaleParams": {}}, {"clarityUpscaleParams.image": ["Required"]}),
        (
            {"clarityUpscaleParams": {"image": "https://example.com/a.png", "scale_factor": 3}},
            {"clarityUpscaleParams.scale_factor": ["Expected one of 1, 2, 4, 8"]},
        ),
        (
            {"clarityUpscaleParams": {"image": "https://example.com/a.png", "creativty": 1}},
            {"clarityUpscaleParams": ["Unrecognized key(s): 'creativty'. Did you mean 'creativity'?"]},
        ),
    ],
)
def test_validation_names_the_field(api: Api, body: dict[str, Any], details: dict[str, list[str]]) -> None:
    with api.client() as client:
        response = client.post("/v2/images/upscale", json={"model": "clarity-upscale", **body})
    assert response.status_code == 400
    assert (response.json()["error"], response.json()["details"]) == ("Validation error", details)
    api.assert_untouched()


def test_all_problems_are_in_one_answer(api: Api) -> None:
    response = api.submit({"scale_factor": "16", "creativity": 2, "seed": 1.5}, webhookUrl="ftp://example.com")
    assert set(response.json()["details"]) == {
        "clarityUpscaleParams.image",
        "clarityUpscaleParams.scale_factor",
        "clarityUpscaleParams.creativity",
        "clarityUpscaleParams.seed",
        "webhookUrl",
    }


@pytest.mark.parametrize(
    ("content", "content_type"),
    [(b"{", "application/json"), (b"[]", "application/json"), (b"", "application/json"), (b"a=b", "text/plain")],
)
def test_non_object_is_a_root_problem(api: Api, content: bytes, content_type: str) -> None:
    with api.client() as client:
        response = client.post("/v2/images/upscale", content=content, headers={"Content-Type": content_type})
    assert response.status_code == 400
    assert set(response.json()["details"]) == {"_root"}


BAD_PICTURES: list[tuple[str, Callable[[Site], str], str]] = [
    ("HTML", lambda site: site.add("/page", b"<!doctype html><html><body>Hi</body></html>"), "image"),
    ("404", lambda site: site.url + "/missing", "404"),
    ("30 MB", lambda site: site.add("/big.png", b"\x89PNG\r\n\x1a\n" + b"\0" * (30 << 20)), "25 MiB"),
    ("a giant header", lambda site: site.add("/bomb.png", huge_png_header()), "64 MP"),
    ("a truncated image", lambda site: site.add("/cut.png", png(200, 200)[:-900]), ""),
    ("nothing", lambda site: site.add("/empty", b""), ""),
    ("a closed port", lambda site: "http://127.0.0.1:1/x.png", ""),
    ("an unknown host", lambda site: "http://no-such-host.invalid/x.png", ""),
]


@pytest.mark.parametrize(("make", "hint"), [pytest.param(make, hint, id=name) for name, make, hint in BAD_PICTURES])
def test_bad_image_is_400_without_charge(api: Api, site: Site, make: Callable[[Site], str], hint: str) -> None:
    response = api.submit({"image": make(site)}, headers={"Idempotency-Key": "free again"})
    assert response.status_code == 400
    (message,) = response.json()["details"]["clarityUpscaleParams.image"]
    assert hint in message
    assert "127.0.0.1" not in message
    api.assert_untouched()


INSIDE = {
    "loopback": "http://127.0.0.1/x.png",
    "name of loopback": "http://localhost/x.png",
    "private": "http://10.0.0.1/x.png",
    "carrier-grade NAT": "http://100.64.0.1/x.png",
    "metadata": "http://169.254.169.254/latest/meta-data",
    "unspecified": "http://0.0.0.0/x.png",
    "multicast": "http://224.0.0.1/x.png",
    "one number": "http://2130706433/x.png",
    "hexadecimal": "http://0x7f.1/x.png",
    "v6 loopback": "http://[::1]/x.png",
    "v6 unspecified": "http://[::]/x.png",
    "v4-mapped": "http://[::ffff:127.0.0.1]/x.png",
    "v4-mapped private": "http://[::ffff:a00:1]/x.png",
    "v4-compatible": "http://[::127.0.0.1]/x.png",
    "6to4": "http://[2002:7f00:1::]/x.png",
    "NAT64": "http://[64:ff9b::7f00:1]/x.png",
    "local NAT64": "http://[64:ff9b:1::7f00:1]/x.png",
    "Teredo": "http://[2001:0:7f00:1::1]/x.png",
    "site-local": "http://[fec0::1]/x.png",
    "unique local": "http://[fd00::1]/x.png",
    "v6 metadata": "http://[fd00:ec2::254]/x.png",
    "link-local": "http://[fe80::1]/x.png",
}
USERINFO = ("http://user:secret@example.com/x.png", "http://example.com@127.0.0.1/x.png")


def refusal(api: Api, field: str, url: str) -> str:
    """The message for `url` as a image or as a webhook, through the real route."""
    image = "data:image/png;base64," + base64.b64encode(png(8, 8)).decode()
    if field == "image":
        response, path = api.submit({"image": url}), "clarityUpscaleParams.image"
    else:
        response, path = api.submit({"image": image}, webhookUrl=url.replace("http:", "https:")), "webhookUrl"
    assert response.status_code == 400, response.text
    (message,) = response.json()["details"][path]
    assert isinstance(message, str)
    return message


@pytest.mark.parametrize("field", ["image", "webhookUrl"])
def test_private_addresses_are_refused(start_api: Callable[..., Api], field: str) -> None:
    api = start_api(allow_private_addresses=False)
    for kind, url in INSIDE.items():
        assert "private or local address" in refusal(api, field, url), kind
    for url in USERINFO:
        assert "user name or password" in refusal(api, field, url)
    api.assert_untouched()


@pytest.fixture
def name_server(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Somebody's name server, in place of the system's: look-ups take the next answer, the last one for good.

    Returns the list of addresses that are dialled from then on; nobody answers there.
    """
    dialled: list[str] = []

    def answers(*addresses: str) -> list[str]:
        left = list(addresses)

        def getaddrinfo(host: str, port: int, **kind: object) -> list[tuple[object, ...]]:
            address = left.pop(0) if len(left) > 1 else left[0]
            return [(0, 0, 0, "", (address, port))]

        async def connect_tcp(
            self: httpcore.AnyIOBackend, host: str, *arguments: object
        ) -> httpcore.AsyncNetworkStream:
            dialled.append(host)
            raise httpcore.ConnectError("nobody is there")

        monkeypatch.setattr(
            guarded_http, "socket", SimpleNamespace(SOCK_STREAM=socket.SOCK_STREAM, getaddrinfo=getaddrinfo)
        )
        monkeypatch.setattr(httpcore.AnyIOBackend, "connect_tcp", connect_tcp)
        return dialled

    return answers


@pytest.mark.parametrize("field", ["image", "webhookUrl"])
def test_names_with_private_addresses_are_refused(
    start_api: Callable[..., Api], field: str, name_server: Callable[..., list[str]]
) -> None:
    api = start_api(allow_private_addresses=False)
    for address in ("127.0.0.1", "10.1.2.3", "169.254.169.254", "::ffff:10.0.0.1", "64:ff9b::a9fe:a9fe"):
        dialled = name_server(address)
        assert "private or local address" in refusal(api, field, "http://inside.example/x.png"), address
        assert dialled == []
    api.assert_untouched()


PUBLIC = "93.184.215.14"


def test_rebound_image_name_uses_checked_address(
    start_api: Callable[..., Api], name_server: Callable[..., list[str]]
) -> None:
    api = start_api(allow_private_addresses=False)
    dialled = name_server(PUBLIC, "127.0.0.1")
    assert "refused the connection" in refusal(api, "image", "http://rebound.example/x.png")
    assert dialled == [PUBLIC]
    api.assert_untouched()


def test_rebound_webhook_name_is_checked_again(
    start_api: Callable[..., Api], name_server: Callable[..., list[str]]
) -> None:
    api = start_api(allow_private_addresses=False)
    dialled = name_server(PUBLIC, "127.0.0.1")
    image = "data:image/png;base64," + base64.b64encode(png(8, 8)).decode()
    job = api.submit({"image": image}, webhookUrl="https://rebound.example/hook").json()["jobId"]

    async def end_and_deliver() -> str | None:
        queue = Queue(api.database_url)
        async with Database(api.database_url, max_size=2) as database:
            held = await lifecycle.claim(database, worker="w", lease_seconds=60)
            assert held is not None
            assert str(held.id) == job
            async with database.transaction() as tx:
                await lifecycle.settle(tx, queue, held, model.Failed(error="no", retryable=False), public_url=api.url)
                (record,) = await events.newest(tx, limit=9)
            await delivery.deliver(database, queue, record.id, policy=uploads.http_policy(api.settings))
            async with database.transaction() as tx:
                return (await events.get(tx, record.id))[0].last_error

    assert "private or local address" in (asyncio.run(end_and_deliver()) or "")
    assert dialled == []


def test_redirect_to_private_address_is_refused(
    start_api: Callable[..., Api], site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The site stands for a public one: only its own address is let pass, so that the redirect is what is judged."""
    api = start_api(allow_private_addresses=True)
    own = "127.0.0.1"
    monkeypatch.setattr(guarded_http, "may_reach", lambda address, *, allow_private: address == own)
    site.add("/inside.png", png(8, 8))
    for location in ("http://10.0.0.1/x.png", "http://[::1]/x.png", "http://169.254.169.254/", "http://[fec0::1]/"):
        site.redirects["/x.png"] = location
        assert "private or local address" in refusal(api, "image", site.url + "/x.png"), location
    site.redirects["/x.png"] = site.url + "/inside.png"
    assert api.submit({"image": site.url + "/x.png"}).status_code == 202


def test_too_large_output_suggests_a_scale(start_api: Callable[..., Api], site: Site) -> None:
    api = start_api(max_output_megapixels=0.01)
    response = api.submit({"image": site.add("/p.png", png(40, 30)), "scale_factor": 8})
    (message,) = response.json()["details"]["clarityUpscaleParams.scale_factor"]
    assert message.endswith("Use 2.")
    api.assert_untouched()


def test_too_small_format_is_refused_before_charge(api: Api, site: Site) -> None:
    response = api.submit({"image": site.add("/wide.png", png(3000, 2)), "scale_factor": 8, "output_format": "webp"})
    (message,) = response.json()["details"]["clarityUpscaleParams.output_format"]
    assert "16383" in message
    api.assert_untouched()


def test_402_has_integer_credits(api: Api, photo: str) -> None:
    api.do("insert into ledger (team_id, kind, amount, counterparty, actor, reason)"
           " select id, 'adjust', -98, 'adjustments', 'test', 'test' from teams")  # fmt: skip
    api.do("update teams set credits = 2")
    response = api.submit({"image": photo}, headers={"Idempotency-Key": "top up and retry"})
    assert response.status_code == 402
    body = response.json()
    assert (body["error"], body["creditsRequired"], body["creditsAvailable"]) == ("Insufficient credits", 3, 2)
    assert (api.balance, api.jobs, api.files) == (2, 0, [])


def test_parallel_submissions_cannot_overspend(api: Api, photo: str) -> None:
    api.do("insert into ledger (team_id, kind, amount, counterparty, actor, reason)"
           " select id, 'adjust', -96, 'adjustments', 'test', 'test' from teams")  # fmt: skip
    api.do("update teams set credits = 4")
    with ThreadPoolExecutor(2) as pool:
        statuses = sorted(pool.map(lambda _: api.submit({"image": photo}).status_code, range(2)))
    assert statuses == [202, 402]
    assert (api.balance, api.jobs, len(api.files)) == (1, 1, 1)


def test_full_team_queue_is_429(start_api: Callable[..., Api], photo: str) -> None:
    api = start_api(max_queued_jobs=1)
    assert api.submit({"image": photo}).status_code == 202
    response = api.submit({"image": photo})
    assert response.status_code == 429
    assert int(response.headers["retry-after"]) >= 1
    assert api.jobs == 1


def test_full_server_is_503(start_api: Callable[..., Api], photo: str) -> None:
    api = start_api(max_queued_jobs_total=1)
    api.submit({"image": photo})
    response = api.submit({"image": photo})
    assert response.status_code == 503
    assert int(response.headers["retry-after"]) >= 1


def test_own_result_is_read_from_the_store(api: Api, photo: str) -> None:
    job_id = api.submit({"image": photo}).json()["jobId"]
    response = api.submit({"image": f"{api.url}/files/images/{job_id}-1.png"})
    assert response.status_code == 400  # not finished yet, and surely not asked for over HTTP
    assert response.json()["details"]["clarityUpscaleParams.image"]


# Idempotency --------------------------------------------------------------------------------------------------------


def test_replay_works_after_url_is_gone(api: Api, site: Site, photo: str) -> None:
    headers = {"Idempotency-Key": "k1"}
    first = api.submit({"image": photo, "scale_factor": "2"}, headers=headers)
    site.pages.clear()
    api.do("update teams set credits = 0")  # the replay needs none
    again = api.submit({"scale_factor": 2.0, "image": photo}, headers=headers)
    assert (again.status_code, again.json()) == (202, first.json())
    assert again.headers["idempotency-replayed"] == "true"
    assert "idempotency-replayed" not in first.headers
    assert api.jobs == 1


def test_reused_key_is_409(api: Api, photo: str) -> None:
    api.submit({"image": photo}, headers={"Idempotency-Key": "k"})
    response = api.submit({"image": photo, "creativity": 0.5}, headers={"Idempotency-Key": "k"})
    assert response.status_code == 409
    assert response.json()["error"] == "Idempotency-Key was already used with a different request"
    assert (api.jobs, api.balance) == (1, 97)


def test_twenty_parallel_duplicates_make_one_job(api: Api, photo: str) -> None:
    with ThreadPoolExecutor(20) as pool:
        headers = {"Idempotency-Key": "race"}
        responses = list(pool.map(lambda _: api.submit({"image": photo}, headers=headers), range(20)))
    assert {response.status_code for response in responses} == {202}
    assert len({response.json()["jobId"] for response in responses}) == 1
    assert sum("idempotency-replayed" not in response.headers for response in responses) == 1
    assert (api.jobs, api.balance, len(api.files)) == (1, 97, 1)


def test_idempotency_key_expires_after_24_hours(api: Api, photo: str) -> None:
    first = api.submit({"image": photo}, headers={"Idempotency-Key": "k"}).json()
    api.do("update idempotency_keys set created_at = now() - interval '24 hours 1 second'")
    second = api.submit({"image": photo, "creativity": 1}, headers={"Idempotency-Key": "k"}).json()
    assert first["jobId"] != second["jobId"]


def test_idempotency_key_length_limit(api: Api, photo: str) -> None:
    assert api.submit({"image": photo}, headers={"Idempotency-Key": "k" * 255}).status_code == 202
    response = api.submit({"image": photo}, headers={"Idempotency-Key": "k" * 256})
    assert response.json()["details"] == {"Idempotency-Key": ["Must be at most 255 characters"]}


def test_refused_request_leaves_key_unused(api: Api, site: Site, photo: str) -> None:
    headers = {"Idempotency-Key": "k"}
    assert api.submit({"image": site.url + "/missing"}, headers=headers).status_code == 400
    assert api.submit({"image": photo}, headers=headers).status_code == 202


# Transport ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v2/nowhere", 404),
        ("GET", "/v2/images/upscale", 405),
        ("DELETE", "/v2/images/upscale", 405),
        ("GET", "/v2/jobs/not-a-uuid", 400),
        ("GET", "/v2/jobs/00000000-0000-4000-8000-000000000000", 404),
        ("GET", "/files/images/nothing.png", 404),
    ],
)
def test_every_error_is_json_with_a_request_id(api: Api, method: str, path: str, status: int) -> None:
    with api.client() as client:
        response = client.request(method, path)
    assert response.status_code == status
    assert "application/json" in response.headers["content-type"]
    assert isinstance(response.json()["error"], str)
    assert response.headers["x-request-id"] == response.json()["requestId"]
    assert status != 405 or response.headers["allow"] == "POST"


def test_harmless_request_id_is_kept(api: Api) -> None:
    with api.client() as client:
        assert client.get("/healthz", headers={"X-Request-Id": "abc.DEF_1-2"}).headers["x-request-id"] == "abc.DEF_1-2"
        odd = client.get("/healthz", headers={"X-Request-Id": "no spaces"}).headers["x-request-id"]
    assert len(odd) == 36


def test_trailing_slash_is_accepted(api: Api, photo: str) -> None:
    body = {"model": "clarity-upscale", "clarityUpscaleParams": {"image": photo}}
    with api.client() as client:
        response = client.post("/v2/images/upscale/", json=body)
        assert response.status_code == 202
        assert client.get(f"/v2/jobs/{response.json()['jobId']}/").status_code == 200


def test_oversized_body_is_413(start_api: Callable[..., Api]) -> None:
    api = start_api(max_body_bytes=2000)
    with api.client() as client:
        declared = client.post("/v2/images/upscale", content=b" " * 2001, headers={"Content-Type": "application/json"})
        streamed = client.post("/v2/images/upscale", content=iter([b" " * 1500] * 2))
    for response in (declared, streamed):
        assert (response.status_code, response.json()["error"]) == (413, "Request body too large")


def test_other_users_job_is_404(api: Api, photo: str) -> None:
    job_id = api.submit({"image": photo}).json()["jobId"]
    api.do("with t as (insert into teams (name) values ('Other') returning id),"
           " u as (insert into users (team_id, email, role) select id, 'b@example.com', 'OWNER' from t returning id)"
           " update api_keys set user_id = u.id from u")  # fmt: skip
    with api.client() as client:
        response = client.get(f"/v2/jobs/{job_id}")
    assert (response.status_code, response.json()["error"]) == (404, "Job not found")


def test_unavailable_database_is_503(
    start_api: Callable[..., Api], photo: str, postgres: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "RECONNECT_SECONDS", 0.2)  # well below the timeout, or the last request gets 503 too
    api = start_api(database_timeout_seconds=1.5)
    name = api.value("select current_database()")
    with psycopg.connect(postgres, autocommit=True) as admin:
        admin.execute(sql.SQL("alter database {} allow_connections false").format(sql.Identifier(name)))
        admin.execute("select pg_terminate_backend(pid) from pg_stat_activity where datname = %s", (name,))
        response = api.submit({"image": photo})
        admin.execute(sql.SQL("alter database {} allow_connections true").format(sql.Identifier(name)))
    assert response.status_code == 503
    assert int(response.headers["retry-after"]) >= 1
    assert api.submit({"image": photo}).status_code == 202
