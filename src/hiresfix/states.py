"""States of a job: one home for the server, the wire format and the client."""

from __future__ import annotations

from enum import StrEnum


class JobState(StrEnum):
    """State of a job, spelled as in the database and on the wire."""

    QUEUED = "QUEUED"
    PROCESSING = "PROCESSING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"


TERMINAL = (JobState.COMPLETED, JobState.FAILED, JobState.CANCELLED)
"""States that a job never leaves."""
