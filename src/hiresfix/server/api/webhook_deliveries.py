"""Webhook deliveries: what receivers were sent, how they answered, and sending again (routes of our own).

Everybody sees the deliveries of their own jobs; owners and admins may ask for all of their team's. Anything else is
answered as not found.
"""

from __future__ import annotations

from typing import LiteralString
from uuid import UUID

import structlog
from fastapi import APIRouter
from fastapi.responses import JSONResponse
from starlette.requests import Request

from hiresfix.errors import NotFound
from hiresfix.server.accounts import audit_log
from hiresfix.server.accounts.authentication import Caller
from hiresfix.server.api.dependencies import NO_STORE, caller_of, require_leader, service
from hiresfix.server.api.openapi import answer, operation, query
from hiresfix.server.database.pool import Tx
from hiresfix.server.database.task_queue import Queue
from hiresfix.server.http.plain_route import Plain
from hiresfix.server.jobs import lifecycle
from hiresfix.server.webhooks import events
from hiresfix.server.webhooks.events import Attempt, Told
from hiresfix.wire import Place
from hiresfix.wire import records as wire
from hiresfix.wire.records import DeliveryQuery

log = structlog.get_logger(__name__)
router = APIRouter(route_class=Plain)


@router.get(
    "/v2/webhooks/deliveries",
    openapi_extra=operation(
        "listWebhookDeliveries",
        "What receivers of webhooks were told, and how they answered, newest first.",
        {200: answer("WebhookDeliveryList", "A page of deliveries, without their attempts.")},
        errors={400: "ValidationError"},
        parameters=query(wire.DELIVERY_QUERY),
    ),
)
async def list_deliveries(request: Request) -> JSONResponse:
    own, caller = service(request), await caller_of(request)
    query = wire.parse_delivery_query(request.query_params)
    async with own.database.transaction() as tx:
        rows, after = await _page(tx, caller, query)
    return JSONResponse(wire.deliveries(rows, after), headers=NO_STORE)


@router.get(
    "/v2/webhooks/deliveries/{delivery_id}",
    openapi_extra=operation(
        "getWebhookDelivery",
        "One delivery with every attempt and its answer.",
        {200: answer("WebhookDelivery", "The delivery.")},
        errors={400: "ValidationError", 404: "ErrorResponse"},
    ),
)
async def get_delivery(request: Request, delivery_id: str) -> JSONResponse:
    own, caller = service(request), await caller_of(request)
    async with own.database.transaction() as tx:
        told, attempts = await _find(tx, caller, wire.parse_id(delivery_id, name="delivery_id"))
    return JSONResponse(wire.delivery(told, attempts), headers=NO_STORE)


@router.post(
    "/v2/webhooks/deliveries/{delivery_id}/redeliver",
    openapi_extra=operation(
        "redeliverWebhook",
        "Send a completed or failed event again, now, and on the whole schedule if need be.",
        {200: answer("WebhookDelivery", "The delivery, pending again.")},
        errors={400: "ValidationError", 404: "ErrorResponse", 409: "ErrorResponse"},
    ),
)
async def redeliver(request: Request, delivery_id: str) -> JSONResponse:
    own, caller = service(request), await caller_of(request)
    wanted = wire.parse_id(delivery_id, name="delivery_id")
    async with own.database.transaction() as tx:
        told, attempts = await _redeliver(tx, own.queue, caller, wanted)
    log.info("webhook.redelivered", delivery_id=str(wanted))
    return JSONResponse(wire.delivery(told, attempts), headers=NO_STORE)


async def _page(tx: Tx, caller: Caller, query: DeliveryQuery) -> tuple[list[Told], Place | None]:
    """Return a page of deliveries of the caller's jobs, or of all the team's, and where the next begins."""
    require_leader(caller, team=query.team)
    conditions: list[LiteralString] = ["d.team_id = %(team)s"]
    if not query.team:
        conditions.append("d.job_id in (select id from jobs where user_id = %(user)s)")
    if query.job:
        conditions.append("d.job_id = %(job)s")
    if query.status:
        conditions.append("d.state = %(state)s")
    if query.after:
        conditions.append("(d.created_at, d.id) < (%(after_time)s, %(after_id)s)")
    rows = await events.find(
        tx,
        " where " + " and ".join(conditions) + " order by d.created_at desc, d.id desc limit %(limit)s",
        team=caller.team,
        user=caller.user,
        job=query.job,
        state=query.status,
        after_time=query.after and query.after.created_at,
        after_id=query.after and query.after.id,
        limit=query.limit + 1,
    )
    shown = rows[: query.limit]
    last = shown[-1] if len(rows) > query.limit else None
    return shown, Place(created_at=last.created_at, id=last.id) if last else None


async def _find(tx: Tx, caller: Caller, delivery_id: UUID) -> tuple[Told, list[Attempt]]:
    """A delivery and its attempts; raises NotFound unless the caller may see its job."""
    missing = NotFound("Delivery not found")
    try:
        told, attempts = await events.get(tx, delivery_id)
        await lifecycle.get(tx, told.job_id, caller=caller)
    except NotFound as error:
        raise missing from error
    return told, attempts


async def _redeliver(tx: Tx, queue: Queue, caller: Caller, delivery_id: UUID) -> tuple[Told, list[Attempt]]:
    """Send an event again, now, with the whole schedule before it; raises NotFound or Conflict."""
    await _find(tx, caller, delivery_id)
    await events.redeliver(tx, queue, delivery_id)
    await audit_log.note(tx, actor=f"user:{caller.user}", action="webhook.redeliver", subject=delivery_id)
    return await events.get(tx, delivery_id)
