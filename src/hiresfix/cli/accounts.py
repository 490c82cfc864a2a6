"""`hiresfix teams`, `users`, `invites`, `audit`: accounts of the service. Works while the server runs."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from datetime import timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from hiresfix import messages
from hiresfix.cli.operator_session import in_transaction, operator, print_table, timestamp

if TYPE_CHECKING:
    from hiresfix.server.accounts.teams import Team, User
    from hiresfix.server.database.pool import Tx

teams = typer.Typer(no_args_is_help=True, help="Manage teams. Credits belong to teams.")
users = typer.Typer(no_args_is_help=True, help="Manage users.")
invites = typer.Typer(no_args_is_help=True, help="Manage invitations to sign up.")
audit = typer.Typer(no_args_is_help=True, help="Audit log: who changed what, and when.")

TeamName = Annotated[str, typer.Argument(metavar="TEAM", help="Id or name of the team.")]
UserName = Annotated[str, typer.Argument(metavar="USER", help="Id or e-mail address of the user.")]


class Role(StrEnum):
    """Copy of `teams.Role`, so that `--help` does not import the server."""

    OWNER = "OWNER"
    ADMIN = "ADMIN"
    MEMBER = "MEMBER"


# Teams ------------------------------------------------------------------------------------------------------------


@teams.command("list")
def list_teams() -> None:
    """List all teams."""
    from hiresfix.server.accounts import teams as domain

    rows = [
        (str(team.id), team.name, team.plan, str(team.credits), str(team.users), str(team.max_concurrent_jobs),
         _state(team), timestamp(team.created_at))
        for team in in_transaction(domain.list_teams)
    ]  # fmt: skip
    print_table(("id", "name", "plan", "credits", "users", "jobs at once", "state", "created"), rows)


@teams.command("create")
def create_team(
    name: Annotated[str, typer.Argument(help="Name of the team.")],
    grant: Annotated[int, typer.Option(min=0, help="Credits to start with.")] = 0,
) -> None:
    """Create a team and print its id. Add users with `hiresfix users create`."""
    from hiresfix.server.accounts import teams as domain
    from hiresfix.server.billing import ledger

    async def create(tx: Tx) -> Team:
        team = await domain.create_team(tx, name, actor=operator())
        if grant:
            await ledger.grant(tx, team.id, grant, actor=operator(), reason=messages.GRANTED_WITH_TEAM.text)
        return team

    typer.echo(in_transaction(create).id)


@teams.command("set")
def change_team(
    team: TeamName,
    name: Annotated[str | None, typer.Option(help="New name.")] = None,
    plan: Annotated[str | None, typer.Option(help="Plan: free or pro.")] = None,
    max_concurrent_jobs: Annotated[int | None, typer.Option(min=1, help="Jobs that may run at the same time.")] = None,
    max_queued_jobs: Annotated[int | None, typer.Option(min=1, help="Jobs that may wait in the queue.")] = None,
) -> None:
    """Change a team's name, plan or limits."""
    from hiresfix.server.accounts import teams as domain

    if all(option is None for option in (name, plan, max_concurrent_jobs, max_queued_jobs)):
        raise typer.BadParameter("Nothing to change. See: hiresfix teams set --help")

    async def change(tx: Tx) -> Team:
        return await domain.change_team(
            tx,
            await domain.find_team(tx, team),
            actor=operator(),
            name=name,
            plan=plan,
            max_concurrent_jobs=max_concurrent_jobs,
            max_queued_jobs=max_queued_jobs,
        )

    changed = in_transaction(change)
    typer.echo(f"{changed.name}: plan {changed.plan}, {changed.max_concurrent_jobs} jobs at once.")


@teams.command("suspend")
def suspend_team(team: TeamName) -> None:
    """Refuse the team's keys (403) until it is resumed. Its jobs go on."""
    from hiresfix.server.accounts import teams as domain

    typer.echo(f"Suspended {_with_team(team, domain.suspend_team).name}.")


@teams.command("resume")
def resume_team(team: TeamName) -> None:
    """Accept the keys of a suspended team again."""
    from hiresfix.server.accounts import teams as domain

    typer.echo(f"Resumed {_with_team(team, domain.resume_team).name}.")


def _with_team(name: str, change: Callable[..., Awaitable[None]]) -> Team:
    from hiresfix.server.accounts import teams as domain

    async def work(tx: Tx) -> Team:
        row = await domain.find_team(tx, name)
        await change(tx, row, actor=operator())
        return row

    return in_transaction(work)


def _state(account: Team | User) -> str:
    return "suspended" if account.suspended_at else "active"


# Users ------------------------------------------------------------------------------------------------------------


@users.command("list")
def list_users(
    team: Annotated[str | None, typer.Option(help="Only users of this team: its id or name.")] = None,
) -> None:
    """List users."""
    from hiresfix.server.accounts import teams as domain

    async def read(tx: Tx) -> list[User]:
        only_team = await domain.find_team(tx, team) if team else None
        return list(await domain.list_users(tx, team=only_team))

    rows = [
        (str(user.id), user.email, user.name, user.role, user.team_name, _state(user), timestamp(user.created_at))
        for user in in_transaction(read)
    ]
    print_table(("id", "e-mail", "name", "role", "team", "state", "created"), rows)


@users.command("create")
def create_user(
    email: Annotated[str, typer.Argument(help="E-mail address; must be unique.")],
    team: Annotated[str, typer.Option(help="Id or name of the team.")],
    role: Annotated[
        Role, typer.Option(help="Role of the user. OWNER and ADMIN see all jobs of the team.")
    ] = Role.MEMBER,
    name: Annotated[str, typer.Option(help="Name of the user.")] = "",
) -> None:
    """Create a user and print the id. Create a key with `hiresfix keys create --user`."""
    from hiresfix.server.accounts import teams as domain
    from hiresfix.wire.problems import InvalidValue
    from hiresfix.wire.signup import canonical_email

    try:
        address = canonical_email(email)
    except InvalidValue as error:
        raise typer.BadParameter(str(error), param_hint="EMAIL") from error

    async def create(tx: Tx) -> User:
        owner = await domain.find_team(tx, team)
        return await domain.create_user(tx, owner.id, address, role=domain.Role(role), name=name, actor=operator())

    typer.echo(in_transaction(create).id)


@users.command("rename")
def rename_user(user: UserName, name: Annotated[str, typer.Argument(help="Name of the user.")]) -> None:
    """Change a user's name."""
    from hiresfix.server.accounts import teams as domain

    _with_user(user, lambda tx, row: domain.rename_user(tx, row, name, actor=operator()))


@users.command("set-role")
def set_role(user: UserName, role: Annotated[Role, typer.Argument(help="New role.")]) -> None:
    """Change a user's role. A team always keeps one owner."""
    from hiresfix.server.accounts import teams as domain

    changed = _with_user(user, lambda tx, row: domain.set_role(tx, row, domain.Role(role), actor=operator()))
    typer.echo(f"{changed.email} is {role} of {changed.team_name}.")


@users.command("suspend")
def suspend_user(user: UserName) -> None:
    """Refuse the user's keys (403) until the user is resumed."""
    from hiresfix.server.accounts import teams as domain

    changed = _with_user(user, lambda tx, row: domain.suspend_user(tx, row, actor=operator()))
    typer.echo(f"Suspended {changed.email}.")


@users.command("resume")
def resume_user(user: UserName) -> None:
    """Accept the keys of a suspended user again."""
    from hiresfix.server.accounts import teams as domain

    changed = _with_user(user, lambda tx, row: domain.resume_user(tx, row, actor=operator()))
    typer.echo(f"Resumed {changed.email}.")


@users.command("remove")
def remove_user(user: UserName) -> None:
    """Remove a user from the team for good and revoke their keys. A team always keeps one owner."""
    from hiresfix.server.accounts import teams as domain

    changed = _with_user(user, lambda tx, row: domain.remove_user(tx, row, actor=operator()))
    typer.echo(f"Removed {changed.email} from {changed.team_name}.")


def _with_user(name: str, change: Callable[[Tx, User], Awaitable[None]]) -> User:
    from hiresfix.server.accounts import teams as domain

    async def work(tx: Tx) -> User:
        row = await domain.find_user(tx, name)
        await change(tx, row)
        return row

    return in_transaction(work)


# Invitations and audit log ------------------------------------------------------------------------------------------


@invites.command("create")
def create_invite(
    note: Annotated[str, typer.Argument(help="Note on the purpose of the invitation.")],
    days: Annotated[float, typer.Option(min=0.01, help="Days until it expires.")] = 7.0,
) -> None:
    """Create an invitation that works once, and print its code. It is not shown again."""
    from hiresfix.server.accounts import signup

    valid_for = timedelta(days=days)
    typer.echo(in_transaction(lambda tx: signup.create_invite(tx, note=note, valid_for=valid_for, actor=operator())))


@invites.command("list")
def list_invites() -> None:
    """List all invitations, without their codes."""
    from hiresfix.server.accounts import signup

    rows = [
        (str(invite.id), invite.note, timestamp(invite.created_at), timestamp(invite.expires_at),
         timestamp(invite.used_at), str(invite.refusals))
        for invite in in_transaction(signup.list_invites)
    ]  # fmt: skip
    print_table(("id", "for", "created", "expires", "used", "refused"), rows)


@audit.command("list")
def list_audit(
    subject: Annotated[str | None, typer.Option(help="Only changes of this id: of a team, user, key, job, ...")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Number of entries.")] = 50,
) -> None:
    """List the newest changes."""
    from hiresfix.server.accounts import audit_log

    rows = [
        (str(entry.id), timestamp(entry.at), entry.actor, entry.action, entry.subject,
         json.dumps(entry.details, ensure_ascii=False))
        for entry in in_transaction(lambda tx: audit_log.newest(tx, subject=subject, limit=limit))
    ]  # fmt: skip
    print_table(("id", "when", "who", "what", "on", "details"), rows)
