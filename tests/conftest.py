"""Fixtures for several folders: a real PostgreSQL, a new database for each test, an object store, web servers."""

from __future__ import annotations

import contextlib
import functools
import io
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import certifi
import httpx
import numpy as np
import psycopg
import pytest
from PIL import Image
from psycopg import sql

from tests.fake_server import FakeServer, run_fake_server

if TYPE_CHECKING:
    from tests.live_server import LiveServer

_databases = count(1)
_buckets = count(1)


def pytest_configure() -> None:
    """Handle Ctrl-C again: background processes of a shell ignore it, and tests send it to what they start."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


SLOW = (
    "browser", "chaos", "cli/test_cli.py", "conformance", "docs", "engine/diffusion/test_compiling.py",
    "engine/diffusion/test_offload.py", "engine/diffusion/test_pipeline.py", "engine/diffusion/test_vae.py",
    "engine/superres", "engine/test_devices.py", "engine/test_upscaler.py", "journey", "server/database/test_embedded",
    "server/sandbox/test_hostile_images.py", "server/worker", "test_imports.py", "test_install.py", "training",
)  # fmt: skip
"""Tests that start many processes, run whole jobs or compute for long; `make quick` skips them."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the slow kinds of tests."""
    for item in items:
        if item.path.relative_to(Path(__file__).parent).as_posix().startswith(SLOW):
            item.add_marker(pytest.mark.slow)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """In CI a missing tool fails its tests instead of skipping them."""
    report = yield
    if report.skipped and os.environ.get("CI") and "not installed" in str(report.longrepr):
        report.outcome = "failed"
    return report


@pytest.fixture(scope="session", autouse=True)
def _one_authority(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Trust one certificate authority only, here and in child processes.

    Every HTTP client loads all trusted authorities, about 150, which takes longer than most requests of the tests.
    Tests use local servers only, so one is enough.
    """
    bundle, end = Path(certifi.where()).read_text(encoding="utf-8"), "-----END CERTIFICATE-----\n"
    authority = tmp_path_factory.mktemp("trust") / "authority.pem"
    authority.write_text(bundle[bundle.index("-----BEGIN") : bundle.index(end)] + end)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSL_CERT_FILE", str(authority))
        yield


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """Return a server's URL: HIRESFIX_TEST_DATABASE_URL, or an embedded server for this session."""
    if url := os.environ.get("HIRESFIX_TEST_DATABASE_URL"):
        yield url
        return
    from hiresfix.server.database import embedded

    home = reachable_folder()
    try:
        with embedded.acquire(home) as server:
            yield server.url
    finally:
        shutil.rmtree(home, ignore_errors=True)


@pytest.fixture(scope="session")
def template_database(postgres: str) -> str:
    """Create a migrated, empty database to copy others from, and return its name."""
    from hiresfix.server.database import schema

    name = f"hiresfix_template_{os.getpid()}"
    with psycopg.connect(postgres, autocommit=True) as admin:
        admin.execute(sql.SQL("create database {}").format(sql.Identifier(name)))
    schema.migrate(database_named(postgres, name))
    return name


@pytest.fixture
def database_url(postgres: str, template_database: str) -> Iterator[str]:
    """Return the URL of a migrated database for this test alone."""
    with own_database(postgres, template=template_database) as url:
        yield url


@contextlib.contextmanager
def own_database(server: str, *, template: str = "template1") -> Iterator[str]:
    """Create a copy of `template`, by default empty, and yield its URL. Drop it at the end despite open connections."""
    name = f"hiresfix_test_{os.getpid()}_{next(_databases)}"
    with psycopg.connect(server, autocommit=True) as admin:
        admin.execute(sql.SQL("create database {} template {}").format(*map(sql.Identifier, (name, template))))
        try:
            yield database_named(server, name)
        finally:
            admin.execute(sql.SQL("drop database {} with (force)").format(sql.Identifier(name)))


def database_named(url: str, name: str) -> str:
    return urlsplit(url)._replace(path=f"/{name}").geturl()


def postgres_programs() -> Path:
    """Return the folder of PostgreSQL programs that match the tests' server; older ones refuse to connect.

    These are the embedded server's own programs, or Debian's.
    """
    from hiresfix.server.database.embedded import programs

    if not os.environ.get("HIRESFIX_TEST_DATABASE_URL"):
        return programs.installation() / "bin"
    candidates = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_dump"), key=lambda path: int(path.parts[4]))
    if not candidates:
        pytest.skip("pg_dump is not installed: apt-get install postgresql-client")
    return candidates[-1].parent


def reachable_folder() -> Path:
    """Return a temporary folder that the system user of an embedded PostgreSQL can enter, unlike pytest's folders."""
    folder = Path(tempfile.mkdtemp(prefix="hiresfix-test-"))
    folder.chmod(0o755)
    return folder


@pytest.fixture
def home() -> Iterator[Path]:
    folder = reachable_folder()
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True, kw_only=True)
class Bucket:
    """An empty private bucket of an S3 object store, and the environment variables for it."""

    endpoint: str
    name: str

    @property
    def url(self) -> str:
        return f"s3://{self.name}"

    @property
    def environment(self) -> dict[str, str]:
        return {
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": self.endpoint,
        }


@pytest.fixture(scope="session")
def object_store() -> Iterator[str]:
    """Return the endpoint of moto's S3, over real HTTP."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(object_store: str, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    """Return a bucket for this test alone, with its variables set."""
    bucket = Bucket(endpoint=object_store, name=f"images-{next(_buckets)}")
    httpx.put(f"{bucket.endpoint}/{bucket.name}", timeout=60).raise_for_status()
    for variable, value in bucket.environment.items():
        monkeypatch.setenv(variable, value)
    return bucket


def png(width: int, height: int, *, seed: int = 7) -> bytes:
    """Return a small PNG with structure: smooth colour, an edge and some texture."""
    y, x = np.mgrid[0:height, 0:width]
    noise = np.random.default_rng(seed).normal(0, 8, (height, width))
    base = 96 + 64 * np.sin(x / 9) + 40 * (x + y > (width + height) / 2) + noise
    rgb = np.stack([base, base * 0.8 + 20, 255 - base], axis=-1).clip(0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(rgb).save(buffer, "PNG")
    return buffer.getvalue()


@dataclass
class Site:
    """A third-party web server on loopback: serves `pages` and collects what is posted to it."""

    url: str = ""
    pages: dict[str, tuple[int, bytes]] = field(default_factory=dict)
    redirects: dict[str, str] = field(default_factory=dict)
    answers: list[int] = field(default_factory=list)
    """Statuses of the answers to the next posts; after these, 200."""
    received: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    fetched: list[str] = field(default_factory=list)

    def add(self, path: str, body: bytes, status: int = 200) -> str:
        self.pages[path] = (status, body)
        return self.url + path


def _handler(site: Site) -> Callable[..., BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            site.fetched.append(self.path)
            if self.path in site.redirects:
                self.send_response(302)
                self.send_header("Location", site.redirects[self.path])
                self.end_headers()
                return
            status, body = site.pages.get(self.path, (404, b"not here"))
            self._answer(status, body)

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            site.received.append((dict(self.headers), body))
            self._answer(site.answers.pop(0) if site.answers else 200, b"thanks")

        def _answer(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                self.wfile.write(body)

        def log_message(self, *args: object) -> None: ...

    return functools.partial(Handler)


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(site))
    site.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    yield site
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(scope="module")
def live_server(postgres: str, template_database: str) -> Iterator[LiveServer]:
    """Start a real API process for a module's tests, without a worker."""
    from tests.live_server import run_live_server  # not at the top: it imports the server

    with run_live_server(postgres, template_database) as server:
        yield server


@pytest.fixture
def fake_server() -> Iterator[FakeServer]:
    """Start an HTTP server that answers by a function."""
    with run_fake_server() as server:
        yield server
