"""Storage keys: where the store keeps results, sources and uploads."""

from __future__ import annotations

from uuid import UUID

RESULTS = "results/"
SOURCES = "sources/"
UPLOADS = "uploads/"


def result_prefix(job: UUID) -> str:
    """Return the folder of all attempts' results for a job, as `Storage.list` and `delete_prefix` take it."""
    return f"{RESULTS}{job}"


def result(job: UUID, token: UUID) -> str:
    """Return the key under which the attempt with this token stores its result."""
    return f"{result_prefix(job)}/{token}"


def source(job: UUID) -> str:
    """Return the key of a job's input.

    Each job has a copy of its own, so deleting one never takes another job's input.
    """
    return f"{SOURCES}{job}"


def upload(upload_id: UUID) -> str:
    """Return the key of an uploaded image."""
    return f"{UPLOADS}{upload_id}"
