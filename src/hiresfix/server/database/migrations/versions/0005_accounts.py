"""Accounts: suspension, names, one account an address, an audit log, invitations."""

from hiresfix.server.database.migrations import run_sql

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    run_sql("0005_accounts.sql")
