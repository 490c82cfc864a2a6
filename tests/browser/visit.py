"""A page in a real browser that records everything it complains about."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field

import pytest
from playwright.sync_api import Page, Request

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")


@dataclass(kw_only=True)
class Visit:
    """A page in a new browser context, with its complaints."""

    page: Page
    url: str
    complaints: list[str] = field(default_factory=list)
    """Errors and warnings of the console, uncaught exceptions, requests to other servers."""

    def open(self, path: str) -> Page:
        self.page.goto(self.url + path)
        return self.page

    def watch(self) -> None:
        """Start recording complaints."""

        def record_console(kind: str, text: str) -> None:
            if kind in ("error", "warning"):
                self.complaints.append(f"{kind}: {text}")

        def record_request(request: Request) -> None:
            if not request.url.startswith((self.url, "blob:", "data:")):
                self.complaints.append(f"request: {request.url}")

        self.page.on("console", lambda message: record_console(message.type, message.text))
        self.page.on("pageerror", lambda error: record_console("error", str(error)))
        self.page.on("request", record_request)
