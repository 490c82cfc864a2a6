"""What every route works with: the parts of this process, whose the request is, how a job is named and shown."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from starlette.requests import Request

from hiresfix import wire
from hiresfix.errors import InvalidJobId
from hiresfix.server import gate
from hiresfix.server.accounts import Caller
from hiresfix.server.changes import Changes
from hiresfix.server.config import Settings
from hiresfix.server.db import Database
from hiresfix.server.jobs import Job
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
    streams: Counter[UUID] = field(default_factory=Counter)
    """Open event streams by API key."""
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


async def shown(own: Service, job: Job, *, with_input: bool = True) -> dict[str, Any]:
    """The Job object, with what can be told of an unfinished job's future. Call it without a transaction open."""
    forecast = await own.outlook.of(job)
    return wire.job(job, public_url=own.settings.public_url, with_input=with_input, forecast=forecast)


def parse_job_id(text: str) -> UUID:
    parsed = wire.uuid(text)
    if parsed is None:
        raise InvalidJobId
    return parsed
