"""Files of the studio: their size, and no markup that needs a weaker content security policy."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path

import httpx
import pytest

from hiresfix.models.catalog import MODELS
from hiresfix.recipe import OutputFormat
from hiresfix.server import web
from tests.server.conftest import Api

STATIC = Path(web.__file__).parent / "static"
SCRIPTS = sorted((STATIC / "js").glob("*.js"))


@pytest.mark.parametrize(
    ("entry", "max_bytes", "max_compressed"), [("studio.js", 100_000, 40_000), ("pages.js", 10_000, 5_000)]
)
def test_scripts_of_a_page_stay_small(entry: str, max_bytes: int, max_compressed: int) -> None:
    # Without comments: half of them are types.
    loaded: dict[Path, bytes] = {}
    pending = [STATIC / "js" / entry]
    while pending:
        script = pending.pop()
        if script not in loaded:
            text = script.read_text()
            loaded[script] = without_comments(text).encode()
            pending += [script.parent / name for name in re.findall(r'from "\./([\w.]+)"', text)]
    assert len(loaded) > (10 if entry == "studio.js" else 1)
    assert sum(map(len, loaded.values())) < max_bytes
    assert sum(len(gzip.compress(content, 9)) for content in loaded.values()) < max_compressed


def test_scripts_as_sent_stay_small() -> None:
    assert sum(len(gzip.compress(script.read_bytes(), 9)) for script in SCRIPTS) < 50_000


def without_comments(script: str) -> str:
    code = re.sub(r"/\*.*?\*/|(?:^|\s)//[^\n]*", "", script, flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"\n\s*\n", "\n", code)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_script_makes_no_markup_and_no_foreign_requests(script: Path) -> None:
    text = script.read_text()
    assert not re.search(
        r"innerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|setAttribute\(\"style", text
    )
    hosts = set(re.findall(r"https?://([a-z][\w.-]+)", text))
    assert hosts <= {"www.w3.org", "example.com"}  # a namespace, and the example in the snippets


@pytest.mark.parametrize("path", ["/studio", "/ja/studio", "/ko/studio", "/en/studio"])
def test_studio_needs_no_key_and_is_not_indexed(api: Api, path: str) -> None:
    answer = httpx.get(api.url + path, headers={"Accept-Language": "ko"})
    assert answer.status_code == 200
    assert 'name="robots" content="noindex"' in answer.text
    assert "unsafe" not in answer.headers["content-security-policy"]
    assert not re.search(r"<script(?![^>]*(src=|application/json))|\son\w+=|\sstyle=", answer.text)
    language = {"/studio": "ko", "/en/studio": "en"}.get(path, path[1:3])
    assert f'<html lang="{language}"' in answer.text


def test_every_parameter_and_choice_has_a_name(api: Api) -> None:
    page = httpx.get(f"{api.url}/ko/studio").text
    match = re.search(r'<script type="application/json" id="page-data">(.*?)</script>', page, re.DOTALL)
    assert match
    data = json.loads(match[1])
    params = [param for model in MODELS for param in model.params if param.name != "image"]
    assert {param.name for param in params} == data["paramNames"].keys()
    choices = {str(choice) for param in params for choice in param.choices if isinstance(choice, str)}
    assert choices - set(OutputFormat) == data["choiceNames"].keys()
    assert data["paramNames"]["scale_factor"] == "배율"
