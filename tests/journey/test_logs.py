"""Logs of all processes over whole jobs: the events they contain, and the secrets they never contain."""

from __future__ import annotations

import json
from typing import Any

import httpx

from tests.conftest import Site, png
from tests.journey.conftest import Service
from tests.server.conftest import wait_until

PROMPT, NEGATIVE = "a moonlit Xanadu garden", "blurry Zanzibar"
QUERY, HOOK_QUERY = "signature=QmImage", "token=QmHook"


def submit(service: Service, image: str, hook: str, **more: Any) -> httpx.Response:
    params = {"image": image, "prompt": PROMPT, "negative_prompt": NEGATIVE, **more}
    body = {"model": "clarity-upscale", "clarityUpscaleParams": params, "webhookUrl": hook}
    return httpx.post(f"{service.url}/v2/images/upscale", json=body, headers={"X-API-Key": service.key}, timeout=60)


def test_logs_contain_no_secrets(service: Service, site: Site) -> None:
    service.environment["HIRESFIX_LOG_LEVEL"] = "DEBUG"
    api = service.api()
    image, hook = site.add(f"/p.png?{QUERY}", png(16, 16)), f"{site.url}/hook?{HOOK_QUERY}"
    broken = submit(service, image, hook).json()["jobId"]
    with_bad_recipe = "update jobs set recipe = jsonb_set(recipe, '{steps}', '\"many\"') returning id"
    assert service.value(with_bad_recipe) is not None  # an attempt fails with a traceback
    worker = service.worker()
    assert service.finished(broken)["status"] == "FAILED"
    site.answers.extend([500])  # and so does a delivery of the next job
    assert service.finished(submit(service, image, hook).json()["jobId"])["status"] == "COMPLETED"
    wait_until(lambda: len(site.received) >= 2)

    assert submit(service, f"{site.url}/missing.png?{QUERY}", hook).status_code == 400
    assert submit(service, image, hook, prompt=PROMPT + "\0").status_code < 500
    assert httpx.get(f"{service.url}/v2/jobs/{service.key}", headers={"X-API-Key": service.key}).status_code == 400
    assert httpx.get(f"{service.url}/v2/me?key={service.key}&{QUERY}").status_code == 401

    logs = {"API": service.log_of(api), "worker": service.log_of(worker)}
    events = {json.loads(line)["event"] for log in logs.values() for line in log.splitlines()}
    assert {"job.accepted", "request.answered", "job.claimed", "job.settled", "webhook.attempted"} <= events
    for name, log in logs.items():
        for secret in (service.key, PROMPT, NEGATIVE, QUERY, HOOK_QUERY):
            assert secret not in log, f"{secret} in the log of the {name}"
    assert service.key[:8] in logs["API"]  # the public prefix of a key that was sent in a path
