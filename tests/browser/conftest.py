"""A real server and a real browser for tests of what people see.

The server is one for the session. The browser is one for each module: while Playwright's synchronous interface is open
no other event loop can run in the process, and other modules have asynchronous tests.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, Request, sync_playwright

from hiresfix.server.accounts import authentication
from hiresfix.server.database.pool import Database
from tests.conftest import own_database, reachable_folder
from tests.journey.conftest import Service

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")


@pytest.fixture(scope="session")
def server(postgres: str, template_database: str) -> Iterator[Service]:
    """An API process with 10 000 credits; `working` adds a worker."""

    async def bootstrap(url: str) -> str:
        async with Database(url, max_size=1) as database, database.transaction() as tx:
            key = await authentication.bootstrap(tx, free_credits=10_000, key_name="browser")
        assert key is not None
        return key

    home = reachable_folder()
    with own_database(postgres, template=template_database) as url:
        started = Service(home=home, database_url=url, key=asyncio.run(bootstrap(url)))
        try:
            started.api()
            yield started
        finally:
            started.stop_all()
            shutil.rmtree(home, ignore_errors=True)


@pytest.fixture(scope="session")
def working(server: Service) -> Service:
    """The same server, with a worker."""
    server.worker()
    return server


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@dataclass(kw_only=True)
class Visit:
    """A page, opened by somebody new, with everything it complained of or asked others for."""

    page: Page
    url: str
    complaints: list[str] = field(default_factory=list)
    """Errors and warnings of the console, uncaught exceptions, requests to other servers."""

    def open(self, path: str) -> Page:
        self.page.goto(self.url + path)
        return self.page

    def _watch(self) -> None:
        def said(kind: str, text: str) -> None:
            if kind in ("error", "warning"):
                self.complaints.append(f"{kind}: {text}")

        def asked(request: Request) -> None:
            if not request.url.startswith((self.url, "blob:", "data:")):
                self.complaints.append(f"request: {request.url}")

        self.page.on("console", lambda message: said(message.type, message.text))
        self.page.on("pageerror", lambda error: said("error", str(error)))
        self.page.on("request", asked)


@pytest.fixture
def visit(browser: Browser, server: Service) -> Iterator[Callable[..., Visit]]:
    """Opens a browser of somebody's own: `visit(locale="ja", width=360, dark=True)`; fails on what it complains of.

    What a test expects to be complained of, it removes from `complaints`.
    """
    contexts: list[BrowserContext] = []
    visits: list[Visit] = []

    def begin(*, width: int = 1280, height: int = 900, dark: bool = False, **more: Any) -> Visit:
        context = browser.new_context(
            viewport={"width": width, "height": height},
            color_scheme="dark" if dark else "light",
            **{"locale": "en-GB", "reduced_motion": "reduce", **more},
        )
        context.set_default_timeout(60_000)
        contexts.append(context)
        visits.append(Visit(page=context.new_page(), url=server.url))
        visits[-1]._watch()
        return visits[-1]

    yield begin
    for context in contexts:
        context.close()
    assert [complaint for each in visits for complaint in each.complaints] == []
