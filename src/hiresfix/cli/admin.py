"""`hiresfix keys`, `credits`, `jobs`: the operator's view. Works beside a running server."""

from __future__ import annotations

import json
import sys
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, TypeVar
from uuid import UUID

import typer

if TYPE_CHECKING:
    from hiresfix.server.db import Tx

T = TypeVar("T")

keys = typer.Typer(no_args_is_help=True, help="API keys.")
credits = typer.Typer(no_args_is_help=True, help="Credits of the first team.")
jobs = typer.Typer(no_args_is_help=True, help="Jobs of all teams.")


def in_transaction(work: Callable[[Tx], Awaitable[T]]) -> T:
    """Run `work` in one transaction on the operator's or the embedded database."""
    import asyncio

    from hiresfix.errors import ConfigurationError
    from hiresfix.server import config, db
    from hiresfix.server import serve as serving
    from hiresfix.server.db import Database

    settings = config.load()

    async def run(url: str) -> T:
        async with Database(url, max_size=1) as database, database.transaction() as tx:
            return await work(tx)

    with serving.database(settings) as url:
        if not settings.database_url:
            db.migrate(url)  # ours alone, so nobody else decides when
        elif not db.schema_is_current(url):
            raise ConfigurationError("The database's schema is not this release's. Run `hiresfix migrate` first.")
        return asyncio.run(run(url))


@keys.command("create")
def create_key(name: Annotated[str, typer.Argument(help="What the key is for.")]) -> None:
    """Make a key and print it, alone, on standard output. It is never shown again."""
    from hiresfix.server import accounts, config

    async def create(tx: Tx) -> str:
        first = await accounts.bootstrap(tx, free_credits=config.load().free_credits, key_name=name)
        return first or await accounts.create_key(tx, name, user=await accounts.first_owner(tx))

    typer.echo(in_transaction(create))


@keys.command("list")
def list_keys() -> None:
    """Show all keys, without the keys themselves."""
    from hiresfix.server import accounts

    rows = [
        (
            str(key.id),
            key.name,
            f"{key.prefix}…",
            key.team_name,
            "revoked" if key.revoked_at else "active" if key.active else "inactive",
            "" if key.monthly_budget is None else str(key.monthly_budget),
            _moment(key.created_at),
            _moment(key.last_used_at) or "never",
        )
        for key in in_transaction(accounts.keys)
    ]
    _table(("id", "name", "key", "team", "state", "monthly budget", "created", "last used"), rows)


@keys.command("revoke")
def revoke_key(key: Annotated[str, typer.Argument(help="Its id, name or prefix.")]) -> None:
    """Revoke a key at once. Jobs it submitted go on, and their webhooks are still signed with it."""
    from hiresfix.server import accounts

    revoked = in_transaction(lambda tx: accounts.revoke_key(tx, key))
    typer.echo(f"Revoked {revoked.name} ({revoked.id}).")


@keys.command("budget")
def set_budget(
    key: Annotated[str, typer.Argument(help="Its id, name or prefix.")],
    credits: Annotated[str, typer.Argument(metavar="N|none", help="Whole credits a calendar month (UTC).")],
) -> None:
    """Bound what a key may spend in a month. Refunds give back to the month of their charge."""
    from hiresfix.server import accounts

    if credits != "none" and not (credits.isascii() and credits.isdigit()):
        raise typer.BadParameter(f"{credits!r} is neither whole credits nor none.", param_hint="N|none")
    monthly = None if credits == "none" else int(credits)
    changed = in_transaction(lambda tx: accounts.set_budget(tx, key, monthly))
    may = "as much as its team has" if monthly is None else f"{monthly} credits a month"
    typer.echo(f"{changed.name} ({changed.id}) may spend {may}.")


@credits.command("grant")
def grant(
    amount: Annotated[int, typer.Argument(min=1, help="Whole credits.")],
    reason: Annotated[str, typer.Option(help="Noted in the ledger.")] = "granted by the operator",
) -> None:
    """Give the team credits; prints the new balance."""
    from hiresfix.server import accounts
    from hiresfix.server import credits as ledger

    async def give(tx: Tx) -> int:
        return await ledger.grant(tx, await accounts.first_team(tx), amount, actor="operator", reason=reason)

    typer.echo(in_transaction(give))


@credits.command("adjust", context_settings={"ignore_unknown_options": True})
def adjust(
    amount: Annotated[int, typer.Argument(help="Whole credits; negative takes them away.")],
    reason: Annotated[str, typer.Option(help="Noted in the ledger.")] = "adjusted by the operator",
) -> None:
    """Correct the balance, down to zero at most; prints the new one."""
    from hiresfix.errors import InsufficientCredits
    from hiresfix.server import accounts
    from hiresfix.server import credits as ledger

    async def correct(tx: Tx) -> int:
        return await ledger.adjust(tx, await accounts.first_team(tx), amount, actor="operator", reason=reason)

    if not amount:
        raise typer.BadParameter("0 changes nothing.", param_hint="AMOUNT")
    try:
        typer.echo(in_transaction(correct))
    except InsufficientCredits as error:
        raise typer.BadParameter(f"The team has only {error.available} credits.", param_hint="AMOUNT") from error


@credits.command("refund")
def refund(
    job: Annotated[UUID, typer.Argument(help="The job's id.")],
    reason: Annotated[str, typer.Option(help="Noted in the ledger.")] = "refunded by the operator",
) -> None:
    """Give a job's price back to its team, once however often it is said. The job and its result stay."""
    from hiresfix.server import credits as ledger

    done = in_transaction(lambda tx: ledger.refund_by_hand(tx, job, actor="operator", reason=reason))
    typer.echo(f"Refunded {job}." if done else f"{job} was refunded before.")


@credits.command("balance")
def balance() -> None:
    """Print the team's balance."""
    from hiresfix.server import accounts
    from hiresfix.server import credits as ledger

    async def look(tx: Tx) -> int:
        return await ledger.balance(tx, await accounts.first_team(tx))

    typer.echo(in_transaction(look))


@credits.command("ledger")
def show_ledger(limit: Annotated[int, typer.Option(min=1)] = 50) -> None:
    """Show the newest entries."""
    from hiresfix.server import accounts
    from hiresfix.server import credits as ledger

    async def look(tx: Tx) -> Any:
        return await ledger.history(tx, await accounts.first_team(tx), limit=limit)

    rows = [
        (str(entry.id), _moment(entry.created_at), entry.kind, f"{entry.amount:+d}", entry.actor, entry.reason,
         str(entry.job_id or ""))
        for entry in in_transaction(look)
    ]  # fmt: skip
    _table(("id", "when", "kind", "credits", "actor", "reason", "job"), rows)


@jobs.command("list")
def list_jobs(limit: Annotated[int, typer.Option(min=1)] = 20) -> None:
    """Show the newest jobs."""
    from hiresfix.server import jobs as domain

    rows = [
        (str(job.id), job.model, job.state, f"{job.progress} %", str(job.attempt), _moment(job.created_at),
         job.error or "")
        for job in in_transaction(lambda tx: domain.newest(tx, limit=limit))
    ]  # fmt: skip
    _table(("id", "model", "state", "progress", "attempt", "created", "error"), rows)


@jobs.command("show")
def show_job(job: Annotated[UUID, typer.Argument(help="The job's id.")]) -> None:
    """Print everything about one job as JSON."""
    from dataclasses import asdict

    from hiresfix.server import jobs as domain

    found = in_transaction(lambda tx: domain.get(tx, job))
    typer.echo(json.dumps(asdict(found), indent=2, default=str, ensure_ascii=False))


def _moment(when: Any) -> str:
    return when.strftime("%Y-%m-%d %H:%M:%S") if when else ""


def _table(headings: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for heading in headings:
        table.add_column(heading, no_wrap=True)
    for row in rows:
        table.add_row(*map(Text, row))  # as it is: an error text may hold brackets
    # Into a pipe or a file nothing is cut off; on a terminal its width rules.
    Console(width=None if sys.stdout.isatty() else 1000).print(table)
