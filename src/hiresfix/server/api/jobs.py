"""Jobs as their owners see them after submission."""

from __future__ import annotations

from uuid import UUID

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from starlette.requests import Request

from hiresfix import wire
from hiresfix.errors import InvalidJobId
from hiresfix.server import jobs
from hiresfix.server.api.context import caller_of, service

router = APIRouter()


@router.get("/v2/jobs/{job_id}")
async def get_job(request: Request, job_id: str) -> JSONResponse:
    own, caller = service(request), await caller_of(request)
    async with own.database.transaction() as tx:
        found = await jobs.get(tx, _job_id(job_id), caller=caller)
    body = wire.job(found, public_url=own.settings.public_url)
    return JSONResponse(body, headers={"Cache-Control": "no-store"})


def _job_id(text: str) -> UUID:
    try:
        parsed = UUID(text)
    except ValueError as error:
        raise InvalidJobId from error
    if str(parsed) != text.lower():  # UUID() also reads braces, urn: and missing dashes
        raise InvalidJobId
    return parsed
