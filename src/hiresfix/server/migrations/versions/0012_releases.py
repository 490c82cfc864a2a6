"""Releases that may work on this schema together, jobs of newer ones, and traces."""

from hiresfix.server.migrations import run_sql

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    run_sql("0012_releases.sql")
