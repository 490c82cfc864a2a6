"""Workers say that they live and what they can hold."""

from hiresfix.server.database.migrations import run_sql

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    run_sql("0009_fleet.sql")
