"""The public pages as people meet them, in a real browser."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.browser.axe import violations
from tests.browser.conftest import Visit, needs_browser

pytestmark = needs_browser

PATHS = ("/", "/ja", "/ko")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("path", PATHS)
def test_a_page_breaks_no_rule_of_accessibility(visit: Callable[..., Visit], path: str, dark: bool) -> None:
    assert violations(visit(dark=dark).open(path)) == []
