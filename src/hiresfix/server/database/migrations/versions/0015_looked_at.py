"""What was seen of an upload when it was decoded."""

from hiresfix.server.database.migrations import run_sql

revision = "0015"
down_revision = "0014"


def upgrade() -> None:
    run_sql("0015_looked_at.sql")
