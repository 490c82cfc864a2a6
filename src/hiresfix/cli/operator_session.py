"""What the operator's commands share: a transaction beside the running server, who acts, tables."""

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

    from hiresfix.server import supervisor as serving
    from hiresfix.server.database import schema
    from hiresfix.server.database.pool import Database
    from hiresfix.server.settings import load_settings

    settings = load_settings()

    async def run(url: str) -> T:
        async with Database(url, max_size=1) as database, database.transaction() as tx:
            return await work(tx)

    with serving.database(settings) as url:
        if not settings.database_url:
            schema.migrate(url)  # ours alone, so nobody else decides when
        else:
            schema.require_schema(url)
        return asyncio.run(run(url))


def the_fleet() -> tuple[list[worker_registry.Member], int]:
    """The workers that are remembered, and how many jobs wait that none of those that are up can hold."""
    from hiresfix.server.jobs import scheduler, worker_registry

    async def look(tx: Tx) -> tuple[list[worker_registry.Member], int]:
        return await worker_registry.members(tx), await scheduler.stranded(tx)

    return in_transaction(look)


async def team_called(tx: Tx, wanted: str | None) -> UUID:
    """The team with this id or name; None is the first one."""
    from hiresfix.server.accounts import authentication, teams

    return (await teams.find_team(tx, wanted)).id if wanted else await authentication.first_team(tx)


def operator() -> str:
    """Who runs this command, for the audit log and the ledger: `os:` and the name of the machine's user."""
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


def table(headings: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> None:
    """Print rows under headings, each cell as it is."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    printed = Table(box=None, pad_edge=False)
    for heading in headings:
        printed.add_column(heading, no_wrap=True)
    for row in rows:
        printed.add_row(*map(Text, row))  # as it is: an error text or a licence may hold brackets
    # Into a pipe or a file nothing is cut off; on a terminal its width rules.
    Console(width=None if sys.stdout.isatty() else 1000).print(printed)


def moment(when: datetime | None) -> str:
    return when.strftime("%Y-%m-%d %H:%M:%S") if when else ""
