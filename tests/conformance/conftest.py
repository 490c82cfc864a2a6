"""The fixtures of the server's and of the journey's tests, for the conformance tests between them."""

from __future__ import annotations

from tests.journey.conftest import service
from tests.server.conftest import api, database, photo, queue, settings, start_api, steps

__all__ = ["api", "database", "photo", "queue", "service", "settings", "start_api", "steps"]
