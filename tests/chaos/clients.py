"""Callers that know only the API: they submit with an Idempotency-Key until they get a 202, and poll their jobs.

They record the answers, which the checks compare with the final state of the service.
"""

from __future__ import annotations

import base64
import random
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

from hiresfix.states import TERMINAL
from tests.chaos.environment import HTTP
from tests.conftest import png

SIDES = (16, 24, 40, 64)
"""Of the images: from a twentieth of a second of work to a second."""
SCALE = 2
PAUSE_SECONDS = 0.5
"""Pause before a submission is repeated."""
POLL_SECONDS = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class AcceptedJob:
    """An acknowledged job: the API key that submitted it, and the sides of its source."""

    job: str
    api_key: str
    side: int


@dataclass(slots=True)
class CallerRecord:
    """The answers that the callers got."""

    accepted: dict[str, AcceptedJob] = field(default_factory=dict)
    """By Idempotency-Key."""
    answers: Counter[str] = field(default_factory=Counter)
    replayed: int = 0
    final_states: dict[str, str] = field(default_factory=dict)
    """By job id, the first terminal state that a caller saw."""
    errors: list[str] = field(default_factory=list)
    """Answers that no caller may ever get."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, answer: httpx.Response | None) -> None:
        with self.lock:
            self.answers["no answer" if answer is None else str(answer.status_code)] += 1
            if answer is not None and (answer.status_code == 500 or answer.status_code == 404):
                self.errors.append(f"{answer.request.method} {answer.request.url.path}: {answer.status_code}")


def sign_up(url: str, name: str) -> str:
    """Create a team and return its API key."""
    answer = HTTP.post(f"{url}/v2/signup", json={"email": f"{name}@example.com", "teamName": name})
    assert answer.status_code == 201, answer.text
    return str(answer.json()["apiKey"])


def submit(url: str, hook: str, keys: Sequence[str], number: int, record: CallerRecord, stop: threading.Event) -> None:
    """Submit job `number`, repeating the request until it is accepted."""
    chance = random.Random(number)
    side, api_key, once = chance.choice(SIDES), keys[number % len(keys)], f"chaos-{number}"
    image = base64.b64encode(png(side, side, seed=number)).decode()
    body = {
        "model": "faithful-upscale",
        "faithfulUpscaleParams": {
            "image": f"data:image/png;base64,{image}",
            "content": "anime",
            "scale_factor": str(SCALE),
        },
        "webhookUrl": hook,
    }
    headers = {"X-API-Key": api_key, "Idempotency-Key": once}
    while not stop.is_set():
        try:
            answer = HTTP.post(f"{url}/v2/images/upscale", json=body, headers=headers)
        except httpx.TransportError:
            answer = None
        record.add(answer)
        if answer is not None and answer.status_code == 202:
            with record.lock:
                record.replayed += "Idempotency-Replayed" in answer.headers
                record.accepted[once] = AcceptedJob(job=answer.json()["jobId"], api_key=api_key, side=side)
            return
        if answer is not None and answer.status_code < 500 and answer.status_code != 429:
            record.errors.append(f"submission {number}: {answer.status_code} {answer.text}")
            return
        time.sleep(PAUSE_SECONDS)


def get_job(url: str, accepted_job: AcceptedJob) -> httpx.Response | None:
    try:
        return HTTP.get(f"{url}/v2/jobs/{accepted_job.job}", headers={"X-API-Key": accepted_job.api_key})
    except httpx.TransportError:
        return None


def watch(url: str, record: CallerRecord, stop: threading.Event) -> None:
    """Poll the unfinished jobs, as published clients do, until `stop` is set."""
    while not stop.wait(POLL_SECONDS):
        with record.lock:
            waiting = [
                accepted_job for accepted_job in record.accepted.values() if accepted_job.job not in record.final_states
            ]
        for accepted_job in waiting:
            answer = get_job(url, accepted_job)
            record.add(answer)
            if answer is None or answer.status_code != 200 or stop.is_set():
                break
            job: dict[str, Any] = answer.json()
            if job["status"] in TERMINAL:
                record.final_states[accepted_job.job] = job["status"]
