"""Show the ledger of credits: grants, charges, refunds (a route of our own)."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from starlette.requests import Request

from hiresfix.server.accounts.authentication import Caller
from hiresfix.server.api.dependencies import NO_STORE, caller_of, require_leader, services_of
from hiresfix.server.api.openapi import answer, operation, query
from hiresfix.server.billing import ledger
from hiresfix.server.billing.ledger import LedgerEntry
from hiresfix.server.database.pool import Tx
from hiresfix.server.http.plain_route import PlainRoute
from hiresfix.wire import ledger as wire
from hiresfix.wire.ledger import LedgerQuery

router = APIRouter(route_class=PlainRoute)


@router.get(
    "/v2/credits/ledger",
    openapi_extra=operation(
        "listLedger",
        "Credits granted, charged and refunded, newest first.",
        {200: answer("Ledger", "A page of entries.")},
        errors={400: "ValidationError"},
        parameters=query(wire.LEDGER_QUERY),
    ),
)
async def list_ledger(request: Request) -> JSONResponse:
    """Return a page of the ledger, newest first."""
    services, caller = services_of(request), await caller_of(request)
    query = wire.parse_ledger_query(request.query_params)
    async with services.database.transaction() as tx:
        entries, after = await _page(tx, caller, query)
    return JSONResponse(wire.ledger(entries, after), headers=NO_STORE)


async def _page(tx: Tx, caller: Caller, query: LedgerQuery) -> tuple[list[LedgerEntry], int | None]:
    """Return a page of entries of the caller's jobs, or of the whole team, and where the next page begins."""
    require_leader(caller, team=query.team)
    entries = await ledger.page(
        tx, caller.team, user=None if query.team else caller.user, before=query.after, limit=query.limit + 1
    )
    shown = entries[: query.limit]
    return shown, shown[-1].id if len(entries) > query.limit else None
