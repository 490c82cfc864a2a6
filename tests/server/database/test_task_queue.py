"""Dispatch through procrastinate, against a real PostgreSQL."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from procrastinate.manager import JobManager

from hiresfix.server.database import task_queue as dispatch
from hiresfix.server.database.pool import Database
from hiresfix.server.database.task_queue import Queue

NAME = "of this test"


async def test_a_task_announced_while_its_worker_looks_for_one_does_not_wait_for_a_poll(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    announced, late_is_due, late_ran = asyncio.Event(), asyncio.Event(), asyncio.Event()
    look = JobManager.fetch_job

    class NeverPolling(dispatch._Worker):
        def __init__(self, *arguments: Any, **more: Any) -> None:
            super().__init__(*arguments, **more)
            self.fetch_job_polling_interval = 3600

        async def _handle_notification(self, **what: Any) -> None:
            await super()._handle_notification(**what)
            announced.set()

    async with Database(database_url, max_size=2) as database:
        queue = Queue(database_url)

        async def enqueue(which: str) -> None:
            announced.clear()
            async with database.transaction() as tx:
                await queue.enqueue(tx, "task", queue=NAME, which=which)

        async def look_and_hear_late(manager: JobManager, **asked: Any) -> object:
            """A look in vain is followed by a task before the worker learns that it was in vain."""
            found = await look(manager, **asked)
            if found is None and late_is_due.is_set():
                late_is_due.clear()
                await enqueue("late")
                await announced.wait()
            return found

        async def run(which: str) -> None:
            if which == "late":
                late_ran.set()

        monkeypatch.setattr(dispatch, "_Worker", NeverPolling)
        monkeypatch.setattr(JobManager, "fetch_job", look_and_hear_late)
        queue.on("task", queue=NAME, run=run)
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
