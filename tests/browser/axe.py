"""Accessibility checks with axe-core: WCAG 2.2 A and AA, and its best practices."""

from __future__ import annotations

from collections.abc import Sequence

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page

_axe = Axe()


def violations(page: Page, only: Sequence[str] = ()) -> list[str]:
    """Return a line for each element that breaks a rule; `only` limits the rules."""
    # axe checks the size of targets (WCAG 2.5.8) only if enabled.
    options = (
        {"runOnly": {"type": "rule", "values": list(only)}} if only else {"rules": {"target-size": {"enabled": True}}}
    )
    broken_rules = _axe.run(page, options=options).response["violations"]
    return [
        f"{rule['id']} ({rule['impact']}): {' '.join(map(str, node['target']))}: {node.get('failureSummary', '')}"
        for rule in broken_rules
        for node in rule["nodes"]
    ]
