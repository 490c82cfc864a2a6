"""Errors, rendered by the server and read by the client, keep their class and content."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from hiresfix import errors, messages, wire
from hiresfix.client import JobFailed, UnexpectedAnswer
from hiresfix.client.effects import ResponseHead
from hiresfix.client.failures import error_of, require_result
from hiresfix.client.values import Job
from hiresfix.errors import HiresfixError
from hiresfix.messages import Message

ARGUMENTS: dict[type[HiresfixError], dict[str, Any]] = {
    errors.InvalidRequest: {"details": {"clarityUpscaleParams.scale_factor": ["Expected one of 1, 2, 4, 8"]}},
    errors.InsufficientCredits: {"required": 3, "available": 1},
    errors.OverBudget: {"budget": 10, "spent": 9, "required": 3},
    errors.RateLimited: {"message": "Too many jobs are waiting. Wait for some.", "retry_after": 7},
    errors.Unavailable: {"message": "The disk is nearly full. Try later.", "retry_after": 30},
    errors.RequestTimedOut: {"seconds": 20},
}
"""Arguments of errors that hold more than a message."""
WITHOUT_MESSAGE = (errors.InvalidJobId, errors.RequestTooLarge, errors.NotOffered, errors.MethodNotAllowed)


def error_classes(base: type[HiresfixError] = HiresfixError) -> Iterator[type[HiresfixError]]:
    yield base
    for kind in base.__subclasses__():
        if kind.__module__ == errors.__name__:
            yield from error_classes(kind)


KINDS = list(error_classes())


def build(kind: type[HiresfixError]) -> HiresfixError:
    if kind in WITHOUT_MESSAGE:
        return kind()
    return kind(**ARGUMENTS.get(kind, {"message": "It broke. Fix it."}))


def render(error: HiresfixError) -> tuple[ResponseHead, bytes]:
    headers = {name.lower(): value for name, value in wire.error_headers(error).items()} | {"x-request-id": "r-1"}
    return ResponseHead(status=error.status, headers=headers), json.dumps(
        wire.error_body(error, request_id="r-1")
    ).encode()


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_errors_survive_the_wire(kind: type[HiresfixError]) -> None:
    error = build(kind)
    parsed = error_of(*render(error))
    if kind.status == HiresfixError.status:  # the cause stays in the operator's log
        assert (type(parsed), parsed.message) == (HiresfixError, "Internal server error")
    else:
        assert type(parsed) is next(other for other in KINDS if other.code == kind.code)
        assert vars(parsed) == {**vars(error), "request_id": "r-1"}
        assert str(parsed) == str(error)
        assert (parsed.reason, parsed.params) == (error.reason, error.params)
    assert parsed.request_id == "r-1"


def test_reason_and_params_survive_the_wire() -> None:
    parsed = error_of(*render(errors.Conflict(messages.JOB_ALREADY_OVER(state="COMPLETED"))))
    assert (type(parsed), parsed.reason, parsed.params) == (errors.Conflict, "job_already_over", {"state": "COMPLETED"})


def test_problems_give_details_their_reasons() -> None:
    details = {"limit": [messages.EXPECTED_PAGE_SIZE(minimum=1, maximum=100), "Something else"]}
    parsed = error_of(*render(errors.InvalidRequest(details)))
    assert isinstance(parsed, errors.InvalidRequest)
    assert parsed.details == details
    translatable, plain = parsed.details["limit"]
    assert isinstance(translatable, Message)
    assert (translatable.reason, translatable.params) == ("expected_page_size", {"minimum": 1, "maximum": 100})
    assert not isinstance(plain, Message)


@pytest.mark.parametrize("reason", [None, "", 7, ["x"]])
@pytest.mark.parametrize("params", [None, [1], {"nested": {}}])
def test_unreadable_reason_is_ignored(reason: object, params: object) -> None:
    problem = {"path": "a", "message": "Bad", "reason": reason, "params": params}
    body = {"error": "It broke.", "reason": reason, "params": params, "details": {"a": ["Bad"]}, "problems": [problem]}
    for status in (409, 400):
        parsed = error_of(ResponseHead(status=status, headers={}), json.dumps(body).encode())
        assert (parsed.reason, parsed.params) == (None, {})
    assert vars(parsed)["details"] == {"a": ["Bad"]}


@pytest.mark.parametrize("params", [None, [1], {"nested": {}}])
def test_unreadable_params_leave_the_reason(params: object) -> None:
    body = json.dumps({"error": "It broke.", "reason": "broken", "params": params}).encode()
    parsed = error_of(ResponseHead(status=409, headers={}), body)
    assert (parsed.message, parsed.reason, parsed.params) == ("It broke.", "broken", {})


@pytest.mark.parametrize(
    ("fields", "reason", "params"),
    [
        ({"errorReason": "image_damaged", "errorParams": {"kind": "PNG"}}, "image_damaged", {"kind": "PNG"}),
        ({"errorReason": None, "errorParams": None}, None, {}),
        ({}, None, {}),  # of an earlier release
    ],
)
def test_failed_job_raises_its_reason(fields: dict[str, Any], reason: str | None, params: dict[str, Any]) -> None:
    job = Job.read({"id": "7", "status": "FAILED", "error": "It broke.", **fields})
    with pytest.raises(JobFailed) as caught:
        require_result(job)
    assert (caught.value.message, caught.value.reason, caught.value.params) == ("It broke.", reason, params)
    assert caught.value.job is job


@pytest.mark.parametrize("code", ["job_failed", "server_unreachable", "of_a_newer_release", 7, None])
def test_unknown_code_falls_back_to_status(code: object) -> None:
    body = json.dumps({"error": "It broke.", "code": code}).encode()
    assert type(error_of(ResponseHead(status=409, headers={}), body)) is errors.Conflict
    assert type(error_of(ResponseHead(status=418, headers={}), body)) is UnexpectedAnswer
