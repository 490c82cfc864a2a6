"""Resume log of `hiresfix upscale`: a second run skips finished images and resumes unfinished ones.

A small SQLite file of the user (`XDG_STATE_HOME`), shared by runs at the same time. A result counts as finished if it
and its source have not changed since, and the settings are the same. For a server it also keeps the idempotency key,
stored before the submission: after an interruption at any moment, the next run gets the same job and is charged once. A
log that cannot be opened or written remembers nothing, and is not an error.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sqlite3
import sys
import threading
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hiresfix.cli.inputs import UpscaleTask

_SCHEMA = """
    create table if not exists pictures (
        target   text primary key,
        source   text not null,
        settings text not null,
        key      text not null,
        job      text,
        made     text
    )
"""


def state_folder() -> Path:
    """Return the folder where programs of this user keep their state."""
    if folder := os.environ.get("XDG_STATE_HOME"):
        return Path(folder) / "hiresfix"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "hiresfix"
    return Path.home() / ".local" / "state" / "hiresfix"


def fingerprint(settings: Mapping[str, Any]) -> str:
    """Return a hash that is the same for equal settings."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class UnfinishedTask:
    """Idempotency key of an unfinished task, and its job once that is known."""

    key: str
    job: str | None = None


class ResumeLog:
    """Resume log in one file. Several threads and processes may use it at once."""

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        self._database: sqlite3.Connection | None = None
        with contextlib.suppress(OSError, sqlite3.Error):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(path, timeout=10, isolation_level=None, check_same_thread=False)
            self._database.execute(_SCHEMA)

    @classmethod
    def of_user(cls) -> ResumeLog:
        return cls(state_folder() / "pictures.sqlite3")

    def close(self) -> None:
        if self._database is not None:
            self._database.close()

    def is_finished(self, task: UpscaleTask, settings: str) -> bool:
        """Return True if the result exists and was made of the unchanged source with these settings."""
        row, result = self._row(task), _state(task.target)
        if row is None or result is None:
            return False
        return row[:2] == (_identity(task.source), settings) and row[4] == result

    def source_of(self, path: Path) -> Path | None:
        """Return the source of a file, if an earlier run made it and it has not changed since."""
        for cursor in self._execute("select source, made from pictures where target = ?", str(path.resolve())):
            row: tuple[str, str | None] | None = cursor.fetchone()
            if row is not None and row[1] is not None and row[1] == _state(path):
                return Path(row[0].rsplit(" ", 2)[0])
        return None

    def may_replace(self, path: Path) -> bool:
        """Return True if there is no file, or one that an earlier run made and nobody changed since."""
        if not path.exists():
            return True
        for cursor in self._execute("select made from pictures where target = ?", str(path.resolve())):
            row: tuple[str | None] | None = cursor.fetchone()
            return row is not None and row[0] in (None, _state(path))
        return False

    def resume(self, task: UpscaleTask, settings: str) -> UnfinishedTask:
        """Return the unfinished task with the same source and settings, or start a new one."""
        row = self._row(task)
        if row is not None and row[:2] == (_identity(task.source), settings) and row[4] is None:
            return UnfinishedTask(key=row[2], job=row[3])
        return self.restart(task, settings)

    def restart(self, task: UpscaleTask, settings: str) -> UnfinishedTask:
        """Start a new task and forget the old one."""
        unfinished = UnfinishedTask(key=str(uuid.uuid4()))
        self._write(
            "insert or replace into pictures (target, source, settings, key) values (?, ?, ?, ?)",
            str(task.target.resolve()), _identity(task.source), settings, unfinished.key,
        )  # fmt: skip
        return unfinished

    def record_job(self, task: UpscaleTask, job: str) -> None:
        self._write("update pictures set job = ? where target = ?", job, str(task.target.resolve()))

    def record_result(self, task: UpscaleTask) -> None:
        self._write("update pictures set made = ? where target = ?", _state(task.target), str(task.target.resolve()))

    def forget(self, task: UpscaleTask) -> None:
        """Delete the entry, so that the next run starts a new task."""
        self._write("delete from pictures where target = ?", str(task.target.resolve()))

    def _row(self, task: UpscaleTask) -> tuple[str, str, str, str | None, str | None] | None:
        query = "select source, settings, key, job, made from pictures where target = ?"
        for cursor in self._execute(query, str(task.target.resolve())):
            row: tuple[str, str, str, str | None, str | None] | None = cursor.fetchone()
            return row
        return None

    def _write(self, statement: str, *values: str | None) -> None:
        for _ in self._execute(statement, *values):
            pass

    def _execute(self, statement: str, *values: str | None) -> Iterator[sqlite3.Cursor]:
        """Yield the cursor, or nothing if the log cannot be used."""
        if self._database is None:
            return
        with self._lock, contextlib.suppress(sqlite3.Error):
            yield self._database.execute(statement, values)


def _identity(path: Path) -> str:
    return f"{path.resolve()} {_state(path)}"


def _state(path: Path) -> str | None:
    """Return size and time of change of the file; None if it does not exist."""
    try:
        status = path.stat()
    except OSError:
        return None
    return f"{status.st_size} {status.st_mtime_ns}"
