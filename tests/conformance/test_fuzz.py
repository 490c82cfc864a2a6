"""Generated requests against every operation of the OpenAPI document: what is answered is what the document says.

The server is the real one, on a port and a database. Two things are deliberately not asked of it: that it refuses
everything the schemas do not describe (it reads "2x" and "0.35" on purpose; `tests/test_wire.py` has the rules), and
that it takes everything they do (a URL of the right form may lead nowhere).

`make test` runs the same few cases each time; `make fuzz` draws many new ones.
"""

from __future__ import annotations

import base64
import os
import socket
from collections.abc import Callable, Mapping
from http import HTTPStatus
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import Case, CheckContext, GenerationMode, Response
from schemathesis.core.result import Ok
from schemathesis.specs.openapi import checks

from hiresfix.server import guarded_http
from hiresfix.server.api import openapi
from hiresfix.server.app import create_app
from hiresfix.server.settings import Settings
from tests.conftest import png
from tests.server.accounts.test_login_links import create_link
from tests.server.api.test_files import finished
from tests.server.conftest import Api

__all__ = ["finished"]

FUZZ = int(os.environ.get("HIRESFIX_FUZZ_CASES", "0"))
CASES = FUZZ or 20
"""For each operation, of data that fit its description and of data that do not."""

PNG = png(8, 6)
PICTURE = "data:image/png;base64," + base64.b64encode(PNG).decode()
URLS = st.sampled_from([PICTURE, PICTURE[:-40], "http://nobody.invalid/x.png", "https://[::1]/", "http:", "data:,"])
NO_JOB = "00000000-0000-4000-8000-000000000000"

DOCUMENT = openapi.document(
    create_app(Settings(home=Path("unused")), database_url="").routes, public_url="http://localhost"
)
SCHEMA = schemathesis.openapi.from_dict(DOCUMENT)
OPERATIONS = {result.ok().label: result.ok() for result in SCHEMA.get_all_operations() if isinstance(result, Ok)}
assert len(OPERATIONS) == sum(map(len, DOCUMENT["paths"].values()))


def is_enveloped(context: CheckContext, response: Response, case: Case[Any]) -> None:
    """What contract.md 2 and 11 promise of every answer, whatever the document says of this one."""
    names = response.headers
    assert names["x-request-id"], "no X-Request-Id"
    assert response.status_code not in (HTTPStatus.UNPROCESSABLE_ENTITY, *range(300, 400)), "a status clients misread"
    if response.status_code >= 400 and case.method != "HEAD":
        assert names["content-type"] == ["application/json"]
        body = response.json()
        assert isinstance(body["error"], str)
        assert names["x-request-id"] == [body["requestId"]]
    if response.status_code in (429, 503):
        assert int(names["retry-after"][0]) >= 1


CANCELLING = ("POST /v2/jobs/{job_id}/cancel", "DELETE /v2/jobs/{job_id}")
"""What needs a job that still waits."""
SIGN_IN = "/v2/signin"
"""What needs a link that nobody followed."""

CHECKS = (
    schemathesis.checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
    checks.ignored_auth,
    is_enveloped,
)


@pytest.fixture
def no_name_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all hosts that a request can name there is only this one."""

    def getaddrinfo(host: str, port: int, **kind: int) -> object:
        if host != "127.0.0.1":
            raise socket.gaierror(f"{host} does not exist")
        return socket.getaddrinfo(host, port, **kind)

    monkeypatch.setattr(
        guarded_http, "socket", SimpleNamespace(SOCK_STREAM=socket.SOCK_STREAM, getaddrinfo=getaddrinfo)
    )


@pytest.fixture
def open_api(start_api: Callable[..., Api], no_name_server: None) -> Api:
    """A server that throttles nobody, lets anybody sign up and waits for no job."""
    rates = ("general", "job_polling", "submissions", "uploads", "failed_auth", "signup")
    unlimited = {f"rate_{name}": 10**9 for name in rates}
    api = start_api(
        signup="open", max_queued_jobs=10**6, max_queued_jobs_total=10**6, max_wait_seconds=0.0, **unlimited
    )
    api.do("insert into ledger (team_id, kind, amount, counterparty, actor, reason)"
           " select id, 'adjust', 1000000, 'adjustments', 'test', 'test' from teams")  # fmt: skip
    api.do("update teams set credits = 1000100")
    return api


@pytest.fixture
def api(open_api: Api) -> Api:
    return open_api


@pytest.fixture
def known(api: Api, finished: str) -> Mapping[str, str]:
    """Names of things that are there, by path: a job with its result, an upload, a key, a delivery."""
    with api.client() as client:
        upload = client.post("/v2/uploads", files={"file": ("upload", PNG)}).json()
        key = client.post("/v2/keys", json={"name": "another"}).json()["id"]
    result = finished.rpartition("/")[2]
    job = result.removesuffix("-1.png")
    api.do(
        "insert into webhook_deliveries (job_id, team_id, event, url, receiver, body, state)"
        " select id, team_id, 'completed', 'http://nobody.invalid/', 'nobody.invalid', '', 'FAILED' from jobs"
    )
    return {
        "/v2/jobs/{job_id}": job,
        "/v2/keys/{key_id}": key,
        "/v2/webhooks/deliveries/{delivery_id}": str(api.value("select id from webhook_deliveries")),
        "/files/images/{name}": result,
        "/files/uploads/{name}": upload["url"].rpartition("/")[2],
    }


@pytest.mark.parametrize("label", OPERATIONS)
def test_answers_are_documented(api: Api, known: Mapping[str, str], label: str) -> None:
    schemathesis.openapi.format("uri", URLS)
    operation, seen = OPERATIONS[label], set[int]()
    there = next((name for path, name in known.items() if operation.path.startswith(path)), "")
    if label in CANCELLING:
        there = api.submit({"image": PICTURE}).json()["jobId"]

    @settings(
        max_examples=CASES,
        derandomize=not FUZZ,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink] if FUZZ else [Phase.generate],
        print_blob=bool(FUZZ),
    )
    @given(
        case=st.one_of(*map(operation.as_strategy, GenerationMode)),
        name=st.sampled_from([there or NO_JOB, there.upper(), NO_JOB, ""]),
    )
    def answers_as_described(case: Case[Any], name: str) -> None:
        if name and case.path_parameters:
            case.path_parameters = dict.fromkeys(case.path_parameters, name)
        body: Any = case.body
        if name and isinstance(body, dict) and "file" in body:
            body["file"] = PNG
        if name and operation.path == SIGN_IN and isinstance(body, dict) and "token" in body:
            body["token"] = create_link(api)
        response = case.call_and_validate(api.url, session, {"X-API-Key": api.key}, list(CHECKS), timeout=60)
        seen.add(response.status_code)

    with requests.Session() as session:
        answers_as_described()
    assert min(seen) < 300, f"only refusals were seen: {sorted(seen)}"
    assert api.value("select sum(credits) from teams") == api.value("select sum(amount) from ledger")
