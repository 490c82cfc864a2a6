"""Keys, ledger and webhook deliveries over real HTTP: who sees what, and what they may do about it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import httpx
import pytest

from hiresfix.server.accounts import api_keys, authentication, teams
from hiresfix.server.accounts.teams import Role
from hiresfix.server.database.pool import Database, Tx
from hiresfix.wire.queries import cursor, parse_cursor
from tests.conftest import Site
from tests.server.api.test_openapi import problems
from tests.server.conftest import Api
from tests.server.jobs.test_watch import completed, work

T = TypeVar("T")
NOBODYS = "00000000-0000-4000-8000-000000000000"


def run(api: Api, work: Callable[[Tx], Awaitable[T]]) -> T:
    async def commit() -> T:
        async with Database(api.database_url, max_size=1) as database, database.transaction() as tx:
            return await work(tx)

    return asyncio.run(commit())


def colleague(api: Api, role: Role) -> str:
    """The key of another user of the first team."""

    async def join(tx: Tx) -> str:
        team = await authentication.first_team(tx)
        user = await teams.create_user(tx, team, f"{role.lower()}@example.com", role=role, actor="os:tester")
        return await api_keys.issue(tx, user.id, role.lower(), actor="os:tester")

    return run(api, join)


def stranger(api: Api) -> str:
    """The key of another team's owner."""

    async def arrive(tx: Tx) -> str:
        team = await teams.create_team(tx, "Others", actor="os:tester")
        user = await teams.create_user(tx, team.id, "other@example.com", role=Role.OWNER, actor="os:tester")
        return await api_keys.issue(tx, user.id, "theirs", actor="os:tester")

    return run(api, arrive)


def ask(api: Api, key: str, method: str, path: str, **more: Any) -> httpx.Response:
    return httpx.request(method, api.url + path, headers={"X-API-Key": key}, timeout=30, **more)


def get(api: Api, key: str, path: str) -> Any:
    answer = ask(api, key, "GET", path)
    assert answer.status_code == 200, answer.text
    return answer.json()


# Keys -------------------------------------------------------------------------------------------------------------


def test_key_works_until_revoked(api: Api) -> None:
    created = ask(api, api.key, "POST", "/v2/keys", json={"name": " ci ", "monthlyBudget": 7})
    assert created.status_code == 201, created.text
    assert created.headers["cache-control"] == "no-store"
    assert problems("KeyWithSecret", created.json()) == []
    secret = created.json()["apiKey"]
    assert (created.json()["name"], created.json()["monthlyBudget"], created.json()["revokedAt"]) == ("ci", 7, None)
    assert get(api, secret, "/v2/me")["apiKey"]["name"] == "ci"
    listed = get(api, api.key, "/v2/keys")
    assert problems("KeyList", listed) == []
    assert [key["name"] for key in listed["keys"]] == ["test", "ci"]
    assert secret not in str(listed)
    for _ in range(2):  # again is no error
        revoked = ask(api, api.key, "DELETE", f"/v2/keys/{created.json()['id']}")
        assert (revoked.status_code, problems("Key", revoked.json())) == (200, [])
        assert revoked.json()["revokedAt"]
    assert ask(api, secret, "GET", "/v2/me").status_code == 401
    assert api.value("select count(*) from audit_log where action = 'key.revoke'") == 1
    assert api.value("select count(*) from audit_log where actor like 'user:%%' and action = 'key.create'") == 1


def test_a_key_may_revoke_itself(api: Api) -> None:
    own = get(api, api.key, "/v2/me")["apiKey"]["id"]
    assert ask(api, api.key, "DELETE", f"/v2/keys/{own}").status_code == 200
    assert ask(api, api.key, "GET", "/v2/me").status_code == 401


def test_budgeted_key_cannot_create_keys(api: Api) -> None:
    bounded = ask(api, api.key, "POST", "/v2/keys", json={"name": "b", "monthlyBudget": 1}).json()["apiKey"]
    refused = ask(api, bounded, "POST", "/v2/keys", json={"name": "free"})
    assert (refused.status_code, problems("ErrorResponse", refused.json())) == (403, [])
    assert len(get(api, api.key, "/v2/keys")["keys"]) == 2


def test_roles_limit_key_access(api: Api) -> None:
    member, admin, other = colleague(api, Role.MEMBER), colleague(api, Role.ADMIN), stranger(api)
    ids = {key["name"]: key["id"] for key in get(api, admin, "/v2/keys?scope=team")["keys"]}
    assert set(ids) == {"test", "member", "admin"}
    assert [key["name"] for key in get(api, member, "/v2/keys")["keys"]] == ["member"]
    assert [key["name"] for key in get(api, other, "/v2/keys?scope=team")["keys"]] == ["theirs"]

    def revoke(key: str, key_id: str) -> int:
        return ask(api, key, "DELETE", f"/v2/keys/{ids.get(key_id, key_id)}").status_code

    assert ask(api, member, "GET", "/v2/keys?scope=team").status_code == 403
    assert ask(api, member, "POST", "/v2/keys", json={"name": "more"}).status_code == 403
    assert [revoke(member, name) for name in ("test", "admin", NOBODYS, "no-id")] == [404, 404, 404, 400]
    assert [revoke(other, name) for name in ids] == [404, 404, 404]
    assert revoke(admin, "test") == 403
    assert get(api, api.key, "/v2/me")
    assert (revoke(member, "member"), revoke(api.key, "admin")) == (200, 200)
    assert ask(api, member, "GET", "/v2/me").status_code == ask(api, admin, "GET", "/v2/me").status_code == 401


def test_concurrent_last_key_is_created_once(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api_keys, "MAX_KEYS_PER_TEAM", 3)
    ask(api, api.key, "POST", "/v2/keys", json={"name": "second"})
    with ThreadPoolExecutor(5) as threads:
        answers = threads.map(lambda _: ask(api, api.key, "POST", "/v2/keys", json={"name": "third"}), range(5))
        assert sorted(answer.status_code for answer in answers) == [201, 409, 409, 409, 409]


@pytest.mark.parametrize(
    ("body", "where"),
    [
        ({}, "name"),
        ({"name": "  "}, "name"),
        ({"name": "a\nb"}, "name"),
        ({"name": "x" * 101}, "name"),
        ({"name": "x", "monthlyBudget": -1}, "monthlyBudget"),
        ({"name": "x", "monthlyBudget": True}, "monthlyBudget"),
        ({"name": "x", "monthlyBudget": 1.5}, "monthlyBudget"),
        ({"name": "x", "role": "OWNER"}, "_root"),
    ],
    ids=str,
)
def test_wrong_key_request_creates_none(api: Api, body: dict[str, Any], where: str) -> None:
    refused = ask(api, api.key, "POST", "/v2/keys", json=body)
    assert (refused.status_code, list(refused.json()["details"])) == (400, [where])
    assert api.value("select count(*) from api_keys") == 1


# Ledger -----------------------------------------------------------------------------------------------------------


def test_ledger_pages_sum_to_the_balance(api: Api, photo: str) -> None:
    for _ in range(3):
        job = api.submit({"image": photo}).json()["jobId"]
    ask(api, api.key, "POST", f"/v2/jobs/{job}/cancel")
    seen, after = [], ""
    while True:
        page = get(api, api.key, f"/v2/credits/ledger?scope=team&limit=2{after}")
        assert problems("Ledger", page) == []
        seen += page["entries"]
        if not page["hasMore"]:
            break
        after = f"&cursor={page['nextCursor']}"
    assert [entry["kind"] for entry in seen] == ["refund", "charge", "charge", "charge", "grant"]
    assert sum(entry["amount"] for entry in seen) == api.balance == 94
    assert (seen[0]["jobId"], seen[0]["amount"]) == (job, 3)
    mine = get(api, api.key, "/v2/credits/ledger")["entries"]
    assert [entry["kind"] for entry in mine] == ["refund", "charge", "charge", "charge"]


def test_member_sees_only_own_charges(api: Api, photo: str) -> None:
    member = colleague(api, Role.MEMBER)
    api.submit({"image": photo})
    body = {"model": "faithful-upscale", "faithfulUpscaleParams": {"image": photo}}
    job = ask(api, member, "POST", "/v2/images/upscale", json=body).json()["jobId"]
    entries = get(api, member, "/v2/credits/ledger")["entries"]
    assert [(entry["jobId"], entry["amount"]) for entry in entries] == [(job, -1)]
    assert ask(api, member, "GET", "/v2/credits/ledger?scope=team").status_code == 403
    assert get(api, stranger(api), "/v2/credits/ledger?scope=team")["entries"] == []


def test_foreign_cursor_is_refused(api: Api, photo: str) -> None:
    for _ in range(2):
        api.submit({"image": photo})
    jobs_cursor = get(api, api.key, "/v2/jobs?limit=1")["nextCursor"]
    beyond = cursor(parse_cursor(jobs_cursor), of="ledger")  # a random UUID: no number that an entry could have
    for wrong in (jobs_cursor, beyond, "x" * 40):
        for path in ("/v2/credits/ledger", "/v2/webhooks/deliveries"):
            refused = ask(api, api.key, "GET", f"{path}?cursor={wrong}&limit=0")
            assert refused.status_code == 400
            assert set(refused.json()["details"]) == {"cursor", "limit"}


# Deliveries -------------------------------------------------------------------------------------------------------


def deliver(api: Api, site: Site, photo: str) -> str:
    """A job whose end its receiver refuses; its id."""
    job = str(api.submit({"image": photo}, webhookUrl=f"{site.url}/hook").json()["jobId"])
    work(api, job, completed)
    return job


def fail(api: Api) -> None:
    api.do("insert into webhook_attempts (delivery_id, number, milliseconds, status, answer)"
           " select id, 1, 12, 503, 'away' from webhook_deliveries")  # fmt: skip
    api.do("update webhook_deliveries set state = 'FAILED', attempt = 1, finished_at = now()")


def test_failed_delivery_can_be_redelivered(api: Api, site: Site, photo: str) -> None:
    job, another = deliver(api, site, photo), deliver(api, site, photo)
    fail(api)
    first = get(api, api.key, "/v2/webhooks/deliveries?limit=1")
    assert problems("WebhookDeliveryList", first) == []
    rest = get(api, api.key, f"/v2/webhooks/deliveries?limit=1&cursor={first['nextCursor']}")
    assert [row["jobId"] for row in (*first["deliveries"], *rest["deliveries"])] == [another, job]
    assert not rest["hasMore"]
    assert get(api, api.key, "/v2/webhooks/deliveries?status=pending")["deliveries"] == []
    (row,) = get(api, api.key, f"/v2/webhooks/deliveries?jobId={job}&status=failed")["deliveries"]
    assert (row["event"], row["lastStatus"], row["attemptCount"]) == ("completed", 503, 1)
    shown = get(api, api.key, f"/v2/webhooks/deliveries/{row['id']}")
    assert problems("WebhookDelivery", shown) == []
    assert [(attempt["status"], attempt["answer"]) for attempt in shown["attempts"]] == [(503, "away")]

    again = ask(api, api.key, "POST", f"/v2/webhooks/deliveries/{row['id']}/redeliver")
    assert (again.status_code, again.json()["status"]) == (200, "pending")
    assert problems("WebhookDelivery", again.json()) == []
    tasks = (
        "select count(*) from procrastinate_jobs where task_name = 'webhooks.deliver' and args ->> 'delivery_id' = %s"
    )
    assert api.value(tasks, row["id"]) == 2
    assert api.value("select count(*) from audit_log where action = 'webhook.redeliver' and actor like 'user:%%'") == 1


def test_progress_and_running_deliveries_cannot_be_redelivered(api: Api, site: Site, photo: str) -> None:
    deliver(api, site, photo)
    (row,) = get(api, api.key, "/v2/webhooks/deliveries")["deliveries"]
    path = f"/v2/webhooks/deliveries/{row['id']}/redeliver"
    api.do("update webhook_deliveries set sending_until = now() + interval '1 minute'")
    assert ask(api, api.key, "POST", path).status_code == 409
    api.do("update webhook_deliveries set sending_until = null, event = 'progress'")
    assert ask(api, api.key, "POST", path).status_code == 409


def test_other_users_deliveries_are_hidden(api: Api, site: Site, photo: str) -> None:
    deliver(api, site, photo)
    member, admin, other = colleague(api, Role.MEMBER), colleague(api, Role.ADMIN), stranger(api)
    (row,) = get(api, admin, "/v2/webhooks/deliveries?scope=team")["deliveries"]
    assert get(api, admin, "/v2/webhooks/deliveries")["deliveries"] == []
    assert ask(api, member, "GET", "/v2/webhooks/deliveries?scope=team").status_code == 403
    assert get(api, other, "/v2/webhooks/deliveries?scope=team")["deliveries"] == []
    for key in (member, other):
        for method, rest in (("GET", ""), ("POST", "/redeliver")):
            answer = ask(api, key, method, f"/v2/webhooks/deliveries/{row['id']}{rest}")
            assert (answer.status_code, answer.json()["error"]) == (404, "Delivery not found")
    assert ask(api, api.key, "GET", "/v2/webhooks/deliveries/no-id").status_code == 400
    assert ask(api, api.key, "GET", f"/v2/webhooks/deliveries/{NOBODYS}").status_code == 404


def test_job_shows_when_files_expire(api: Api, photo: str) -> None:
    job = api.submit({"image": photo}).json()["jobId"]
    assert get(api, api.key, f"/v2/jobs/{job}")["expiresAt"] is None
    work(api, job, completed)
    expected = "select to_char((completed_at + interval '90 days') at time zone 'UTC', 'YYYY-MM-DD') from jobs"
    assert get(api, api.key, f"/v2/jobs/{job}")["expiresAt"][:10] == api.value(expected)
    ask(api, api.key, "DELETE", f"/v2/jobs/{job}/files")
    assert get(api, api.key, f"/v2/jobs/{job}")["expiresAt"] is None
