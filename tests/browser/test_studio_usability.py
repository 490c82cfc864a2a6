"""Usability of the studio: adding images, layout, keyboard order and speed."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from playwright.sync_api import Page, Response, expect

from hiresfix.models.catalog import CLARITY
from tests.browser.studio_page import StudioPage
from tests.browser.test_pages import OVERFLOWING_ELEMENTS, WIDTHS
from tests.browser.visit import Visit, needs_browser
from tests.server.conftest import wait_until

pytestmark = needs_browser

DISPATCH_FILE = """([kind, name, content]) => {
    const transfer = new DataTransfer();
    const bytes = Uint8Array.from(atob(content), byte => byte.charCodeAt(0));
    transfer.items.add(new File([bytes], name, { type: "image/png" }));
    const options = { bubbles: true, cancelable: true };
    const event = kind === "paste" ? new ClipboardEvent(kind, { clipboardData: transfer, ...options })
        : new DragEvent(kind, { dataTransfer: transfer, ...options });
    document.getElementById("preview").dispatchEvent(event);
}"""


def dispatch_file(page: Page, kind: str, image: Path, name: str) -> None:
    page.evaluate(DISPATCH_FILE, [kind, name, base64.b64encode(image.read_bytes()).decode()])


def test_dropped_and_pasted_images_survive_a_rejected_one(
    new_studio: Callable[..., StudioPage], photo: Path, tmp_path: Path
) -> None:
    studio = new_studio().open()
    page, before = studio.page, studio.credits
    studio.choose_preset("line-art")
    dispatch_file(page, "dragenter", photo, "dropped.png")
    expect(studio.at("#drop-overlay")).to_be_visible()
    dispatch_file(page, "drop", photo, "dropped.png")
    expect(studio.at("#drop-overlay")).to_be_hidden()
    expect(studio.at("#estimate")).to_contain_text("1 credit")
    (tmp_path / "broken.png").write_bytes(photo.read_bytes()[:60])
    dispatch_file(page, "paste", tmp_path / "broken.png", "broken.png")
    expect(studio.at("#estimate")).to_contain_text("cannot be used as an image")
    dispatch_file(page, "paste", photo, "pasted.png")
    expect(studio.at(".filmstrip-select")).to_have_count(3)
    expect(studio.at("#run")).to_have_text("Upscale 2 images")
    expect(studio.at("#estimate")).to_contain_text("2 credits")
    expect(page.get_by_role("button", name="broken.png: This file cannot be used")).to_be_visible()
    studio.forgive("400")
    studio.run()
    studio.wait_for_result()
    done = studio.at("#history-list .thumbnail-frame[data-action=show]")
    for name in ("dropped.png", "pasted.png"):
        expect(done.and_(page.get_by_label(f"Show {name}"))).to_be_visible(timeout=120_000)
    assert studio.credits == before - 2


def test_price_by_size_is_summed_over_images(
    new_studio: Callable[..., StudioPage], photo: Path, tmp_path: Path
) -> None:
    studio = new_studio()
    priced_images: list[str] = []

    def price_by_size(route: Any) -> None:
        models = route.fetch().json()
        for model in models["models"]:
            model["pricingMode"] = "per_megapixel"
        route.fulfill(json=models)

    def record_estimate(response: Response) -> None:
        if "dryRun" in response.url:
            priced_images.append(json.loads(response.request.post_data or "")["clarityUpscaleParams"]["image"])

    studio.page.route("**/v2/models*", price_by_size)
    studio.page.on("response", record_estimate)
    with Image.open(photo) as image:
        image.resize((60, 40)).save(tmp_path / "other.png")
    studio.open()
    studio.add_images(photo, tmp_path / "other.png")
    expect(studio.at("#estimate")).to_contain_text("6 credits")
    assert len(set(priced_images)) == 2


def test_expert_settings_agree_with_the_sliders(new_studio: Callable[..., StudioPage]) -> None:
    studio = new_studio().open()
    studio.at("#expert summary").click()
    names = studio.at("#expert-fields [id^=param-]:is(input, select, textarea)").evaluate_all(
        "fields => fields.map(field => field.id.slice(6))"
    )
    assert names == [param.name for param in CLARITY.params if param.name != "image"]
    for param in CLARITY.params:
        if param.name != "image":
            expect(studio.at(f"#param-{param.name}-help")).to_contain_text(param.help)
    expect(studio.at("#param-dynamic-help")).to_contain_text("From 1 to 50. Default: 6.")
    studio.at("#param-creativity").fill("0.63")
    expect(studio.at(".slider-head", has_text="Creativity")).to_contain_text("0.63")
    studio.at("#main-resemblance").fill("1.5")
    expect(studio.at("#param-resemblance")).to_have_value("1.5")
    studio.at("#param-scale_factor").select_option("4")
    expect(studio.at("#scale-4")).to_be_checked()
    studio.at("#param-creativity").fill("7")
    expect(studio.at("#param-creativity-error")).to_be_visible()
    expect(studio.at(".slider-head", has_text="Creativity")).to_contain_text("0.63")
    studio.expect_accessible()


TAB_STOP = """() => {
    const at = document.activeElement;
    if (!at || at === document.body) return null;
    // A radio button is visible as its label, the handle of the slider as its grip.
    const label = at.matches(".chips input, .segments input") && at.nextElementSibling;
    const visible = label || (at.querySelector(".grip") ?? at);
    const box = visible.getBoundingClientRect();
    const [x, y] = [box.x + box.width / 2, box.y + Math.min(box.height / 2, 12)];
    const top = document.elementFromPoint(x, y);
    const outlined = [visible, at].some((one) => getComputedStyle(one).outlineStyle !== "none");
    const last = window.visited?.at(-1);
    const follows = !last || Boolean(last.compareDocumentPosition(at) & Node.DOCUMENT_POSITION_FOLLOWING);
    (window.visited ??= []).push(at);
    const uncovered = Boolean(top && (visible.contains(top) || top.contains(visible)));
    return { what: at.id || at.outerHTML.slice(0, 80), follows, outlined, uncovered };
}"""


TRANSITIONS_ENDED = "() => document.getAnimations().every(each => !(each instanceof CSSTransition))"


@pytest.mark.parametrize("width", [1280, 360])
def test_tab_follows_reading_order_and_stays_visible(
    new_studio: Callable[..., StudioPage], photo: Path, width: int
) -> None:
    studio = new_studio(width=width, height=740).open()
    studio.add_images(photo)
    studio.at("#expert summary").click()
    studio.at(".skip").focus()
    stops: list[dict[str, Any]] = []
    while len(stops) < 80:
        studio.page.keyboard.press("Tab")
        studio.page.wait_for_function(TRANSITIONS_ENDED)  # the skip link slides away from the one below
        if not (stop := studio.page.evaluate(TAB_STOP)):
            break
        stops.append(stop)
    reached = {stop["what"] for stop in stops}
    assert {"open-account", "preset-general", "main-creativity", "param-seed", "run"} <= reached
    assert [stop for stop in stops if not (stop["follows"] and stop["outlined"] and stop["uncovered"])] == []


@pytest.mark.parametrize("path", ["/en/studio", "/ja/studio", "/ko/studio"])
def test_studio_fits_every_width(new_studio: Callable[..., StudioPage], photo: Path, path: str) -> None:
    studio = new_studio(width=WIDTHS[0], height=800).open(path)
    for filled in (False, True):
        if filled:
            studio.add_images(photo)
        for width in WIDTHS:
            studio.page.set_viewport_size({"width": width, "height": max(740, width * 9 // 16)})
            wait_until(lambda: studio.page.evaluate(OVERFLOWING_ELEMENTS) == [])
            studio.expect_no_horizontal_scroll()
            expect(studio.at("#run")).to_be_in_viewport()


@pytest.mark.parametrize("path", ["/", "/ko/models/clarity-upscale", "/ja/studio"])
def test_page_is_painted_within_a_second(visit: Callable[..., Visit], path: str) -> None:
    painted: list[float] = []
    for _ in range(8):  # one success is enough: the machine may be busy
        page = visit().open(path)
        page.wait_for_function("performance.getEntriesByName('first-contentful-paint').length")
        painted.append(page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime"))
        if painted[-1] < 1000:
            return
    pytest.fail(f"the first paint took {painted} ms")
