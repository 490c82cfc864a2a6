"""What every route works with: the parts of this process, and whose the request is."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from starlette.requests import Request

from hiresfix.server import gate
from hiresfix.server.accounts import Caller
from hiresfix.server.changes import Changes
from hiresfix.server.config import Settings
from hiresfix.server.db import Database
from hiresfix.server.outlook import Outlook
from hiresfix.server.queue import Queue
from hiresfix.server.storage import Storage


@dataclass(slots=True, kw_only=True)
class Service:
    """What a route works with; one a process, made when the application starts."""

    settings: Settings
    database: Database
    storage: Storage
    queue: Queue
    changes: Changes
    outlook: Outlook
    decoding: asyncio.Semaphore
    """How many pictures are decoded at once: each may take a gigabyte."""
    store_known_until: float = 0.0


def service(request: Request) -> Service:
    found = request.app.state.service
    assert isinstance(found, Service)
    return found


async def caller_of(request: Request) -> Caller:
    return await gate.admit(
        service(request).database,
        api_key=request.headers.get("x-api-key"),
        authorization=request.headers.get("authorization"),
    )
