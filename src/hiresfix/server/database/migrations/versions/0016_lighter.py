"""Less to write for a submission and its task."""

from hiresfix.server.database.migrations import run_sql

revision = "0016"
down_revision = "0015"


def upgrade() -> None:
    run_sql("0016_lighter.sql")
