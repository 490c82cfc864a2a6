"""List, show and repeat webhook deliveries (routes of our own).

Callers see the deliveries of their own jobs; owners and admins may ask for all of their team's. Anything else is
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
from hiresfix.server.api.dependencies import NO_STORE, caller_of, require_leader, services_of
from hiresfix.server.api.openapi import answer, operation, query
from hiresfix.server.database.pool import Tx
from hiresfix.server.database.task_queue import Queue
from hiresfix.server.http.plain_route import PlainRoute
from hiresfix.server.jobs import lifecycle
from hiresfix.server.webhooks import events
from hiresfix.server.webhooks.events import AttemptRecord, DeliveryRecord
from hiresfix.wire import PagePosition
from hiresfix.wire import webhook_deliveries as wire
from hiresfix.wire.queries import parse_id
from hiresfix.wire.webhook_deliveries import DeliveryQuery

log = structlog.get_logger(__name__)
router = APIRouter(route_class=PlainRoute)


@router.get(
    "/v2/webhooks/deliveries",
    openapi_extra=operation(
        "listWebhookDeliveries",
        "Webhook deliveries and how the receivers answered, newest first.",
        {200: answer("WebhookDeliveryList", "A page of deliveries, without their attempts.")},
        errors={400: "ValidationError"},
        parameters=query(wire.DELIVERY_QUERY),
    ),
)
async def list_deliveries(request: Request) -> JSONResponse:
    """Return a page of deliveries, newest first."""
    services, caller = services_of(request), await caller_of(request)
    query = wire.parse_delivery_query(request.query_params)
    async with services.database.transaction() as tx:
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
    """Return one delivery with its attempts."""
    services, caller = services_of(request), await caller_of(request)
    async with services.database.transaction() as tx:
        delivery, attempts = await _find(tx, caller, parse_id(delivery_id, name="delivery_id"))
    return JSONResponse(wire.delivery(delivery, attempts), headers=NO_STORE)


@router.post(
    "/v2/webhooks/deliveries/{delivery_id}/redeliver",
    openapi_extra=operation(
        "redeliverWebhook",
        "Send a completed or failed event again, now, with the whole retry schedule.",
        {200: answer("WebhookDelivery", "The delivery, pending again.")},
        errors={400: "ValidationError", 404: "ErrorResponse", 409: "ErrorResponse"},
    ),
)
async def redeliver(request: Request, delivery_id: str) -> JSONResponse:
    """Send the event again; return the delivery, pending."""
    services, caller = services_of(request), await caller_of(request)
    parsed_id = parse_id(delivery_id, name="delivery_id")
    async with services.database.transaction() as tx:
        delivery, attempts = await _redeliver(tx, services.queue, caller, parsed_id)
    log.info("webhook.redelivered", delivery_id=str(parsed_id))
    return JSONResponse(wire.delivery(delivery, attempts), headers=NO_STORE)


async def _page(tx: Tx, caller: Caller, query: DeliveryQuery) -> tuple[list[DeliveryRecord], PagePosition | None]:
    """Return a page of deliveries of the caller's jobs, or of all the team's, and where the next page begins."""
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
    rows_on_page = rows[: query.limit]
    last = rows_on_page[-1] if len(rows) > query.limit else None
    return rows_on_page, PagePosition(created_at=last.created_at, id=last.id) if last else None


async def _find(tx: Tx, caller: Caller, delivery_id: UUID) -> tuple[DeliveryRecord, list[AttemptRecord]]:
    """Return a delivery and its attempts; raise NotFound unless the caller may see its job."""
    missing = NotFound("Delivery not found")
    try:
        delivery, attempts = await events.get(tx, delivery_id)
        await lifecycle.get(tx, delivery.job_id, caller=caller)
    except NotFound as error:
        raise missing from error
    return delivery, attempts


async def _redeliver(
    tx: Tx, queue: Queue, caller: Caller, delivery_id: UUID
) -> tuple[DeliveryRecord, list[AttemptRecord]]:
    """Send an event again, now, with the whole retry schedule. Raises NotFound or Conflict."""
    await _find(tx, caller, delivery_id)
    await events.redeliver(tx, queue, delivery_id)
    await audit_log.record(tx, actor=f"user:{caller.user}", action="webhook.redeliver", subject=delivery_id)
    return await events.get(tx, delivery_id)
