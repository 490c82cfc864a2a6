"""Renewing a lease writes no index."""

from hiresfix.server.migrations import run_sql

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    run_sql("0011_renewals.sql")
