"""Shared by all routes: the services of this process, authentication, rate limits, job ids and Job bodies."""

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

from hiresfix import messages, wire
from hiresfix.errors import Forbidden, InvalidJobId, RateLimited, RequestTooLarge, Unauthenticated
from hiresfix.server.accounts import authentication
from hiresfix.server.accounts.authentication import Caller
from hiresfix.server.database.notifications import Notifications
from hiresfix.server.database.pool import Database
from hiresfix.server.database.task_queue import Queue
from hiresfix.server.http import rate_limit
from hiresfix.server.http.middleware import QUOTA_HEADERS
from hiresfix.server.http.rate_limit import Bucket, Quota, RateLimiter
from hiresfix.server.jobs.estimates import Estimator
from hiresfix.server.jobs.fleet_metrics import FleetMetrics
from hiresfix.server.jobs.model import Job
from hiresfix.server.platform.disk import Disk
from hiresfix.server.platform.health import Health
from hiresfix.server.sandbox.client import Sandbox
from hiresfix.server.settings import Settings
from hiresfix.server.storage import Storage

NO_STORE: Mapping[str, str] = MappingProxyType({"Cache-Control": "no-store"})
SMALL_BODY_BYTES = 16 * 1024


@dataclass(slots=True, kw_only=True)
class Services:
    """Everything a route works with; one per process, made when the application starts."""

    settings: Settings
    database: Database
    storage: Storage
    links: Storage | None
    """The store as clients reach it, if they fetch results from it by signed URLs."""
    image_origins: tuple[str, ...]
    """Origins of those signed URLs, for the Content-Security-Policy of pages."""
    queue: Queue
    notifications: Notifications
    estimator: Estimator
    limiter: RateLimiter
    quotas: Mapping[Bucket, Quota]
    sandbox: Sandbox
    decode_slots: asyncio.Semaphore
    """Bounds the number of images decoded at the same time: each may take a gigabyte."""
    disk: Disk
    health: Health
    fleet_metrics: FleetMetrics
    streams: Counter[UUID] = field(default_factory=Counter)
    """Open event streams by API key."""
    openapi: dict[str, Any] | None = None
    """The OpenAPI document, once it was requested."""


def services_of(request: Request) -> Services:
    """Return the services of the process that answers the request."""
    services = request.app.state.services
    assert isinstance(services, Services)
    return services


async def caller_of(request: Request, bucket: Bucket = Bucket.GENERAL) -> Caller:
    """Return the authenticated caller and count the request in `bucket`; the answer will carry the rate-limit headers.

    Raises Unauthenticated, Forbidden, or RateLimited if the key, or the address of a wrong key, sent too many requests.
    """
    try:
        caller = await authentication.authenticate_headers(
            services_of(request).database,
            api_key=request.headers.get("x-api-key"),
            authorization=request.headers.get("authorization"),
        )
    except Unauthenticated:
        await count_address(request, Bucket.FAILED_AUTH)
        raise
    setattr(request.state, QUOTA_HEADERS, await _count(request, bucket, str(caller.key)))
    return caller


async def count_address(request: Request, bucket: Bucket) -> None:
    """Count a request without a valid key; raise RateLimited if its address sent too many."""
    await _count(request, bucket, rate_limit.address_group(request.client.host if request.client else None))


async def _count(request: Request, bucket: Bucket, client: str) -> Mapping[str, str]:
    services = services_of(request)
    status = await services.limiter.take(services.quotas[bucket], client)
    now = time.time()
    wait = status.seconds_to_wait(now)
    headers = wire.quota_headers(
        bucket.value,
        limit=status.quota.amount,
        seconds=status.quota.seconds,
        remaining=status.remaining,
        wait=wait,
        now=now,
    )
    if not status.allowed:
        setattr(request.state, QUOTA_HEADERS, headers)
        raise RateLimited(retry_after=wait)
    return headers


async def job_body(services: Services, job: Job, *, with_input: bool = True) -> dict[str, Any]:
    """Return the Job object, with an estimate for an unfinished job. Call it without an open transaction."""
    forecast = await services.estimator.estimate(job)
    return wire.job(
        job,
        public_url=services.settings.public_url,
        with_input=with_input,
        forecast=forecast,
        kept_for=services.settings.retention,
    )


def parse_job_id(text: str) -> UUID:
    """Return the job id in a path. Raises InvalidJobId."""
    parsed = wire.uuid(text)
    if parsed is None:
        raise InvalidJobId
    return parsed


async def small_body(request: Request) -> bytes:
    """Return a body of a few fields, with a much lower limit than other bodies. Raises RequestTooLarge."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > SMALL_BODY_BYTES:
            raise RequestTooLarge
    return bytes(body)


def require_leader(caller: Caller, *, team: bool) -> None:
    """Raise Forbidden if `team` records are requested by a caller who is neither owner nor admin."""
    if team and not caller.manages_team:
        raise Forbidden(messages.TEAM_RECORDS_FORBIDDEN())
