"""Notifications of changed jobs; indexes for lists and for the pace of the models."""

from hiresfix.server.database.migrations import run_sql

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    run_sql("0002_following_jobs.sql")
