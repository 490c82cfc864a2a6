"""The site builds without a warning, asks no other host for anything, and has what was made for it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import hiresfix
from tests import ROOT
from tests.docs.test_contents import COMMANDS, ROUTES

LOADED = r"""<(?:link|script|img|iframe|source)\b[^>]*?\b(?:src|href)=["']?((?:https?:)?//[^"'>\s]+)"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", folder],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    return folder


def test_no_page_loads_anything_from_elsewhere(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 10
    for path in pages:
        loaded = re.findall(LOADED, path.read_text(encoding="utf-8"))
        assert not loaded, f"{path.name}: {loaded}"
    for path in site.rglob("*.css"):
        assert not re.findall(r"(?:url\(|@import\s+)[\"']?(?:https?:)?//", path.read_text(encoding="utf-8")), path.name


def test_the_reference_has_every_route(site: Path) -> None:
    text = (site / "reference" / "api.html").read_text(encoding="utf-8")
    headings = re.findall(r"<h2[^>]*><code>([^<]+)</code>", text)
    assert sorted(headings) == sorted(ROUTES)


def test_the_reference_has_every_command_and_option(site: Path) -> None:
    text = (site / "reference" / "commands.html").read_text(encoding="utf-8")
    for path, command in COMMANDS.items():
        words = " ".join(path)
        section = re.search(rf"<h\d[^>]*><code>hiresfix {words}</code>(.*?)(?:<h[2-4]|\Z)", text, re.DOTALL)
        assert section, path
        for option in (name for param in command.params for name in param.opts if name.startswith("--")):
            assert option in section[1], f"hiresfix {words} {option}"


def test_the_reference_has_every_name_of_the_library(site: Path) -> None:
    text = (site / "reference" / "python.html").read_text(encoding="utf-8")
    headings = re.findall(r"<h2[^>]*><code>hiresfix\.(\w+)</code>", text)
    assert sorted(headings) == sorted([*(name for name in hiresfix.__all__ if not name.startswith("_")), "errors"])


def test_documents_of_the_root_are_pages_whose_links_lead_to_pages(site: Path) -> None:
    text = (site / "contributing.html").read_text(encoding="utf-8")
    assert 'href="architecture.html"' in text
    assert not re.findall(r'href="[^"]*\.md[#"]', text)
