"""`hiresfix credits`, `jobs`, `workers`: the operator's view. Works beside a running server."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

import typer

from hiresfix.cli.operator_session import in_transaction, moment, operator, table, team_called, the_fleet

if TYPE_CHECKING:
    from hiresfix.server.database.pool import Tx
    from hiresfix.server.jobs import worker_registry

Team = Annotated[str | None, typer.Option(help="Its id or name; default: the first team.")]

credits = typer.Typer(no_args_is_help=True, help="Credits of a team.")
jobs = typer.Typer(no_args_is_help=True, help="Jobs of all teams.")


@credits.command("grant")
def grant(
    amount: Annotated[int, typer.Argument(min=1, help="Whole credits.")],
    reason: Annotated[str, typer.Option(help="Noted in the ledger.")] = "granted by the operator",
    team: Team = None,
) -> None:
    """Give the team credits; prints the new balance."""
    from hiresfix.server.accounts import audit_log
    from hiresfix.server.billing import ledger

    async def give(tx: Tx) -> int:
        of = await team_called(tx, team)
        await audit_log.note(tx, actor=operator(), action="credits.grant", subject=of, amount=amount, reason=reason)
        return await ledger.grant(tx, of, amount, actor=operator(), reason=reason)

    typer.echo(in_transaction(give))


@credits.command("adjust", context_settings={"ignore_unknown_options": True})
def adjust(
    amount: Annotated[int, typer.Argument(help="Whole credits; negative takes them away.")],
    reason: Annotated[str, typer.Option(help="Noted in the ledger.")] = "adjusted by the operator",
    team: Team = None,
) -> None:
    """Correct the balance, down to zero at most; prints the new one."""
    from hiresfix.errors import InsufficientCredits
    from hiresfix.server.accounts import audit_log
    from hiresfix.server.billing import ledger

    async def correct(tx: Tx) -> int:
        of = await team_called(tx, team)
        await audit_log.note(tx, actor=operator(), action="credits.adjust", subject=of, amount=amount, reason=reason)
        return await ledger.adjust(tx, of, amount, actor=operator(), reason=reason)

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
    from hiresfix.server.accounts import audit_log
    from hiresfix.server.billing import ledger

    async def give_back(tx: Tx) -> bool:
        done = await ledger.refund_by_hand(tx, job, actor=operator(), reason=reason)
        if done:
            await audit_log.note(tx, actor=operator(), action="credits.refund", subject=job, reason=reason)
        return done

    typer.echo(f"Refunded {job}." if in_transaction(give_back) else f"{job} was refunded before.")


@credits.command("balance")
def balance(team: Team = None) -> None:
    """Print the team's balance."""
    from hiresfix.server.billing import ledger

    async def look(tx: Tx) -> int:
        return await ledger.balance(tx, await team_called(tx, team))

    typer.echo(in_transaction(look))


@credits.command("ledger")
def show_ledger(limit: Annotated[int, typer.Option(min=1)] = 50, team: Team = None) -> None:
    """Show the newest entries."""
    from hiresfix.server.billing import ledger

    async def look(tx: Tx) -> Any:
        return await ledger.history(tx, await team_called(tx, team), limit=limit)

    rows = [
        (str(entry.id), moment(entry.created_at), entry.kind, f"{entry.amount:+d}", entry.actor, entry.reason,
         str(entry.job_id or ""))
        for entry in in_transaction(look)
    ]  # fmt: skip
    table(("id", "when", "kind", "credits", "actor", "reason", "job"), rows)


@jobs.command("list")
def list_jobs(limit: Annotated[int, typer.Option(min=1)] = 20) -> None:
    """Show the newest jobs."""
    from hiresfix.server.jobs import lifecycle as domain

    rows = [
        (str(job.id), job.model, job.state, f"{job.progress} %", str(job.attempt), moment(job.created_at),
         job.error or "")
        for job in in_transaction(lambda tx: domain.newest(tx, limit=limit))
    ]  # fmt: skip
    table(("id", "model", "state", "progress", "attempt", "created", "error"), rows)


@jobs.command("show")
def show_job(job: Annotated[UUID, typer.Argument(help="The job's id.")]) -> None:
    """Print everything about one job as JSON."""
    from dataclasses import asdict

    from hiresfix.server.jobs import lifecycle as domain

    found = in_transaction(lambda tx: domain.get(tx, job))
    typer.echo(json.dumps(asdict(found), indent=2, default=str, ensure_ascii=False))


@jobs.command("cancel")
def cancel_job(job: Annotated[UUID, typer.Argument(help="The job's id.")]) -> None:
    """End a job that is not over yet and give its credits back. A worker that runs it stops within a second or so."""
    from hiresfix.server.accounts import audit_log
    from hiresfix.server.database.task_queue import Queue
    from hiresfix.server.jobs import lifecycle as domain
    from hiresfix.server.settings import load_settings

    settings = load_settings()
    queue = Queue(settings.database_url or "")  # enqueues on the transaction's connection, so needs none of its own

    async def cancel(tx: Tx) -> None:
        await audit_log.note(tx, actor=operator(), action="job.cancel", subject=job)
        await domain.cancel(tx, queue, job, public_url=settings.public_url)

    in_transaction(cancel)
    typer.echo(f"Cancelled {job}.")


def workers() -> None:
    """List the workers that are up, or were within the last hour, and what they can hold."""
    members, stranded = the_fleet()
    rows = [
        (member.name, _state(member), member.device, f"{member.memory_bytes / 1e9:.1f} GB",
         f"{member.most_megapixels:g}", ", ".join(member.tags), member.version, moment(member.started_at),
         moment(member.seen_at))
        for member in members
    ]  # fmt: skip
    table(("name", "state", "device", "memory", "megapixels", "tags", "version", "started", "seen"), rows)
    if stranded:
        typer.echo(f"Jobs that none of them can hold: {stranded}. Start a worker that can, or cancel them.", err=True)


def _state(member: worker_registry.Member) -> str:
    if not member.alive:
        return "silent"
    return "draining" if member.draining else "up"
