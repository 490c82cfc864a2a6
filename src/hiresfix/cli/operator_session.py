"""Helpers of the operator's commands: a transaction while the server runs, the actor, tables."""

from __future__ import annotations

import os
import sys
from collections.abc import Awaitable, Callable, Iterable
from datetime import datetime
from typing import TYPE_CHECKING, TypeVar
from uuid import UUID

if TYPE_CHECKING:
    from hiresfix.server.database.pool import Tx
    from hiresfix.server.jobs import worker_registry

T = TypeVar("T")


def in_transaction(work: Callable[[Tx], Awaitable[T]]) -> T:
    """Run `work` in one transaction on the operator's or the embedded database."""
    import asyncio

    from hiresfix.server import supervisor
    from hiresfix.server.database import schema
    from hiresfix.server.database.pool import Database
    from hiresfix.server.settings import load_settings

    settings = load_settings()

    async def run(url: str) -> T:
        async with Database(url, max_size=1) as database, database.transaction() as tx:
            return await work(tx)

    with supervisor.database(settings) as url:
        if not settings.database_url:
            schema.migrate(url)  # no other process uses it, so nobody else would
        else:
            schema.require_schema(url)
        return asyncio.run(run(url))


def read_workers() -> tuple[list[worker_registry.RegisteredWorker], int]:
    """Return the known workers, and the number of waiting jobs that no running worker can take."""
    from hiresfix.server.jobs import scheduler, worker_registry

    async def read(tx: Tx) -> tuple[list[worker_registry.RegisteredWorker], int]:
        return await worker_registry.list_workers(tx), await scheduler.count_stranded(tx)

    return in_transaction(read)


async def team_id(tx: Tx, name: str | None) -> UUID:
    """Return the id of the team with this id or name; None means the first team."""
    from hiresfix.server.accounts import authentication, teams

    return (await teams.find_team(tx, name)).id if name else await authentication.first_team(tx)


def operator() -> str:
    """Return the actor for the audit log and the ledger: `os:` and the name of the operating system's user."""
    if sys.platform == "win32":
        import getpass

        return f"os:{getpass.getuser()}"
    import pwd

    try:
        name = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # a container's user may have no name
        name = str(os.getuid())
    sudo = os.environ.get("SUDO_USER")
    return f"os:{name} for {sudo}" if sudo and sudo != name else f"os:{name}"


def print_table(headings: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> None:
    """Print rows under headings."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=None, pad_edge=False)
    for heading in headings:
        grid.add_column(heading, no_wrap=True)
    for row in rows:
        grid.add_row(*map(Text, row))  # Text: brackets in cells are not markup
    # A terminal has its own width; a pipe or a file gets whole lines.
    Console(width=None if sys.stdout.isatty() else 1000).print(grid)


def timestamp(when: datetime | None) -> str:
    return when.strftime("%Y-%m-%d %H:%M:%S") if when else ""
