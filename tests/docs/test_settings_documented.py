"""The operator's page lists every setting and the measured figures."""

from __future__ import annotations

import re

from benchmarks import api_report

from hiresfix.server.settings import Settings
from tests import ROOT


def test_settings_match_the_operators_table() -> None:
    rows = re.findall(r"^\| `(HIRESFIX_[A-Z_]+)` \|", (ROOT / "docs" / "operator.md").read_text(), re.MULTILINE)
    assert sorted(rows) == sorted(f"HIRESFIX_{name.upper()}" for name in Settings.model_fields)


def test_documented_figures_match_the_measurements() -> None:
    results = api_report.load()
    assert api_report.TABLES.read_text() == api_report.report(results)
    page = api_report.OPERATOR.read_text()
    assert api_report.replace_model(page, results) == page
