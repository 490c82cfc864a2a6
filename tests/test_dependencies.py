"""What the package imports is declared, with bounds, and pinned for our own installs."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from importlib import metadata

from tests import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
REQUIREMENTS = [*PROJECT["dependencies"], *(line for lines in EXTRAS.values() for line in lines)]


def normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def declared() -> dict[str, str]:
    """Distribution names with the rest of their requirement."""
    split = (re.match(r"([\w.-]+)(?:\[[\w,-]+\])?(.*)", line) for line in REQUIREMENTS)
    return {normalised(found[1]): found[2] for found in split if found and found[1] != "hiresfix"}


def imported() -> set[str]:
    """Top-level modules that `src/` imports, without the standard library's and our own."""
    names: set[str] = set()
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names.add(node.module.partition(".")[0])
    return names - sys.stdlib_module_names - {"hiresfix"}


def test_every_import_is_declared() -> None:
    distributions = metadata.packages_distributions()
    missing = {
        name for name in imported() if not {normalised(each) for each in distributions[name]} & declared().keys()
    }
    assert not missing


def test_every_dependency_has_bounds() -> None:
    assert [name for name, rest in declared().items() if not re.match(r">=[\d.]+,<\d+|==[\d.]+", rest)] == []


def test_every_dependency_is_pinned() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {normalised(line.partition("==")[0]) for line in lines if "==" in line}
    assert declared().keys() - pinned == set()


def test_version_has_one_home() -> None:
    import hiresfix

    assert PROJECT["dynamic"] == ["version"]
    assert "version" not in PROJECT
    assert metadata.version("hiresfix") == hiresfix.__version__
