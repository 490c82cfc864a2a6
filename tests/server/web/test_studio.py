"""The studio's files: what they weigh, and that they hold no markup that a policy would have to allow."""

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


def test_all_scripts_together_weigh_less_than_100_kilobytes_and_a_third_of_it_on_the_way() -> None:
    # Comments do not count: half of them are types, and nobody should save on either.
    loaded: dict[Path, bytes] = {}
    ahead = [STATIC / "js" / "studio.js"]
    while ahead:
        script = ahead.pop()
        if script not in loaded:
            text = script.read_text()
            loaded[script] = without_comments(text).encode()
            ahead += [script.parent / name for name in re.findall(r'from "\./([\w.]+)"', text)]
    assert len(loaded) > 10
    assert sum(map(len, loaded.values())) < 100_000
    assert sum(len(gzip.compress(content, 9)) for content in loaded.values()) < 40_000


def without_comments(script: str) -> str:
    code = re.sub(r"/\*.*?\*/|(?:^|\s)//[^\n]*", "", script, flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"\n\s*\n", "\n", code)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_a_script_makes_no_markup_from_text_and_asks_nobody_else(script: Path) -> None:
    text = script.read_text()
    assert not re.search(
        r"innerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|setAttribute\(\"style", text
    )
    hosts = set(re.findall(r"https?://([a-z][\w.-]+)", text))
    assert hosts <= {"www.w3.org", "example.com"}  # a namespace, and the example in the snippets


@pytest.mark.parametrize("path", ["/studio", "/ja/studio", "/ko/studio", "/en/studio"])
def test_the_page_needs_no_key_and_is_kept_from_search_engines(api: Api, path: str) -> None:
    answer = httpx.get(api.url + path, headers={"Accept-Language": "ko"})
    assert answer.status_code == 200
    assert 'name="robots" content="noindex"' in answer.text
    assert "unsafe" not in answer.headers["content-security-policy"]
    assert not re.search(r"<script(?![^>]*(src=|application/json))|\son\w+=|\sstyle=", answer.text)
    language = {"/studio": "ko", "/en/studio": "en"}.get(path, path[1:3])
    assert f'<html lang="{language}"' in answer.text


def test_people_read_names_for_every_parameter_and_choice(api: Api) -> None:
    page = httpx.get(f"{api.url}/ko/studio").text
    found = re.search(r'<script type="application/json" id="page-data">(.*?)</script>', page, re.DOTALL)
    assert found
    facts = json.loads(found[1])
    params = [param for model in MODELS for param in model.params if param.name != "image"]
    assert {param.name for param in params} == facts["paramNames"].keys()
    spoken = {str(choice) for param in params for choice in param.choices if isinstance(choice, str)}
    assert spoken - set(OutputFormat) == facts["choiceNames"].keys()
    assert facts["paramNames"]["scale_factor"] == "배율"
