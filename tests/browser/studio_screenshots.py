"""Take screenshots of a running studio, for the documentation.

    hiresfix serve --port 8000 &
    python -m tests.browser.studio_screenshots http://127.0.0.1:8000 API_KEY docs/img/studio

Every state once and the main ones in every language, window size and theme. It runs four jobs with the sample image.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.browser.visit import CHROMIUM

JOB_TIMEOUT = 600_000
QUALITY = 82


class Screenshots:
    """A browser that stays signed in; `take` saves its screen."""

    def __init__(self, browser: Browser, url: str, key: str, folder: Path) -> None:
        self._url, self._folder = url, folder
        context = browser.new_context(viewport={"width": 1440, "height": 900}, locale="en-GB", reduced_motion="reduce")
        context.set_default_timeout(60_000)
        context.add_init_script(f"sessionStorage.setItem('hiresfix.key', '{key}')")
        self.page: Page = context.new_page()

    def open(self, path: str = "/studio", *, width: int = 1440, height: int = 900, dark: bool = False) -> None:
        self.page.emulate_media(color_scheme="dark" if dark else "light")
        self.page.set_viewport_size({"width": width, "height": height})
        self.page.goto(self._url + path)
        expect(self.page.locator("html[data-ready]")).to_be_attached()

    def take(self, name: str, **options: Any) -> None:
        self.page.wait_for_timeout(700)
        with Image.open(io.BytesIO(self.page.screenshot(**options))) as image:
            image.save(self._folder / f"{name}.webp", quality=QUALITY, method=6)
        print(name, flush=True)

    def wait_for_result(self, panes: int) -> None:
        expect(self.page.locator(f"#viewer[data-count='{panes}']")).to_be_visible(timeout=JOB_TIMEOUT)


def main(url: str, key: str, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        shots = Screenshots(browser, url, key, folder)
        page = shots.page
        shots.open()
        shots.take("empty")
        page.locator("#sample").click()
        page.locator("label[for=preset-landscape]").click()
        expect(page.locator("#estimate")).to_contain_text("credits")
        page.locator("#run").click()
        expect(page.locator("#active-jobs progress[value]")).to_be_visible(timeout=JOB_TIMEOUT)
        shots.take("working")
        shots.wait_for_result(2)
        shots.take("compare", full_page=True)
        page.locator(".percent").click()
        page.keyboard.press("+")
        shots.take("zoomed")
        for language in ("ja", "ko"):
            shots.open(f"/{language}/studio", dark=language == "ko")
            shots.wait_for_result(2)
            shots.take(f"compare-{language}")
            shots.open(f"/{language}/studio", width=360, height=1240)
            shots.wait_for_result(2)
            shots.take(f"phone-{language}")
        panels(shots)
        variants(shots)
        browser.close()


def panels(shots: Screenshots) -> None:
    page = shots.page
    for name, language in (("credits", "en"), ("keys", "ja"), ("webhooks", "ko")):
        shots.open(f"/{language}/studio")
        page.locator("#open-account").click()
        page.locator(f"#account-{name}").click()
        shots.take(f"account-{name}-{language}")
    shots.open()
    page.locator("#open-help").click()
    shots.take("shortcuts")
    page.keyboard.press("Escape")
    page.locator("#expert summary").click()
    page.locator("#param-seed").scroll_into_view_if_needed()
    shots.take("expert")


def variants(shots: Screenshots) -> None:
    page = shots.page
    shots.open(dark=True)
    page.locator("#variants summary").click()
    page.locator("#variant-count").select_option("3")
    page.locator("#run").click()
    shots.wait_for_result(4)
    shots.take("variants")


if __name__ == "__main__":
    main(sys.argv[1].rstrip("/"), sys.argv[2], Path(sys.argv[3]))
