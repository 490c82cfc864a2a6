"""Fixtures: one real service for all pages (API, worker, key), and a reader for each page."""

from __future__ import annotations

import asyncio
import io
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from hiresfix.server.accounts import authentication
from hiresfix.server.database.pool import Database
from tests.conftest import Site, own_database, png, postgres_programs, reachable_folder
from tests.docs.examples import Reader, environment_of, wait_for
from tests.journey.conftest import Service
from tests.server.conftest import free_port

CREDITS = 10_000


@pytest.fixture(scope="session")
def running(postgres: str, template_database: str) -> Iterator[Service]:
    """Run `hiresfix serve` on its own database."""
    home = reachable_folder()
    with own_database(postgres, template=template_database) as url:
        service = Service(home=home, database_url=url, key=asyncio.run(_first_key(url)))
        service.environment = {"HIRESFIX_SIGNUP": "invite", "HIRESFIX_DRAIN_SECONDS": "0"}
        try:
            process = service.run("serve", "--port", str(service.port))
            wait_for(service.url)
            assert process.poll() is None, service.log_of(process)
            yield service
        finally:
            service.stop_all()
            shutil.rmtree(home, ignore_errors=True)


async def _first_key(url: str) -> str:
    async with Database(url, max_size=1) as database, database.transaction() as tx:
        key = await authentication.bootstrap(tx, free_credits=CREDITS, key_name="docs")
    assert key is not None
    return key


@pytest.fixture
def reader(running: Service, site: Site, tmp_path: Path) -> Iterator[Reader]:
    """Return a reader in a folder with the images that the pages use: photo.jpg, and two in holiday/."""
    (tmp_path / "holiday").mkdir()
    for number, path in enumerate(("photo.jpg", "holiday/beach.jpg", "holiday/hills.png")):
        image = Image.open(io.BytesIO(png(24, 20, seed=number)))
        image.save(tmp_path / path, quality=98)
    reader = Reader(
        folder=tmp_path,
        environment=environment_of(
            {
                "HIRESFIX_HOME": str(running.home),
                "HIRESFIX_DATABASE_URL": running.database_url,
                "OMP_NUM_THREADS": "1",
                "KEY": running.key,
                "XDG_STATE_HOME": str(tmp_path / ".state"),
                "PATH": f"{postgres_programs()}{os.pathsep}{os.environ['PATH']}",
            }
        ),
        replacements={
            "http://127.0.0.1:8000": running.url,
            "https://example.com/input.jpg": site.add("/input.jpg", (tmp_path / "photo.jpg").read_bytes()),
            "https://you.example/": f"http://127.0.0.1:{(port := free_port())}/",
            "afk_your_api_key_here": running.key,
            "9000": str(port),
        },
        node=shutil.which("node"),
    )
    yield reader
    reader.close()


@pytest.fixture
def offline_reader(tmp_path: Path) -> Iterator[Reader]:
    """Return a reader without a server."""
    reader = Reader(folder=tmp_path, environment=environment_of({}), replacements={}, node=shutil.which("node"))
    yield reader
    reader.close()
