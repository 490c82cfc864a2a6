"""Page object of the studio for browser tests."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import httpx
from playwright.sync_api import Locator, Page, expect

from tests.browser.axe import violations
from tests.browser.visit import Visit
from tests.journey.conftest import Service

JOB_TIMEOUT = 120_000
"""Milliseconds that a job may take on a busy machine."""

expect.set_options(timeout=60_000)


@dataclass(kw_only=True)
class StudioPage:
    """The studio in a browser."""

    visit: Visit
    server: Service

    @property
    def page(self) -> Page:
        return self.visit.page

    def open(self, path: str = "/studio", *, signed_in: bool = True) -> StudioPage:
        """Open the studio and wait until it is ready."""
        if signed_in:  # like a tab that signed in before
            self.page.add_init_script(f"sessionStorage.setItem('hiresfix.key', {json.dumps(self.server.key)})")
        # Without a listener, Playwright would intercept file choosers only after `expect_file_chooser` starts, which
        # may be after the key that opens one.
        self.page.on("filechooser", lambda _: None)
        self.visit.open(path)
        self.wait_until_ready()
        return self

    def wait_until_ready(self) -> None:
        expect(self.page.locator("html[data-ready]")).to_be_attached()

    def at(self, selector: str, *, has_text: str | None = None) -> Locator:
        return self.page.locator(selector, has_text=has_text)

    def add_images(self, *images: Path) -> None:
        self.at("#files").set_input_files(list(images))
        expect(self.at("#estimate")).to_contain_text("×")

    def choose_preset(self, preset: str) -> None:
        self.at(f"label[for=preset-{preset}]").click()

    def run(self) -> None:
        self.at("#run").click()

    def wait_for_result(self, panes: int = 2) -> None:
        expect(self.at(f"#viewer[data-count='{panes}']")).to_be_visible(timeout=JOB_TIMEOUT)

    @property
    def transforms(self) -> list[str]:
        """CSS transforms of all images at one moment."""
        read = "frames => frames.map(frame => getComputedStyle(frame).transform)"
        return [str(transform) for transform in self.at(".frame").evaluate_all(read)]

    @property
    def zoom(self) -> int:
        return int(self.at(".percent").inner_text().removesuffix("%").strip())

    @property
    def credits(self) -> int:
        headers = {"X-API-Key": self.server.key}
        return int(httpx.get(f"{self.server.url}/v2/me", headers=headers).json()["team"]["credits"])

    def forgive(self, *parts: str) -> None:
        """Remove expected complaints that contain one of `parts`; the browser reports every 4xx."""
        self.visit.complaints = [line for line in self.visit.complaints if not any(part in line for part in parts)]

    def expect_accessible(self) -> None:
        assert violations(self.page) == []

    def expect_no_horizontal_scroll(self) -> None:
        assert self.page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
