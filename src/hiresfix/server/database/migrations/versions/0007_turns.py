"""Fair turns between teams, and how many jobs of a team run at once."""

from hiresfix.server.database.migrations import run_sql

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    run_sql("0007_turns.sql")
