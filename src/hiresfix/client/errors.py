"""What only a client can meet; everything else is raised as the server's own class of `hiresfix.errors`.

HiresfixError
├── ServerUnreachable   no answer, as often as was asked
├── UnexpectedAnswer    what answered does not speak the contract
├── BadSignature        a webhook that is not from who it says
└── JobEnded            a job that was waited for has no result; `job` is what the server says of it
    ├── JobFailed
    ├── JobCancelled
    └── JobTimedOut     not yet: it goes on
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hiresfix.errors import HiresfixError

if TYPE_CHECKING:
    from hiresfix.client.values import Job


class ServerUnreachable(HiresfixError):
    """No answer came from the server, or not all of one, as often as it was asked."""

    code = "server_unreachable"
    status = 503
    retryable = True


class UnexpectedAnswer(HiresfixError):
    """What answered is no server of this contract, or a newer one than this release understands."""

    code = "unexpected_answer"
    status = 502


class BadSignature(HiresfixError):
    """A webhook whose signature is missing, wrong or too old. Answer it 400 and believe nothing it says."""

    code = "bad_signature"
    status = 400


class JobEnded(HiresfixError):
    """A job that was waited for has no result. `job` is what the server says of it."""

    def __init__(self, message: str, job: Job) -> None:
        super().__init__(message)
        self.job = job


class JobFailed(JobEnded):
    """The job failed; its credits are back. The message is the server's."""

    code = "job_failed"


class JobCancelled(JobEnded):
    """Somebody cancelled the job; its credits are back."""

    code = "job_cancelled"


class JobTimedOut(JobEnded):
    """The job was not over within the time given. It goes on; `client.jobs.get(error.job.id)` finds it again."""

    code = "job_timed_out"
    retryable = True
