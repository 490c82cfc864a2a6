"""Public pages in a real browser: every page in every language."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from playwright.sync_api import Page

from hiresfix.server.web import pages
from hiresfix.server.web.languages import LANGUAGES
from hiresfix.server.web.message_format import fill
from hiresfix.server.web.static_files import static_url
from tests.browser.axe import violations
from tests.browser.visit import Visit, needs_browser

pytestmark = needs_browser

ALL = [language.path(path) for path in pages.paths() for language in LANGUAGES]
MODEL = "/models/clarity-upscale"
WIDTHS = (320, 360, 768, 1280, 3840)

OVERFLOWING_ELEMENTS = """() => [...document.querySelectorAll("body *")].filter(element => {
    if (element.closest("pre, .table, .compare, .skip, .visually-hidden") || !element.checkVisibility()) return false;
    return element.getBoundingClientRect().right > innerWidth + 1;
}).map(element => element.outerHTML.slice(0, 100))"""


@pytest.mark.parametrize("path", [*ALL, "/ko/nowhere"])
def test_page_is_accessible_in_both_color_schemes(visit: Callable[..., Visit], path: str) -> None:
    light = visit()
    page = light.open(path)
    assert violations(page) == []
    page.emulate_media(color_scheme="dark")
    page.reload()  # without it, elements change their scheme one after another
    assert violations(page, only=("color-contrast", "link-in-text-block")) == []
    if path.endswith("nowhere"):
        light.complaints.clear()  # the browser reports the 404


@pytest.mark.parametrize("path", ALL)
def test_page_fits_every_width(visit: Callable[..., Visit], path: str) -> None:
    page = visit(width=WIDTHS[0]).open(path)
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") <= width, (
            f"{width}: {page.evaluate(OVERFLOWING_ELEMENTS)}"
        )
        assert page.evaluate(OVERFLOWING_ELEMENTS) == [], width


def test_keyboard_skips_to_content_and_moves_slider(visit: Callable[..., Visit]) -> None:
    page = visit(height=700).open(MODEL)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.getAttribute('href')") == "#main"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    slider = page.get_by_role("slider").first
    slider.focus()
    assert slider.get_attribute("aria-valuetext") == "50% after"
    page.keyboard.press("Home")
    assert (slider.input_value(), slider.get_attribute("aria-valuetext")) == ("0", "100% after")
    page.keyboard.press("ArrowRight")
    assert slider.input_value() == "1"


def test_mouse_moves_the_divider(visit: Callable[..., Visit]) -> None:
    page = visit().open("/ja" + MODEL)
    figure = page.locator(".compare").first
    box = figure.bounding_box()
    assert box is not None
    page.mouse.click(box["x"] + box["width"] * 0.25, box["y"] + 30)
    slider = page.get_by_role("slider", name="処理前後の比較スライダー").first
    assert 22 <= int(slider.input_value()) <= 28
    assert slider.get_attribute("aria-valuetext") == f"処理後 {100 - int(slider.input_value())}%"
    at = figure.locator(".divider").bounding_box()
    assert at is not None
    assert abs(at["x"] - box["x"] - box["width"] * int(slider.input_value()) / 100) < 3


def test_programs_are_selected_and_copied(visit: Callable[..., Visit]) -> None:
    page = visit(permissions=["clipboard-read", "clipboard-write"]).open("/ko" + MODEL)
    start = page.get_by_role("group", name="작업 시작하기")
    assert visible_programs(page) == 3
    start.get_by_role("radio", name="JavaScript").check(force=True)
    program = start.locator("code:visible")
    assert program.inner_text().startswith("const response = await fetch(")
    start.locator("[data-copy]:visible").click()
    start.get_by_role("button", name="복사했습니다").wait_for()
    assert page.evaluate("navigator.clipboard.readText()") == program.inner_text()


def visible_programs(page: Page) -> int:
    return page.locator("fieldset.tabs .panel:visible").count()


def test_page_works_without_scripts(visit: Callable[..., Visit]) -> None:
    page = visit(java_script_enabled=False).open(MODEL)
    before, after = page.locator(".before img").first.bounding_box(), page.locator(".after img").first.bounding_box()
    assert before is not None
    assert after is not None
    assert before["x"] >= after["x"] + after["width"]
    assert visible_programs(page) == 3
    page.locator("label[for=submit-python]").click()
    assert "requests.post" in page.locator("#start .panel:visible").first.inner_text()
    assert page.locator("[data-copy]:visible").count() == 0


def test_language_switch_stays_on_the_page(visit: Callable[..., Visit]) -> None:
    page = visit().open(MODEL)
    page.get_by_role("link", name="日本語").click()
    assert page.url.endswith("/ja" + MODEL)
    page.get_by_role("link", name="English").click()
    assert page.url.endswith(MODEL)
    assert "/ja" not in page.url


def test_scripts_fill_messages_like_the_server(visit: Callable[..., Visit]) -> None:
    page = visit().open("/")
    words = [
        "집", "서울", "파리", "3", "8", "2", "10", "URL", "PNG", "JPEG", "webhook", "faithful-upscale", "Upscaler",
        "집)", "100%", "", "name", "line 2", "API",
    ]  # fmt: skip
    message = "{word:을/를} {word:으로/로} {word:이/가} {word}"
    filled = page.evaluate(
        "async ([url, message, words]) => { const i18n = await import(url);"
        " return words.map(word => i18n.fill(message, { word })); }",
        [static_url("js/i18n.js"), message, words],
    )
    assert filled == [fill(message, {"word": word}) for word in words]
