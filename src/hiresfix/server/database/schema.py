"""Migrate the schema, and check that this release can work on the schema the database has."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg

from hiresfix.errors import ConfigurationError
from hiresfix.server.database.pool import log

MIGRATIONS = Path(__file__).parent / "migrations" / "versions"


MIGRATION_LOCK_TIMEOUT = "3s"
"""Shorter than `LOCK_TIMEOUT`: who waits behind a migration gets its turn before its own patience ends."""


MIGRATION_TRIES = 20


MIGRATION_PAUSE = 2.0


LOCKED = (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected)


MINIMUM_SERVER_VERSION = 140000


NO_URL = "HIRESFIX_DATABASE_URL is not a PostgreSQL URL. Use postgresql://user:password@host/name."


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
