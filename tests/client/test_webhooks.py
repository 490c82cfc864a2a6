"""Webhook verification; and the example receivers, each with the test client of its framework."""

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
from hiresfix import webhook_signing
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


def key_headers(body: bytes = BODY, mode: webhook_signing.KeyMode = "raw") -> dict[str, str]:
    return {webhook_signing.SIGNATURE_HEADER: webhook_signing.sign(body, webhook_signing.digest_api_key(KEY), mode)}


def team_headers(body: bytes = BODY, *, at: float = NOW, secret: str = SECRET) -> dict[str, str]:
    """Sign with the Standard Webhooks library, as the server does."""
    signature = Webhook(secret).sign("msg_1", datetime.fromtimestamp(at, UTC), body.decode())
    return {"Webhook-Id": "msg_1", "Webhook-Timestamp": str(int(at)), "Webhook-Signature": f"v1,AAAA {signature}"}


def verify(headers: Mapping[str, str], secret: str | list[str] = KEY, body: bytes = BODY) -> hiresfix.WebhookEvent:
    return hiresfix.verify_webhook(body, headers, secret, clock=lambda: NOW)


@pytest.mark.parametrize("headers", [key_headers(), key_headers(mode="hex")], ids=["raw", "hex"])
def test_key_signature_is_accepted(headers: dict[str, str]) -> None:
    event = verify({name.lower(): value for name, value in headers.items()})
    assert (event.event, event.job.id, event.job.status) == ("completed", "b2c3d4e5", "COMPLETED")
    assert event.job.images == ("https://example.com/1.png",)
    assert verify(headers, ["afk_old", KEY]).job == event.job
    assert hiresfix.verify_webhook(BODY.decode(), headers, KEY).job == event.job


def test_team_signature_is_accepted_for_five_minutes() -> None:
    assert verify(team_headers(), SECRET).event == "completed"
    assert verify(team_headers(at=NOW - 299), SECRET).event == "completed"
    for at in (NOW - 301, NOW + 301):
        with pytest.raises(BadSignature):
            verify(team_headers(at=at), SECRET)


@pytest.mark.parametrize(
    ("headers", "secret"),
    [
        ({}, KEY),
        ({webhook_signing.SIGNATURE_HEADER: ""}, KEY),
        ({webhook_signing.SIGNATURE_HEADER: "sha256=ü"}, KEY),
        (key_headers(BODY + b" "), KEY),
        (key_headers(), "afk_other"),
        (key_headers(), SECRET),
        (team_headers(), KEY),
        (team_headers(BODY + b" "), SECRET),
        ({**team_headers(), "Webhook-Id": "msg_2"}, SECRET),
        ({**team_headers(), "Webhook-Timestamp": "now"}, SECRET),
        ({**team_headers(), "Webhook-Signature": ""}, SECRET),
    ],
    ids=["none", "empty", "letters", "body", "key", "kind", "other kind", "team body", "id", "time", "no signature"],
)
def test_other_signatures_are_refused(headers: dict[str, str], secret: str) -> None:
    with pytest.raises(BadSignature, match="as it arrived"):
        verify(headers, secret)


def test_missing_secret_and_invalid_body_raise() -> None:
    for secret in ("", [], ["", KEY]):
        with pytest.raises(ValueError, match="no secret"):
            verify(key_headers(), secret)
    for body in (b"not json", b"[]", b"{}"):
        with pytest.raises(UnexpectedAnswer):
            verify(key_headers(body), body=body)


# The examples -------------------------------------------------------------------------------------------------------

Post = Callable[[bytes, dict[str, str]], int]


def example(name: str) -> ModuleType:
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
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
def test_example_accepts_only_signed_events(
    name: str, post_to: Callable[[ModuleType], Post], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HIRESFIX_API_KEY", KEY)
    module = example(name)
    post = post_to(module)
    assert post(BODY, {}) == 400
    assert post(BODY, key_headers(BODY + b" ")) == 400
    assert module.finished == {}
    for _ in range(2):
        assert post(BODY, key_headers()) == 204
    assert module.finished == {"b2c3d4e5": ("https://example.com/1.png",)}
