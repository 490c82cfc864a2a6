"""Teams, users and keys: who may, who may not any more, and what is noted about it."""

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
from tests.server.jobs.test_lifecycle import Town, town

__all__ = ["town"]

BOSS = "os:tester"


async def add_user(town: Town, email: str, role: Role = Role.MEMBER) -> User:
    return await commit(town.database, lambda tx: teams.create_user(tx, town.caller.team, email, role=role, actor=BOSS))


async def key_of(town: Town, user: User, name: str = "k") -> str:
    return await commit(town.database, lambda tx: api_keys.issue(tx, user.id, name, actor=BOSS))


async def admitted(database: Database, key: str) -> Caller | type[HiresfixError]:
    try:
        return await commit(database, lambda tx: authentication.authenticate(tx, key))
    except (Unauthenticated, Forbidden) as error:
        return type(error)


async def owner(town: Town) -> User:
    return await commit(town.database, lambda tx: teams.find_user(tx, "owner@localhost"))


async def test_a_user_has_several_keys_and_each_says_who_is_calling(town: Town) -> None:
    user = await add_user(town, "Ann@example.com", Role.ADMIN)
    for key in (await key_of(town, user), await key_of(town, user)):
        caller = await admitted(town.database, key)
        assert isinstance(caller, Caller)
        assert (caller.user, caller.team, caller.role) == (user.id, town.caller.team, "ADMIN")


@pytest.mark.parametrize("what", ["key", "user", "team"])
async def test_what_is_suspended_is_refused_at_once_and_comes_back_when_resumed(town: Town, what: str) -> None:
    user = await add_user(town, "ann@example.com")
    secret = await key_of(town, user, "ci")
    key = await commit(town.database, lambda tx: authentication.find_key(tx, "ci"))
    team = await commit(town.database, lambda tx: teams.find_team(tx, "Default"))
    steps = {
        "key": (lambda tx: api_keys.suspend(tx, key, actor=BOSS), lambda tx: api_keys.resume(tx, key, actor=BOSS)),
        "user": (
            lambda tx: teams.suspend_user(tx, user, actor=BOSS),
            lambda tx: teams.resume_user(tx, user, actor=BOSS),
        ),
        "team": (
            lambda tx: teams.suspend_team(tx, team, actor=BOSS),
            lambda tx: teams.resume_team(tx, team, actor=BOSS),
        ),
    }
    suspend, resume = steps[what]
    await commit(town.database, suspend)
    assert await admitted(town.database, secret) is Forbidden
    await commit(town.database, resume)
    assert isinstance(await admitted(town.database, secret), Caller)


async def test_a_revoked_key_is_unknown_at_once_and_its_name_is_free(town: Town) -> None:
    user = await add_user(town, "ann@example.com")
    secret = await key_of(town, user, "ci")
    key = await commit(town.database, lambda tx: authentication.find_key(tx, "ci"))
    await commit(town.database, lambda tx: api_keys.revoke(tx, key, actor=BOSS))
    assert await admitted(town.database, secret) is Unauthenticated
    with pytest.raises(NotFound):
        await commit(town.database, lambda tx: authentication.find_key(tx, "ci"))
    assert await commit(town.database, lambda tx: authentication.signing_key(tx, key.id)) is not None


async def test_an_address_has_one_account_whatever_its_case_until_it_is_removed(town: Town) -> None:
    user = await add_user(town, "Ann@Example.com")
    with pytest.raises(Conflict, match="has an account already"):
        await add_user(town, "aNN@example.COM")
    secret = await key_of(town, user)
    await commit(town.database, lambda tx: teams.remove_user(tx, user, actor=BOSS))
    assert await admitted(town.database, secret) is Unauthenticated
    assert (await add_user(town, "ann@example.com")).id != user.id


async def test_the_last_owner_is_neither_demoted_nor_removed(town: Town) -> None:
    first, second = await owner(town), await add_user(town, "b@example.com", Role.OWNER)
    await commit(town.database, lambda tx: teams.set_role(tx, first, Role.MEMBER, actor=BOSS))
    for change in (
        lambda tx: teams.set_role(tx, second, Role.ADMIN, actor=BOSS),
        lambda tx: teams.remove_user(tx, second, actor=BOSS),
    ):
        with pytest.raises(Conflict, match="last owner"):
            await commit(town.database, change)
    await commit(town.database, lambda tx: teams.set_role(tx, second, Role.OWNER, actor=BOSS))


async def test_two_owners_who_leave_at_once_leave_one_behind(town: Town) -> None:
    both = [await owner(town), await add_user(town, "b@example.com", Role.OWNER)]

    async def leave(user: User) -> bool:
        try:
            async with town.database.transaction() as tx:
                await teams.remove_user(tx, user, actor=BOSS)
                await tx.execute("select pg_sleep(0.3)")
        except Conflict:
            return False
        return True

    assert sorted(await asyncio.gather(*map(leave, both))) == [False, True]


async def test_a_teams_settings_change_one_by_one(town: Town) -> None:
    team = await commit(town.database, lambda tx: teams.find_team(tx, "Default"))
    changed = await commit(
        town.database, lambda tx: teams.change_team(tx, team, actor=BOSS, name="Acme", max_concurrent_jobs=7)
    )
    assert (changed.name, changed.plan, changed.max_concurrent_jobs) == ("Acme", "free", 7)


async def test_names_that_several_have_are_asked_back(town: Town) -> None:
    for _ in range(2):
        await commit(town.database, lambda tx: teams.create_team(tx, "Twin", actor=BOSS))
    with pytest.raises(Conflict, match="by its id"):
        await commit(town.database, lambda tx: teams.find_team(tx, "Twin"))


async def test_every_change_is_in_the_audit_log_with_who_and_on_what(town: Town) -> None:
    user = await add_user(town, "ann@example.com")
    secret = await key_of(town, user)
    await commit(town.database, lambda tx: teams.set_role(tx, user, Role.ADMIN, actor=BOSS))
    lines = await commit(town.database, lambda tx: audit_log.newest(tx, limit=10))
    assert [line.action for line in lines] == ["user.set_role", "key.create", "user.create"]
    assert {line.actor for line in lines} == {BOSS}
    assert lines[0].details == {"before": "MEMBER", "role": "ADMIN"}
    assert secret not in str(lines)
    about = await commit(town.database, lambda tx: audit_log.newest(tx, subject=str(user.id), limit=10))
    assert [line.action for line in about] == ["user.set_role", "user.create"]


async def test_a_change_that_is_rolled_back_leaves_no_line(town: Town) -> None:
    async def begin_and_fail(tx: Tx) -> None:
        await teams.create_team(tx, "Never", actor=BOSS)
        raise RuntimeError

    with pytest.raises(RuntimeError):
        await commit(town.database, begin_and_fail)
    assert await commit(town.database, lambda tx: audit_log.newest(tx, limit=10)) == []


@pytest.mark.parametrize(
    "statement", ["update audit_log set actor = 'x'", "delete from audit_log", "truncate audit_log"]
)
async def test_the_audit_log_cannot_be_rewritten(town: Town, statement: str) -> None:
    with pytest.raises(psycopg.errors.RaiseException, match="append-only"):
        await commit(town.database, lambda tx: tx.execute(statement.encode()))
