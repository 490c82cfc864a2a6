"""The task queue, on a real PostgreSQL."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from procrastinate.manager import JobManager

from hiresfix.server.database import task_queue
from hiresfix.server.database.pool import Database
from hiresfix.server.database.task_queue import Queue

NAME = "test queue"


async def test_task_announced_during_fetch_starts_at_once(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    announced, late_is_due, late_ran = asyncio.Event(), asyncio.Event(), asyncio.Event()
    fetch_job = JobManager.fetch_job

    class NeverPolling(task_queue._Worker):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            self.fetch_job_polling_interval = 3600

        async def _handle_notification(self, **details: Any) -> None:
            await super()._handle_notification(**details)
            announced.set()

    async with Database(database_url, max_size=2) as database:
        queue = Queue(database_url)

        async def enqueue(which: str) -> None:
            announced.clear()
            async with database.transaction() as tx:
                await queue.enqueue(tx, "task", queue=NAME, which=which)

        async def fetch_then_announce(manager: JobManager, **options: Any) -> object:
            """Announce a task after the query task none and before the worker learns that."""
            task = await fetch_job(manager, **options)
            if task is None and late_is_due.is_set():
                late_is_due.clear()
                await enqueue("late")
                await announced.wait()
            return task

        async def run(which: str) -> None:
            if which == "late":
                late_ran.set()

        monkeypatch.setattr(task_queue, "_Worker", NeverPolling)
        monkeypatch.setattr(JobManager, "fetch_job", fetch_then_announce)
        queue.register("task", queue=NAME, run=run)
        working = asyncio.create_task(queue.work(queue=NAME, concurrency=1))
        try:
            async with asyncio.timeout(60):
                while not announced.is_set():  # until it listens
                    await enqueue("early")
                    await asyncio.sleep(0.1)
                late_is_due.set()
                await enqueue("early")
                await late_ran.wait()
        finally:
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)
