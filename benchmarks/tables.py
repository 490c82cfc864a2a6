"""Printing of result tables, and saving them as Markdown and JSON under `results/`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def publish(name: str, text: str, data: Any, *, write: bool, indent: int | None = 2) -> None:
    """Print the table; with `write` also save it as NAME.md, and `data` as NAME.json."""
    print(text)
    if write:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{name}.md").write_text(text, encoding="utf-8")
        (RESULTS / f"{name}.json").write_text(json.dumps(data, indent=indent) + "\n", encoding="utf-8")
