"""`hiresfix credits`, `jobs`, `workers`: commands of the operator. Works while the server runs."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

import typer

from hiresfix import messages
from hiresfix.cli.operator_session import in_transaction, operator, print_table, read_workers, team_id, timestamp

if TYPE_CHECKING:
    from hiresfix.server.database.pool import Tx
    from hiresfix.server.jobs import worker_registry

TeamOption = Annotated[str | None, typer.Option(help="Id or name of the team. Default: the first team.")]

credits = typer.Typer(no_args_is_help=True, help="Manage the credits of a team.")
jobs = typer.Typer(no_args_is_help=True, help="Manage the jobs of all teams.")


@credits.command("grant")
def grant(
    amount: Annotated[int, typer.Argument(min=1, help="Number of credits.")],
    reason: Annotated[str, typer.Option(help="Reason, for the ledger.")] = messages.GRANTED_BY_OPERATOR.text,
    team: TeamOption = None,
) -> None:
    """Give credits to a team and print the new balance."""
    from hiresfix.server.accounts import audit_log
    from hiresfix.server.billing import ledger

    async def give(tx: Tx) -> int:
        target = await team_id(tx, team)
        await audit_log.record(
            tx, actor=operator(), action="credits.grant", subject=target, amount=amount, reason=reason
        )
        return await ledger.grant(tx, target, amount, actor=operator(), reason=reason)

    typer.echo(in_transaction(give))


@credits.command("adjust", context_settings={"ignore_unknown_options": True})
def adjust(
    amount: Annotated[int, typer.Argument(help="Number of credits; a negative one takes credits away.")],
    reason: Annotated[str, typer.Option(help="Reason, for the ledger.")] = messages.ADJUSTED_BY_OPERATOR.text,
    team: TeamOption = None,
) -> None:
    """Correct a team's balance, never below zero, and print the new one."""
    from hiresfix.errors import InsufficientCredits
    from hiresfix.server.accounts import audit_log
    from hiresfix.server.billing import ledger

    async def correct(tx: Tx) -> int:
        target = await team_id(tx, team)
        await audit_log.record(
            tx, actor=operator(), action="credits.adjust", subject=target, amount=amount, reason=reason
        )
        return await ledger.adjust(tx, target, amount, actor=operator(), reason=reason)

    if not amount:
        raise typer.BadParameter("0 changes nothing. Give another number.", param_hint="AMOUNT")
    try:
        typer.echo(in_transaction(correct))
    except InsufficientCredits as error:
        raise typer.BadParameter(
            f"The team has only {error.available} credits. Take fewer.", param_hint="AMOUNT"
        ) from error


@credits.command("refund")
def refund(
    job: Annotated[UUID, typer.Argument(help="Id of the job.")],
    reason: Annotated[str, typer.Option(help="Reason, for the ledger.")] = "refunded by the operator",
) -> None:
    """Refund a job's price to its team, at most once. The job and its result stay."""
    from hiresfix.server.accounts import audit_log
    from hiresfix.server.billing import ledger

    async def give_back(tx: Tx) -> bool:
        done = await ledger.refund_by_hand(tx, job, actor=operator(), reason=reason)
        if done:
            await audit_log.record(tx, actor=operator(), action="credits.refund", subject=job, reason=reason)
        return done

    typer.echo(f"Refunded {job}." if in_transaction(give_back) else f"{job} was already refunded.")


@credits.command("balance")
def balance(team: TeamOption = None) -> None:
    """Print a team's balance."""
    from hiresfix.server.billing import ledger

    async def read(tx: Tx) -> int:
        return await ledger.balance(tx, await team_id(tx, team))

    typer.echo(in_transaction(read))


@credits.command("ledger")
def show_ledger(
    limit: Annotated[int, typer.Option(min=1, help="Number of entries.")] = 50, team: TeamOption = None
) -> None:
    """List the newest ledger entries."""
    from hiresfix.server.billing import ledger

    async def read(tx: Tx) -> Any:
        return await ledger.history(tx, await team_id(tx, team), limit=limit)

    rows = [
        (str(entry.id), timestamp(entry.created_at), entry.kind, f"{entry.amount:+d}", entry.actor, entry.reason,
         str(entry.job_id or ""))
        for entry in in_transaction(read)
    ]  # fmt: skip
    print_table(("id", "when", "kind", "credits", "actor", "reason", "job"), rows)


@jobs.command("list")
def list_jobs(limit: Annotated[int, typer.Option(min=1, help="Number of jobs.")] = 20) -> None:
    """List the newest jobs."""
    from hiresfix.server.jobs import lifecycle as domain

    rows = [
        (str(job.id), job.model, job.state, f"{job.progress} %", str(job.attempt), timestamp(job.created_at),
         job.error or "")
        for job in in_transaction(lambda tx: domain.newest(tx, limit=limit))
    ]  # fmt: skip
    print_table(("id", "model", "state", "progress", "attempt", "created", "error"), rows)


@jobs.command("show")
def show_job(job: Annotated[UUID, typer.Argument(help="Id of the job.")]) -> None:
    """Print all details of a job as JSON."""
    from dataclasses import asdict

    from hiresfix.server.jobs import lifecycle as domain

    row = in_transaction(lambda tx: domain.get(tx, job))
    typer.echo(json.dumps(asdict(row), indent=2, default=str, ensure_ascii=False))


@jobs.command("cancel")
def cancel_job(job: Annotated[UUID, typer.Argument(help="Id of the job.")]) -> None:
    """Cancel a job that is not over and refund its credits. A worker stops running it within about a second."""
    from hiresfix.server.accounts import audit_log
    from hiresfix.server.database.task_queue import Queue
    from hiresfix.server.jobs import lifecycle as domain
    from hiresfix.server.settings import load_settings

    settings = load_settings()
    queue = Queue(settings.database_url or "")  # enqueues over the transaction's connection

    async def cancel(tx: Tx) -> None:
        await audit_log.record(tx, actor=operator(), action="job.cancel", subject=job)
        await domain.cancel(tx, queue, job, public_url=settings.public_url)

    in_transaction(cancel)
    typer.echo(f"Cancelled {job}.")


def workers() -> None:
    """List the workers that are running, or were within the last hour, and the jobs they can take."""
    registered, stranded = read_workers()
    rows = [
        (worker.name, _state(worker), worker.device, f"{worker.memory_bytes / 1e9:.1f} GB",
         f"{worker.most_megapixels:g}", ", ".join(worker.tags), worker.version, timestamp(worker.started_at),
         timestamp(worker.seen_at))
        for worker in registered
    ]  # fmt: skip
    print_table(("name", "state", "device", "memory", "megapixels", "tags", "version", "started", "seen"), rows)
    if stranded:
        typer.echo(
            f"Waiting jobs that no running worker can take: {stranded}. Start a worker that can, or cancel them.",
            err=True,
        )


def _state(worker: worker_registry.RegisteredWorker) -> str:
    if not worker.alive:
        return "silent"
    return "draining" if worker.draining else "up"
