"""Rate limits over real HTTP: contract.md 12."""

from __future__ import annotations

import time
from collections.abc import Callable
from ipaddress import ip_network

import httpx
import pytest

from hiresfix.server.http import rate_limit
from hiresfix.server.settings import Settings
from tests.server.conftest import Api

WRONG = {"X-API-Key": "afk_" + "0" * 40}
UNKNOWN = "/v2/jobs/00000000-0000-4000-8000-000000000000"


def test_too_many_submissions_are_429(start_api: Callable[..., Api], photo: str) -> None:
    api = start_api(rate_submissions=2)
    headers = {"Idempotency-Key": "a replay counts as any other"}
    assert [api.submit({"image": photo}, headers=headers).status_code for _ in range(2)] == [202, 202]
    refused = api.submit({"image": photo})
    assert (refused.status_code, refused.json()["error"]) == (429, "Rate limit exceeded")
    assert refused.json()["code"] == "rate_limited"
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert refused.headers["x-ratelimit-remaining"] == "0"
    assert (api.jobs, api.balance, len(api.files)) == (1, 97, 1)
    with api.client() as client:  # other buckets are untouched
        assert client.get(UNKNOWN).status_code == 404


def test_answers_have_rate_limit_headers(start_api: Callable[..., Api]) -> None:
    api = start_api(rate_submissions=7, rate_job_polling=9)
    with api.client() as client:
        bad = client.post("/v2/images/upscale", json={})
        missing = client.get(UNKNOWN)
        odd = client.get("/v2/jobs/nonsense")
    assert (bad.status_code, missing.status_code, odd.status_code) == (400, 404, 400)
    assert [answer.headers["x-ratelimit-limit"] for answer in (bad, missing, odd)] == ["7", "9", "9"]
    assert [answer.headers["x-ratelimit-remaining"] for answer in (bad, missing, odd)] == ["6", "8", "7"]
    assert missing.headers["ratelimit-policy"] == '"job-polling";q=9;w=60'
    assert missing.headers["ratelimit"].startswith('"job-polling";r=8;t=')
    assert abs(int(missing.headers["x-ratelimit-reset"]) - time.time() - 60) < 10
    public = httpx.get(f"{api.url}/healthz")
    assert "x-ratelimit-limit" not in public.headers


def test_each_key_has_its_quota(start_api: Callable[..., Api]) -> None:
    api = start_api(rate_job_polling=1)
    with api.client() as client:
        assert [client.get(UNKNOWN).status_code for _ in range(2)] == [404, 429]
    api.do("update api_keys set id = gen_random_uuid()")
    with api.client() as client:
        assert client.get(UNKNOWN).status_code == 404


def test_polling_twenty_jobs_is_not_throttled() -> None:
    settings = Settings()
    assert rate_limit.quotas(settings)[rate_limit.Bucket.JOB_POLLING].amount >= 20 * 30
    assert rate_limit.quotas(settings)[rate_limit.Bucket.GENERAL].amount == 500


def test_wrong_keys_are_throttled_by_address(start_api: Callable[..., Api]) -> None:
    api = start_api(rate_failed_auth=2)
    url = api.url + UNKNOWN
    answers = [httpx.get(url, headers=headers) for headers in (WRONG, {}, WRONG, {})]
    assert [answer.status_code for answer in answers] == [401, 401, 429, 429]
    assert answers[2].json()["error"] == "Rate limit exceeded"
    assert 1 <= int(answers[2].headers["retry-after"]) <= 60
    assert httpx.get(url, headers={"X-API-Key": api.key}).status_code == 404


def test_untrusted_proxy_headers_are_ignored(start_api: Callable[..., Api]) -> None:
    api = start_api(rate_failed_auth=1)
    url = api.url + UNKNOWN
    named = [httpx.get(url, headers={**WRONG, "X-Forwarded-For": f"203.0.113.{i}"}).status_code for i in range(2)]
    assert named == [401, 429]


def test_trusted_proxy_gives_the_real_address(start_api: Callable[..., Api]) -> None:
    api = start_api(rate_failed_auth=1, trusted_proxies=(ip_network("127.0.0.0/8"), ip_network("10.0.0.0/8")))

    def status(forwarded: str) -> int:
        return httpx.get(api.url + UNKNOWN, headers={**WRONG, "X-Forwarded-For": forwarded}).status_code

    assert status("203.0.113.1, 10.0.0.7") == 401
    assert status("203.0.113.2, 10.0.0.7") == 401
    assert status("198.51.100.9, 203.0.113.1") == 429  # what the client itself put in front is not believed


@pytest.mark.parametrize(
    ("host", "group"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::9", "2001:db8:1:2::/64"),
        ("nonsense", "unknown"),
        (None, "unknown"),
    ],
)
def test_ipv6_network_is_one_address(host: str | None, group: str) -> None:
    assert rate_limit.address_group(host) == group
