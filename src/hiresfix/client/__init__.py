"""Client of the API: the SDK behind `hiresfix.Client` and `hiresfix.AsyncClient`.

`flows`, `job_watch` and `downloads` are the protocol, without I/O. `drivers` run them, blocking or awaited. `client`
and `async_client` are what people call; `values`, `failures` and `result` are what comes back. Needs httpx; neither the
server nor the engine has to be installed.
"""

import warnings
from typing import TYPE_CHECKING, Any

from hiresfix.client.async_client import AsyncClient, AsyncJobHandle
from hiresfix.client.client import Client, JobHandle
from hiresfix.client.errors import (
    BadSignature,
    JobCancelled,
    JobEnded,
    JobFailed,
    JobTimedOut,
    ServerUnreachable,
    UnexpectedAnswer,
)
from hiresfix.client.inputs import Image
from hiresfix.client.result import Result
from hiresfix.client.retry import RetryPolicy
from hiresfix.client.values import Job, Me, ModelInfo, Params, Preview, Upload, WebhookEvent

__all__ = [
    "AsyncClient",
    "AsyncJobHandle",
    "BadSignature",
    "Client",
    "Image",
    "Job",
    "JobCancelled",
    "JobEnded",
    "JobFailed",
    "JobHandle",
    "JobTimedOut",
    "Me",
    "ModelInfo",
    "Params",
    "Preview",
    "Result",
    "RetryPolicy",
    "ServerUnreachable",
    "UnexpectedAnswer",
    "Upload",
    "WebhookEvent",
]

_RENAMED = {"Model": "ModelInfo", "Terms": "RetryPolicy"}
"""Names of release 0.1, which go on working for now."""

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        if name not in _RENAMED:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        new = _RENAMED[name]
        warnings.warn(f"{name} is now called {new}. Change the name.", DeprecationWarning, stacklevel=2)
        return globals()[new]
