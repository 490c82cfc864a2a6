"""Talking to a server: the SDK behind `hiresfix.Client` and `hiresfix.AsyncClient`.

`flows`, `waiting` and `downloads` are the protocol, without I/O; `drivers` run them, blocking or awaited; `client` is
what people call; `values`, `failures` and `result` are what comes back. Needs httpx, and neither a server nor an engine
installed.
"""

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
from hiresfix.client.flows import Terms
from hiresfix.client.inputs import Image
from hiresfix.client.result import Result
from hiresfix.client.values import Job, Me, Model, Params, Preview, Upload, WebhookEvent

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
    "Model",
    "Params",
    "Preview",
    "Result",
    "ServerUnreachable",
    "Terms",
    "UnexpectedAnswer",
    "Upload",
    "WebhookEvent",
]
