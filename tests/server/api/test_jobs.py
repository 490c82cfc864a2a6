"""GET /v2/jobs, /v2/me and /v2/models over real HTTP: contract.md 5.3, 8, 9."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from uuid import UUID, uuid4

import httpx
import psycopg
import pytest
from psycopg import sql

from tests.server.conftest import Api

INSERT = (
    "insert into jobs (id, team_id, user_id, request_id, model, recipe, input, source, max_attempts, cost, state,"
    " completed_at, error, created_at)"
    """ select %s, u.team_id, u.id, 'r', %s, '{"seed": 1, "output_format": "png", "scale": 2}', '{"image": "x"}',"""
    """ '{"width": 1000, "height": 500}', 3, 3, %s, case when %s = 'QUEUED' then null else now() end, null,"""
    " '2026-03-15T10:00:00Z' from users u where email = %s"
)


def add(api: Api, *, state: str = "QUEUED", model: str = "clarity-upscale", user: str = "owner@localhost") -> str:
    job = uuid4()
    api.do(INSERT, job, model, state, state, user)
    return str(job)


def add_user(api: Api, email: str, role: str) -> None:
    api.do("insert into users (team_id, email, role) select id, %s, %s from teams", email, role)


def become(api: Api, email: str) -> None:
    """From now on the key is this user's."""
    api.do("update api_keys set user_id = (select id from users where email = %s)", email)


def get(api: Api, path: str, **query: Any) -> httpx.Response:
    with api.client() as client:
        return client.get(path, params=query or None)


def listed(api: Api, **query: Any) -> dict[str, Any]:
    response = get(api, "/v2/jobs", **query)
    assert response.status_code == 200, response.text
    body: dict[str, Any] = response.json()
    return body


def pages(api: Api, **query: Any) -> Iterator[list[str]]:
    cursor: dict[str, str] = {}
    while True:
        body = listed(api, **query, **cursor)
        yield [job["id"] for job in body["jobs"]]
        assert body["hasMore"] == (body["nextCursor"] is not None)
        if not body["hasMore"]:
            return
        cursor = {"cursor": body["nextCursor"]}


def test_250_jobs_page_without_gaps(api: Api) -> None:
    job_ids = [uuid4() for _ in range(250)]
    with psycopg.connect(api.database_url) as connection, connection.cursor() as cursor:
        cursor.executemany(
            INSERT.encode(), [(job, "clarity-upscale", "QUEUED", "QUEUED", "owner@localhost") for job in job_ids]
        )
    walked = list(pages(api, limit=60))
    assert [len(page) for page in walked] == [60, 60, 60, 60, 10]
    assert [UUID(job) for page in walked for job in page] == sorted(job_ids, reverse=True)


def test_new_jobs_do_not_shift_pages(api: Api) -> None:
    job_ids = {add(api) for _ in range(5)}
    seen: list[str] = []
    for page in pages(api, limit=2):
        seen += page
        api.do("update jobs set created_at = now() where id = %s", add(api))
    assert len(seen) == 5
    assert set(seen) == job_ids


def test_full_last_page_has_no_next(api: Api) -> None:
    for _ in range(4):
        add(api)
    assert [len(page) for page in pages(api, limit=2)] == [2, 2]


def test_empty_list(api: Api) -> None:
    assert listed(api) == {"jobs": [], "nextCursor": None, "hasMore": False}
    assert listed(api, include_models="true")["models"] == []


def test_listed_job_omits_its_input(api: Api) -> None:
    job = add(api)
    (shown,) = listed(api)["jobs"]
    whole = get(api, f"/v2/jobs/{job}").json()
    del whole["input"]
    assert shown == whole
    assert shown["expired"] is False


def test_filters_narrow_the_list(api: Api) -> None:
    waiting, failed = add(api), add(api, state="FAILED")
    faithful = add(api, model="faithful-upscale")

    def ids(**query: Any) -> set[str]:
        return {job["id"] for job in listed(api, **query)["jobs"]}

    assert ids() == {waiting, failed, faithful}
    assert ids(status="QUEUED") == {waiting, faithful}
    assert ids(status="FAILED") == {failed}
    assert ids(status="CANCELLED") == set()
    assert ids(model="faithful-upscale") == {faithful}
    assert ids(model="clarity-upscale", status="QUEUED") == {waiting}
    assert ids(model="no-such-model") == set()
    assert ids(search=failed) == {failed}
    assert ids(search=failed.upper(), status="QUEUED") == set()
    assert ids(search=str(uuid4())) == set()


def test_filters_hold_on_every_page(api: Api) -> None:
    expected = set()
    for _ in range(5):
        expected.add(add(api, state="FAILED"))
        add(api)
    seen = [job for page in pages(api, limit=2, status="FAILED") for job in page]
    assert len(seen) == 5
    assert set(seen) == expected


def test_scope_selects_user_or_team(api: Api) -> None:
    add_user(api, "colleague@example.com", "ADMIN")
    mine, theirs = add(api), add(api, user="colleague@example.com", model="faithful-upscale")
    assert [job["id"] for job in listed(api)["jobs"]] == [mine]
    assert {job["id"] for job in listed(api, scope="team")["jobs"]} == {mine, theirs}
    assert listed(api, include_models="true")["models"] == ["clarity-upscale"]
    assert listed(api, scope="team", include_models="true")["models"] == ["clarity-upscale", "faithful-upscale"]
    become(api, "colleague@example.com")
    assert [job["id"] for job in listed(api)["jobs"]] == [theirs]


def test_members_cannot_list_team_jobs(api: Api) -> None:
    add_user(api, "member@example.com", "MEMBER")
    others = add(api)
    become(api, "member@example.com")
    response = get(api, "/v2/jobs", scope="team")
    assert response.status_code == 403
    assert "scope=user" in response.json()["error"]
    assert listed(api)["jobs"] == []
    assert listed(api, search=others)["jobs"] == []


def test_other_teams_jobs_are_hidden(api: Api) -> None:
    job = add(api)
    api.do("with t as (insert into teams (name) values ('Other') returning id)"
           " insert into users (team_id, email, role) select id, 'b@example.com', 'OWNER' from t")  # fmt: skip
    become(api, "b@example.com")
    for query in ({}, {"scope": "team"}, {"scope": "team", "search": job}):
        assert listed(api, **query, include_models="true") == {
            "jobs": [], "nextCursor": None, "hasMore": False, "models": []
        }  # fmt: skip


@pytest.mark.parametrize("query", ["status=x", "limit=0", "cursor=tampered", "scope=x", "search=x", "model=%00"])
def test_wrong_query_is_400(api: Api, query: str) -> None:
    response = get(api, f"/v2/jobs?{query}")
    assert (response.status_code, response.json()["error"]) == (400, "Validation error")
    assert list(response.json()["details"]) == [query.partition("=")[0]]


def test_list_needs_a_key(api: Api) -> None:
    assert httpx.get(f"{api.url}/v2/jobs").status_code == 401
    assert httpx.get(f"{api.url}/v2/jobs?limit=0").status_code == 401


# Me -----------------------------------------------------------------------------------------------------------------


def test_me_shows_user_team_and_key(api: Api) -> None:
    team, user = api.value("select id::text from teams"), api.value("select id::text from users")
    response = get(api, "/v2/me")
    assert response.status_code == 200
    assert response.json() == {
        "user": {"id": user, "email": "owner@localhost", "role": "OWNER"},
        "team": {
            "id": team,
            "name": "Default",
            "credits": 100,
            "plan": "free",
            "customerId": None,
            "maxConcurrentJobs": 2,
        },
        "apiKey": {"id": api.value("select id::text from api_keys"), "name": "test", "prefix": api.key[:8]},
    }


def test_me_refuses_wrong_keys(api: Api) -> None:
    assert httpx.get(f"{api.url}/v2/me", headers={"X-API-Key": "afk_" + "0" * 40}).status_code == 401


# Models -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("headers", [{}, {"X-API-Key": "afk_" + "0" * 40}, {"Authorization": "Bearer nonsense"}])
def test_models_need_no_key(api: Api, headers: dict[str, str]) -> None:
    response = httpx.get(f"{api.url}/v2/models", headers=headers)
    assert response.status_code == 200
    clarity, faithful = response.json()["models"]
    assert (clarity["id"], clarity["label"], clarity["modality"]) == ("clarity-upscale", "Clarity Upscaler", "image")
    assert (clarity["pricingMode"], clarity["costMin"], clarity["costMax"]) == ("flat", 3, 3)
    assert (clarity["endpoint"], clarity["paramsKey"]) == ("POST /v2/images/upscale", "clarityUpscaleParams")
    assert clarity["params"]["properties"]["scale_factor"]["enum"] == [1, 2, 4, 8]
    assert clarity["params"]["required"] == ["image"]
    assert faithful["id"] == "faithful-upscale"
    assert "avgSeconds" not in clarity


def test_modality_filters_models(api: Api) -> None:
    assert len(get(api, "/v2/models", modality="image").json()["models"]) == 2
    for other in ("video", "music"):
        assert get(api, "/v2/models", modality=other).json() == {"models": []}
    wrong = get(api, "/v2/models", modality="smell")
    assert (wrong.status_code, list(wrong.json()["details"])) == (400, ["modality"])


def test_models_are_listed_without_database(api: Api, postgres: str) -> None:
    name = api.value("select current_database()")
    with psycopg.connect(postgres, autocommit=True) as admin:
        admin.execute(sql.SQL("alter database {} allow_connections false").format(sql.Identifier(name)))
        admin.execute("select pg_terminate_backend(pid) from pg_stat_activity where datname = %s", (name,))
        response = get(api, "/v2/models")
        admin.execute(sql.SQL("alter database {} allow_connections true").format(sql.Identifier(name)))
    assert response.status_code == 200
    assert len(response.json()["models"]) == 2
