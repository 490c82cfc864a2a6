"""What operators are given to run and watch the service with: it names only what exists."""

from __future__ import annotations

import re
from pathlib import Path

from hiresfix.server import census, metrics

ROOT = Path(__file__).parent.parent
METRICS = {name for name in metrics.families(census.families(None)) if not name.startswith("process_")}


def test_every_metric_is_in_the_operators_table_and_no_other() -> None:
    rows = re.findall(r"^\| `(hiresfix_[a-z_]+)` \|", (ROOT / "docs" / "operator.md").read_text(), re.MULTILINE)
    assert sorted(rows) == sorted(METRICS)
