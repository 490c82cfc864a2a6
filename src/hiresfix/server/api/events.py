"""Stream a job's events as they happen, over server-sent events.

A stream begins with the job's current state, sends every change and ends with the one that finishes the job. Each event
holds the whole Job object, so a client that reconnects has missed nothing important. `Last-Event-ID` matters in one
case only: a client that has seen the last event gets a 204, which tells an EventSource not to reconnect.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any
from uuid import UUID

from fastapi import APIRouter
from fastapi.sse import format_sse_event
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from hiresfix import messages
from hiresfix.errors import RateLimited
from hiresfix.server.api.dependencies import Services, caller_of, job_body, parse_job_id, services_of
from hiresfix.server.api.openapi import answer, header, nothing, operation
from hiresfix.server.http.plain_route import PlainRoute
from hiresfix.server.jobs import lifecycle, watch
from hiresfix.states import TERMINAL

router = APIRouter(route_class=PlainRoute)

RETRY_MILLISECONDS = 2000
HEARTBEAT_SECONDS = 15.0
STREAM_SECONDS = 900.0
"""After this time a client has to reconnect, with a key that is still valid."""

_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


@router.get(
    "/v2/jobs/{job_id}/events",
    openapi_extra=operation(
        "jobEvents",
        "A job's progress and end as server-sent events: `progress`, then `completed` or `failed`, each with the Job.",
        {
            200: answer(description="Events until the job is finished.", media_type="text/event-stream"),
            204: nothing("You have seen the last event: do not reconnect."),
        },
        errors={400: "ErrorResponse", 404: "ErrorResponse"},
        parameters=[header("Last-Event-ID", "Sent by an EventSource that reconnects.")],
    ),
)
async def job_events(request: Request, job_id: str) -> Response:
    """Stream `progress` events, then one `completed` or `failed` (also for a cancelled job)."""
    services, caller = services_of(request), await caller_of(request)
    async with services.database.transaction() as tx:
        job = await lifecycle.get(tx, parse_job_id(job_id), caller=caller)
    if job.state in TERMINAL and request.headers.get("last-event-id") == _event_id(job.state, job.progress):
        return Response(status_code=204, headers=_HEADERS)
    return EventStream(services, key=caller.key, events=_events(services, job.id))


class EventStream(StreamingResponse):
    """One open stream of a key; sending it raises RateLimited if the key has too many."""

    def __init__(self, services: Services, *, key: UUID, events: AsyncGenerator[bytes]) -> None:
        super().__init__(events, media_type="text/event-stream", headers=_HEADERS)
        self._services, self._key, self._events = services, key, events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # Counted here and not in the route: a response that is never sent must not hold a slot.
        streams, limit = self._services.streams, self._services.settings.max_event_streams
        if streams[self._key] >= limit:
            raise RateLimited(messages.TOO_MANY_EVENT_STREAMS(limit=limit), retry_after=5)
        streams[self._key] += 1
        try:
            async with aclosing(self._events):
                await super().__call__(scope, receive, send)
        finally:
            streams[self._key] -= 1
            if not streams[self._key]:
                del streams[self._key]


async def _events(services: Services, job_id: UUID) -> AsyncGenerator[bytes]:
    yield format_sse_event(retry=RETRY_MILLISECONDS)
    last_sent, last_at = None, time.monotonic()
    async with aclosing(
        watch.updates(services.database, services.notifications, job_id, seconds=STREAM_SECONDS)
    ) as updates:
        async for job in updates:
            body = job and await job_body(services, job, with_input=False)
            current = body and (body["status"], body["progress"], body["queuePosition"])
            if body and current != last_sent:
                yield _event(body)
                last_sent, last_at = current, time.monotonic()
            elif time.monotonic() - last_at >= HEARTBEAT_SECONDS:
                yield format_sse_event(comment="")
                last_at = time.monotonic()


def _event(body: dict[str, Any]) -> bytes:
    name = {"COMPLETED": "completed", "FAILED": "failed", "CANCELLED": "failed"}.get(body["status"], "progress")
    return format_sse_event(
        event=name,
        id=_event_id(body["status"], body["progress"]),
        data_str=json.dumps(body, ensure_ascii=False, separators=(",", ":")),
    )


def _event_id(state: str, progress: int) -> str:
    return f"{state}-{progress}"
