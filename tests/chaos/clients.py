"""Callers who know only the API: they submit with an Idempotency-Key until they are told 202, and watch their jobs.

What they were promised is written down here, to be held against what the service has in the end.
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

from tests.chaos.stage import HTTP
from tests.conftest import png

SIDES = (16, 24, 40, 64)
"""Of the pictures: from a twentieth of a second of work to a second."""
SCALE = 2
PAUSE_SECONDS = 0.5
"""Before a submission is repeated."""
POLL_SECONDS = 2.0
TERMINAL = ("COMPLETED", "FAILED", "CANCELLED")


@dataclass(frozen=True, slots=True, kw_only=True)
class Promise:
    """A job that was acknowledged: whose it is, and the size that its result will have."""

    job: str
    api_key: str
    side: int


@dataclass(slots=True)
class Notes:
    """What the callers were answered, and when they had to ask again."""

    promises: dict[str, Promise] = field(default_factory=dict)
    """By Idempotency-Key."""
    answers: Counter[str] = field(default_factory=Counter)
    replayed: int = 0
    ends: dict[str, str] = field(default_factory=dict)
    """The first terminal state that a caller saw of a job."""
    broken: list[str] = field(default_factory=list)
    """Answers that no caller should ever get."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, answer: httpx.Response | None) -> None:
        with self.lock:
            self.answers["no answer" if answer is None else str(answer.status_code)] += 1
            if answer is not None and (answer.status_code == 500 or answer.status_code == 404):
                self.broken.append(f"{answer.request.method} {answer.request.url.path}: {answer.status_code}")


def sign_up(url: str, name: str) -> str:
    """A new team's key."""
    answer = HTTP.post(f"{url}/v2/signup", json={"email": f"{name}@example.com", "teamName": name})
    assert answer.status_code == 201, answer.text
    return str(answer.json()["apiKey"])


def submit(url: str, hook: str, keys: Sequence[str], number: int, notes: Notes, stop: threading.Event) -> None:
    """Job `number`, whatever it takes."""
    chance = random.Random(number)
    side, api_key, once = chance.choice(SIDES), keys[number % len(keys)], f"chaos-{number}"
    picture = base64.b64encode(png(side, side, seed=number)).decode()
    body = {
        "model": "faithful-upscale",
        "faithfulUpscaleParams": {
            "image": f"data:image/png;base64,{picture}",
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
        notes.note(answer)
        if answer is not None and answer.status_code == 202:
            with notes.lock:
                notes.replayed += "Idempotency-Replayed" in answer.headers
                notes.promises[once] = Promise(job=answer.json()["jobId"], api_key=api_key, side=side)
            return
        if answer is not None and answer.status_code < 500 and answer.status_code != 429:
            notes.broken.append(f"submission {number}: {answer.status_code} {answer.text}")
            return
        time.sleep(PAUSE_SECONDS)


def look(url: str, promise: Promise) -> httpx.Response | None:
    try:
        return HTTP.get(f"{url}/v2/jobs/{promise.job}", headers={"X-API-Key": promise.api_key})
    except httpx.TransportError:
        return None


def watch(url: str, notes: Notes, stop: threading.Event) -> None:
    """Poll the jobs that are not over, as published clients do, until told to stop."""
    while not stop.wait(POLL_SECONDS):
        with notes.lock:
            waiting = [promise for promise in notes.promises.values() if promise.job not in notes.ends]
        for promise in waiting:
            answer = look(url, promise)
            notes.note(answer)
            if answer is None or answer.status_code != 200 or stop.is_set():
                break
            job: dict[str, Any] = answer.json()
            if job["status"] in TERMINAL:
                notes.ends[promise.job] = job["status"]
