"""`hiresfix doctor`: check the installation, and say what to do about problems."""

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
class CheckResult:
    """One line of the report: what was checked, the verdict, and for a problem what to do."""

    subject: str
    verdict: Verdict
    text: str


def doctor() -> None:
    """Check this installation; exit code 1 if there is a problem."""
    results = [
        result for check in (_software, _engine, _weights, _database, _workers, _storage) for result in _run(check)
    ]
    for result in results:
        mark, colour = _MARK[result.verdict]
        typer.secho(f"{mark} ", fg=colour, nl=False)
        typer.echo(f"{result.subject:<10} {result.text}")
    if any(result.verdict == "problem" for result in results):
        raise typer.Exit(1)


def _run(check: Callable[[], Iterator[CheckResult]]) -> Iterator[CheckResult]:
    """Yield the results of a check; a check that cannot run is a result too."""
    try:
        yield from check()
    except ModuleNotFoundError as error:
        name = check.__name__.lstrip("_")
        yield CheckResult(subject=name, verdict="note", text=f"not checked: {error.name} is not installed")
    except HiresfixError as error:
        yield CheckResult(subject=check.__name__.lstrip("_"), verdict="problem", text=error.message)


def _software() -> Iterator[CheckResult]:
    yield CheckResult(subject="hiresfix", verdict="ok", text=f"{__version__} on Python {platform.python_version()}")
    for extra, module in (("server", "fastapi"), ("engine", "torch")):
        if importlib.util.find_spec(module):
            yield CheckResult(
                subject=extra, verdict="ok", text=f"installed ({module} {importlib.metadata.version(module)})"
            )
        else:
            yield CheckResult(subject=extra, verdict="note", text=f"not installed; pip install 'hiresfix[{extra}]'")


def _engine() -> Iterator[CheckResult]:
    from hiresfix.engine.upscaler import Upscaler

    upscaler = Upscaler()
    dtype = str(upscaler.dtype).removeprefix("torch.")
    yield CheckResult(subject="device", verdict="ok", text=f"{upscaler.device}, {dtype}")


def _weights() -> Iterator[CheckResult]:
    from hiresfix.engine.weights import superres_files
    from hiresfix.models.catalog import WEIGHTS

    for entry in WEIGHTS:
        try:
            superres_files.locate(entry)
        except HiresfixError as error:
            yield CheckResult(subject="weights", verdict="problem", text=error.message)
        else:
            yield CheckResult(subject="weights", verdict="ok", text=f"{entry.name} ({entry.licence})")


def _database() -> Iterator[CheckResult]:
    import psycopg

    from hiresfix.server.database import embedded, schema
    from hiresfix.server.settings import load_settings

    settings = load_settings()
    if settings.database_url:
        try:
            with psycopg.connect(settings.database_url, connect_timeout=5) as connection:
                version = connection.info.server_version // 10000
        except psycopg.ProgrammingError:
            yield CheckResult(subject="database", verdict="problem", text=schema.INVALID_URL)
        except psycopg.OperationalError as error:
            text = f"does not answer: {str(error).strip()}. Check HIRESFIX_DATABASE_URL and that the server is running."
            yield CheckResult(subject="database", verdict="problem", text=text)
        else:
            yield CheckResult(subject="database", verdict="ok", text=f"PostgreSQL {version} at HIRESFIX_DATABASE_URL")
    elif embedded.is_running(settings.home):
        yield CheckResult(subject="database", verdict="ok", text=f"embedded PostgreSQL, running, under {settings.home}")
    else:
        text = f"embedded PostgreSQL under {settings.home}, not running; `hiresfix serve` starts it"
        yield CheckResult(subject="database", verdict="note", text=text)


def _workers() -> Iterator[CheckResult]:
    from hiresfix.cli.operator_session import read_workers
    from hiresfix.server.database import embedded
    from hiresfix.server.settings import load_settings

    settings = load_settings()
    if not settings.database_url and not embedded.is_running(settings.home):
        return
    workers, stranded = read_workers()
    up = [worker for worker in workers if worker.alive]
    text = ", ".join(f"{worker.name} on {worker.device}" for worker in up) or "none is up; start `hiresfix worker`"
    yield CheckResult(subject="workers", verdict="ok" if up else "note", text=text)
    if stranded:
        text = f"{stranded} jobs wait that no running worker can take; see `hiresfix workers`, and start one that can"
        yield CheckResult(subject="workers", verdict="problem", text=text)


def _storage() -> Iterator[CheckResult]:
    import asyncio

    from hiresfix.server.settings import load_settings
    from hiresfix.server.storage import Storage

    settings = load_settings()
    text = settings.storage_location.partition("?")[0]
    storage = Storage.open(settings.storage_location)
    if not storage.exists:
        text += ", empty; it is set up with the first image. If your files should be there, mount it"
        yield CheckResult(subject="storage", verdict="note", text=text)
        return
    asyncio.run(storage.check())
    if text.startswith("file:"):
        text += f", {shutil.disk_usage(settings.home).free / 1e9:.1f} GB free"
    yield CheckResult(subject="storage", verdict="ok", text=text)
