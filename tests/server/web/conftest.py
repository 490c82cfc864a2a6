"""Fixtures for tests of the pages: the server that the browser tests use."""

from tests.browser.conftest import server, working

__all__ = ["server", "working"]
