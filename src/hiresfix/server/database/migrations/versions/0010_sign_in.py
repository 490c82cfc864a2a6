"""One-time links that sign a browser in, and keys that end by themselves."""

from hiresfix.server.database.migrations import run_sql

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    run_sql("0010_sign_in.sql")
