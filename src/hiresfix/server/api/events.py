"""A job's events as they happen, over server-sent events.

A stream begins with the job as it is, tells of every change and ends with the one that finishes the job. Each
event holds the whole Job object, so a client that reconnects has missed nothing that counts, and
`Last-Event-ID` matters in one case only: who has seen the last event is answered 204, which is how an
EventSource learns not to come back.
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

from hiresfix.errors import RateLimited
from hiresfix.server.api.dependencies import Service, caller_of, parse_job_id, service, shown
from hiresfix.server.api.openapi import answer, header, nothing, operation
from hiresfix.server.http.plain_route import Plain
from hiresfix.server.jobs import lifecycle, watch
from hiresfix.states import TERMINAL

router = APIRouter(route_class=Plain)

RETRY_MILLISECONDS = 2000
HEARTBEAT_SECONDS = 15.0
STREAM_SECONDS = 900.0
"""Then a client has to come again, with a key that is still good."""

_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


@router.get(
    "/v2/jobs/{job_id}/events",
    openapi_extra=operation(
        "jobEvents",
        "A job's progress and end as server-sent events: `progress`, then `completed` or `failed`, each with the Job.",
        {
            200: answer(description="Events until the job is finished.", media_type="text/event-stream"),
            204: nothing("You have seen the last event: do not come back."),
        },
        errors={400: "ErrorResponse", 404: "ErrorResponse"},
        parameters=[header("Last-Event-ID", "Sent by an EventSource that reconnects.")],
    ),
)
async def job_events(request: Request, job_id: str) -> Response:
    """Events `progress`, then one of `completed` and `failed` (which also tells of a cancelled job)."""
    own, caller = service(request), await caller_of(request)
    async with own.database.transaction() as tx:
        found = await lifecycle.get(tx, parse_job_id(job_id), caller=caller)
    if found.state in TERMINAL and request.headers.get("last-event-id") == _event_id(found.state, found.progress):
        return Response(status_code=204, headers=_HEADERS)
    return EventStream(own, key=caller.key, events=_events(own, found.id))


class EventStream(StreamingResponse):
    """One open stream of a key; raises RateLimited instead of beginning when the key has too many."""

    def __init__(self, own: Service, *, key: UUID, events: AsyncGenerator[bytes]) -> None:
        super().__init__(events, media_type="text/event-stream", headers=_HEADERS)
        self._own, self._key, self._events = own, key, events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # Taken and given back here, where nothing can come between: a response that is never sent holds nothing.
        streams, most = self._own.streams, self._own.settings.max_event_streams
        if streams[self._key] >= most:
            raise RateLimited(f"This key has {most} event streams open already. Close one first.", retry_after=5)
        streams[self._key] += 1
        try:
            async with aclosing(self._events):
                await super().__call__(scope, receive, send)
        finally:
            streams[self._key] -= 1
            if not streams[self._key]:
                del streams[self._key]


async def _events(own: Service, job: UUID) -> AsyncGenerator[bytes]:
    yield format_sse_event(retry=RETRY_MILLISECONDS)
    told, spoke = None, time.monotonic()
    async with aclosing(watch.follow(own.database, own.changes, job, seconds=STREAM_SECONDS)) as looks:
        async for found in looks:
            body = found and await shown(own, found, with_input=False)
            news = body and (body["status"], body["progress"], body["queuePosition"])
            if body and news != told:
                yield _event(body)
                told, spoke = news, time.monotonic()
            elif time.monotonic() - spoke >= HEARTBEAT_SECONDS:
                yield format_sse_event(comment="")
                spoke = time.monotonic()


def _event(body: dict[str, Any]) -> bytes:
    name = {"COMPLETED": "completed", "FAILED": "failed", "CANCELLED": "failed"}.get(body["status"], "progress")
    return format_sse_event(
        event=name,
        id=_event_id(body["status"], body["progress"]),
        data_str=json.dumps(body, ensure_ascii=False, separators=(",", ":")),
    )


def _event_id(state: str, progress: int) -> str:
    return f"{state}-{progress}"
