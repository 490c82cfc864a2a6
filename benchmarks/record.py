"""Where tables are kept, and the same figures for programs beside each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def tell(name: str, text: str, data: Any, *, write: bool, indent: int | None = 2) -> None:
    """Prints the table; with `write` also keeps it as NAME.md, and `data` as NAME.json."""
    print(text)
    if write:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{name}.md").write_text(text, encoding="utf-8")
        (RESULTS / f"{name}.json").write_text(json.dumps(data, indent=indent) + "\n", encoding="utf-8")
