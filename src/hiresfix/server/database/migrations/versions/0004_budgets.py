"""A monthly budget for each API key."""

from hiresfix.server.database.migrations import run_sql

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    run_sql("0004_budgets.sql")
