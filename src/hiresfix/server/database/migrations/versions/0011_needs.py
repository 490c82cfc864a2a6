"""Jobs say what they need, and the queue knows who holds it."""

from hiresfix.server.database.migrations import run_sql

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    run_sql("0011_needs.sql")
