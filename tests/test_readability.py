"""Rules of CONTRIBUTING.md that a program can check."""

from __future__ import annotations

import pytest
from tools import readability
from tools.readability import MAX_LINES, MAX_TEST_WORDS, RELATIVE_CLAUSE

from tests import ROOT

SOURCE = list(readability.parsed(ROOT / "src"))
LONG_WITH_REASON = ("server/worker/process.py",)
"""One class whose methods share the job at hand."""


def test_docstrings_open_with_no_relative_clause() -> None:
    openings = [text.splitlines()[0] for _, _, tree in SOURCE for text in readability.docstrings(tree)]
    assert [opening for opening in openings if RELATIVE_CLAUSE.match(opening)] == []


def test_modules_are_short() -> None:
    long = [path.as_posix() for path, text, _ in SOURCE if len(text.splitlines()) > MAX_LINES]
    assert [path for path in long if not path.endswith(LONG_WITH_REASON)] == []


def test_test_names_are_short() -> None:
    names = readability.test_names(readability.parsed(ROOT / "tests"))
    assert [name for name in names if len(name.split("_")) - 1 > MAX_TEST_WORDS] == []


@pytest.mark.parametrize("fact", readability.FACTS)
def test_fact_has_one_home(fact: str) -> None:
    files, pattern, homes = readability.FACTS[fact]
    assert readability.files_with(ROOT / "src", files, pattern) == homes
