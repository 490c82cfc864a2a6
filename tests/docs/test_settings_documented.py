"""Every setting is documented, and no other. `tests/docs` holds the rest against the documents."""

from __future__ import annotations

import re

from benchmarks import api_report

from hiresfix.server.settings import Settings
from tests import ROOT


def test_every_setting_is_in_the_operators_table_and_no_other() -> None:
    rows = re.findall(r"^\| `(HIRESFIX_[A-Z_]+)` \|", (ROOT / "docs" / "operator.md").read_text(), re.MULTILINE)
    assert sorted(rows) == sorted(f"HIRESFIX_{name.upper()}" for name in Settings.model_fields)


def test_the_figures_that_are_told_are_those_that_were_measured() -> None:
    results = api_report.load()
    assert api_report.TABLES.read_text() == api_report.report(results)
    page = api_report.OPERATOR.read_text()
    assert api_report.replace_model(page, results) == page
