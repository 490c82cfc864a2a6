"""Connections to PostgreSQL: one pool per process, transactions, retries. Knows no tables.

A parameter `tx` means: works inside the caller's transaction and commits nothing. A parameter `database` means: opens
its own transactions, and holds none while it waits for anything else.
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
Result = TypeVar("Result")

OUTAGE_ERRORS = (
    psycopg.OperationalError,
    psycopg.InterfaceError,
    psycopg.errors.IdleInTransactionSessionTimeout,
    psycopg.errors.ReadOnlySqlTransaction,  # from a primary that has just become a standby
    PoolTimeout,
)
"""Errors raised while the database is away; the right reaction to all of them is to wait and try again."""

RETRY_SECONDS = 2.0
"""Pause between two tries of `retry_while_unavailable`."""

POOL_TIMEOUT_SECONDS = 10.0
"""How long a caller waits for a connection before PoolTimeout; the setting `database_timeout_seconds` overrides it."""
LOCK_TIMEOUT = "10s"
IDLE_TIMEOUT = "15s"
"""A process that freezes between two statements must not lock its rows for hours."""
RECONNECT_SECONDS = 2.0
"""Upper bound of the pool's growing pauses between attempts to connect; by default they grow with the outage."""

# A network that silently drops packets must not hang a worker for the kernel's 15 minutes.
KEEPALIVE = {
    "connect_timeout": 10,
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
}


class Database:
    """A pool of connections, used as an async context manager."""

    def __init__(
        self, url: str, *, max_size: int = 10, name: str = "hiresfix", timeout: float = POOL_TIMEOUT_SECONDS
    ) -> None:
        """Prepare the pool; entering the context connects it.

        Args:
            url: Any libpq connection string.
            max_size: Most connections of the pool.
            name: Application name that PostgreSQL and the metrics show.
            timeout: Seconds that a caller waits for a connection before PoolTimeout is raised.
        """
        self.url = url
        self._name = name
        self._pool: AsyncConnectionPool[Tx] = AsyncConnectionPool(
            url,
            min_size=1,
            max_size=max_size,
            timeout=timeout,
            open=False,
            reconnect_timeout=RECONNECT_SECONDS,
            configure=_set_timeouts,
            check=_check_open,
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
        """Open a transaction: committed when the block ends, rolled back when it raises."""
        async with self._pool.connection() as tx, tx.transaction():
            yield tx

    @asynccontextmanager
    async def pipelined(self) -> AsyncIterator[Tx]:
        """Open a transaction whose statements are sent without waiting for each other's answers.

        Begin and commit are sent along with them. Reading a result (`fetchone`, `value`) waits for the answers to
        everything sent before. A statement's error is raised there or at the end of the block; until then nothing is
        known to have happened. Row counts are not known: let the statement return something.
        """
        async with self._pool.connection() as tx, tx.pipeline():  # the connection rolls back when the block raises
            await tx.execute("begin")  # psycopg's own begin waits for its answer
            yield tx
            await tx.execute("commit")

    @asynccontextmanager
    async def autocommit(self) -> AsyncIterator[Tx]:
        """Lend a connection on which each statement is its own transaction, for reads that need no common snapshot.

        A statement costs one round trip, where a transaction takes three.
        """
        tx = await self._pool.getconn()
        try:
            yield tx
        finally:
            await self._pool.putconn(tx)


async def retry_while_unavailable(step: Callable[[], Awaitable[Result]], *, log_event: str) -> Result:
    """Run `step` until it succeeds, again and again while the database is away, and return its result.

    Each failure is logged as `log_event`. A step whose commit was not acknowledged runs twice, so the second run must
    change nothing.
    """
    while True:
        try:
            return await step()
        except OUTAGE_ERRORS as error:
            log.warning(log_event, reason=type(error).__name__)
            await asyncio.sleep(RETRY_SECONDS)


async def _check_open(connection: Tx) -> None:
    """Raise if the server closed the connection while it was idle; sends nothing, only reads pending input.

    The next statement notices a server that vanished silently, after `KEEPALIVE`.
    """
    connection.pgconn.consume_input()  # a termination message, if there is one
    connection.pgconn.consume_input()  # and the end of the stream after it


async def _set_timeouts(connection: Tx) -> None:
    """Bound how long a statement waits for a lock, and a transaction for its next statement."""
    await connection.execute(f"set lock_timeout = '{LOCK_TIMEOUT}'".encode())
    await connection.execute(f"set idle_in_transaction_session_timeout = '{IDLE_TIMEOUT}'".encode())
