"""What is documented exists, and what exists is documented."""

from __future__ import annotations

import re
from pathlib import Path

from typer.main import get_command

from hiresfix import cli
from hiresfix.server.config import Settings

ROOT = Path(__file__).parent.parent


def test_every_setting_is_in_the_operators_table_and_no_other() -> None:
    rows = re.findall(r"^\| `(HIRESFIX_[A-Z_]+)` \|", (ROOT / "docs" / "operator.md").read_text(), re.MULTILINE)
    assert sorted(rows) == sorted(f"HIRESFIX_{name.upper()}" for name in Settings.model_fields)


def test_the_readme_names_only_commands_that_exist() -> None:
    known = set(get_command(cli.app).commands)  # type: ignore[attr-defined] # typer's command is a group here
    used = set(re.findall(r"^hiresfix (\w+)", (ROOT / "README.md").read_text(), re.MULTILINE))
    assert used
    assert used <= known


def test_links_between_the_documents_lead_somewhere() -> None:
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
