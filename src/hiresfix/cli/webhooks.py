"""`hiresfix webhooks`: what was told to callers' servers, and how they answered. Works beside a running server."""

from __future__ import annotations

import json
from datetime import timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

import typer

from hiresfix.cli.operator_session import in_transaction, moment, operator, table, team_called

if TYPE_CHECKING:
    from hiresfix.server.database.pool import Tx

webhooks = typer.Typer(no_args_is_help=True, help="Webhook deliveries, and the secrets that sign them.")
secret = typer.Typer(no_args_is_help=True, help="A team's secret for signatures after Standard Webhooks.")
webhooks.add_typer(secret, name="secret")

Team = Annotated[str | None, typer.Option(help="Its id or name; default: the first team.")]
DeliveryId = Annotated[UUID, typer.Argument(metavar="DELIVERY", help="Its id, the X-Webhook-Id of the request.")]


class State(StrEnum):
    PENDING = "pending"
    DELIVERED = "delivered"
    FAILED = "failed"


@webhooks.command("list")
def list_deliveries(
    state: Annotated[State | None, typer.Option(help="Only those.")] = None,
    job: Annotated[UUID | None, typer.Option(help="Only those of this job.")] = None,
    limit: Annotated[int, typer.Option(min=1)] = 20,
) -> None:
    """Show the newest deliveries."""
    from hiresfix.server.webhooks import events as domain

    wanted = state.name if state else None
    rows = [
        (str(told.id), str(told.job_id), told.event, told.receiver, told.state.lower(), str(told.attempts),
         str(told.last_status or told.last_error or ""), moment(told.created_at),
         moment(told.next_attempt_at) if told.state == "PENDING" else "")
        for told in in_transaction(lambda tx: domain.newest(tx, state=wanted, job=job, limit=limit))
    ]  # fmt: skip
    table(("id", "job", "event", "receiver", "state", "attempts", "last answer", "created", "next attempt"), rows)


@webhooks.command("show")
def show_delivery(delivery: DeliveryId) -> None:
    """Print a delivery and every attempt with its answer as JSON."""
    from dataclasses import asdict

    from hiresfix.server.webhooks import events as domain

    told, attempts = in_transaction(lambda tx: domain.get(tx, delivery))
    shown: dict[str, Any] = {**asdict(told), "attempts": [asdict(attempt) for attempt in attempts]}
    typer.echo(json.dumps(shown, indent=2, default=str, ensure_ascii=False))


@webhooks.command("redeliver")
def redeliver(delivery: DeliveryId) -> None:
    """Send a completed or failed event again, now, and on the whole schedule if need be."""
    from hiresfix.server.accounts import audit_log
    from hiresfix.server.database.task_queue import Queue
    from hiresfix.server.settings import load_settings
    from hiresfix.server.webhooks import events as domain

    async def again(tx: Tx) -> None:
        await domain.redeliver(tx, Queue(load_settings().database_url or ""), delivery)
        await audit_log.note(tx, actor=operator(), action="webhook.redeliver", subject=delivery)

    in_transaction(again)
    typer.echo("It will be sent at once by any running worker.")


@webhooks.command("prune")
def prune(
    days: Annotated[float, typer.Option(min=0, help="Keep what ended within so many days.")] = 30.0,
) -> None:
    """Forget the attempts of deliveries that ended before that. Workers do it by themselves once a minute."""
    from hiresfix.server.webhooks import events as domain

    typer.echo(f"{in_transaction(lambda tx: domain.prune(tx, older_than=timedelta(days=days)))} rows deleted.")


@secret.command("show")
def show_secret(team: Team = None) -> None:
    """Print the team's secret, making one if it has none; from then on its webhooks are signed with it too."""
    from hiresfix.server.accounts import audit_log
    from hiresfix.server.webhooks import secrets

    async def show(tx: Tx) -> str:
        of = await team_called(tx, team)
        found, made = await secrets.current(tx, of)
        await audit_log.note(
            tx, actor=operator(), action="webhook_secret.create" if made else "webhook_secret.show", subject=of
        )
        return found

    typer.echo(in_transaction(show))


@secret.command("rotate")
def rotate_secret(team: Team = None) -> None:
    """Make a new secret and print it. The old one signs beside it for 24 hours."""
    from hiresfix.server.accounts import audit_log
    from hiresfix.server.webhooks import secrets

    async def rotate(tx: Tx) -> str:
        of = await team_called(tx, team)
        await audit_log.note(tx, actor=operator(), action="webhook_secret.rotate", subject=of)
        return await secrets.rotate(tx, of)

    typer.echo(in_transaction(rotate))
