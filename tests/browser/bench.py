"""Somebody in front of the studio, for the tests of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image
from playwright.sync_api import Locator, Page, expect

from tests.browser.axe import violations
from tests.browser.conftest import Visit
from tests.journey.conftest import Service

LONG = 120_000
"""Milliseconds that a job may take on a machine that does much else."""

expect.set_options(timeout=60_000)


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real photograph, small enough to be enlarged in a moment."""
    path = tmp_path_factory.mktemp("pictures") / "colosseum.png"
    with Image.open(Path(__file__).parents[2] / "examples" / "colosseum.png") as picture:
        picture.convert("RGB").resize((48, 36), Image.Resampling.LANCZOS).save(path)
    return path


@dataclass(kw_only=True)
class Bench:
    """Somebody in front of the studio."""

    visit: Visit
    server: Service

    @property
    def page(self) -> Page:
        return self.visit.page

    def arrive(self, path: str = "/studio", *, signed_in: bool = True) -> Bench:
        if signed_in:  # as a tab does that was signed in before
            self.page.add_init_script(f"sessionStorage.setItem('hiresfix.key', {json.dumps(self.server.key)})")
        # With a listener the browser hands choosers over from now on; else it is told only when one is waited for,
        # which may come after the key that opens it.
        self.page.on("filechooser", lambda _: None)
        self.visit.open(path)
        self.ready()
        return self

    def ready(self) -> None:
        expect(self.page.locator("html[data-ready]")).to_be_attached()

    def at(self, selector: str, *, has_text: str | None = None) -> Locator:
        return self.page.locator(selector, has_text=has_text)

    def bring(self, *pictures: Path) -> None:
        self.at("#files").set_input_files(list(pictures))
        expect(self.at("#estimate")).to_contain_text("×")

    def choose(self, preset: str) -> None:
        self.at(f"label[for=preset-{preset}]").click()

    def run(self) -> None:
        self.at("#run").click()

    def wait_for_result(self, panes: int = 2) -> None:
        expect(self.at(f"#viewer[data-count='{panes}']")).to_be_visible(timeout=LONG)

    @property
    def transforms(self) -> list[str]:
        """Of all pictures at one moment."""
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
        """Take expected complaints of the browser away: it reports every 4xx."""
        self.visit.complaints = [line for line in self.visit.complaints if not any(part in line for part in parts)]

    def has_no_violations(self) -> None:
        assert violations(self.page) == []

    def does_not_scroll_sideways(self) -> None:
        assert self.page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0


@pytest.fixture
def bench(visit: Callable[..., Visit], working: Service) -> Callable[..., Bench]:
    def begin(**how: Any) -> Bench:
        return Bench(visit=visit(**how), server=working)

    return begin
