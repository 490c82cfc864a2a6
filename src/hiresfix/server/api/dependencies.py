"""What every route works with: the parts of this process, whose the request is, how a job is named and shown."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any
from uuid import UUID

from starlette.requests import Request

from hiresfix import wire
from hiresfix.errors import Forbidden, InvalidJobId, RateLimited, RequestTooLarge, Unauthenticated
from hiresfix.server.accounts import authentication
from hiresfix.server.accounts.authentication import Caller
from hiresfix.server.database.notifications import Changes
from hiresfix.server.database.pool import Database
from hiresfix.server.database.task_queue import Queue
from hiresfix.server.http import rate_limit
from hiresfix.server.http.middleware import QUOTA_HEADERS
from hiresfix.server.http.rate_limit import Bucket, Limiter, Quota
from hiresfix.server.jobs.estimates import Outlook
from hiresfix.server.jobs.fleet_metrics import Census
from hiresfix.server.jobs.model import Job
from hiresfix.server.platform.disk import Disk
from hiresfix.server.platform.health import Health
from hiresfix.server.sandbox.client import Sandbox
from hiresfix.server.settings import Settings
from hiresfix.server.storage import Storage

NO_STORE: Mapping[str, str] = MappingProxyType({"Cache-Control": "no-store"})
SMALL_BODY_BYTES = 16 * 1024


@dataclass(slots=True, kw_only=True)
class Service:
    """What a route works with; one a process, made when the application starts."""

    settings: Settings
    database: Database
    storage: Storage
    links: Storage | None
    """The store as clients reach it, where they are to fetch results from it."""
    picture_origins: tuple[str, ...]
    """Where that is, for browsers that have to be told."""
    queue: Queue
    changes: Changes
    outlook: Outlook
    limiter: Limiter
    quotas: Mapping[Bucket, Quota]
    quarantine: Sandbox
    decoding: asyncio.Semaphore
    """How many pictures are decoded at once: each may take a gigabyte."""
    disk: Disk
    health: Health
    census: Census
    streams: Counter[UUID] = field(default_factory=Counter)
    """Open event streams by API key."""
    openapi: dict[str, Any] | None = None
    """The document, once somebody has asked for it."""


def service(request: Request) -> Service:
    found = request.app.state.service
    assert isinstance(found, Service)
    return found


async def caller_of(request: Request, bucket: Bucket = Bucket.GENERAL) -> Caller:
    """Whose the request is; counts it in `bucket`, and the answer will tell where the key stands.

    Raises Unauthenticated, Forbidden, or RateLimited when the key, or the address of a wrong key, sent too many.
    """
    try:
        caller = await authentication.admit(
            service(request).database,
            api_key=request.headers.get("x-api-key"),
            authorization=request.headers.get("authorization"),
        )
    except Unauthenticated:
        await count_address(request, Bucket.FAILED_AUTH)
        raise
    setattr(request.state, QUOTA_HEADERS, await _count(request, bucket, str(caller.key)))
    return caller


async def count_address(request: Request, bucket: Bucket) -> None:
    """Count a request that nobody's key stands for; raises RateLimited if its address sent too many."""
    await _count(request, bucket, rate_limit.address_group(request.client.host if request.client else None))


async def _count(request: Request, bucket: Bucket, who: str) -> Mapping[str, str]:
    own = service(request)
    standing = await own.limiter.take(own.quotas[bucket], who)
    now = time.time()
    wait = standing.seconds_to_wait(now)
    headers = wire.quota_headers(
        bucket.value,
        limit=standing.quota.amount,
        seconds=standing.quota.seconds,
        remaining=standing.remaining,
        wait=wait,
        now=now,
    )
    if not standing.allowed:
        setattr(request.state, QUOTA_HEADERS, headers)
        raise RateLimited(retry_after=wait)
    return headers


async def shown(own: Service, job: Job, *, with_input: bool = True) -> dict[str, Any]:
    """The Job object, with what can be told of an unfinished job's future. Call it without a transaction open."""
    forecast = await own.outlook.of(job)
    return wire.job(
        job,
        public_url=own.settings.public_url,
        with_input=with_input,
        forecast=forecast,
        kept_for=own.settings.retention,
    )


def parse_job_id(text: str) -> UUID:
    parsed = wire.uuid(text)
    if parsed is None:
        raise InvalidJobId
    return parsed


async def small_body(request: Request) -> bytes:
    """A body of a few fields, bounded much closer than others; raises RequestTooLarge."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > SMALL_BODY_BYTES:
            raise RequestTooLarge
    return bytes(body)


def require_leader(caller: Caller, *, team: bool) -> None:
    """Raise Forbidden if `team` records are asked for by somebody who is neither owner nor admin."""
    if team and not caller.leads:
        raise Forbidden("Only owners and admins may see what is the team's. Leave out scope, or use scope=user.")
