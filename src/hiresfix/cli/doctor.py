"""`hiresfix doctor`: what is installed, what it found, and what to do about the rest."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import typer

from hiresfix import __version__
from hiresfix.errors import HiresfixError

Verdict = Literal["ok", "note", "problem"]
_MARK = {"ok": ("✓", "green"), "note": ("•", "yellow"), "problem": ("✗", "red")}


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One line: what was looked at, how it is, and for a problem what to do."""

    what: str
    verdict: Verdict
    text: str


def doctor() -> None:
    """Check this installation; exit code 1 if something must be mended."""
    findings = [
        finding for check in (_software, _engine, _weights, _database, _workers, _storage) for finding in _run(check)
    ]
    for finding in findings:
        mark, colour = _MARK[finding.verdict]
        typer.secho(f"{mark} ", fg=colour, nl=False)
        typer.echo(f"{finding.what:<10} {finding.text}")
    if any(finding.verdict == "problem" for finding in findings):
        raise typer.Exit(1)


def _run(check: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """A check that cannot even run is a finding too."""
    try:
        yield from check()
    except ModuleNotFoundError as error:
        name = check.__name__.lstrip("_")
        yield Finding(what=name, verdict="note", text=f"not checked: {error.name} is not installed")
    except HiresfixError as error:
        yield Finding(what=check.__name__.lstrip("_"), verdict="problem", text=error.message)


def _software() -> Iterator[Finding]:
    yield Finding(what="hiresfix", verdict="ok", text=f"{__version__} on Python {platform.python_version()}")
    for extra, module in (("server", "fastapi"), ("engine", "torch")):
        if importlib.util.find_spec(module):
            yield Finding(what=extra, verdict="ok", text=f"installed ({module} {importlib.metadata.version(module)})")
        else:
            yield Finding(what=extra, verdict="note", text=f"not installed; pip install 'hiresfix[{extra}]'")


def _engine() -> Iterator[Finding]:
    from hiresfix.engine.upscaler import Upscaler

    upscaler = Upscaler()
    dtype = str(upscaler.dtype).removeprefix("torch.")
    yield Finding(what="device", verdict="ok", text=f"{upscaler.device}, {dtype}")


def _weights() -> Iterator[Finding]:
    from hiresfix.engine.weights import superres_files
    from hiresfix.models.catalog import WEIGHTS

    for entry in WEIGHTS:
        try:
            superres_files.locate(entry)
        except HiresfixError as error:
            yield Finding(what="weights", verdict="problem", text=error.message)
        else:
            yield Finding(what="weights", verdict="ok", text=f"{entry.name} ({entry.licence})")


def _database() -> Iterator[Finding]:
    import psycopg

    from hiresfix.server.database import embedded, schema
    from hiresfix.server.settings import load_settings

    settings = load_settings()
    if settings.database_url:
        try:
            with psycopg.connect(settings.database_url, connect_timeout=5) as connection:
                version = connection.info.server_version // 10000
        except psycopg.ProgrammingError:
            yield Finding(what="database", verdict="problem", text=schema.NO_URL)
        except psycopg.OperationalError as error:
            text = f"does not answer: {str(error).strip()}. Check HIRESFIX_DATABASE_URL and that the server is up."
            yield Finding(what="database", verdict="problem", text=text)
        else:
            yield Finding(what="database", verdict="ok", text=f"PostgreSQL {version} at HIRESFIX_DATABASE_URL")
    elif embedded.is_running(settings.home):
        yield Finding(what="database", verdict="ok", text=f"embedded PostgreSQL, running, under {settings.home}")
    else:
        text = f"embedded PostgreSQL under {settings.home}, not running; `hiresfix serve` starts it"
        yield Finding(what="database", verdict="note", text=text)


def _workers() -> Iterator[Finding]:
    from hiresfix.cli.operator_session import the_fleet
    from hiresfix.server.database import embedded
    from hiresfix.server.settings import load_settings

    settings = load_settings()
    if not settings.database_url and not embedded.is_running(settings.home):
        return
    members, stranded = the_fleet()
    up = [member for member in members if member.alive]
    text = ", ".join(f"{member.name} on {member.device}" for member in up) or "none is up; start `hiresfix worker`"
    yield Finding(what="workers", verdict="ok" if up else "note", text=text)
    if stranded:
        text = f"{stranded} jobs wait that none of them can hold; see `hiresfix workers`, and start one that can"
        yield Finding(what="workers", verdict="problem", text=text)


def _storage() -> Iterator[Finding]:
    import asyncio

    from hiresfix.server.settings import load_settings
    from hiresfix.server.storage import Storage

    settings = load_settings()
    text = settings.storage_location.partition("?")[0]
    storage = Storage.open(settings.storage_location)
    if not storage.is_there:
        text += ", empty: the first picture makes it a store. If yours should be there, mount it"
        yield Finding(what="storage", verdict="note", text=text)
        return
    asyncio.run(storage.check())
    if text.startswith("file:"):
        text += f", {shutil.disk_usage(settings.home).free / 1e9:.1f} GB free"
    yield Finding(what="storage", verdict="ok", text=text)
