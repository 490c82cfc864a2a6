"""The connection to PostgreSQL: one pool a process, transactions, migrations. Knows no tables.

`tx` in a signature means "inside your transaction, I commit nothing"; `db` means "I open my own and hold none
while waiting for anything else".
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, LiteralString, Self, TypeVar

import psycopg
import structlog
from psycopg.rows import class_row, tuple_row
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from hiresfix.errors import ConfigurationError
from hiresfix.server.platform import metrics

log = structlog.get_logger(__name__)

Tx = psycopg.AsyncConnection[tuple[Any, ...]]
Cursor = psycopg.AsyncCursor[tuple[Any, ...]]
Row = TypeVar("Row")
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

MIGRATIONS = Path(__file__).parent / "migrations" / "versions"
MIGRATION_LOCK_TIMEOUT = "3s"
"""Shorter than `LOCK_TIMEOUT`: who waits behind a migration gets its turn before its own patience ends."""
MIGRATION_TRIES = 20
MIGRATION_PAUSE = 2.0
LOCKED = (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected)

MINIMUM_SERVER_VERSION = 140000
NO_URL = "HIRESFIX_DATABASE_URL is not a PostgreSQL URL. Use postgresql://user:password@host/name."

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


async def one(tx: Tx, kind: type[Row], query: LiteralString, **values: object) -> Row | None:
    """The first row as `kind`, whose fields the columns name; None if there is none."""
    async with tx.cursor(row_factory=class_row(kind)) as cursor:
        await cursor.execute(query, values)
        return await cursor.fetchone()


async def every(tx: Tx, kind: type[Row], query: LiteralString, **values: object) -> list[Row]:
    """All rows as `kind`."""
    async with tx.cursor(row_factory=class_row(kind)) as cursor:
        await cursor.execute(query, values)
        return await cursor.fetchall()


async def value(tx: Tx, query: LiteralString, **values: object) -> Any:
    """The first column of the first row; None if there is no row."""
    row = await (await tx.execute(query, values)).fetchone()
    return None if row is None else row[0]


async def execute(tx: Tx, query: LiteralString, **values: object) -> int:
    """Run a statement; the number of rows it touched."""
    return (await tx.execute(query, values)).rowcount


def migrate(url: str, *, to: str = "head") -> tuple[str | None, str]:
    """Bring the schema to this release's version, or `to` an earlier one; returns (revision before, revision after).

    Safe to call from several processes at once: an advisory lock lets one migrate while the others wait. Safe beside
    processes at work: no statement waits for a lock longer than `MIGRATION_LOCK_TIMEOUT`, since behind one that waits
    everybody else waits too; then everything is rolled back and tried again, `MIGRATION_TRIES` times.
    Raises ConfigurationError for a server that is too old, a schema newer than this release, and locks that stay.
    """
    for left in reversed(range(MIGRATION_TRIES)):
        try:
            return _migrate(url, to)
        except LOCKED as error:
            log.warning("schema.locked", tries_left=left)
            if not left:
                raise ConfigurationError(
                    "The schema could not be changed: other transactions hold its tables. Look for long ones in "
                    "pg_stat_activity, end them and run `hiresfix migrate` again. Nothing was changed."
                ) from error
            time.sleep(MIGRATION_PAUSE)
    raise AssertionError


def _migrate(url: str, to: str) -> tuple[str | None, str]:
    from alembic import command  # here: a process that only serves needs neither Alembic nor SQLAlchemy
    from alembic.runtime.migration import MigrationContext
    from alembic.util import CommandError

    config = _alembic_config()
    with _migration_connection(url) as connection:
        before = MigrationContext.configure(connection).get_current_revision()
        config.attributes["connection"] = connection
        try:
            command.upgrade(config, to)
        except CommandError as error:
            raise ConfigurationError(
                f"The database's schema is at revision {before}, which this release does not know. "
                "Upgrade hiresfix, or restore the backup made before the upgrade."
            ) from error
        after = MigrationContext.configure(connection).get_current_revision()
    assert after is not None
    return before, after


def newest_revision() -> str:
    """The revision that this release was written for."""
    return max(file.name.partition("_")[0] for file in MIGRATIONS.glob("[0-9]*_*.py"))


def require_schema(url: str) -> None:
    """Raises ConfigurationError unless this release can work on the schema that the database has.

    A schema that a newer release has migrated is good as long as it says so: while a fleet is upgraded process by
    process, those of the release before are started again, too.
    """
    ours = newest_revision()
    with contextlib.closing(_connected(url)) as connection:
        if connection.execute("select to_regclass('alembic_version')").fetchone() == (None,):
            raise ConfigurationError("The database has no schema yet. Run `hiresfix migrate` first.")
        (found,) = connection.execute("select version_num from alembic_version").fetchone() or ("0000",)
        if found == ours:
            return
        if found < ours:
            raise ConfigurationError(
                f"The database's schema is at revision {found}, and this release needs {ours}. "
                "Run `hiresfix migrate` first."
            )
        (oldest,) = connection.execute("select oldest from schema_support").fetchone() or (found,)
    if ours < oldest:
        raise ConfigurationError(
            f"The database's schema is at revision {found}, and this release knows {ours}, which is too old to work on "
            f"it: {oldest} is the oldest that may. Upgrade hiresfix here."
        )
    log.warning("schema.newer", found=found, known=ours, remedy="Upgrade hiresfix here when the fleet is.")


def _alembic_config() -> Any:
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS.parent))
    return config


@contextmanager
def _migration_connection(url: str) -> Iterator[Any]:
    from sqlalchemy import create_engine, pool

    engine = create_engine("postgresql+psycopg://", creator=lambda: _connected(url), poolclass=pool.NullPool)
    try:
        with engine.begin() as connection:
            driver = connection.connection.driver_connection
            assert isinstance(driver, psycopg.Connection)
            if driver.info.server_version < MINIMUM_SERVER_VERSION:
                raise ConfigurationError(
                    f"PostgreSQL {driver.info.server_version // 10000} is too old: hiresfix needs 14 or newer."
                )
            driver.execute("select pg_advisory_xact_lock(hashtext('hiresfix.migrate'))")
            driver.execute(f"set local lock_timeout = '{MIGRATION_LOCK_TIMEOUT}'".encode())
            yield connection
    finally:
        engine.dispose()


def _connected(url: str) -> psycopg.Connection[Any]:
    try:
        return psycopg.connect(url, connect_timeout=10)
    except psycopg.ProgrammingError:
        # Without its text and cause: they quote the URL, password and all.
        raise ConfigurationError(NO_URL) from None
    except psycopg.OperationalError as error:
        raise ConfigurationError(
            f"The database does not answer: {error} Check HIRESFIX_DATABASE_URL and that the server is up."
        ) from error
