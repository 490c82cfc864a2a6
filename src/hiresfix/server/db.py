"""The connection to PostgreSQL: one pool a process, transactions, migrations. Knows no tables.

`tx` in a signature means "inside your transaction, I commit nothing"; `db` means "I open my own and hold none
while waiting for anything else".
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, LiteralString, Self, TypeVar

import psycopg
from psycopg.rows import class_row, tuple_row
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from hiresfix.errors import ConfigurationError
from hiresfix.server import metrics

Tx = psycopg.AsyncConnection[tuple[Any, ...]]
Row = TypeVar("Row")

OUTAGE = (
    psycopg.OperationalError,
    psycopg.InterfaceError,
    psycopg.errors.IdleInTransactionSessionTimeout,
    psycopg.errors.ReadOnlySqlTransaction,  # what a primary says that has just become a standby
    PoolTimeout,
)
"""What is raised while the database is away; waiting and trying again is right for all of them."""

LOCK_TIMEOUT = "10s"
IDLE_TIMEOUT = "15s"
"""A process that freezes between two statements must not keep everybody else from its rows for hours."""
RECONNECT_SECONDS = 2.0
"""The pool's pauses between two tries double up to this; by default it would sleep as long as the outage lasted."""

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
            check=AsyncConnectionPool.check_connection,
            kwargs={**KEEPALIVE, "application_name": name, "row_factory": tuple_row},
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
        async with self._pool.connection() as tx:
            yield tx


async def _bound(connection: Tx) -> None:
    """No statement waits for a lock, and no transaction for its next statement, without end."""
    await connection.set_autocommit(True)
    await connection.execute(f"set lock_timeout = '{LOCK_TIMEOUT}'".encode())
    await connection.execute(f"set idle_in_transaction_session_timeout = '{IDLE_TIMEOUT}'".encode())
    await connection.set_autocommit(False)


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

    Safe to call from several processes at once: an advisory lock lets one migrate while the others wait.
    Raises ConfigurationError for a server that is too old or a schema newer than this release.
    """
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


def schema_is_current(url: str) -> bool:
    """Whether the schema is exactly the one this release was written for."""
    from alembic.runtime.migration import MigrationContext
    from alembic.script import ScriptDirectory

    head = ScriptDirectory.from_config(_alembic_config()).get_current_head()
    with _migration_connection(url) as connection:
        return MigrationContext.configure(connection).get_current_revision() == head


def _alembic_config() -> Any:
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    return config


@contextmanager
def _migration_connection(url: str) -> Iterator[Any]:
    from sqlalchemy import create_engine, pool

    def connect() -> psycopg.Connection[Any]:
        try:
            return psycopg.connect(url, connect_timeout=10)
        except psycopg.ProgrammingError:
            # Without its text and cause: they quote the URL, password and all.
            raise ConfigurationError(NO_URL) from None
        except psycopg.OperationalError as error:
            raise ConfigurationError(
                f"The database does not answer: {error} Check HIRESFIX_DATABASE_URL and that the server is up."
            ) from error

    engine = create_engine("postgresql+psycopg://", creator=connect, poolclass=pool.NullPool)
    try:
        with engine.begin() as connection:
            driver = connection.connection.driver_connection
            assert isinstance(driver, psycopg.Connection)
            if driver.info.server_version < MINIMUM_SERVER_VERSION:
                raise ConfigurationError(
                    f"PostgreSQL {driver.info.server_version // 10000} is too old: hiresfix needs 14 or newer."
                )
            driver.execute("select pg_advisory_xact_lock(hashtext('hiresfix.migrate'))")
            yield connection
    finally:
        engine.dispose()
