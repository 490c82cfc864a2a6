"""Transactions, pipelines and single looks, over connections that the server may have closed meanwhile."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager

import psycopg
import pytest

from hiresfix.server.database import query
from hiresfix.server.database.pool import Database, Tx

TEAMS = "select count(*) from teams where name = 'new'"
ADD = "insert into teams (name) values ('new') returning 1"


async def count(database: Database) -> int:
    async with database.looking() as tx:
        return int(await query.value(tx, TEAMS))


async def add_and_raise(opened: AbstractAsyncContextManager[Tx]) -> None:
    async with opened as tx:
        await tx.execute(ADD)
        raise RuntimeError


async def add_around_a_fault(database: Database) -> None:
    async with database.pipelined() as tx:
        await tx.execute(ADD)
        await tx.execute("select 1/0")
        await tx.execute(ADD)


async def test_each_statement_of_a_look_is_a_transaction_of_its_own(database: Database) -> None:
    with pytest.raises(RuntimeError):
        await add_and_raise(database.looking())
    assert await count(database) == 1


async def test_after_a_look_the_connection_makes_transactions_again(database_url: str) -> None:
    async with Database(database_url, max_size=1) as database:
        await count(database)
        with pytest.raises(RuntimeError):
            await add_and_raise(database.transaction())
        assert await count(database) == 0


async def test_a_pipeline_commits_all_of_it(database: Database) -> None:
    async with database.pipelined() as tx:
        await tx.execute(ADD)
        await tx.execute(ADD)
        assert await query.value(tx, TEAMS) == 2
    assert await count(database) == 2


async def test_a_pipeline_that_raises_leaves_nothing(database: Database) -> None:
    with pytest.raises(RuntimeError):
        await add_and_raise(database.pipelined())
    assert await count(database) == 0


async def test_a_statement_that_fails_unread_takes_its_pipeline_with_it(database_url: str) -> None:
    async with Database(database_url, max_size=1) as database:
        with pytest.raises(psycopg.errors.DivisionByZero):
            await add_around_a_fault(database)
        assert await count(database) == 0


async def test_a_pipeline_waits_once_for_all_that_it_sent(database: Database) -> None:
    """Four statements and the commit: the answer to none is waited for alone."""
    async with database.pipelined() as tx:
        before = await tx.execute("select clock_timestamp()")
        waits = await tx.execute("select pg_sleep(0.2)")
        assert not before.pgresult
        assert not waits.pgresult
        assert await waits.fetchone()
        assert before.pgresult


async def test_a_connection_that_the_server_closed_is_replaced_before_it_is_used(database_url: str) -> None:
    async with Database(database_url, max_size=1) as database:
        async with database.looking() as tx:
            first = await query.value(tx, "select pg_backend_pid()")
        with psycopg.connect(database_url, autocommit=True) as other:
            other.execute("select pg_terminate_backend(%s, 10000)", (first,))
        async with database.looking() as tx:
            assert await query.value(tx, "select pg_backend_pid()") != first
