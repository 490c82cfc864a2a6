"""`hiresfix teams`, `users`, `invites`, `audit`: who may use the service. Works beside a running server."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from datetime import timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from hiresfix.cli.operator_session import in_transaction, moment, operator, table

if TYPE_CHECKING:
    from hiresfix.server.accounts.teams import Team, User
    from hiresfix.server.database.pool import Tx

teams = typer.Typer(no_args_is_help=True, help="Teams: who pays.")
users = typer.Typer(no_args_is_help=True, help="Users of teams.")
invites = typer.Typer(no_args_is_help=True, help="Invitations to sign up.")
audit = typer.Typer(no_args_is_help=True, help="Who changed what, when.")

TeamName = Annotated[str, typer.Argument(metavar="TEAM", help="Its id or name.")]
UserName = Annotated[str, typer.Argument(metavar="USER", help="Their id or e-mail address.")]


class Role(StrEnum):
    """`members.Role`, known before the server's part is imported."""

    OWNER = "OWNER"
    ADMIN = "ADMIN"
    MEMBER = "MEMBER"


# Teams ------------------------------------------------------------------------------------------------------------


@teams.command("list")
def list_teams() -> None:
    """Show all teams."""
    from hiresfix.server.accounts import teams as members

    rows = [
        (str(team.id), team.name, team.plan, str(team.credits), str(team.users), str(team.max_concurrent_jobs),
         _state(team), moment(team.created_at))
        for team in in_transaction(members.teams)
    ]  # fmt: skip
    table(("id", "name", "plan", "credits", "users", "jobs at once", "state", "created"), rows)


@teams.command("create")
def create_team(
    name: Annotated[str, typer.Argument(help="What it is called.")],
    grant: Annotated[int, typer.Option(min=0, help="Credits to start with.")] = 0,
) -> None:
    """Make a team and print its id. It has no users yet: `hiresfix users create`."""
    from hiresfix.server.accounts import teams as members
    from hiresfix.server.billing import ledger

    async def create(tx: Tx) -> Team:
        team = await members.create_team(tx, name, actor=operator())
        if grant:
            await ledger.grant(tx, team.id, grant, actor=operator(), reason="granted with the team")
        return team

    typer.echo(in_transaction(create).id)


@teams.command("set")
def change_team(
    team: TeamName,
    name: Annotated[str | None, typer.Option(help="A new name.")] = None,
    plan: Annotated[str | None, typer.Option(help="What it has booked: free or pro.")] = None,
    max_concurrent_jobs: Annotated[int | None, typer.Option(min=1, help="Jobs that may run at once.")] = None,
    max_queued_jobs: Annotated[int | None, typer.Option(min=1, help="Jobs that may wait.")] = None,
) -> None:
    """Change a team's name, plan or limits."""
    from hiresfix.server.accounts import teams as members

    if all(given is None for given in (name, plan, max_concurrent_jobs, max_queued_jobs)):
        raise typer.BadParameter("Nothing to change. See: hiresfix teams set --help")

    async def change(tx: Tx) -> Team:
        found = await members.find_team(tx, team)
        return await members.change_team(
            tx,
            found,
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
    """Refuse its keys (403) until it is resumed. What it submitted goes on."""
    from hiresfix.server.accounts import teams as members

    typer.echo(f"Suspended {_with_team(team, members.suspend_team).name}.")


@teams.command("resume")
def resume_team(team: TeamName) -> None:
    """Let its keys in again."""
    from hiresfix.server.accounts import teams as members

    typer.echo(f"Resumed {_with_team(team, members.resume_team).name}.")


def _with_team(wanted: str, change: Callable[..., Awaitable[None]]) -> Team:
    from hiresfix.server.accounts import teams as members

    async def work(tx: Tx) -> Team:
        found = await members.find_team(tx, wanted)
        await change(tx, found, actor=operator())
        return found

    return in_transaction(work)


def _state(account: Team | User) -> str:
    return "suspended" if account.suspended_at else "active"


# Users ------------------------------------------------------------------------------------------------------------


@users.command("list")
def list_users(team: Annotated[str | None, typer.Option(help="Of this team only: its id or name.")] = None) -> None:
    """Show users."""
    from hiresfix.server.accounts import teams as members

    async def look(tx: Tx) -> list[User]:
        of = await members.find_team(tx, team) if team else None
        return list(await members.users(tx, team=of))

    rows = [
        (str(user.id), user.email, user.name, user.role, user.team_name, _state(user), moment(user.created_at))
        for user in in_transaction(look)
    ]
    table(("id", "e-mail", "name", "role", "team", "state", "created"), rows)


@users.command("create")
def create_user(
    email: Annotated[str, typer.Argument(help="Their address; no other account may have it.")],
    team: Annotated[str, typer.Option(help="Its id or name.")],
    role: Annotated[Role, typer.Option(help="OWNER and ADMIN see all jobs of the team.")] = Role.MEMBER,
    name: Annotated[str, typer.Option(help="What they are called.")] = "",
) -> None:
    """Make a user and print their id. They have no key yet: `hiresfix keys create --user`."""
    from hiresfix.server.accounts import teams as members
    from hiresfix.wire.problems import Wrong
    from hiresfix.wire.signup import canonical_email

    try:
        address = canonical_email(email)
    except Wrong as wrong:
        raise typer.BadParameter(str(wrong), param_hint="EMAIL") from wrong

    async def create(tx: Tx) -> User:
        found = await members.find_team(tx, team)
        return await members.create_user(tx, found.id, address, role=members.Role(role), name=name, actor=operator())

    typer.echo(in_transaction(create).id)


@users.command("rename")
def rename_user(user: UserName, name: Annotated[str, typer.Argument(help="What they are called.")]) -> None:
    """Change a user's name."""
    from hiresfix.server.accounts import teams as members

    _with_user(user, lambda tx, found: members.rename_user(tx, found, name, actor=operator()))


@users.command("set-role")
def set_role(user: UserName, role: Annotated[Role, typer.Argument(help="Their new role.")]) -> None:
    """Change a user's role; a team's last owner stays one."""
    from hiresfix.server.accounts import teams as members

    found = _with_user(user, lambda tx, found: members.set_role(tx, found, members.Role(role), actor=operator()))
    typer.echo(f"{found.email} is {role} of {found.team_name}.")


@users.command("suspend")
def suspend_user(user: UserName) -> None:
    """Refuse the user's keys (403) until they are resumed."""
    from hiresfix.server.accounts import teams as members

    found = _with_user(user, lambda tx, found: members.suspend_user(tx, found, actor=operator()))
    typer.echo(f"Suspended {found.email}.")


@users.command("resume")
def resume_user(user: UserName) -> None:
    """Let the user's keys in again."""
    from hiresfix.server.accounts import teams as members

    found = _with_user(user, lambda tx, found: members.resume_user(tx, found, actor=operator()))
    typer.echo(f"Resumed {found.email}.")


@users.command("remove")
def remove_user(user: UserName) -> None:
    """Take a user out of their team for good and revoke their keys; a team's last owner stays."""
    from hiresfix.server.accounts import teams as members

    found = _with_user(user, lambda tx, found: members.remove_user(tx, found, actor=operator()))
    typer.echo(f"Removed {found.email} from {found.team_name}.")


def _with_user(wanted: str, change: Callable[[Tx, User], Awaitable[None]]) -> User:
    from hiresfix.server.accounts import teams as members

    async def work(tx: Tx) -> User:
        found = await members.find_user(tx, wanted)
        await change(tx, found)
        return found

    return in_transaction(work)


# Invitations and the log ------------------------------------------------------------------------------------------


@invites.command("create")
def create_invite(
    note: Annotated[str, typer.Argument(help="Whom or what it is for.")],
    days: Annotated[float, typer.Option(min=0.01, help="How long it is good.")] = 7.0,
) -> None:
    """Make an invitation that works once, and print its code, which is never shown again."""
    from hiresfix.server.accounts import signup

    valid_for = timedelta(days=days)
    typer.echo(in_transaction(lambda tx: signup.invite(tx, note=note, valid_for=valid_for, actor=operator())))


@invites.command("list")
def list_invites() -> None:
    """Show all invitations, without their codes."""
    from hiresfix.server.accounts import signup

    rows = [
        (str(one.id), one.note, moment(one.created_at), moment(one.expires_at), moment(one.used_at), str(one.refusals))
        for one in in_transaction(signup.invites)
    ]
    table(("id", "for", "created", "expires", "used", "refused"), rows)


@audit.command("list")
def list_audit(
    subject: Annotated[str | None, typer.Option(help="The id of a team, user, key, job, ...")] = None,
    limit: Annotated[int, typer.Option(min=1)] = 50,
) -> None:
    """Show the newest changes."""
    from hiresfix.server.accounts import audit_log as log

    rows = [
        (str(line.id), moment(line.at), line.actor, line.action, line.subject,
         json.dumps(line.details, ensure_ascii=False))
        for line in in_transaction(lambda tx: log.newest(tx, subject=subject, limit=limit))
    ]  # fmt: skip
    table(("id", "when", "who", "what", "on", "details"), rows)
