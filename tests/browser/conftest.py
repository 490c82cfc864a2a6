"""Fixtures: a real server and a real browser.

One server serves the whole session. The browser lives for one module: while Playwright's synchronous API is open, no
other event loop can run in the process, and other modules have asynchronous tests.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from playwright.sync_api import Browser, BrowserContext, sync_playwright

from hiresfix.server.accounts import authentication
from hiresfix.server.database.pool import Database
from tests.browser.studio_page import StudioPage
from tests.browser.visit import CHROMIUM, Visit
from tests.conftest import own_database, reachable_folder
from tests.journey.conftest import Service


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
        service = Service(home=home, database_url=url, key=asyncio.run(bootstrap(url)))
        try:
            service.api()
            yield service
        finally:
            service.stop_all()
            shutil.rmtree(home, ignore_errors=True)


@pytest.fixture(scope="session")
def working(server: Service) -> Service:
    """The same server, with a worker."""
    server.worker()
    return server


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def visit(browser: Browser, server: Service) -> Iterator[Callable[..., Visit]]:
    """Open new browser contexts: `visit(locale="ja", width=360, dark=True)`; fail on their complaints.

    A test removes the complaints that it expects from `complaints`.
    """
    contexts: list[BrowserContext] = []
    visits: list[Visit] = []

    def new_visit(*, width: int = 1280, height: int = 900, dark: bool = False, **options: Any) -> Visit:
        context = browser.new_context(
            viewport={"width": width, "height": height},
            color_scheme="dark" if dark else "light",
            **{"locale": "en-GB", "reduced_motion": "reduce", **options},
        )
        context.set_default_timeout(60_000)
        contexts.append(context)
        visits.append(Visit(page=context.new_page(), url=server.url))
        visits[-1].watch()
        return visits[-1]

    yield new_visit
    for context in contexts:
        context.close()
    assert [complaint for visit in visits for complaint in visit.complaints] == []


@pytest.fixture
def new_studio(visit: Callable[..., Visit], working: Service) -> Callable[..., StudioPage]:
    """Return the studio in a new browser context, not opened yet; takes the arguments of `visit`."""

    def create(**options: Any) -> StudioPage:
        return StudioPage(visit=visit(**options), server=working)

    return create


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real photo, small enough to be upscaled in a moment."""
    path = tmp_path_factory.mktemp("images") / "colosseum.png"
    with Image.open(Path(__file__).parents[2] / "examples" / "colosseum.png") as image:
        image.convert("RGB").resize((48, 36), Image.Resampling.LANCZOS).save(path)
    return path
