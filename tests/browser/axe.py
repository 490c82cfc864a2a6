"""Accessibility as axe-core judges it: WCAG 2.2 A and AA, and what axe calls best practice."""

from __future__ import annotations

from collections.abc import Sequence

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page

_axe = Axe()


def violations(page: Page, only: Sequence[str] = ()) -> list[str]:
    """A line for each rule and element that breaks it; none is what tests want. only: these rules, not all."""
    # axe leaves the size of targets (WCAG 2.5.8) off unless asked.
    options = (
        {"runOnly": {"type": "rule", "values": list(only)}} if only else {"rules": {"target-size": {"enabled": True}}}
    )
    found = _axe.run(page, options=options).response["violations"]
    return [
        f"{rule['id']} ({rule['impact']}): {' '.join(map(str, node['target']))}: {node.get('failureSummary', '')}"
        for rule in found
        for node in rule["nodes"]
    ]
