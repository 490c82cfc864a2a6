"""What the server says about itself."""

from __future__ import annotations

import time

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from starlette.requests import Request

from hiresfix.server import db
from hiresfix.server.api.context import service

router = APIRouter()

STORE_SECONDS = 5.0


@router.get("/healthz")
async def healthz() -> JSONResponse:
    """The process is alive."""
    return JSONResponse({"status": "ok"})


@router.get("/readyz")
async def readyz(request: Request) -> JSONResponse:
    """The process can serve: database and store answer."""
    own = service(request)
    async with own.database.transaction() as tx:
        await db.value(tx, "select 1 from teams limit 1")
    # Anyone may ask, any number of times: the store is tried once in a while.
    if time.monotonic() >= own.store_known_until:
        await own.storage.check()
        own.store_known_until = time.monotonic() + STORE_SECONDS
    return JSONResponse({"status": "ok"})
