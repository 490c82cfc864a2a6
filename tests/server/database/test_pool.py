"""Transactions, pipelines and autocommit, over connections that the server may have closed."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager

import psycopg
import pytest

from hiresfix.server.database import query
from hiresfix.server.database.pool import Database, Tx

TEAMS = "select count(*) from teams where name = 'new'"
ADD = "insert into teams (name) values ('new') returning 1"


async def count(database: Database) -> int:
    async with database.autocommit() as tx:
        return int(await query.value(tx, TEAMS))


async def add_and_raise(context: AbstractAsyncContextManager[Tx]) -> None:
    async with context as tx:
        await tx.execute(ADD)
        raise RuntimeError


async def add_around_a_failure(database: Database) -> None:
    async with database.pipelined() as tx:
        await tx.execute(ADD)
        await tx.execute("select 1/0")
        await tx.execute(ADD)


async def test_autocommit_commits_each_statement(database: Database) -> None:
    with pytest.raises(RuntimeError):
        await add_and_raise(database.autocommit())
    assert await count(database) == 1


async def test_connection_makes_transactions_after_autocommit(database_url: str) -> None:
    async with Database(database_url, max_size=1) as database:
        await count(database)
        with pytest.raises(RuntimeError):
            await add_and_raise(database.transaction())
        assert await count(database) == 0


async def test_pipeline_commits_everything(database: Database) -> None:
    async with database.pipelined() as tx:
        await tx.execute(ADD)
        await tx.execute(ADD)
        assert await query.value(tx, TEAMS) == 2
    assert await count(database) == 2


async def test_raising_pipeline_rolls_back(database: Database) -> None:
    with pytest.raises(RuntimeError):
        await add_and_raise(database.pipelined())
    assert await count(database) == 0


async def test_unread_failure_rolls_back_the_pipeline(database_url: str) -> None:
    async with Database(database_url, max_size=1) as database:
        with pytest.raises(psycopg.errors.DivisionByZero):
            await add_around_a_failure(database)
        assert await count(database) == 0


async def test_pipeline_waits_once_for_all_statements(database: Database) -> None:
    """No statement waits for its own answer: the first read fetches all of them."""
    async with database.pipelined() as tx:
        before = await tx.execute("select clock_timestamp()")
        waits = await tx.execute("select pg_sleep(0.2)")
        assert not before.pgresult
        assert not waits.pgresult
        assert await waits.fetchone()
        assert before.pgresult


async def test_closed_connection_is_replaced_before_use(database_url: str) -> None:
    async with Database(database_url, max_size=1) as database:
        async with database.autocommit() as tx:
            first = await query.value(tx, "select pg_backend_pid()")
        with psycopg.connect(database_url, autocommit=True) as other:
            other.execute("select pg_terminate_backend(%s, 10000)", (first,))
        async with database.autocommit() as tx:
            assert await query.value(tx, "select pg_backend_pid()") != first
