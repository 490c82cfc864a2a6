"""Accounts, jobs, ledger, webhooks and procrastinate's tables."""

from hiresfix.server.database.migrations import run_sql

revision = "0001"
down_revision = None


def upgrade() -> None:
    run_sql("procrastinate_3_10_0.sql")
    run_sql("0001_spine.sql")
