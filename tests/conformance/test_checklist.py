"""Items of the checklist that no other test carries alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from structlog.testing import capture_logs

from hiresfix.server.accounts import authentication
from hiresfix.server.guarded_http import HttpPolicy
from hiresfix.server.webhooks import delivery
from tests.server.conftest import Api
from tests.server.job_steps import JobSteps
from tests.server.webhooks.test_webhooks import announce_completed, make_due, state

UNKNOWN = "/v2/jobs/00000000-0000-4000-8000-000000000000"


@pytest.mark.parametrize("other", ["2", 2.0, "2x", "2.0"], ids=repr)
def test_03_factor_spellings_are_one_job(api: Api, photo: str, other: object) -> None:
    headers = {"Idempotency-Key": "one job"}
    first = api.submit({"image": photo, "scale_factor": 2}, headers=headers)
    again = api.submit({"image": photo, "scale_factor": other}, headers=headers)
    assert (again.status_code, again.json()["jobId"]) == (202, first.json()["jobId"])
    assert again.headers["idempotency-replayed"] == "true"
    for wrong in (3, "16", True, "2y", [2]):
        refused = api.submit({"image": photo, "scale_factor": wrong})
        assert (refused.status_code, set(refused.json()["details"])) == (400, {"clarityUpscaleParams.scale_factor"})
    assert (api.jobs, api.balance) == (1, 97)


def test_04_errors_have_known_status_and_body(
    start_api: Callable[..., Api], photo: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    api = start_api(rate_submissions=4, max_body_bytes=4000)

    async def crash(*_: object) -> None:
        raise RuntimeError("a secret")

    monkeypatch.setattr(authentication, "profile", crash)
    body = {"model": "clarity-upscale", "clarityUpscaleParams": {"image": photo}}
    key = {"Idempotency-Key": "k"}
    with api.client() as client, capture_logs() as logs:  # the console's rendering of a traceback takes seconds
        assert client.post("/v2/images/upscale", json=body, headers=key).status_code == 202
        answers = [
            client.post("/v2/images/upscale", json={}),
            client.post("/v2/images/upscale", json={**body, "webhookUrl": photo}, headers=key),
        ]
        api.do("update teams set credits = 0")
        answers += [
            client.post("/v2/images/upscale", json=body),
            client.post("/v2/images/upscale", json=body),
            client.post("/v2/signup", content=b" " * 5000),
            client.get(UNKNOWN),
            client.get("/v2/me"),
            client.get("/v2/loras"),
            client.delete("/v2/images/upscale"),
            client.get("/v2/jobs/%ff"),
            client.get("/v2/nowhere"),
            httpx.get(f"{api.url}/v2/me"),
        ]
        api.do("update users set suspended_at = now()")
        answers.append(client.get("/v2/me"))
    statuses = [answer.status_code for answer in answers]
    assert statuses == [400, 409, 402, 429, 413, 404, 500, 501, 405, 400, 404, 401, 403]
    assert [line["event"] for line in logs].count("request.crashed") == 1
    for answer in answers:
        body = answer.json()
        assert answer.headers["content-type"] == "application/json"
        assert isinstance(body["error"], str)
        assert "secret" not in body["error"]
        assert answer.headers["x-request-id"] == body["requestId"]
        assert answer.status_code != 429 or int(answer.headers["retry-after"]) >= 1


@dataclass
class Receiver:
    """A receiver that follows a script: None hangs, a status answers with it."""

    script: list[int | None]
    url: str = ""
    requests: list[str] = field(default_factory=list)

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        self.requests.append(head.partition(" HTTP")[0])
        status = self.script.pop(0)
        if status is None:
            await reader.read()  # until the sender gives up
        else:
            location = f"Location: {self.url}/elsewhere\r\n" if status == 302 else ""
            writer.write(f"HTTP/1.1 {status} X\r\n{location}Content-Length: 0\r\nConnection: close\r\n\r\n".encode())
            await writer.drain()
        writer.close()


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    receiver = Receiver(script=[None, 302, 500, 200])
    server = await asyncio.start_server(receiver.answer, "127.0.0.1", 0)
    receiver.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server:
        yield receiver


async def test_08_failing_receiver_gets_the_event(steps: JobSteps, receiver: Receiver) -> None:
    policy = HttpPolicy(allow_private=True, post_timeout=1)
    job, sent = await announce_completed(steps, receiver.url + "/hook")
    expected: list[tuple[Any, ...]] = [("PENDING", 1, None), ("PENDING", 2, 302), ("PENDING", 3, 500)]
    for outcome in [*expected, ("DELIVERED", 4, 200)]:
        assert (await steps.get(job)).webhook_status == "pending"
        await delivery.deliver(steps.database, steps.queue, sent, policy=policy)
        assert await state(steps) == outcome
        await make_due(steps)
    assert receiver.requests == ["POST /hook"] * 4
    assert (await steps.get(job)).webhook_status == "delivered"
