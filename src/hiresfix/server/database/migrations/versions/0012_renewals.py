"""Renewing a lease writes no index."""

from hiresfix.server.database.migrations import run_sql

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    run_sql("0012_renewals.sql")
