"""Receivers: what is signed is believed, and nothing else; the examples, each with its framework's own test client."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from types import ModuleType

import pytest
from standardwebhooks import Webhook

import hiresfix
from hiresfix import signing
from hiresfix.client import BadSignature, UnexpectedAnswer
from tests import ROOT

EXAMPLES = ROOT / "examples"
KEY = "afk_" + "0" * 40
SECRET = "whsec_" + "c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0c2U="
BODY = json.dumps(
    {"event": "completed", "type": "completed", "jobId": "b2c3d4e5", "status": "COMPLETED", "progress": 100,
     "result": {"images": ["https://example.com/1.png"]}, "creditCost": 3}
).encode()  # fmt: skip
NOW = 1_790_000_000.0


def by_key(body: bytes = BODY, mode: signing.KeyMode = "raw") -> dict[str, str]:
    return {signing.SIGNATURE_HEADER: signing.sign(body, signing.digest_api_key(KEY), mode)}


def by_team(body: bytes = BODY, *, at: float = NOW, secret: str = SECRET) -> dict[str, str]:
    """As the library of Standard Webhooks signs, which the server uses."""
    signature = Webhook(secret).sign("msg_1", datetime.fromtimestamp(at, UTC), body.decode())
    return {"Webhook-Id": "msg_1", "Webhook-Timestamp": str(int(at)), "Webhook-Signature": f"v1,AAAA {signature}"}


def verified(headers: Mapping[str, str], secret: str | list[str] = KEY, body: bytes = BODY) -> hiresfix.WebhookEvent:
    return hiresfix.verify_webhook(body, headers, secret, clock=lambda: NOW)


@pytest.mark.parametrize("headers", [by_key(), by_key(mode="hex")], ids=["raw", "hex"])
def test_what_the_key_signed_is_believed(headers: dict[str, str]) -> None:
    event = verified({name.lower(): value for name, value in headers.items()})
    assert (event.event, event.job.id, event.job.status) == ("completed", "b2c3d4e5", "COMPLETED")
    assert event.job.images == ("https://example.com/1.png",)
    assert verified(headers, ["afk_old", KEY]).job == event.job
    assert hiresfix.verify_webhook(BODY.decode(), headers, KEY).job == event.job


def test_what_the_team_signed_is_believed_for_five_minutes() -> None:
    assert verified(by_team(), SECRET).event == "completed"
    assert verified(by_team(at=NOW - 299), SECRET).event == "completed"
    for at in (NOW - 301, NOW + 301):
        with pytest.raises(BadSignature):
            verified(by_team(at=at), SECRET)


@pytest.mark.parametrize(
    ("headers", "secret"),
    [
        ({}, KEY),
        ({signing.SIGNATURE_HEADER: ""}, KEY),
        ({signing.SIGNATURE_HEADER: "sha256=ü"}, KEY),
        (by_key(BODY + b" "), KEY),
        (by_key(), "afk_other"),
        (by_key(), SECRET),
        (by_team(), KEY),
        (by_team(BODY + b" "), SECRET),
        ({**by_team(), "Webhook-Id": "msg_2"}, SECRET),
        ({**by_team(), "Webhook-Timestamp": "now"}, SECRET),
        ({**by_team(), "Webhook-Signature": ""}, SECRET),
    ],
    ids=["none", "empty", "letters", "body", "key", "kind", "other kind", "team body", "id", "time", "no signature"],
)
def test_nothing_else_is_believed(headers: dict[str, str], secret: str) -> None:
    with pytest.raises(BadSignature, match="as it came"):
        verified(headers, secret)


def test_without_a_secret_or_with_a_signed_oddity_it_says_what_is_wrong() -> None:
    for secret in ("", [], ["", KEY]):
        with pytest.raises(ValueError, match="no secret"):
            verified(by_key(), secret)
    for body in (b"no json", b"[]", b"{}"):
        with pytest.raises(UnexpectedAnswer):
            verified(by_key(body), body=body)


# The examples -------------------------------------------------------------------------------------------------------

Post = Callable[[bytes, dict[str, str]], int]


def example(name: str) -> ModuleType:
    if name not in sys.modules:
        found = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
        assert found is not None
        assert found.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(found)
        found.loader.exec_module(sys.modules[name])
    return sys.modules[name]


def fastapi_post(module: ModuleType) -> Post:
    from fastapi.testclient import TestClient

    client = TestClient(module.app)
    return lambda body, headers: int(client.post("/hook", content=body, headers=headers).status_code)


def flask_post(module: ModuleType) -> Post:
    client = module.app.test_client()
    return lambda body, headers: int(client.post("/hook", data=body, headers=headers).status_code)


def django_post(module: ModuleType) -> Post:
    import django
    from django.test import Client

    django.setup()
    client = Client(enforce_csrf_checks=True)
    return lambda body, headers: int(
        client.post("/hook", data=body, content_type="application/json", headers=headers).status_code
    )


@pytest.mark.parametrize(
    ("name", "post_to"),
    [("webhooks_fastapi", fastapi_post), ("webhooks_flask", flask_post), ("webhooks_django", django_post)],
    ids=["fastapi", "flask", "django"],
)
def test_the_example_believes_what_is_signed_and_nothing_else(
    name: str, post_to: Callable[[ModuleType], Post], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HIRESFIX_API_KEY", KEY)
    module = example(name)
    post = post_to(module)
    assert post(BODY, {}) == 400
    assert post(BODY, by_key(BODY + b" ")) == 400
    assert module.finished == {}
    for _ in range(2):
        assert post(BODY, by_key()) == 204
    assert module.finished == {"b2c3d4e5": ("https://example.com/1.png",)}
