"""POST /v2/signup over real HTTP: who may sign up, the result, and what refusals reveal."""

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


def sign_up(api: Api, **fields: Any) -> httpx.Response:
    return httpx.post(f"{api.url}/v2/signup", json=fields, timeout=30)


def create_invitation(api: Api, *, valid_for: timedelta = timedelta(days=1)) -> str:
    async def invite() -> str:
        async with Database(api.database_url, max_size=1) as database, database.transaction() as tx:
            return await signup.create_invite(tx, note="test", valid_for=valid_for, actor="os:tester")

    return asyncio.run(invite())


def test_signup_is_closed_by_default(api: Api) -> None:
    response = sign_up(api, email="ann@example.com")
    assert (response.status_code, response.json()["error"]) == (403, signup.CLOSED)
    assert (api.value("select count(*) from teams"), api.value("select count(*) from users")) == (1, 1)


def test_signup_creates_team_credits_and_key(open_api: Api, photo: str) -> None:
    response = sign_up(open_api, email=" Ann@Example.com ", name="Ann", teamName="Acme")
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


def test_email_signs_up_once_ignoring_case(open_api: Api) -> None:
    assert sign_up(open_api, email="ann@example.com").status_code == 201
    for email in ("ann@example.com", "ANN@EXAMPLE.COM", "owner@Example.com"):
        response = sign_up(open_api, email=email)
        expected = (201, None) if "owner" in email else (403, signup.REFUSED)
        assert (response.status_code, response.json().get("error")) == expected
    assert open_api.value("select count(*) from teams") == 3
    assert open_api.value("select sum(credits) from teams") == 300 == open_api.value("select sum(amount) from ledger")


def test_racing_signups_create_one_account(open_api: Api) -> None:
    with ThreadPoolExecutor(10) as threads:
        answers = list(threads.map(lambda _: sign_up(open_api, email="ann@example.com").status_code, range(10)))
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
def test_invalid_signup_field_is_named(open_api: Api, fields: dict[str, Any], path: str) -> None:
    response = sign_up(open_api, **fields)
    assert response.status_code == 400
    assert list(response.json()["details"]) == [path]
    assert open_api.value("select count(*) from teams") == 1


def test_oversized_signup_body_is_413(open_api: Api) -> None:
    assert sign_up(open_api, email="ann@example.com", name="x" * 20_000).status_code == 413


def test_invitation_works_once(invite_api: Api) -> None:
    code = create_invitation(invite_api)
    assert sign_up(invite_api, email="ann@example.com", inviteCode=code).status_code == 201
    assert sign_up(invite_api, email="bob@example.com", inviteCode=code).status_code == 403
    assert invite_api.value("select u.email from invites i join users u on u.id = i.user_id") == "ann@example.com"
    assert invite_api.value("select count(*) from audit_log where actor like '%%' || %s || '%%'", code) == 0


def test_racing_uses_of_invitation_let_one_in(invite_api: Api) -> None:
    code = create_invitation(invite_api)
    with ThreadPoolExecutor(8) as threads:
        answers = list(
            threads.map(lambda n: sign_up(invite_api, email=f"u{n}@example.com", inviteCode=code).status_code, range(8))
        )
    assert sorted(answers) == [201] + [403] * 7


def test_refusals_do_not_reveal_accounts(invite_api: Api) -> None:
    good, stale = create_invitation(invite_api), create_invitation(invite_api, valid_for=timedelta(seconds=-1))
    assert sign_up(invite_api, email="ann@example.com", inviteCode=good).status_code == 201
    fresh = create_invitation(invite_api)
    attempts = [
        {"email": email, **code}
        for email in ("ann@example.com", "new@example.com")
        for code in ({}, {"inviteCode": "inv_wrong"}, {"inviteCode": good}, {"inviteCode": stale})
    ]
    answers = [
        sign_up(invite_api, **fields) for fields in [*attempts, {"email": "ann@example.com", "inviteCode": fresh}]
    ]
    bodies = {(answer.status_code, answer.json()["error"], answer.json()["code"]) for answer in answers}
    assert bodies == {(403, signup.REFUSED, "forbidden")}
    # The taken address did not use up the invitation.
    assert sign_up(invite_api, email="bob@example.com", inviteCode=fresh).status_code == 201


def test_invitation_is_void_after_five_taken_addresses(invite_api: Api) -> None:
    assert sign_up(invite_api, email="ann@example.com", inviteCode=create_invitation(invite_api)).status_code == 201
    code = create_invitation(invite_api)
    for _ in range(5):
        assert sign_up(invite_api, email="ann@example.com", inviteCode=code).status_code == 403
    assert sign_up(invite_api, email="bob@example.com", inviteCode=code).status_code == 403


def test_signups_are_rate_limited_by_address(start_api: Callable[..., Api]) -> None:
    api = start_api(signup="open", rate_signup=3)
    answers = [sign_up(api, email=f"u{number}@example.com") for number in range(5)]
    assert [answer.status_code for answer in answers] == [201, 201, 201, 429, 429]
    assert int(answers[-1].headers["retry-after"]) >= 1
    assert api.value("select count(*) from teams") == 4


def test_closed_signup_is_rate_limited_too(start_api: Callable[..., Api]) -> None:
    api = start_api(rate_signup=1)
    assert [sign_up(api, email="ann@example.com").status_code for _ in range(2)] == [403, 429]
