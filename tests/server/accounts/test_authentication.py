"""Teams, users and keys: authentication, suspension, roles and the audit log."""

from __future__ import annotations

import asyncio

import psycopg
import pytest

from hiresfix.errors import Conflict, Forbidden, HiresfixError, NotFound, Unauthenticated
from hiresfix.server.accounts import api_keys, audit_log, authentication, teams
from hiresfix.server.accounts.authentication import Caller
from hiresfix.server.accounts.teams import Role, User
from hiresfix.server.database.pool import Database, Tx
from tests.server.conftest import commit
from tests.server.job_steps import JobSteps

ACTOR = "os:tester"


async def add_user(steps: JobSteps, email: str, role: Role = Role.MEMBER) -> User:
    return await commit(
        steps.database, lambda tx: teams.create_user(tx, steps.caller.team, email, role=role, actor=ACTOR)
    )


async def key_of(steps: JobSteps, user: User, name: str = "k") -> str:
    return await commit(steps.database, lambda tx: api_keys.issue(tx, user.id, name, actor=ACTOR))


async def authenticate(database: Database, key: str) -> Caller | type[HiresfixError]:
    try:
        return await commit(database, lambda tx: authentication.authenticate(tx, key))
    except (Unauthenticated, Forbidden) as error:
        return type(error)


async def owner(steps: JobSteps) -> User:
    return await commit(steps.database, lambda tx: teams.find_user(tx, "owner@localhost"))


async def test_each_key_of_a_user_authenticates(steps: JobSteps) -> None:
    user = await add_user(steps, "Ann@example.com", Role.ADMIN)
    for key in (await key_of(steps, user), await key_of(steps, user)):
        caller = await authenticate(steps.database, key)
        assert isinstance(caller, Caller)
        assert (caller.user, caller.team, caller.role) == (user.id, steps.caller.team, "ADMIN")


@pytest.mark.parametrize("kind", ["key", "user", "team"])
async def test_suspension_refuses_until_resumed(steps: JobSteps, kind: str) -> None:
    user = await add_user(steps, "ann@example.com")
    secret = await key_of(steps, user, "ci")
    key = await commit(steps.database, lambda tx: authentication.find_key(tx, "ci"))
    team = await commit(steps.database, lambda tx: teams.find_team(tx, "Default"))
    actions = {
        "key": (lambda tx: api_keys.suspend(tx, key, actor=ACTOR), lambda tx: api_keys.resume(tx, key, actor=ACTOR)),
        "user": (
            lambda tx: teams.suspend_user(tx, user, actor=ACTOR),
            lambda tx: teams.resume_user(tx, user, actor=ACTOR),
        ),
        "team": (
            lambda tx: teams.suspend_team(tx, team, actor=ACTOR),
            lambda tx: teams.resume_team(tx, team, actor=ACTOR),
        ),
    }
    suspend, resume = actions[kind]
    await commit(steps.database, suspend)
    assert await authenticate(steps.database, secret) is Forbidden
    await commit(steps.database, resume)
    assert isinstance(await authenticate(steps.database, secret), Caller)


async def test_revoked_key_is_unknown_and_frees_its_name(steps: JobSteps) -> None:
    user = await add_user(steps, "ann@example.com")
    secret = await key_of(steps, user, "ci")
    key = await commit(steps.database, lambda tx: authentication.find_key(tx, "ci"))
    await commit(steps.database, lambda tx: api_keys.revoke(tx, key, actor=ACTOR))
    assert await authenticate(steps.database, secret) is Unauthenticated
    with pytest.raises(NotFound):
        await commit(steps.database, lambda tx: authentication.find_key(tx, "ci"))
    assert await commit(steps.database, lambda tx: authentication.signing_key(tx, key.id)) is not None


async def test_email_is_unique_ignoring_case_until_removed(steps: JobSteps) -> None:
    user = await add_user(steps, "Ann@Example.com")
    with pytest.raises(Conflict, match="has an account already"):
        await add_user(steps, "aNN@example.COM")
    secret = await key_of(steps, user)
    await commit(steps.database, lambda tx: teams.remove_user(tx, user, actor=ACTOR))
    assert await authenticate(steps.database, secret) is Unauthenticated
    assert (await add_user(steps, "ann@example.com")).id != user.id


async def test_last_owner_stays_owner(steps: JobSteps) -> None:
    first, second = await owner(steps), await add_user(steps, "b@example.com", Role.OWNER)
    await commit(steps.database, lambda tx: teams.set_role(tx, first, Role.MEMBER, actor=ACTOR))
    for change in (
        lambda tx: teams.set_role(tx, second, Role.ADMIN, actor=ACTOR),
        lambda tx: teams.remove_user(tx, second, actor=ACTOR),
    ):
        with pytest.raises(Conflict, match="last owner"):
            await commit(steps.database, change)
    await commit(steps.database, lambda tx: teams.set_role(tx, second, Role.OWNER, actor=ACTOR))


async def test_racing_owner_removals_leave_one_owner(steps: JobSteps) -> None:
    both = [await owner(steps), await add_user(steps, "b@example.com", Role.OWNER)]

    async def leave(user: User) -> bool:
        try:
            async with steps.database.transaction() as tx:
                await teams.remove_user(tx, user, actor=ACTOR)
                await tx.execute("select pg_sleep(0.3)")
        except Conflict:
            return False
        return True

    assert sorted(await asyncio.gather(*map(leave, both))) == [False, True]


async def test_team_settings_change_one_by_one(steps: JobSteps) -> None:
    team = await commit(steps.database, lambda tx: teams.find_team(tx, "Default"))
    changed = await commit(
        steps.database, lambda tx: teams.change_team(tx, team, actor=ACTOR, name="Acme", max_concurrent_jobs=7)
    )
    assert (changed.name, changed.plan, changed.max_concurrent_jobs) == ("Acme", "free", 7)


async def test_ambiguous_team_name_is_refused(steps: JobSteps) -> None:
    for _ in range(2):
        await commit(steps.database, lambda tx: teams.create_team(tx, "Twin", actor=ACTOR))
    with pytest.raises(Conflict, match="by its id"):
        await commit(steps.database, lambda tx: teams.find_team(tx, "Twin"))


async def test_audit_log_records_actor_and_subject(steps: JobSteps) -> None:
    user = await add_user(steps, "ann@example.com")
    secret = await key_of(steps, user)
    await commit(steps.database, lambda tx: teams.set_role(tx, user, Role.ADMIN, actor=ACTOR))
    entries = await commit(steps.database, lambda tx: audit_log.newest(tx, limit=10))
    assert [entry.action for entry in entries] == ["user.set_role", "key.create", "user.create"]
    assert {entry.actor for entry in entries} == {ACTOR}
    assert entries[0].details == {"before": "MEMBER", "role": "ADMIN"}
    assert secret not in str(entries)
    user_entries = await commit(steps.database, lambda tx: audit_log.newest(tx, subject=str(user.id), limit=10))
    assert [entry.action for entry in user_entries] == ["user.set_role", "user.create"]


async def test_rolled_back_change_is_not_in_audit_log(steps: JobSteps) -> None:
    async def create_and_fail(tx: Tx) -> None:
        await teams.create_team(tx, "Never", actor=ACTOR)
        raise RuntimeError

    with pytest.raises(RuntimeError):
        await commit(steps.database, create_and_fail)
    assert await commit(steps.database, lambda tx: audit_log.newest(tx, limit=10)) == []


@pytest.mark.parametrize(
    "statement", ["update audit_log set actor = 'x'", "delete from audit_log", "truncate audit_log"]
)
async def test_audit_log_is_append_only(steps: JobSteps, statement: str) -> None:
    with pytest.raises(psycopg.errors.RaiseException, match="append-only"):
        await commit(steps.database, lambda tx: tx.execute(statement.encode()))
