"""Schema migrations: Alembic keeps the order, plain SQL files say what changes. Forward only."""

from __future__ import annotations

from pathlib import Path

from alembic import op

VERSIONS = Path(__file__).parent / "versions"


def run_sql(file_name: str) -> None:
    """Run one SQL file of several statements inside the migration's transaction."""
    # The driver's own connection: SQLAlchemy would pass (empty) parameters, which allows one statement only.
    connection = op.get_bind().connection.driver_connection
    assert connection is not None
    connection.execute((VERSIONS / file_name).read_bytes())
