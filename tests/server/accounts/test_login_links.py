"""POST /v2/signin over real HTTP: a link works once, for its user, until it expires."""

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


def create_link(api: Api, *, valid_for: timedelta = timedelta(minutes=5)) -> str:
    async def create() -> str:
        async with Database(api.database_url, max_size=1) as database, database.transaction() as tx:
            return await login_links.create(
                tx, await authentication.first_owner(tx), valid_for=valid_for, actor="os:tester"
            )

    return asyncio.run(create())


def redeem(api: Api, token: str) -> httpx.Response:
    return httpx.post(f"{api.url}/v2/signin", json={"token": token}, timeout=30)


def test_link_exchanges_for_expiring_key(api: Api) -> None:
    response = redeem(api, create_link(api))
    assert response.status_code == 201, response.text
    assert response.headers["cache-control"] == "no-store"
    assert problems("SignedIn", response.json()) == []
    headers = {"X-API-Key": response.json()["apiKey"]}
    me = httpx.get(f"{api.url}/v2/me", headers=headers).json()
    assert (me["user"]["email"], me["apiKey"]["name"]) == ("owner@localhost", "Studio")
    assert api.value("select count(*) from api_keys where expires_at > now() + interval '29 days'") == 1
    api.do("update api_keys set expires_at = now() where name = 'Studio'")
    assert httpx.get(f"{api.url}/v2/me", headers=headers).status_code == 401


def test_racing_redemptions_of_one_link_let_one_in(api: Api) -> None:
    token = create_link(api)
    with ThreadPoolExecutor(10) as threads:
        responses = list(threads.map(lambda _: redeem(api, token), range(10)))
    assert sorted(response.status_code for response in responses) == [201] + [401] * 9
    assert {response.json()["error"] for response in responses if response.status_code == 401} == {login_links.REFUSED}
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
def test_expired_link_or_suspended_user_is_refused(api: Api, change: str) -> None:
    token = create_link(api)
    api.do(change)
    response = redeem(api, token)
    assert (response.status_code, response.json()["code"], response.json()["error"]) == (
        401,
        "unauthenticated",
        login_links.REFUSED,
    )
    assert api.value("select count(*) from api_keys") == 1


def test_link_and_key_are_not_stored(api: Api) -> None:
    token = create_link(api)
    key = redeem(api, token).json()["apiKey"]
    for secret in (token, key):
        for table in ("signin_links", "api_keys", "audit_log"):
            assert api.value(f"select count(*) from {table} t where t::text like %s", f"%{secret}%") == 0


def test_guessing_is_rate_limited_but_valid_link_works(start_api: Callable[..., Api]) -> None:
    api = start_api(rate_failed_auth=3)
    statuses = [redeem(api, f"{number:040x}").status_code for number in range(5)]
    assert statuses == [401, 401, 401, 429, 429]
    assert redeem(api, create_link(api)).status_code == 201


@pytest.mark.parametrize(
    "body", [{}, {"token": 7}, {"token": ""}, {"token": "x" * 201}, {"token": "x", "more": 1}], ids=str
)
def test_invalid_login_body_is_400(api: Api, body: dict[str, object]) -> None:
    response = httpx.post(f"{api.url}/v2/signin", json=body)
    assert (response.status_code, problems("ValidationError", response.json())) == (400, [])
    assert httpx.post(f"{api.url}/v2/signin", content=b"x" * 20_000).status_code == 413


def test_old_links_are_deleted(api: Api) -> None:
    create_link(api)
    api.do("update signin_links set expires_at = now() - interval '2 days'")
    create_link(api)
    assert api.value("select count(*) from signin_links") == 1


def test_token_is_in_url_fragment() -> None:
    assert login_links.url("https://example.com/", "abc") == "https://example.com/studio#signin=abc"
