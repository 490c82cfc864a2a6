"""Errors that only a client can meet; all others are raised as the server's own class of `hiresfix.errors`.

HiresfixError
├── ServerUnreachable   no complete answer, in all attempts
├── UnexpectedAnswer    the answer is not one of this API
├── BadSignature        a webhook without a valid signature
└── JobEnded            a job that was waited for has no result; `job` is its last known state
    ├── JobFailed
    ├── JobCancelled
    └── JobTimedOut     not over yet: it goes on
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hiresfix.errors import HiresfixError

if TYPE_CHECKING:
    from hiresfix.client.values import Job


class ServerUnreachable(HiresfixError):
    """No complete answer came from the server in all attempts."""

    code = "server_unreachable"
    status = 503
    retryable = True


class UnexpectedAnswer(HiresfixError):
    """The answer is not one of this API, or one of a release that this one does not understand."""

    code = "unexpected_answer"
    status = 502


class BadSignature(HiresfixError):
    """The signature of a webhook is missing, wrong or too old. Answer 400 and do not trust its content."""

    code = "bad_signature"
    status = 400


class JobEnded(HiresfixError):
    """A job that was waited for has no result. `job` is its last known state."""

    def __init__(self, message: str, job: Job) -> None:
        super().__init__(message)
        self.job = job


class JobFailed(JobEnded):
    """The job failed and its credits were refunded. Message, `reason` and `params` are the server's."""

    code = "job_failed"


class JobCancelled(JobEnded):
    """The job was cancelled and its credits were refunded."""

    code = "job_cancelled"


class JobTimedOut(JobEnded):
    """The job was not over within the given time. It goes on; `client.jobs.get(error.job.id)` finds it again."""

    code = "job_timed_out"
    retryable = True
