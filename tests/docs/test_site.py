"""The site builds without a warning, loads nothing from other hosts, and has the generated pages."""

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

EXTERNAL_LOAD = r"""<(?:link|script|img|iframe|source)\b[^>]*?\b(?:src|href)=["']?((?:https?:)?//[^"'>\s]+)"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    process = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", folder],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert (process.returncode, process.stdout, process.stderr) == (0, "", "")
    return folder


def test_pages_load_nothing_from_other_hosts(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 10
    for path in pages:
        urls = re.findall(EXTERNAL_LOAD, path.read_text(encoding="utf-8"))
        assert not urls, f"{path.name}: {urls}"
    for path in site.rglob("*.css"):
        assert not re.findall(r"(?:url\(|@import\s+)[\"']?(?:https?:)?//", path.read_text(encoding="utf-8")), path.name


def test_api_reference_has_every_route(site: Path) -> None:
    text = (site / "reference" / "api.html").read_text(encoding="utf-8")
    headings = re.findall(r"<h2[^>]*><code>([^<]+)</code>", text)
    assert sorted(headings) == sorted(ROUTES)


def test_command_reference_has_every_option(site: Path) -> None:
    text = (site / "reference" / "commands.html").read_text(encoding="utf-8")
    for path, command in COMMANDS.items():
        words = " ".join(path)
        section = re.search(rf"<h\d[^>]*><code>hiresfix {words}</code>(.*?)(?:<h[2-4]|\Z)", text, re.DOTALL)
        assert section, path
        for option in (name for param in command.params for name in param.opts if name.startswith("--")):
            assert option in section[1], f"hiresfix {words} {option}"


def test_python_reference_has_every_name(site: Path) -> None:
    text = (site / "reference" / "python.html").read_text(encoding="utf-8")
    headings = re.findall(r"<h2[^>]*><code>hiresfix\.(\w+)</code>", text)
    assert sorted(headings) == sorted([*(name for name in hiresfix.__all__ if not name.startswith("_")), "errors"])


def test_root_documents_are_pages_with_working_links(site: Path) -> None:
    text = (site / "contributing.html").read_text(encoding="utf-8")
    assert 'href="architecture.html"' in text
    assert not re.findall(r'href="[^"]*\.md[#"]', text)
