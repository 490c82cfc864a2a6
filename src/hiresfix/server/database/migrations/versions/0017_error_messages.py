"""Reason and parameters of a failed job's error."""

from hiresfix.server.database.migrations import run_sql

revision = "0017"
down_revision = "0016"


def upgrade() -> None:
    run_sql("0017_error_messages.sql")
