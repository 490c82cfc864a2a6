"""Jobs remember that a picture of theirs was refused."""

from hiresfix.server.database.migrations import run_sql

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    run_sql("0008_refused.sql")
