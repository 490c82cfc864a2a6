"""Releases that may work on this schema together, jobs of newer ones, and traces."""

from hiresfix.server.database.migrations import run_sql

revision = "0013"
down_revision = "0012"


def upgrade() -> None:
    run_sql("0013_releases.sql")
