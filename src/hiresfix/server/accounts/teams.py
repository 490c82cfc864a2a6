"""Administration of teams and their users.

Guarantees: a team never loses its last owner. An address has one account, whatever its case. Every change is in the
audit log, in the same transaction. Suspension takes effect with the next request and deletes nothing.
Functions take a team or user; `find_team` and `find_user` find one by id or by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import LiteralString
from uuid import UUID

from hiresfix.errors import Conflict, NotFound
from hiresfix.server.accounts import audit_log
from hiresfix.server.database import query
from hiresfix.server.database.pool import Tx


class Role(StrEnum):
    """Role of a user: OWNER and ADMIN see all jobs of their team, a MEMBER only their own."""

    OWNER = "OWNER"
    ADMIN = "ADMIN"
    MEMBER = "MEMBER"


@dataclass(frozen=True, slots=True, kw_only=True)
class Team:
    """A team, which owns the credits. `users` counts those that were not removed."""

    id: UUID
    name: str
    plan: str
    credits: int
    max_concurrent_jobs: int
    max_queued_jobs: int | None
    users: int
    suspended_at: datetime | None
    created_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """A member of a team."""

    id: UUID
    team: UUID
    team_name: str
    email: str
    name: str
    role: str
    suspended_at: datetime | None
    created_at: datetime


_TEAMS: LiteralString = """
    select id, name, plan, credits, max_queued_jobs, suspended_at, created_at,
    coalesce(max_concurrent_jobs,
             (select plans.max_concurrent_jobs from plans where plans.name = plan)) as max_concurrent_jobs,
    (select count(*) from users u where u.team_id = teams.id and removed_at is null) as users from teams
"""
_USERS: LiteralString = """
    select u.id, u.team_id as team, t.name as team_name, u.email, u.name, u.role, u.suspended_at, u.created_at
    from users u join teams t on t.id = u.team_id where u.removed_at is null
"""


# Teams ------------------------------------------------------------------------------------------------------------


async def list_teams(tx: Tx) -> Sequence[Team]:
    """Return all teams, oldest first."""
    return await query.every(tx, Team, _TEAMS + " order by created_at")


async def find_team(tx: Tx, identifier: str) -> Team:
    """Return the one team with this id or name; raises NotFound or Conflict."""
    matching = await query.every(tx, Team, _TEAMS + " where %(id)s in (id::text, name)", id=identifier)
    if not matching:
        raise NotFound(f"No team is called {identifier!r}. `hiresfix teams list` shows them.")
    if len(matching) > 1:
        raise Conflict(f"{len(matching)} teams are called {identifier!r}. Name one by its id (`hiresfix teams list`).")
    return matching[0]


async def create_team(tx: Tx, name: str, *, actor: str) -> Team:
    """Create a team without users and credits."""
    team = await query.value(tx, "insert into teams (name) values (%(name)s) returning id", name=name)
    await audit_log.record(tx, actor=actor, action="team.create", subject=team, name=name)
    return await find_team(tx, str(team))


async def change_team(
    tx: Tx,
    team: Team,
    *,
    actor: str,
    name: str | None = None,
    plan: str | None = None,
    max_concurrent_jobs: int | None = None,
    max_queued_jobs: int | None = None,
) -> Team:
    """Change a team and return it. More concurrent jobs take effect within seconds (`scheduler.reconcile`).

    Raises NotFound for an unknown plan.

    Args:
        tx: Transaction of the change.
        team: Team to change.
        actor: Author of the change for the audit log.
        name: New name; None keeps it, here and below.
        plan: New plan.
        max_concurrent_jobs: Jobs that run at a time, instead of the plan's number.
        max_queued_jobs: Jobs that may wait, instead of the setting's number.
    """
    values = {
        "name": name,
        "plan": plan,
        "max_concurrent_jobs": max_concurrent_jobs,
        "max_queued_jobs": max_queued_jobs,
    }
    plans = await query.value(tx, "select array_agg(name order by name) from plans")
    if plan is not None and plan not in plans:
        raise NotFound(f"There is no plan {plan!r}. Use one of {', '.join(plans)}.")
    await query.execute(
        tx,
        "update teams set name = coalesce(%(name)s, name), plan = coalesce(%(plan)s, plan),"
        " max_concurrent_jobs = coalesce(%(max_concurrent_jobs)s, max_concurrent_jobs),"
        " max_queued_jobs = coalesce(%(max_queued_jobs)s, max_queued_jobs) where id = %(id)s",
        id=team.id,
        **values,
    )
    changed = {key: value for key, value in values.items() if value is not None}
    await audit_log.record(tx, actor=actor, action="team.change", subject=team.id, **changed)
    return await find_team(tx, str(team.id))


async def suspend_team(tx: Tx, team: Team, *, actor: str) -> None:
    """Refuse the team's keys from the next request on. Its jobs continue."""
    await query.execute(
        tx, "update teams set suspended_at = coalesce(suspended_at, now()) where id = %(id)s", id=team.id
    )
    await audit_log.record(tx, actor=actor, action="team.suspend", subject=team.id)


async def resume_team(tx: Tx, team: Team, *, actor: str) -> None:
    await query.execute(tx, "update teams set suspended_at = null where id = %(id)s", id=team.id)
    await audit_log.record(tx, actor=actor, action="team.resume", subject=team.id)


# Users ------------------------------------------------------------------------------------------------------------


async def list_users(tx: Tx, *, team: Team | None = None) -> Sequence[User]:
    """Return all users, or those of one team, oldest first."""
    return await query.every(
        tx,
        User,
        _USERS + " and (%(team)s::uuid is null or t.id = %(team)s) order by u.created_at",
        team=team.id if team else None,
    )


async def find_user(tx: Tx, identifier: str) -> User:
    """Return the user with this id or address; raises NotFound."""
    user = await query.one(
        tx, User, _USERS + " and (u.id::text = %(id)s or lower(u.email) = lower(%(id)s))", id=identifier
    )
    if user is None:
        raise NotFound(f"No user is called {identifier!r}. `hiresfix users list` shows them.")
    return user


async def create_user(tx: Tx, team: UUID, email: str, *, role: Role, name: str = "", actor: str) -> User:
    """Create a user without keys; raises Conflict if the address, ignoring case, has an account."""
    user = await query.value(
        tx,
        "insert into users (team_id, email, name, role) values (%(team)s, %(email)s, %(name)s, %(role)s)"
        " on conflict (lower(email)) where removed_at is null do nothing returning id",
        team=team,
        email=email,
        name=name,
        role=role.value,
    )
    if user is None:
        raise Conflict(f"{email} has an account already. Remove that user first, or use another address.")
    await audit_log.record(
        tx, actor=actor, action="user.create", subject=user, team=str(team), email=email, role=role.value
    )
    return await find_user(tx, str(user))


async def rename_user(tx: Tx, user: User, name: str, *, actor: str) -> None:
    await query.execute(tx, "update users set name = %(name)s where id = %(id)s", name=name, id=user.id)
    await audit_log.record(tx, actor=actor, action="user.rename", subject=user.id, name=name)


async def set_role(tx: Tx, user: User, role: Role, *, actor: str) -> None:
    """Change the user's role; raises Conflict if that would leave the team without an owner."""
    if role is not Role.OWNER:
        await _require_other_owner(tx, user)
    await query.execute(tx, "update users set role = %(role)s where id = %(id)s", role=role.value, id=user.id)
    await audit_log.record(tx, actor=actor, action="user.set_role", subject=user.id, before=user.role, role=role.value)


async def suspend_user(tx: Tx, user: User, *, actor: str) -> None:
    """Refuse the user's keys from the next request on."""
    await query.execute(
        tx, "update users set suspended_at = coalesce(suspended_at, now()) where id = %(id)s", id=user.id
    )
    await audit_log.record(tx, actor=actor, action="user.suspend", subject=user.id)


async def resume_user(tx: Tx, user: User, *, actor: str) -> None:
    await query.execute(tx, "update users set suspended_at = null where id = %(id)s", id=user.id)
    await audit_log.record(tx, actor=actor, action="user.resume", subject=user.id)


async def remove_user(tx: Tx, user: User, *, actor: str) -> None:
    """Remove the user for good: keys are revoked, the address is free again, the jobs stay with the team.

    Raises Conflict if that would leave the team without an owner.
    """
    await _require_other_owner(tx, user)
    await query.execute(tx, "update users set removed_at = now() where id = %(id)s", id=user.id)
    await query.execute(
        tx, "update api_keys set revoked_at = now() where user_id = %(id)s and revoked_at is null", id=user.id
    )
    await audit_log.record(tx, actor=actor, action="user.remove", subject=user.id, email=user.email)


async def _require_other_owner(tx: Tx, user: User) -> None:
    # Lock the team: of two owners who leave at once, the second finds the first gone.
    await query.execute(tx, "select 1 from teams where id = %(team)s for no key update", team=user.team)
    owners = await (
        await tx.execute(
            "select id from users where team_id = %(team)s and role = 'OWNER' and removed_at is null",
            {"team": user.team},
        )
    ).fetchall()
    if owners == [(user.id,)]:
        raise Conflict(f"{user.email} is the last owner of {user.team_name}. Make somebody else an owner first.")
