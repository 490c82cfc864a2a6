"""Where attempts that lost their claim may have left a picture."""

from hiresfix.server.database.migrations import run_sql

revision = "0014"
down_revision = "0013"


def upgrade() -> None:
    run_sql("0014_strays.sql")
