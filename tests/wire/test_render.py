"""The public contract, writing: jobs, webhook bodies, errors and our own addresses."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from uuid import UUID

import pytest

from hiresfix import messages, wire
from hiresfix.errors import (
    ConfigurationError,
    Conflict,
    EngineFailed,
    HiresfixError,
    InsufficientCredits,
    InvalidRequest,
    RateLimited,
    Unauthenticated,
    Unavailable,
    WeightsError,
)
from hiresfix.models.catalog import CLARITY, FAITHFUL

IMAGE = "https://example.com/input.jpg"
PARAMS = "clarityUpscaleParams"

JOB = UUID("b2c3d4e5-f6a7-8901-bcde-f23456789012")
PUBLIC = "https://up.example"
START = datetime(2026, 3, 15, 10, 0, 0, tzinfo=UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    id: UUID = JOB
    state: str = "QUEUED"
    model: str = "clarity-upscale"
    progress: int = 0
    cost: int = 3
    error: str | None = None
    error_reason: str | None = None
    error_params: dict[str, Any] | None = None
    webhook_status: str | None = None
    created_at: datetime = START
    started_at: datetime | None = None
    completed_at: datetime | None = None
    expired: bool = False
    input: dict[str, Any] = field(default_factory=lambda: {"image": IMAGE, "scale_factor": 2})
    seed: int | None = None
    width: int | None = None
    height: int | None = None
    metadata: dict[str, Any] | None = None
    output_format: str = "png"


DONE = Row(
    state="COMPLETED",
    progress=97,
    webhook_status="delivered",
    started_at=START + timedelta(seconds=1),
    completed_at=START + timedelta(seconds=32, microseconds=5999),
    seed=7,
    width=2048,
    height=1536,
    metadata={"engine": "ganprior"},
    output_format="jpg",
)
RESULT = {"images": [f"{PUBLIC}/files/images/{JOB}-1.jpg"]}


def test_completed_job_shows_every_field() -> None:
    assert wire.job(DONE, public_url=PUBLIC + "/", kept_for=timedelta(days=1)) == {
        "id": str(JOB),
        "status": "COMPLETED",
        "model": "clarity-upscale",
        "progress": 100,
        "result": RESULT,
        "error": None,
        "errorReason": None,
        "errorParams": None,
        "creditCost": 3,
        "webhookStatus": "delivered",
        "createdAt": "2026-03-15T10:00:00.000Z",
        "startedAt": "2026-03-15T10:00:01.000Z",
        "completedAt": "2026-03-15T10:00:32.005Z",
        "expired": False,
        "expiresAt": "2026-03-16T10:00:32.005Z",
        "queuePosition": None,
        "etaSeconds": None,
        "seed": 7,
        "width": 2048,
        "height": 1536,
        "metadata": {"engine": "ganprior"},
        "input": {"image": IMAGE, "scale_factor": 2},
    }


def test_list_omits_only_the_input() -> None:
    full = wire.job(DONE, public_url=PUBLIC)
    listed = wire.job(DONE, public_url=PUBLIC, with_input=False)
    assert full.keys() - listed.keys() == {"input"}
    assert listed.items() <= full.items()


@pytest.mark.parametrize(
    ("row", "shown"),
    [
        (
            Row(),
            {"progress": 0, "result": None, "error": None, "creditCost": 3, "completedAt": None, "webhookStatus": None},
        ),
        (Row(progress=40), {"progress": 40}),  # lost its worker and waits again
        (Row(state="PROCESSING", progress=0), {"progress": 1, "result": None, "creditCost": 3}),
        (Row(state="PROCESSING", progress=45), {"progress": 45}),
        (Row(state="PROCESSING", progress=100), {"progress": 99}),
        (replace(DONE, expired=True), {"expired": True, "result": RESULT, "progress": 100}),
        (
            replace(DONE, state="FAILED", error="Out of memory"),
            {
                "progress": 0,
                "result": None,
                "error": "Out of memory",
                "errorReason": None,
                "errorParams": None,
                "creditCost": 0,
                "completedAt": "2026-03-15T10:00:32.005Z",
            },
        ),
        (replace(DONE, state="FAILED"), {"error": "Job failed", "errorReason": None, "errorParams": None}),
        (
            replace(DONE, state="FAILED", error="Bad PNG", error_reason="image_damaged", error_params={"kind": "PNG"}),
            {"error": "Bad PNG", "errorReason": "image_damaged", "errorParams": {"kind": "PNG"}},
        ),
        (
            replace(DONE, state="FAILED", error="Stopped", error_reason="job_interrupted", error_params={}),
            {"error": "Stopped", "errorReason": "job_interrupted", "errorParams": {}},
        ),
        (
            replace(DONE, state="CANCELLED", error="inner detail", error_reason="inner", error_params={"a": 1}),
            {"error": "Job was cancelled", "errorReason": None, "errorParams": None},
        ),
        (
            replace(DONE, state="CANCELLED", error="inner detail"),
            {"status": "CANCELLED", "progress": 0, "result": None, "error": "Job was cancelled", "creditCost": 0},
        ),
        (Row(error="an attempt failed"), {"error": None}),
    ],
)
def test_job_fields_are_consistent(row: Row, shown: dict[str, object]) -> None:
    assert shown.items() <= wire.job(row, public_url=PUBLIC).items()


def test_timestamps_are_utc_milliseconds() -> None:
    seoul = timezone(timedelta(hours=9))
    assert wire.timestamp(datetime(2026, 3, 15, 19, 0, 0, 999_999, tzinfo=seoul)) == "2026-03-15T10:00:00.999Z"
    with pytest.raises(ValueError, match="aware"):
        wire.timestamp(datetime(2026, 3, 15))  # noqa: DTZ001  # the mistake under test


def test_accepted_body_has_two_fields() -> None:
    assert wire.accepted(JOB) == {"jobId": str(JOB), "status": "QUEUED"}
    assert wire.accepted(JOB, "COMPLETED")["status"] == "COMPLETED"
    assert wire.accepted(JOB, "CANCELLED")["status"] == "FAILED"


def test_webhook_bodies_follow_the_contract() -> None:
    assert json.loads(wire.hook_body("completed", DONE, PUBLIC)) == {
        "event": "completed",
        "type": "completed",
        "jobId": str(JOB),
        "status": "COMPLETED",
        "progress": 100,
        "result": RESULT,
        "model": "clarity-upscale",
        "creditCost": 3,
        "completedAt": "2026-03-15T10:00:32.005Z",
    }
    failed = replace(
        DONE,
        state="FAILED",
        error="Zu wenig Speicher für 8×",
        error_reason="scale_too_large",
        error_params={"scale": 8},
    )
    assert json.loads(wire.hook_body("failed", failed, PUBLIC)) == {
        "event": "failed",
        "type": "failed",
        "jobId": str(JOB),
        "status": "FAILED",
        "error": "Zu wenig Speicher für 8×",
        "errorReason": "scale_too_large",
        "errorParams": {"scale": 8},
        "model": "clarity-upscale",
        "creditCost": 0,
        "completedAt": "2026-03-15T10:00:32.005Z",
    }
    assert json.loads(wire.hook_body("progress", Row(state="PROCESSING", progress=45), PUBLIC)) == {
        "event": "progress",
        "type": "progress",
        "jobId": str(JOB),
        "status": "PROCESSING",
        "progress": 45,
        "model": "clarity-upscale",
    }


def test_cancelled_job_sends_failed_event() -> None:
    sent = json.loads(wire.hook_body("failed", replace(DONE, state="CANCELLED"), PUBLIC))
    assert (sent["event"], sent["status"], sent["error"]) == ("failed", "CANCELLED", "Job was cancelled")


@pytest.mark.parametrize(
    ("event", "state"), [("completed", "FAILED"), ("failed", "QUEUED"), ("progress", "COMPLETED"), ("x", "QUEUED")]
)
def test_contradicting_webhook_is_refused(event: str, state: str) -> None:
    with pytest.raises(ValueError, match=state):
        wire.hook_body(event, replace(DONE, state=state), PUBLIC)


# --- our own addresses


@pytest.mark.parametrize("extension", ["png", "jpg", "webp"])
def test_result_path_round_trips(extension: str) -> None:
    path = wire.result_path(JOB, extension)
    assert path == f"/files/images/{JOB}-1.{extension}"
    assert wire.parse_result_path(path) == (JOB, extension)
    assert wire.own_result(PUBLIC + path, PUBLIC) == JOB


@pytest.mark.parametrize(
    "path",
    [
        *("", "/", f"/files/images/{JOB}-2.png", f"/files/images/{JOB}-1.gif", f"/files/images/{JOB}-1.png\n"),
        *(f"/files/images/{str(JOB).upper()}-1.png", f"/files/images/../{JOB}-1.png", f"/files/images/{JOB.hex}-1.png"),
        *(f"/files/uploads/{JOB}.png", f"x/files/images/{JOB}-1.png", f"/files/images/{JOB}-1xpng"),
    ],
)
def test_other_paths_are_not_results(path: str) -> None:
    assert wire.parse_result_path(path) is None


@pytest.mark.parametrize(
    ("url", "public_url", "own"),
    [
        ("https://UP.example:443{path}?sig=1#x", PUBLIC, True),
        ("https://up.example{path}", "https://up.example:443/", True),
        ("http://127.0.0.1:8000{path}", "http://127.0.0.1:8000", True),
        ("http://up.example{path}", PUBLIC, False),
        ("https://up.example:8443{path}", PUBLIC, False),
        ("https://up.example.evil.example{path}", PUBLIC, False),
        ("https://up.example@evil.example{path}", PUBLIC, False),
        ("https://x:y@up.example{path}", PUBLIC, False),
        ("https://evil.example/?https://up.example{path}", PUBLIC, False),
        ("https://up.example:bad{path}", PUBLIC, False),
        ("{path}", PUBLIC, False),
        ("data:image/png;base64,QUJD", PUBLIC, False),
    ],
)
def test_own_url_needs_our_origin(url: str, public_url: str, own: bool) -> None:
    job_id = wire.own_result(url.format(path=wire.result_path(JOB, "png")), public_url)
    assert job_id == (JOB if own else None)


# --- errors and headers


@pytest.mark.parametrize(
    ("error", "shown", "headers"),
    [
        (
            InvalidRequest({"model": ("Required",)}),
            {
                "error": "Validation error",
                "code": "validation_error",
                "details": {"model": ["Required"]},
                "problems": [{"path": "model", "message": "Required", "reason": None, "params": {}}],
            },
            {},
        ),
        (
            InvalidRequest({"limit": (messages.EXPECTED_PAGE_SIZE(minimum=1, maximum=100), "Other")}),
            {
                "error": "Validation error",
                "code": "validation_error",
                "details": {"limit": ["Must be an integer between 1 and 100", "Other"]},
                "problems": [
                    {
                        "path": "limit",
                        "message": "Must be an integer between 1 and 100",
                        "reason": "expected_page_size",
                        "params": {"minimum": 1, "maximum": 100},
                    },
                    {"path": "limit", "message": "Other", "reason": None, "params": {}},
                ],
            },
            {},
        ),
        (
            Conflict(messages.TOO_MANY_KEYS(count=100)),
            {
                "error": "This team has 100 keys already. Revoke some that are not used.",
                "code": "conflict",
                "reason": "too_many_keys",
                "params": {"count": 100},
            },
            {},
        ),
        (
            EngineFailed(messages.IMAGE_DAMAGED(kind="secret")),
            {"error": "Internal server error", "code": "internal_error"},
            {},
        ),
        (
            InsufficientCredits(required=3, available=1),
            {
                "error": "Insufficient credits",
                "code": "insufficient_credits",
                "creditsRequired": 3,
                "creditsAvailable": 1,
            },
            {},
        ),
        (Unauthenticated("API key is required"), {"error": "API key is required", "code": "unauthenticated"}, {}),
        (Conflict("Already finished"), {"error": "Already finished", "code": "conflict"}, {}),
        (RateLimited(retry_after=0), {"error": "Rate limit exceeded", "code": "rate_limited"}, {"Retry-After": "1"}),
        (
            Unavailable(retry_after=7),
            {"error": "Service temporarily unavailable", "code": "unavailable"},
            {"Retry-After": "7"},
        ),
        (HiresfixError("secret path"), {"error": "Internal server error", "code": "internal_error"}, {}),
        (WeightsError("secret path"), {"error": "Internal server error", "code": "internal_error"}, {}),
        (ConfigurationError("secret path"), {"error": "Internal server error", "code": "internal_error"}, {}),
    ],
)
def test_error_bodies_and_headers(error: HiresfixError, shown: dict[str, Any], headers: object) -> None:
    assert wire.error_body(error, request_id="req-1") == {**shown, "requestId": "req-1"}
    assert wire.error_headers(error) == headers


def test_late_problems_use_the_models_path() -> None:
    assert wire.invalid_param(CLARITY, "scale_factor", "Use 2.").details == {f"{PARAMS}.scale_factor": ["Use 2."]}
    assert wire.invalid_param(FAITHFUL, "image", "404").details == {"faithfulUpscaleParams.image": ["404"]}
