"""POST /v2/signup over real HTTP: who gets in, what they get, what a stranger can learn."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import httpx
import pytest

from hiresfix.server.accounts import signup
from hiresfix.server.database.pool import Database
from tests.server.api.test_openapi import problems
from tests.server.conftest import Api


@pytest.fixture
def open_api(start_api: Callable[..., Api]) -> Api:
    return start_api(signup="open", rate_signup=1000)


@pytest.fixture
def invite_api(start_api: Callable[..., Api]) -> Api:
    return start_api(signup="invite", rate_signup=1000)


def ask(api: Api, **fields: Any) -> httpx.Response:
    return httpx.post(f"{api.url}/v2/signup", json=fields, timeout=30)


def invitation(api: Api, *, valid_for: timedelta = timedelta(days=1)) -> str:
    async def invite() -> str:
        async with Database(api.database_url, max_size=1) as database, database.transaction() as tx:
            return await signup.invite(tx, note="test", valid_for=valid_for, actor="os:tester")

    return asyncio.run(invite())


def test_closed_is_the_default_and_makes_nothing(api: Api) -> None:
    response = ask(api, email="ann@example.com")
    assert (response.status_code, response.json()["error"]) == (403, signup.CLOSED)
    assert (api.value("select count(*) from teams"), api.value("select count(*) from users")) == (1, 1)


def test_who_signs_up_gets_a_team_free_credits_and_a_key_that_works(open_api: Api, photo: str) -> None:
    response = ask(open_api, email=" Ann@Example.com ", name="Ann", teamName="Acme")
    assert response.status_code == 201, response.text
    assert response.headers["cache-control"] == "no-store"
    body = response.json()
    assert problems("Account", body) == []
    assert body["user"] == {"id": body["user"]["id"], "email": "Ann@example.com", "role": "OWNER"}
    assert body["team"] == {"id": body["team"]["id"], "name": "Acme", "credits": 100}
    me = httpx.get(f"{open_api.url}/v2/me", headers={"X-API-Key": body["apiKey"]}).json()
    assert (me["user"]["id"], me["team"]["name"], me["team"]["credits"]) == (body["user"]["id"], "Acme", 100)
    entry = open_api.value(
        "select kind || ' ' || amount || ' ' || reason from ledger where team_id = %s", body["team"]["id"]
    )
    assert entry == "grant 100 free credits"
    assert open_api.value("select count(*) from api_keys where digest::text like %s", f"%{body['apiKey']}%") == 0


def test_an_address_signs_up_once_whatever_its_case_and_a_refusal_leaves_nothing(open_api: Api) -> None:
    assert ask(open_api, email="ann@example.com").status_code == 201
    for email in ("ann@example.com", "ANN@EXAMPLE.COM", "owner@Example.com"):
        response = ask(open_api, email=email)
        expected = (201, None) if "owner" in email else (403, signup.REFUSED)
        assert (response.status_code, response.json().get("error")) == expected
    assert open_api.value("select count(*) from teams") == 3
    assert open_api.value("select sum(credits) from teams") == 300 == open_api.value("select sum(amount) from ledger")


def test_ten_who_sign_up_with_one_address_at_once_make_one_account(open_api: Api) -> None:
    with ThreadPoolExecutor(10) as threads:
        answers = list(threads.map(lambda _: ask(open_api, email="ann@example.com").status_code, range(10)))
    assert sorted(answers) == [201] + [403] * 9
    assert open_api.value("select count(*) from teams") == 2


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({}, "email"),
        ({"email": 7}, "email"),
        ({"email": "nobody"}, "email"),
        ({"email": "a b@example.com"}, "email"),
        ({"email": "ann@example.com\0"}, "email"),
        ({"email": "ann@localhost"}, "email"),
        ({"email": "a" * 70 + "@example.com"}, "email"),
        ({"email": "ann@example.com", "name": "x" * 101}, "name"),
        ({"email": "ann@example.com", "teamName": "a\nb"}, "teamName"),
        ({"email": "ann@example.com", "inviteCode": ["x"]}, "inviteCode"),
        ({"email": "ann@example.com", "role": "OWNER"}, "_root"),
    ],
)
def test_what_is_no_sign_up_is_named(open_api: Api, fields: dict[str, Any], path: str) -> None:
    response = ask(open_api, **fields)
    assert response.status_code == 400
    assert list(response.json()["details"]) == [path]
    assert open_api.value("select count(*) from teams") == 1


def test_a_body_of_more_than_a_sign_up_needs_is_not_read(open_api: Api) -> None:
    assert ask(open_api, email="ann@example.com", name="x" * 20_000).status_code == 413


def test_an_invitation_works_once(invite_api: Api) -> None:
    code = invitation(invite_api)
    assert ask(invite_api, email="ann@example.com", inviteCode=code).status_code == 201
    assert ask(invite_api, email="bob@example.com", inviteCode=code).status_code == 403
    assert invite_api.value("select u.email from invites i join users u on u.id = i.user_id") == "ann@example.com"
    assert invite_api.value("select count(*) from audit_log where actor like '%%' || %s || '%%'", code) == 0


def test_of_many_who_use_an_invitation_at_once_one_gets_in(invite_api: Api) -> None:
    code = invitation(invite_api)
    with ThreadPoolExecutor(8) as threads:
        answers = list(
            threads.map(lambda n: ask(invite_api, email=f"u{n}@example.com", inviteCode=code).status_code, range(8))
        )
    assert sorted(answers) == [201] + [403] * 7


def test_every_refusal_reads_alike_and_without_an_invitation_no_address_is_looked_up(invite_api: Api) -> None:
    good, stale = invitation(invite_api), invitation(invite_api, valid_for=timedelta(seconds=-1))
    assert ask(invite_api, email="ann@example.com", inviteCode=good).status_code == 201
    fresh = invitation(invite_api)
    attempts = [
        {"email": email, **code}
        for email in ("ann@example.com", "new@example.com")
        for code in ({}, {"inviteCode": "inv_wrong"}, {"inviteCode": good}, {"inviteCode": stale})
    ]
    answers = [ask(invite_api, **fields) for fields in [*attempts, {"email": "ann@example.com", "inviteCode": fresh}]]
    bodies = {(answer.status_code, answer.json()["error"], answer.json()["code"]) for answer in answers}
    assert bodies == {(403, signup.REFUSED, "forbidden")}
    # The taken address did not use the invitation up.
    assert ask(invite_api, email="bob@example.com", inviteCode=fresh).status_code == 201


def test_an_invitation_is_void_after_five_addresses_that_were_taken(invite_api: Api) -> None:
    assert ask(invite_api, email="ann@example.com", inviteCode=invitation(invite_api)).status_code == 201
    code = invitation(invite_api)
    for _ in range(5):
        assert ask(invite_api, email="ann@example.com", inviteCode=code).status_code == 403
    assert ask(invite_api, email="bob@example.com", inviteCode=code).status_code == 403


def test_too_many_from_one_address_are_turned_away(start_api: Callable[..., Api]) -> None:
    api = start_api(signup="open", rate_signup=3)
    answers = [ask(api, email=f"u{number}@example.com") for number in range(5)]
    assert [answer.status_code for answer in answers] == [201, 201, 201, 429, 429]
    assert int(answers[-1].headers["retry-after"]) >= 1
    assert api.value("select count(*) from teams") == 4


def test_a_closed_server_is_not_asked_twice_as_often(start_api: Callable[..., Api]) -> None:
    api = start_api(rate_signup=1)
    assert [ask(api, email="ann@example.com").status_code for _ in range(2)] == [403, 429]
