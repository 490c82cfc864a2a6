"""Backup with PostgreSQL's tools, as in docs/operator.md, and a service on the restored copy."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psycopg
import pytest

from hiresfix.server.app import Server, create_app
from hiresfix.server.database import schema
from hiresfix.server.database.pool import Database
from hiresfix.server.database.task_queue import Queue
from hiresfix.server.jobs import lifecycle
from tests.conftest import own_database, postgres_programs
from tests.server.conftest import Api, commit, free_port, wait_until
from tests.server.worker.test_process import attempt


def tool(name: str) -> str:
    return str(postgres_programs() / name)


def run(*words: str) -> None:
    process = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert process.returncode == 0, process.stderr


@pytest.fixture
def restored_url(postgres: str) -> Iterator[str]:
    """An empty database to restore into."""
    with own_database(postgres) as url:
        yield url


def test_restored_backup_continues_working(
    start_api: Callable[..., Api], photo: str, restored_url: str, tmp_path: Path
) -> None:
    api = start_api()
    done = api.submit({"image": photo}, headers={"Idempotency-Key": "done"}).json()["jobId"]
    asyncio.run(attempt(api))
    running, waiting = (api.submit({"image": photo}).json()["jobId"] for _ in range(2))

    async def claim() -> None:
        async with Database(api.database_url, max_size=2) as database:
            assert await lifecycle.claim(database, worker="w", lease_seconds=0.1)

    asyncio.run(claim())

    # The database first, then the files: every file that the dump names is there when the files are copied.
    dump, files = tmp_path / "hiresfix.dump", tmp_path / "restored"
    run(tool("pg_dump"), "--format=custom", f"--file={dump}", api.database_url)
    later = api.submit({"image": photo}).json()["jobId"]  # after the dump: its file is copied, its row is not
    shutil.copytree(api.settings.home / "files", files / "files")
    run(tool("pg_restore"), "--exit-on-error", "--no-owner", f"--dbname={restored_url}", str(dump))

    schema.require_schema(restored_url)
    assert schema.migrate(restored_url) == (schema.newest_revision(), schema.newest_revision())
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    settings = api.settings.model_copy(update={"home": files, "public_url": url})
    app = create_app(settings, database_url=restored_url)
    server = Server(app, host="127.0.0.1", port=port)
    thread = threading.Thread(target=server.run)
    thread.start()
    wait_until(lambda: server.started)
    try:
        restored = Api(url=url, key=api.key, database_url=restored_url, settings=settings, app=app)
        with restored.client() as client:  # the key still works
            assert client.get(f"/v2/jobs/{later}").status_code == 404
            finished = client.get(f"/v2/jobs/{done}").json()
            assert finished["status"] == "COMPLETED"
            assert httpx.get(finished["result"]["images"][0]).status_code == 200
        replay = restored.submit({"image": photo}, headers={"Idempotency-Key": "done"})
        assert replay.json()["jobId"] == done
        assert restored.balance == 91

        async def requeue() -> None:
            async with Database(restored_url, max_size=2) as database:
                requeued = await commit(
                    database, lambda tx: lifecycle.requeue_expired(tx, Queue(restored_url), public_url=url)
                )
            assert requeued is not None

        asyncio.run(requeue())
        asyncio.run(attempt(restored, times=2))
        for job in (running, waiting):
            assert restored.value("select state from jobs where id = %s", job) == "COMPLETED"
        with pytest.raises(psycopg.errors.RaiseException, match="append-only"):
            restored.do("delete from ledger")
        assert restored.submit({"image": photo}).status_code == 202  # sequences continue
        assert restored.balance == 88
    finally:
        server.should_exit = True
        thread.join()
