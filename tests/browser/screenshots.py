"""Take screenshots of every page in every language.

    python -m tests.browser.screenshots URL

writes docs/img/pages/ from a running server (`hiresfix serve`), the first screen of each page on a desktop and on a
phone.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, sync_playwright

from hiresfix.server.web import pages
from hiresfix.server.web.languages import LANGUAGES
from tests.browser.visit import CHROMIUM

FOLDER = Path(__file__).parents[2] / "docs" / "img" / "pages"
DESKTOP, PHONE = (1280, 1500), (360, 900)


def main(url: str) -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        for path in pages.paths():
            name = path.strip("/").replace("/", "-") or "front"
            for language in LANGUAGES:
                address = url.rstrip("/") + language.path(path)
                take(browser, address, DESKTOP, f"{name}-{language.code}", dark=False)
                if path.count("/") == 2:
                    take(browser, address, PHONE, f"{name}-{language.code}-phone", dark=True)
        browser.close()


def take(browser: Browser, url: str, size: tuple[int, int], name: str, *, dark: bool) -> None:
    scheme = "dark" if dark else "light"
    page = browser.new_page(viewport={"width": size[0], "height": size[1]}, color_scheme=scheme)  # type: ignore[arg-type] # one of two literals
    page.goto(url, wait_until="networkidle")
    with Image.open(io.BytesIO(page.screenshot())) as image:
        image.convert("RGB").save(FOLDER / f"{name}.webp", quality=80, method=6)
    page.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
