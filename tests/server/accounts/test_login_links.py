"""POST /v2/signin over real HTTP: a link works once, for whom it was made, while it is young."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import httpx
import pytest

from hiresfix.server.accounts import authentication, login_links
from hiresfix.server.database.pool import Database
from tests.server.api.test_openapi import problems
from tests.server.conftest import Api


def offered(api: Api, *, valid_for: timedelta = timedelta(minutes=5)) -> str:
    async def offer() -> str:
        async with Database(api.database_url, max_size=1) as database, database.transaction() as tx:
            return await login_links.offer(
                tx, await authentication.first_owner(tx), valid_for=valid_for, actor="os:tester"
            )

    return asyncio.run(offer())


def follow(api: Api, token: str) -> httpx.Response:
    return httpx.post(f"{api.url}/v2/signin", json={"token": token}, timeout=30)


def test_a_link_is_exchanged_for_a_key_that_works_and_ends_by_itself(api: Api) -> None:
    answer = follow(api, offered(api))
    assert answer.status_code == 201, answer.text
    assert answer.headers["cache-control"] == "no-store"
    assert problems("SignedIn", answer.json()) == []
    headers = {"X-API-Key": answer.json()["apiKey"]}
    me = httpx.get(f"{api.url}/v2/me", headers=headers).json()
    assert (me["user"]["email"], me["apiKey"]["name"]) == ("owner@localhost", "Studio")
    assert api.value("select count(*) from api_keys where expires_at > now() + interval '29 days'") == 1
    api.do("update api_keys set expires_at = now() where name = 'Studio'")
    assert httpx.get(f"{api.url}/v2/me", headers=headers).status_code == 401


def test_of_ten_that_follow_one_link_at_once_one_gets_in(api: Api) -> None:
    token = offered(api)
    with ThreadPoolExecutor(10) as threads:
        answers = list(threads.map(lambda _: follow(api, token), range(10)))
    assert sorted(answer.status_code for answer in answers) == [201] + [401] * 9
    assert {answer.json()["error"] for answer in answers if answer.status_code == 401} == {login_links.REFUSED}
    assert api.value("select count(*) from api_keys where name = 'Studio'") == 1


@pytest.mark.parametrize(
    "change",
    [
        "update signin_links set expires_at = now()",
        "update users set suspended_at = now()",
        "update users set removed_at = now()",
        "update teams set suspended_at = now()",
    ],
)
def test_a_link_that_is_too_old_or_of_somebody_who_may_not_is_refused(api: Api, change: str) -> None:
    token = offered(api)
    api.do(change)
    answer = follow(api, token)
    assert (answer.status_code, answer.json()["code"], answer.json()["error"]) == (
        401,
        "unauthenticated",
        login_links.REFUSED,
    )
    assert api.value("select count(*) from api_keys") == 1


def test_neither_link_nor_key_is_stored(api: Api) -> None:
    token = offered(api)
    key = follow(api, token).json()["apiKey"]
    for secret in (token, key):
        for table in ("signin_links", "api_keys", "audit_log"):
            assert api.value(f"select count(*) from {table} t where t::text like %s", f"%{secret}%") == 0


def test_who_guesses_is_stopped_and_a_good_link_works_all_the_same(start_api: Callable[..., Api]) -> None:
    api = start_api(rate_failed_auth=3)
    statuses = [follow(api, f"{number:040x}").status_code for number in range(5)]
    assert statuses == [401, 401, 401, 429, 429]
    assert follow(api, offered(api)).status_code == 201


@pytest.mark.parametrize(
    "body", [{}, {"token": 7}, {"token": ""}, {"token": "x" * 201}, {"token": "x", "more": 1}], ids=str
)
def test_a_request_without_a_token_says_what_is_wrong(api: Api, body: dict[str, object]) -> None:
    answer = httpx.post(f"{api.url}/v2/signin", json=body)
    assert (answer.status_code, problems("ValidationError", answer.json())) == (400, [])
    assert httpx.post(f"{api.url}/v2/signin", content=b"x" * 20_000).status_code == 413


def test_links_that_ended_long_ago_are_forgotten(api: Api) -> None:
    offered(api)
    api.do("update signin_links set expires_at = now() - interval '2 days'")
    offered(api)
    assert api.value("select count(*) from signin_links") == 1


def test_the_token_is_behind_the_hash_where_no_server_sees_it() -> None:
    assert login_links.link("https://example.com/", "abc") == "https://example.com/studio#signin=abc"
