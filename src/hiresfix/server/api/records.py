"""What a team's people look up: the ledger of their credits, and what webhooks told (routes of our own)."""

from __future__ import annotations

import structlog
from fastapi import APIRouter
from fastapi.responses import JSONResponse
from starlette.requests import Request

from hiresfix.server.api import team_records
from hiresfix.server.api.dependencies import NO_STORE, caller_of, service
from hiresfix.server.api.openapi import answer, operation, query
from hiresfix.server.http.plain_route import Plain
from hiresfix.wire import records as wire

log = structlog.get_logger(__name__)
router = APIRouter(route_class=Plain)


@router.get(
    "/v2/credits/ledger",
    openapi_extra=operation(
        "listLedger",
        "What credits were granted, charged and given back, newest first.",
        {200: answer("Ledger", "A page of entries.")},
        errors={400: "ValidationError"},
        parameters=query(wire.LEDGER_QUERY),
    ),
)
async def list_ledger(request: Request) -> JSONResponse:
    own, caller = service(request), await caller_of(request)
    query = wire.parse_ledger_query(request.query_params)
    async with own.database.transaction() as tx:
        page = await team_records.ledger(tx, caller, query)
    return JSONResponse(wire.ledger(page.rows, page.after), headers=NO_STORE)


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
        page = await team_records.deliveries(tx, caller, query)
    return JSONResponse(wire.deliveries(page.rows, page.after), headers=NO_STORE)


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
        told, attempts = await team_records.delivery(tx, caller, wire.parse_id(delivery_id, name="delivery_id"))
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
        told, attempts = await team_records.redeliver(tx, own.queue, caller, wanted)
    log.info("webhook.redelivered", delivery_id=str(wanted))
    return JSONResponse(wire.delivery(told, attempts), headers=NO_STORE)
