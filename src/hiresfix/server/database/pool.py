"""The connection to PostgreSQL: one pool a process, transactions, migrations. Knows no tables.

`tx` in a signature means "inside your transaction, I commit nothing"; `db` means "I open my own and hold none
while waiting for anything else".
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, Self, TypeVar

import psycopg
import structlog
from psycopg.rows import tuple_row
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from hiresfix.server.platform import metrics

log = structlog.get_logger(__name__)

Tx = psycopg.AsyncConnection[tuple[Any, ...]]
Cursor = psycopg.AsyncCursor[tuple[Any, ...]]
Found = TypeVar("Found")

OUTAGE = (
    psycopg.OperationalError,
    psycopg.InterfaceError,
    psycopg.errors.IdleInTransactionSessionTimeout,
    psycopg.errors.ReadOnlySqlTransaction,  # what a primary says that has just become a standby
    PoolTimeout,
)
"""What is raised while the database is away; waiting and trying again is right for all of them."""

INSIST_SECONDS = 2.0
"""Between two tries of what must not be left undone because the database was away."""

LOCK_TIMEOUT = "10s"
IDLE_TIMEOUT = "15s"
"""A process that freezes between two statements must not keep everybody else from its rows for hours."""
RECONNECT_SECONDS = 2.0
"""The pool's pauses between two tries double up to this; by default it would sleep as long as the outage lasted."""


# A network that silently drops packets must not hang a worker for the kernel's 15 minutes.
KEEPALIVE = {
    "connect_timeout": 10,
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
}


class Database:
    """A pool of connections; an async context manager. `url` is any libpq connection string."""

    def __init__(self, url: str, *, max_size: int = 10, name: str = "hiresfix") -> None:
        self.url = url
        self._name = name
        self._pool: AsyncConnectionPool[Tx] = AsyncConnectionPool(
            url,
            min_size=1,
            max_size=max_size,
            timeout=10,
            open=False,
            reconnect_timeout=RECONNECT_SECONDS,
            configure=_bound,
            check=_still_open,
            kwargs={**KEEPALIVE, "application_name": name, "row_factory": tuple_row, "autocommit": True},
        )

    async def __aenter__(self) -> Self:
        await self._pool.open()
        metrics.POOLS.watch(self._name, self._pool.get_stats)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._pool.close()

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Tx]:
        """One transaction: committed when the block ends, rolled back when it raises."""
        async with self._pool.connection() as tx, tx.transaction():
            yield tx

    @asynccontextmanager
    async def pipelined(self) -> AsyncIterator[Tx]:
        """A transaction whose statements do not wait for one another.

        They go out together, its begin and its commit with them; where a result is read (`fetchone`, `value`) all that
        was sent before is answered first. What a statement raised is raised there, or at the end of the block: before
        that nothing is known to have happened. A count of touched rows is not known: let the statement return
        something.
        """
        async with self._pool.connection() as tx, tx.pipeline():  # the former rolls back when the block raises
            await tx.execute("begin")  # psycopg's own waits for its answer
            yield tx
            await tx.execute("commit")

    @asynccontextmanager
    async def looking(self) -> AsyncIterator[Tx]:
        """For looks that need not agree with one another: each statement is a transaction of its own.

        One message to the server and one back, where a transaction takes three.
        """
        tx = await self._pool.getconn()
        try:
            yield tx
        finally:
            await self._pool.putconn(tx)


async def insist(step: Callable[[], Awaitable[Found]], *, postponed: str) -> Found:
    """What `step` returns, begun anew for as long as the database is away; `postponed` is what the log calls that.

    A step whose commit was not acknowledged runs twice: it has to be one that then changes nothing.
    """
    while True:
        try:
            return await step()
        except OUTAGE as error:
            log.warning(postponed, reason=type(error).__name__)
            await asyncio.sleep(INSIST_SECONDS)


async def _still_open(connection: Tx) -> None:
    """Raises if the server has closed the connection while nobody used it; asks nothing, only reads what came.

    A server that vanished without a word is found out by the next statement, after `KEEPALIVE`.
    """
    connection.pgconn.consume_input()  # a farewell message, perhaps
    connection.pgconn.consume_input()  # and the end that follows it


async def _bound(connection: Tx) -> None:
    """No statement waits for a lock, and no transaction for its next statement, without end."""
    await connection.execute(f"set lock_timeout = '{LOCK_TIMEOUT}'".encode())
    await connection.execute(f"set idle_in_transaction_session_timeout = '{IDLE_TIMEOUT}'".encode())
