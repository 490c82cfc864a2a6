"""Names, versions and texts that the modules of the embedded PostgreSQL share."""

from __future__ import annotations

MAJOR_VERSION = 18
NAME = "hiresfix"
"""Name of the database, of its superuser, and of the system user that runs the server when hiresfix runs as root."""
POLL_SECONDS = 0.05
USE_OWN_SERVER = "set HIRESFIX_DATABASE_URL to a PostgreSQL of your own"
"""The way out that every error message offers."""
