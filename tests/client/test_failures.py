"""Every error of a server, rendered as the server does and read as the client does, is the same error."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from hiresfix import errors, wire
from hiresfix.client import UnexpectedAnswer
from hiresfix.client.effects import Head
from hiresfix.client.failures import error_of
from hiresfix.errors import HiresfixError

MORE: dict[type[HiresfixError], dict[str, Any]] = {
    errors.InvalidRequest: {"details": {"clarityUpscaleParams.scale_factor": ["Expected one of 1, 2, 4, 8"]}},
    errors.InsufficientCredits: {"required": 3, "available": 1},
    errors.OverBudget: {"budget": 10, "spent": 9, "required": 3},
    errors.RateLimited: {"message": "Too many jobs are waiting. Wait for some.", "retry_after": 7},
    errors.Unavailable: {"message": "The disk is nearly full. Try later.", "retry_after": 30},
    errors.RequestTimedOut: {"seconds": 20},
}
"""What errors are made of that hold more than a message."""
WITHOUT_MESSAGE = (errors.InvalidJobId, errors.RequestTooLarge, errors.NotOffered, errors.MethodNotAllowed)


def kinds(of: type[HiresfixError] = HiresfixError) -> Iterator[type[HiresfixError]]:
    yield of
    for kind in of.__subclasses__():
        if kind.__module__ == errors.__name__:
            yield from kinds(kind)


KINDS = list(kinds())


def made(kind: type[HiresfixError]) -> HiresfixError:
    if kind in WITHOUT_MESSAGE:
        return kind()
    return kind(**MORE.get(kind, {"message": "It broke. Mend it."}))


def answered(error: HiresfixError) -> tuple[Head, bytes]:
    headers = {name.lower(): value for name, value in wire.error_headers(error).items()} | {"x-request-id": "r-1"}
    return Head(status=error.status, headers=headers), json.dumps(wire.error_body(error, request_id="r-1")).encode()


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_it_is_raised_as_the_class_it_was_with_all_it_said(kind: type[HiresfixError]) -> None:
    error = made(kind)
    found = error_of(*answered(error))
    if kind.status == HiresfixError.status:  # the cause is for the operator's log
        assert (type(found), found.message) == (HiresfixError, "Internal server error")
    else:
        assert type(found) is next(other for other in KINDS if other.code == kind.code)
        assert vars(found) == {**vars(error), "request_id": "r-1"}
        assert str(found) == str(error)
    assert found.request_id == "r-1"


@pytest.mark.parametrize("code", ["job_failed", "server_unreachable", "of_a_newer_release", 7, None])
def test_a_code_that_no_server_sends_or_this_release_does_not_know_leaves_the_status(code: object) -> None:
    body = json.dumps({"error": "It broke.", "code": code}).encode()
    assert type(error_of(Head(status=409, headers={}), body)) is errors.Conflict
    assert type(error_of(Head(status=418, headers={}), body)) is UnexpectedAnswer
