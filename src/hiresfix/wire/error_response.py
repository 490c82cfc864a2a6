"""Write error answers: bodies, headers and the caller's rate limits (contract.md 11 and 12).

Besides the English sentence a body carries what is needed to show it in another language: `reason` and `params` of a
sentence from `hiresfix.messages`, for validation errors one entry of `problems` per sentence. A body of status 500
never tells what went wrong inside.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from hiresfix.errors import HiresfixError, InsufficientCredits, InvalidRequest, OverBudget, RateLimited, Unavailable
from hiresfix.messages import Message
from hiresfix.models.catalog import CatalogModel


def error_body(error: HiresfixError, *, request_id: str) -> dict[str, Any]:
    """Return the body of an error answer. The cause of a status 500 is in the log only."""
    if error.status == HiresfixError.status:
        return {"error": "Internal server error", "code": HiresfixError.code, "requestId": request_id}
    body: dict[str, Any] = {"error": error.message}
    if isinstance(error, InvalidRequest):
        body |= {"details": error.details, "problems": list(_problems(error))}
    elif isinstance(error, InsufficientCredits):
        body |= {"creditsRequired": error.required, "creditsAvailable": error.available}
    elif isinstance(error, OverBudget):
        body |= {"creditsRequired": error.required, "monthlyBudget": error.budget, "monthlySpent": error.spent}
    if error.reason:
        body |= {"reason": error.reason, "params": dict(error.params)}
    return {**body, "code": error.code, "requestId": request_id}


def _problems(error: InvalidRequest) -> Iterator[dict[str, Any]]:
    for path, sentences in error.details.items():
        for sentence in sentences:
            reason, params = (sentence.reason, sentence.params) if isinstance(sentence, Message) else (None, {})
            yield {"path": path, "message": sentence, "reason": reason, "params": dict(params)}


def error_headers(error: HiresfixError) -> dict[str, str]:
    """Return the headers of an error answer: `Retry-After` in whole seconds where trying again can help."""
    return {"Retry-After": str(error.retry_after)} if isinstance(error, RateLimited | Unavailable) else {}


def quota_headers(name: str, *, limit: int, seconds: int, remaining: int, wait: int, now: float) -> dict[str, str]:
    """Return the headers that tell a caller's rate limit.

    Both forms in use: `X-RateLimit-*`, and the fields of draft-ietf-httpapi-ratelimit-headers-10. With a moving window
    the reset is the time at which the oldest request leaves the window.

    Args:
        name: The quota's name.
        limit: Requests allowed in any `seconds`.
        seconds: Length of the window.
        remaining: Requests left in the current window.
        wait: Seconds until one more is allowed.
        now: Unix time.
    """
    return {
        "X-RateLimit-Limit": str(limit),
        "X-RateLimit-Remaining": str(remaining),
        "X-RateLimit-Reset": str(math.ceil(now) + wait),
        "RateLimit": f'"{name}";r={remaining};t={wait}',
        "RateLimit-Policy": f'"{name}";q={limit};w={seconds}',
    }


def invalid_param(model: CatalogModel, name: str, message: str) -> InvalidRequest:
    """Return the error for a parameter whose problem shows only later, such as an image that cannot be fetched."""
    return InvalidRequest({f"{model.params_key}.{model.param(name).name}": [message]})
