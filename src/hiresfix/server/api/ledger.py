"""Ledger of credits: what was granted, charged and refunded (a route of our own)."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from starlette.requests import Request

from hiresfix.server.accounts.authentication import Caller
from hiresfix.server.api.dependencies import NO_STORE, caller_of, require_leader, service
from hiresfix.server.api.openapi import answer, operation, query
from hiresfix.server.billing import ledger
from hiresfix.server.billing.ledger import Entry
from hiresfix.server.database.pool import Tx
from hiresfix.server.http.plain_route import Plain
from hiresfix.wire import records as wire
from hiresfix.wire.records import LedgerQuery

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
        entries, after = await _page(tx, caller, query)
    return JSONResponse(wire.ledger(entries, after), headers=NO_STORE)


async def _page(tx: Tx, caller: Caller, query: LedgerQuery) -> tuple[list[Entry], int | None]:
    """Return a page of charges and refunds of the caller's jobs, or of all the team's, and where the next begins."""
    require_leader(caller, team=query.team)
    entries = await ledger.page(
        tx, caller.team, user=None if query.team else caller.user, before=query.after, limit=query.limit + 1
    )
    shown = entries[: query.limit]
    return shown, shown[-1].id if len(entries) > query.limit else None
