"""What `hiresfix upscale` has made and what it was at: so that a second run skips the one and goes on with the other.

A small SQLite file of the user's own (`XDG_STATE_HOME`), shared by runs at the same time. A result counts as made when
it and its source are still the files they were and the settings are the same. For a server it also keeps, from before
the submission on, the idempotency key: whoever is interrupted at any moment asks for the same job again and is charged
once. A journal that cannot be opened or written is a journal that remembers nothing, and no error.
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

from hiresfix.cli.inputs import Errand

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
    """Where programs of this user keep what they remember."""
    if given := os.environ.get("XDG_STATE_HOME"):
        return Path(given) / "hiresfix"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "hiresfix"
    return Path.home() / ".local" / "state" / "hiresfix"


def fingerprint(settings: Mapping[str, Any]) -> str:
    """The same for equal settings."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What is under way: the key it was or will be submitted with, and the job, once it is known."""

    key: str
    job: str | None = None


class Journal:
    """May be used by several threads and processes at once."""

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        self._database: sqlite3.Connection | None = None
        with contextlib.suppress(OSError, sqlite3.Error):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(path, timeout=10, isolation_level=None, check_same_thread=False)
            self._database.execute(_SCHEMA)

    @classmethod
    def of_user(cls) -> Journal:
        return cls(state_folder() / "pictures.sqlite3")

    def close(self) -> None:
        if self._database is not None:
            self._database.close()

    def is_made(self, errand: Errand, settings: str) -> bool:
        """Whether the result is there, made of this very source with these settings."""
        row = self._row(errand)
        made = _state(errand.target)
        return row is not None and made is not None and row[:2] == (_named(errand.source), settings) and row[4] == made

    def origin(self, path: Path) -> Path | None:
        """The source that this very file was made of, if it was made here."""
        for rows in self._asked("select source, made from pictures where target = ?", str(path.resolve())):
            row: tuple[str, str | None] | None = rows.fetchone()
            if row is not None and row[1] is not None and row[1] == _state(path):
                return Path(row[0].rsplit(" ", 2)[0])
        return None

    def may_replace(self, path: Path) -> bool:
        """Whether nothing is there but what was made or begun here: nobody else's file, and none changed since."""
        if not path.exists():
            return True
        for rows in self._asked("select made from pictures where target = ?", str(path.resolve())):
            row: tuple[str | None] | None = rows.fetchone()
            return row is not None and row[0] in (None, _state(path))
        return False

    def begin(self, errand: Errand, settings: str) -> Entry:
        """What was begun and not finished with the same source and settings, or a new entry."""
        row = self._row(errand)
        if row is not None and row[:2] == (_named(errand.source), settings) and row[4] is None:
            return Entry(key=row[2], job=row[3])
        return self.begin_anew(errand, settings)

    def begin_anew(self, errand: Errand, settings: str) -> Entry:
        """A new entry, whatever was there."""
        entry = Entry(key=str(uuid.uuid4()))
        self._write(
            "insert or replace into pictures (target, source, settings, key) values (?, ?, ?, ?)",
            str(errand.target.resolve()), _named(errand.source), settings, entry.key,
        )  # fmt: skip
        return entry

    def note_job(self, errand: Errand, job: str) -> None:
        self._write("update pictures set job = ? where target = ?", job, str(errand.target.resolve()))

    def note_made(self, errand: Errand) -> None:
        self._write(
            "update pictures set made = ? where target = ?", _state(errand.target), str(errand.target.resolve())
        )

    def forget(self, errand: Errand) -> None:
        """The next run begins anew."""
        self._write("delete from pictures where target = ?", str(errand.target.resolve()))

    def _row(self, errand: Errand) -> tuple[str, str, str, str | None, str | None] | None:
        query = "select source, settings, key, job, made from pictures where target = ?"
        for rows in self._asked(query, str(errand.target.resolve())):
            row: tuple[str, str, str, str | None, str | None] | None = rows.fetchone()
            return row
        return None

    def _write(self, statement: str, *values: str | None) -> None:
        for _ in self._asked(statement, *values):
            pass

    def _asked(self, statement: str, *values: str | None) -> Iterator[sqlite3.Cursor]:
        """The cursor, if the journal can be asked."""
        if self._database is None:
            return
        with self._lock, contextlib.suppress(sqlite3.Error):
            yield self._database.execute(statement, values)


def _named(path: Path) -> str:
    return f"{path.resolve()} {_state(path)}"


def _state(path: Path) -> str | None:
    """Differs after every change of the file that a clock can see; None if there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return f"{found.st_size} {found.st_mtime_ns}"
