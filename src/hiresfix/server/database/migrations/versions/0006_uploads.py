"""Uploads, and idempotency keys that stand for one."""

from hiresfix.server.database.migrations import run_sql

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    run_sql("0006_uploads.sql")
