"""A real API process for client tests, with methods that play its worker."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import psycopg

from hiresfix.messages import Message
from hiresfix.server.app import create_app
from hiresfix.server.settings import Settings
from hiresfix.server.storage import Storage
from tests.conftest import own_database, png, reachable_folder
from tests.server.conftest import Api, PromptServer, _bootstrap, free_port, wait_until


@dataclass(frozen=True, kw_only=True)
class LiveServer(Api):
    """A server shared by the tests of a module. No worker runs; these methods do what one would."""

    def finish(self, job: str, image: bytes | None = None, *, kind: str = "png") -> bytes:
        """Complete a job with a result; returns its bytes."""
        data = image or png(48, 34)
        key, media_type = f"results/{job}/test", f"image/{kind}"
        result = {
            "key": key, "sha256": hashlib.sha256(data).hexdigest(), "media_type": media_type,
            "bytes": len(data), "width": 48, "height": 34, "metadata": {"engine": "test", "warnings": []},
        }  # fmt: skip
        asyncio.run(Storage.open(self.settings.storage_location).put(key, data, media_type))
        self.do(
            "update jobs set state = 'COMPLETED', completed_at = now(), token = null, lease_until = null,"
            " result = %s where id = %s",
            json.dumps(result), job,
        )  # fmt: skip
        return data

    def fail(self, job: str, error: str = "It broke. Try another image.") -> None:
        message = {"reason": error.reason, "params": error.params} if isinstance(error, Message) else None
        self.do(
            "update jobs set state = 'FAILED', completed_at = now(), token = null, lease_until = null, error = %s,"
            " error_message = %s where id = %s",
            error, message and json.dumps(message), job,
        )  # fmt: skip

    def progress(self, job: str, percent: int) -> None:
        self.do(
            "update jobs set state = 'PROCESSING', progress = %s, token = gen_random_uuid(),"
            " lease_until = now() + interval '1 hour' where id = %s",
            percent, job,
        )  # fmt: skip

    @contextlib.contextmanager
    def working(self, *, model: str | None = None) -> Iterator[None]:
        """Take every queued job, of `model` if that is given, to 50 % and then to its result."""
        stop = threading.Event()
        queued = "select id from jobs where state = 'QUEUED' and model = coalesce(%s, model) limit 1"

        def work() -> None:
            while not stop.wait(0.05):
                if job := self.value(queued, model):
                    self.progress(str(job), 50)
                    self.finish(str(job))

        thread = threading.Thread(target=work)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()


@contextlib.contextmanager
def run_live_server(postgres: str, template_database: str) -> Iterator[LiveServer]:
    home, port = reachable_folder(), free_port()
    settings = Settings(
        home=home, public_url=f"http://127.0.0.1:{port}", allow_private_addresses=True, rate_submissions=10_000,
        rate_uploads=10_000, rate_general=10_000, max_queued_jobs=10_000,
    )  # fmt: skip
    with own_database(postgres, template=template_database) as url:
        key = asyncio.run(_bootstrap(url))
        with psycopg.connect(url) as connection:
            connection.execute("update teams set credits = 1000000")
        app = create_app(settings, database_url=url)
        server = PromptServer(app, host="127.0.0.1", port=port)
        thread = threading.Thread(target=server.run)
        thread.start()
        wait_until(lambda: server.started)
        yield LiveServer(url=settings.public_url, key=key, database_url=url, settings=settings, app=app)
        server.should_exit = True
        thread.join()
