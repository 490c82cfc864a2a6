"""Webhooks: a log of attempts, turns for receivers and teams, the teams' own signing secrets."""

from hiresfix.server.database.migrations import run_sql

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    run_sql("0003_webhooks.sql")
