"""Migrate the schema, and check that this release can work on the schema the database has."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import structlog

from hiresfix.errors import ConfigurationError

log = structlog.get_logger(__name__)

MIGRATIONS = Path(__file__).parent / "migrations" / "versions"
MIGRATION_LOCK_TIMEOUT = "3s"
"""Shorter than `pool.LOCK_TIMEOUT`, so that statements queued behind a migration run before their own timeout."""
MIGRATION_ATTEMPTS = 20
MIGRATION_PAUSE = 2.0
LOCK_ERRORS = (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected)
MINIMUM_SERVER_VERSION = 140000
INVALID_URL = "HIRESFIX_DATABASE_URL is not a PostgreSQL URL. Use postgresql://user:password@host/name."


def migrate(url: str, *, to: str = "head") -> tuple[str | None, str]:
    """Bring the schema to this release's version, or `to` an earlier one; returns (revision before, revision after).

    Several processes may call it at once: an advisory lock lets one migrate while the others wait. Others may use the
    database meanwhile: no statement waits for a lock longer than `MIGRATION_LOCK_TIMEOUT`, because everybody else
    queues behind a waiting one; then everything is rolled back and tried again, `MIGRATION_ATTEMPTS` times.
    Raises ConfigurationError for a server that is too old, a schema newer than this release, or locks that stay.
    """
    for tries_left in reversed(range(MIGRATION_ATTEMPTS)):
        try:
            return _migrate(url, to)
        except LOCK_ERRORS as error:
            log.warning("schema.locked", tries_left=tries_left)
            if not tries_left:
                raise ConfigurationError(
                    "The schema could not be changed: other transactions hold its tables. Look for long ones in "
                    "pg_stat_activity, end them and run `hiresfix migrate` again. Nothing was changed."
                ) from error
            time.sleep(MIGRATION_PAUSE)
    raise AssertionError


def _migrate(url: str, to: str) -> tuple[str | None, str]:
    from alembic import command  # imported here: a serving process needs neither Alembic nor SQLAlchemy
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
    """Return the revision that this release was written for."""
    return max(file.name.partition("_")[0] for file in MIGRATIONS.glob("[0-9]*_*.py"))


def require_schema(url: str) -> None:
    """Raise ConfigurationError unless this release can work on the schema that the database has.

    A schema migrated by a newer release is accepted as long as it says so: while a fleet is upgraded process by
    process, processes of the previous release may be restarted too.
    """
    ours = newest_revision()
    with contextlib.closing(_connect(url)) as connection:
        if connection.execute("select to_regclass('alembic_version')").fetchone() == (None,):
            raise ConfigurationError("The database has no schema yet. Run `hiresfix migrate` first.")
        (revision,) = connection.execute("select version_num from alembic_version").fetchone() or ("0000",)
        if revision == ours:
            return
        if revision < ours:
            raise ConfigurationError(
                f"The database's schema is at revision {revision}, and this release needs {ours}. "
                "Run `hiresfix migrate` first."
            )
        (oldest,) = connection.execute("select oldest from schema_support").fetchone() or (revision,)
    if ours < oldest:
        raise ConfigurationError(
            f"The database's schema is at revision {revision}, and this release knows {ours}, which is too old to "
            f"work on it: {oldest} is the oldest that may. Upgrade hiresfix here."
        )
    log.warning("schema.newer", found=revision, known=ours, remedy="Upgrade hiresfix here, as on the other machines.")


def _alembic_config() -> Any:
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS.parent))
    return config


@contextmanager
def _migration_connection(url: str) -> Iterator[Any]:
    from sqlalchemy import create_engine, pool

    engine = create_engine("postgresql+psycopg://", creator=lambda: _connect(url), poolclass=pool.NullPool)
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


def _connect(url: str) -> psycopg.Connection[Any]:
    try:
        return psycopg.connect(url, connect_timeout=10)
    except psycopg.ProgrammingError:
        # Without its text and cause: they quote the URL with its password.
        raise ConfigurationError(INVALID_URL) from None
    except psycopg.OperationalError as error:
        raise ConfigurationError(
            f"The database does not answer: {error} Check HIRESFIX_DATABASE_URL and that the server is up."
        ) from error
