"""`hiresfix webhooks`: deliveries of events, and the secrets that sign them. Works while the server runs."""

from __future__ import annotations

import json
from datetime import timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

import typer

from hiresfix.cli.operator_session import in_transaction, operator, print_table, team_id, timestamp

if TYPE_CHECKING:
    from hiresfix.server.database.pool import Tx

webhooks = typer.Typer(no_args_is_help=True, help="Manage webhook deliveries and secrets.")
secret = typer.Typer(no_args_is_help=True, help="Manage a team's secret for Standard Webhooks signatures.")
webhooks.add_typer(secret, name="secret")

TeamOption = Annotated[str | None, typer.Option(help="Id or name of the team. Default: the first team.")]
DeliveryId = Annotated[
    UUID, typer.Argument(metavar="DELIVERY", help="Id of the delivery: the X-Webhook-Id of the request.")
]


class DeliveryState(StrEnum):
    PENDING = "pending"
    DELIVERED = "delivered"
    FAILED = "failed"


@webhooks.command("list")
def list_deliveries(
    state: Annotated[DeliveryState | None, typer.Option(help="Only deliveries in this state.")] = None,
    job: Annotated[UUID | None, typer.Option(help="Only deliveries of this job.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Number of deliveries.")] = 20,
) -> None:
    """List the newest deliveries."""
    from hiresfix.server.webhooks import events as domain

    state_name = state.name if state else None
    rows = [
        (str(row.id), str(row.job_id), row.event, row.receiver, row.state.lower(), str(row.attempts),
         str(row.last_status or row.last_error or ""), timestamp(row.created_at),
         timestamp(row.next_attempt_at) if row.state == "PENDING" else "")
        for row in in_transaction(lambda tx: domain.newest(tx, state=state_name, job=job, limit=limit))
    ]  # fmt: skip
    print_table(("id", "job", "event", "receiver", "state", "attempts", "last answer", "created", "next attempt"), rows)


@webhooks.command("show")
def show_delivery(delivery: DeliveryId) -> None:
    """Print a delivery with all attempts and answers as JSON."""
    from dataclasses import asdict

    from hiresfix.server.webhooks import events as domain

    delivery_row, attempts = in_transaction(lambda tx: domain.get(tx, delivery))
    details: dict[str, Any] = {**asdict(delivery_row), "attempts": [asdict(attempt) for attempt in attempts]}
    typer.echo(json.dumps(details, indent=2, default=str, ensure_ascii=False))


@webhooks.command("redeliver")
def redeliver(delivery: DeliveryId) -> None:
    """Send a completed or failed event again now, with all retries if it fails."""
    from hiresfix.server.accounts import audit_log
    from hiresfix.server.database.task_queue import Queue
    from hiresfix.server.settings import load_settings
    from hiresfix.server.webhooks import events as domain

    async def redeliver_now(tx: Tx) -> None:
        await domain.redeliver(tx, Queue(load_settings().database_url or ""), delivery)
        await audit_log.record(tx, actor=operator(), action="webhook.redeliver", subject=delivery)

    in_transaction(redeliver_now)
    typer.echo("A running worker will send it now.")


@webhooks.command("prune")
def prune(
    days: Annotated[float, typer.Option(min=0, help="Keep deliveries that ended within this many days.")] = 30.0,
) -> None:
    """Delete the attempts of older deliveries. Workers do so automatically once a minute."""
    from hiresfix.server.webhooks import events as domain

    typer.echo(f"{in_transaction(lambda tx: domain.prune(tx, older_than=timedelta(days=days)))} rows deleted.")


@secret.command("show")
def show_secret(team: TeamOption = None) -> None:
    """Print the team's secret, creating one if it has none. From then on its webhooks are signed with it too."""
    from hiresfix.server.accounts import audit_log
    from hiresfix.server.webhooks import secrets

    async def show(tx: Tx) -> str:
        target = await team_id(tx, team)
        value, is_new = await secrets.get_or_create(tx, target)
        await audit_log.record(
            tx, actor=operator(), action="webhook_secret.create" if is_new else "webhook_secret.show", subject=target
        )
        return value

    typer.echo(in_transaction(show))


@secret.command("rotate")
def rotate_secret(team: TeamOption = None) -> None:
    """Create a new secret and print it. For 24 hours webhooks are signed with the old one too."""
    from hiresfix.server.accounts import audit_log
    from hiresfix.server.webhooks import secrets

    async def rotate(tx: Tx) -> str:
        target = await team_id(tx, team)
        await audit_log.record(tx, actor=operator(), action="webhook_secret.rotate", subject=target)
        return await secrets.rotate(tx, target)

    typer.echo(in_transaction(rotate))
