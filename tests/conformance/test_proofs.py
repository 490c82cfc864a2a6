"""The table in this package's docstring names a test for each item of the checklist, and each of them exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import tests.conformance

TESTS = Path(__file__).parents[1]
TABLE = tests.conformance.__doc__ or ""


def names_in(file: Path) -> set[str]:
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    return {node.name for node in ast.parse(file.read_text(encoding="utf-8")).body if isinstance(node, functions)}


def test_every_checklist_item_has_a_test() -> None:
    items = re.split(r"^(\d+)\. ", TABLE, flags=re.MULTILINE)[1:]
    proofs = {int(number): text.count("::test_") for number, text in zip(items[::2], items[1::2], strict=True)}
    assert list(proofs) == list(range(1, 15))
    assert all(proofs.values()), proofs


def test_checklist_tests_exist() -> None:
    named = re.findall(r"^    (\S+)::(\w+)$", TABLE, re.MULTILINE)
    assert len(named) == TABLE.count("::test_")
    missing = [f"{file}::{name}" for file, name in named if name not in names_in(TESTS / file)]
    assert not missing, "renamed or removed: correct the table in tests/conformance/__init__.py"


def test_numbered_tests_are_in_the_table() -> None:
    here = {name for file in Path(__file__).parent.glob("test_*.py") for name in names_in(file)}
    assert {name for name in here if re.match(r"test_\d\d_", name)} <= set(re.findall(r"::(\w+)", TABLE))
