"""Public pages over HTTP: they agree with the API, and their links work."""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from xml.etree import ElementTree as ET

import httpx
import pytest
from PIL import Image

from hiresfix import wire
from hiresfix.models import pricing
from hiresfix.models.catalog import CLARITY, FAITHFUL, MODELS, CatalogModel
from hiresfix.server.jobs import estimates
from hiresfix.server.web import pages, samples, snippets
from hiresfix.server.web.languages import ENGLISH, LANGUAGES, Language, find_language
from hiresfix.server.web.static_files import FOLDER, static_url
from tests.conftest import Site, png
from tests.journey.conftest import Service
from tests.server.conftest import Api

ALL = [language.path(path) for path in pages.paths() for language in LANGUAGES]
VOID = {"area", "base", "br", "col", "hr", "img", "input", "link", "meta", "path"}
BROWSER_HEADERS = {"Accept": "text/html,application/xhtml+xml"}


@dataclass
class Element:
    tag: str
    attributes: dict[str, str]
    text: str = ""


@dataclass
class Document(HTMLParser):
    """All elements of a page in order, with the text inside them."""

    elements: list[Element] = field(default_factory=list)
    open_elements: list[Element] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(convert_charrefs=True)

    def __hash__(self) -> int:
        return id(self)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs), f"an attribute twice: {attrs}"
        element = Element(tag, {name: value or "" for name, value in attrs})
        self.elements.append(element)
        if tag not in VOID:
            self.open_elements.append(element)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open_elements.pop().tag == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        for element in self.open_elements:
            element.text += data

    def all(self, tag: str, **attributes: str) -> list[Element]:
        return [
            element
            for element in self.elements
            if element.tag == tag and attributes.items() <= element.attributes.items()
        ]

    def one(self, tag: str, **attributes: str) -> Element:
        (element,) = self.all(tag, **attributes)
        return element

    def rows(self) -> Iterator[list[str]]:
        """Yield the cells of each row of each table."""
        row: list[str] = []
        for element in self.elements:
            if element.tag == "tr":
                if row:
                    yield row
                row = []
            elif element.tag in ("th", "td"):
                row.append(element.text.strip().replace("\u200b", ""))
        yield row


def read(html: str) -> Document:
    document = Document()
    document.feed(html)
    document.close()
    assert document.open_elements == []
    return document


@pytest.fixture(scope="module")
def get(server: Service) -> Callable[[str], Document]:
    @cache
    def fetch(path: str) -> Document:
        answer = httpx.get(server.url + path)
        assert answer.status_code == 200, path
        assert answer.headers["content-type"] == "text/html; charset=utf-8"
        return read(answer.text)

    return fetch


def language_of(path: str) -> Language:
    return find_language(path.split("/")[1]) or ENGLISH


@pytest.mark.parametrize("path", ALL)
def test_page_is_well_formed(get: Callable[[str], Document], server: Service, path: str) -> None:
    page, language = get(path), language_of(path)
    assert page.one("html").attributes["lang"] == language.code
    assert len(page.all("h1")) == len(page.all("main")) == len(page.all("header")) == len(page.all("footer")) == 1
    assert Counter(e.attributes["id"] for e in page.elements if "id" in e.attributes).most_common(1)[0][1] == 1
    assert 10 < len(page.one("title").text) < 80
    assert 20 < len(page.one("meta", name="description").attributes["content"]) < 200
    assert page.one("link", rel="canonical").attributes["href"] == server.url + path.rstrip("/") + ("/" * (path == "/"))
    for image in page.all("img"):
        assert {"alt", "width", "height"} <= image.attributes.keys()
    for element in page.elements:
        assert "style" not in element.attributes
        assert not any(name.startswith("on") for name in element.attributes)
        for name in ("aria-labelledby", "for"):
            if name in element.attributes:
                assert any(e.attributes.get("id") == element.attributes[name] for e in page.elements)
    for script in page.all("script"):
        assert "src" in script.attributes or script.attributes["type"] in ("application/ld+json", "application/json")
    headings = [int(e.tag[1]) for e in page.elements if re.fullmatch(r"h[1-6]", e.tag)]
    assert all(after - before <= 1 for before, after in pairwise(headings))


@pytest.mark.parametrize("path", pages.paths())
def test_translations_link_to_each_other(get: Callable[[str], Document], server: Service, path: str) -> None:
    def alternates(address: str) -> dict[str, str]:
        links = get(address).all("link", rel="alternate")
        return {link.attributes["hreflang"]: link.attributes["href"] for link in links}

    expected = {language.code: server.url + language.path(path) for language in LANGUAGES}
    for language in LANGUAGES:
        assert alternates(language.path(path)) == {**expected, "x-default": server.url + path}
    assert len({get(language.path(path)).one("h1").text for language in LANGUAGES}) in (1, 3)
    assert len({get(language.path(path)).one("title").text for language in LANGUAGES}) == 3


@pytest.mark.parametrize("path", [path for path in ALL if language_of(path) is not ENGLISH])
def test_translated_pages_contain_no_english_sentence(get: Callable[[str], Document], path: str) -> None:
    for element in get(path).elements:
        if element.tag in ("p", "li", "h1", "h2", "h3", "dt", "summary", "label") and len(element.text) > 25:
            letters = re.sub(r"[\W\d_]", "", element.text)
            foreign = re.sub(r"[a-zA-Z]", "", letters)
            code = any(mark in element.text for mark in ("_", "{", "curl", "://"))
            assert foreign or code, element.text


@pytest.mark.parametrize("path", ALL)
def test_structured_data_is_valid(get: Callable[[str], Document], server: Service, path: str) -> None:
    page = get(path)
    data = json.loads(page.one("script", type="application/ld+json").text)
    assert data["@context"] == "https://schema.org"
    kinds = {thing["@type"] for thing in data["@graph"]}
    if "/models/" in path:
        assert kinds == {"WebAPI", "ImageObject", "FAQPage", "BreadcrumbList"}
        (faq,) = (thing for thing in data["@graph"] if thing["@type"] == "FAQPage")
        assert [q["name"] for q in faq["mainEntity"]] == [summary.text for summary in page.all("summary")]
    graph = {e.attributes["property"]: e.attributes["content"] for e in page.all("meta") if "property" in e.attributes}
    assert graph["og:title"] == page.one("title").text
    assert graph["og:locale"] == language_of(path).region
    assert graph["og:image"].startswith(server.url)
    assert httpx.get(graph["og:image"]).headers["content-type"] == "image/webp"


@pytest.mark.parametrize("language", LANGUAGES, ids=lambda language: language.code)
@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.id)
def test_schema_table_matches_the_api(
    get: Callable[[str], Document], server: Service, model: CatalogModel, language: Language
) -> None:
    listed = httpx.get(f"{server.url}/v2/models").json()["models"]
    (entry,) = (each for each in listed if each["id"] == model.id)
    page = get(language.path(f"/models/{model.id}"))
    rows = {row[0]: row[1:] for row in page.rows() if len(row) == 6}
    model_rows = {name.partition(".")[2]: cells for name, cells in rows.items() if name.startswith(entry["paramsKey"])}
    assert list(model_rows) == list(entry["params"]["properties"])
    for name, facts in entry["params"]["properties"].items():
        kind, required, default, allowed, explained = model_rows[name]
        assert kind.split()[0] == facts["type"]
        assert required == language("required" if name in entry["params"]["required"] else "optional")
        assert default == str(facts.get("default", "–"))
        for fact in (*facts.get("enum", ()), *(facts[b] for b in ("minimum", "maximum") if b in facts)):
            assert str(fact) in allowed
        assert explained == language(facts["description"])
    assert [name for name in rows if "." not in name][1:] == ["model", "webhookUrl", "webhookEvents"]


def test_all_links_work(get: Callable[[str], Document], server: Service) -> None:
    responses: dict[str, Any] = {}
    with httpx.Client(base_url=server.url) as client:
        for path in ALL:
            page = get(path)
            targets = [
                element.attributes[name]
                for element in page.elements
                for name in ("href", "src")
                if name in element.attributes
            ]
            for target in targets:
                parts = urlsplit(target.removeprefix(server.url))
                assert not parts.netloc, f"{path} links to {target}"
                address = parts.path or path
                if address not in responses:
                    responses[address] = client.get(address)
                assert responses[address].status_code == 200, f"{path} links to {target}"
                if parts.fragment:
                    assert any(e.attributes.get("id") == parts.fragment for e in get(address).elements), target
    assert len(responses) > len(ALL)


def test_pages_follow_the_operators_settings(start_api: Callable[..., Api]) -> None:
    price = pricing.parse("0.25/MP")
    api = start_api(prices={FAITHFUL.id: price}, max_output_megapixels=40.0, retention_days=5.0, max_image_bytes=2**20)
    text = httpx.get(f"{api.url}/ko/models/{FAITHFUL.id}").text
    assert "결과 1메가픽셀당 0.25크레딧" in text
    assert "최소 1크레딧, 최대 10크레딧" in text
    assert "5일 동안 보관" in text
    assert "최대 1MB" in text
    assert "아직 측정되지 않았습니다" in text


@pytest.mark.parametrize(("seconds", "shown"), [("2.34", "2.3"), ("12.3", "12")])
def test_page_shows_the_measured_time(
    api: Api, photo: str, monkeypatch: pytest.MonkeyPatch, seconds: str, shown: str
) -> None:
    monkeypatch.setattr(estimates, "PACE_SECONDS", 0.0)
    assert api.submit({"image": photo}).status_code == 202
    result = '{"width": 48, "height": 34}'
    api.do(
        "update jobs set state = 'COMPLETED', attempt = 1, progress = 100, started_at = queued_at,"
        f" completed_at = queued_at + interval '{seconds} s', result = '{result}'"
    )
    text = httpx.get(f"{api.url}/ja/models/{CLARITY.id}").text
    assert f">{shown} 秒（最近のジョブの実測値）" in text


@pytest.mark.parametrize(
    ("path", "target"),
    [
        ("/jp", "/ja"),
        ("/kr/models/clarity-upscale", "/ko/models/clarity-upscale"),
        ("/jp/models/clarity-upscale?a=b", "/ja/models/clarity-upscale?a=b"),
        ("/en", "/"),
        ("/en/models", "/models"),
        ("/en//evil.example", "/evil.example"),
        ("/en/%5C%5Cevil.example", "/evil.example"),
    ],
)
def test_other_addresses_redirect_permanently(server: Service, path: str, target: str) -> None:
    answer = httpx.get(server.url + path)
    assert (answer.status_code, answer.headers["location"]) == (301, target)


def test_unchanged_page_answers_304(server: Service) -> None:
    first = httpx.get(server.url + "/ja")
    assert first.headers["cache-control"].startswith("public, max-age=")
    again = httpx.get(server.url + "/ja", headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert first.headers["content-language"] == "ja"
    assert "accept-language" not in first.headers["vary"].lower()


def test_policy_forbids_inline_scripts_and_other_origins(server: Service) -> None:
    policy = httpx.get(server.url + "/").headers["content-security-policy"]
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules["default-src"] == "'none'"
    assert rules["script-src"] == rules["style-src"] == "'self'"
    assert "unsafe" not in policy
    assert {source for rule in rules.values() for source in rule.split() if ":/" in source} == {server.url}


def test_static_files_are_immutable_under_their_hash(server: Service) -> None:
    style = static_url("css/site.css")
    current = httpx.get(server.url + style)
    assert "immutable" in current.headers["cache-control"]
    assert current.headers["content-type"].startswith("text/css")
    assert current.headers["content-encoding"] == "gzip"
    old = httpx.get(server.url + re.sub(r"/static/\w+/", "/static/before/", style), headers={"Accept-Encoding": "x"})
    assert (old.status_code, old.headers["cache-control"]) == (200, "no-cache")
    assert old.content == current.content == (FOLDER / "css" / "site.css").read_bytes()
    with httpx.stream("GET", server.url + style) as packed:
        assert len(gzip.decompress(b"".join(packed.iter_raw()))) == len(old.content)
    script = httpx.get(server.url + static_url("js/i18n.js"))
    assert script.headers["content-type"].startswith("text/javascript")
    for wrong in ("/static/x/../app.py", "/static/x/%2e%2e/pages.py", "/static/x/css/none.css", "/static/x/"):
        assert httpx.get(server.url + wrong).status_code == 404, wrong


def test_404_is_html_for_people_json_for_programs(server: Service) -> None:
    page = httpx.get(server.url + "/ko/nowhere", headers=BROWSER_HEADERS)
    assert (page.status_code, page.headers["content-type"]) == (404, "text/html; charset=utf-8")
    assert "페이지를 찾을 수 없습니다" in page.text
    read(page.text)
    japanese = httpx.get(server.url + "/nowhere", headers={**BROWSER_HEADERS, "Accept-Language": "ja"})
    assert "ページが見つかりません" in japanese.text
    assert "Accept-Language" in japanese.headers["vary"]
    for path, headers in (
        ("/ko/nowhere", {}),
        ("/v2/nowhere", BROWSER_HEADERS),
        ("/files/images/x.png", BROWSER_HEADERS),
    ):
        assert httpx.get(server.url + path, headers=headers).json()["code"] == "not_found", path


def test_sitemap_lists_exactly_the_public_pages(server: Service) -> None:
    robots = httpx.get(server.url + "/robots.txt").text
    assert f"Sitemap: {server.url}/sitemap.xml" in robots
    assert "Disallow: /v2/" in robots
    root = ET.fromstring(httpx.get(server.url + "/sitemap.xml").content)
    space = {"s": "http://www.sitemaps.org/schemas/sitemap/0.9"}
    locations = [location.text for location in root.findall("s:url/s:loc", space)]
    assert sorted(locations, key=str) == sorted(server.url + path for path in ALL)


def test_samples_have_their_stated_size() -> None:
    for sample in samples.SAMPLES:
        for name, scale in ((sample.before, 1), (sample.after, sample.scale)):
            with Image.open(FOLDER / name) as image:
                assert image.size == (sample.width * scale, sample.height * scale)
        names = {param.name for param in sample.model.params}
        assert sample.params.keys() <= names
        body = {"model": sample.model.id, sample.model.params_key: {"image": "https://example.com/x", **sample.params}}
        wire.parse_upscale(json.dumps(body).encode(), "application/json")
    assert sum(file.stat().st_size for file in (FOLDER / "img").rglob("*.webp")) < 1.5 * 2**20


PROGRAMS: dict[str, Callable[[str], list[str]]] = {
    "curl": lambda code: ["bash", "-c", f"set -e; {code}"],
    "python": lambda code: [sys.executable, "-c", code],
    "js": lambda code: ["node", "--input-type=module", "--eval", code],
}


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("curl", "/models/clarity-upscale"),
        ("python", "/ja/models/clarity-upscale"),
        ("js", "/ko/models/clarity-upscale"),
        ("python", "/models/faithful-upscale"),
    ],
)
def test_programs_on_a_page_run_unchanged(
    get: Callable[[str], Document], working: Service, site: Site, tmp_path: Path, name: str, path: str
) -> None:
    if shutil.which(PROGRAMS[name]("")[0]) is None or (name == "curl" and shutil.which("curl") is None):
        pytest.skip(f"{name} is not installed")
    (tmp_path / "photo.jpg").write_bytes(png(20, 14))
    page = get(path)

    def run(which: str, job: str = snippets.JOB_ID) -> str:
        codes = [e.text for e in page.all("code") if snippets.KEY_VARIABLE in e.text and "\n" in e.text]
        start = {"submit": 0, "upload": 3, "poll": 6}[which]
        code = codes[start + list(PROGRAMS).index(name)]
        code = code.replace(snippets.IMAGE_URL, site.add("/input.jpg", png(20, 14))).replace(snippets.JOB_ID, job)
        environment = {**os.environ, snippets.KEY_VARIABLE: working.key, "NO_PROXY": "127.0.0.1", "NO_COLOR": "1"}
        done = subprocess.run(
            PROGRAMS[name](code),
            capture_output=True,
            text=True,
            timeout=200,
            env=environment,
            cwd=tmp_path,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert f"{working.url}/files/uploads/" in run("upload")
    (job,) = re.findall(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", run("submit"))
    working.finished(job)
    assert f"{working.url}/files/images/{job}-1.png" in run("poll", job)
    result = httpx.get(working.job(job)["result"]["images"][0]).content
    assert Image.open(io.BytesIO(result)).size == (40, 28)
