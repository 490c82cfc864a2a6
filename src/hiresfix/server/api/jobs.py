"""List, show and cancel jobs."""

from __future__ import annotations

import structlog
from fastapi import APIRouter
from fastapi.responses import JSONResponse
from starlette.requests import Request

from hiresfix import wire
from hiresfix.server.api.dependencies import caller_of, job_body, parse_job_id, services_of
from hiresfix.server.api.openapi import answer, operation, query
from hiresfix.server.http.plain_route import PlainRoute
from hiresfix.server.http.rate_limit import Bucket
from hiresfix.server.jobs import lifecycle, listing
from hiresfix.wire.queries import JOB_QUERY

log = structlog.get_logger(__name__)
router = APIRouter(route_class=PlainRoute)


@router.get(
    "/v2/jobs",
    openapi_extra=operation(
        "listJobs",
        "Your jobs, newest first.",
        {200: answer("JobList", "A page of jobs.")},
        errors={400: "ValidationError"},
        parameters=query(JOB_QUERY),
    ),
)
async def list_jobs(request: Request) -> JSONResponse:
    """Return a page of jobs, newest first."""
    services, caller = services_of(request), await caller_of(request)
    query = wire.parse_job_query(request.query_params)
    async with services.database.autocommit() as tx:
        page = await listing.list_page(tx, caller, query)
    body = wire.job_list(
        [await job_body(services, job, with_input=False) for job in page.jobs], page.after, page.models
    )
    return JSONResponse(body, headers={"Cache-Control": "no-store"})


@router.get(
    "/v2/jobs/{job_id}",
    openapi_extra=operation(
        "getJob", "One job.", {200: answer("Job", "The job.")}, errors={400: "ErrorResponse", 404: "ErrorResponse"}
    ),
)
async def get_job(request: Request, job_id: str) -> JSONResponse:
    """Return one job."""
    services, caller = services_of(request), await caller_of(request, Bucket.JOB_POLLING)
    async with services.database.autocommit() as tx:
        job = await lifecycle.get(tx, parse_job_id(job_id), caller=caller)
    return JSONResponse(await job_body(services, job), headers={"Cache-Control": "no-store"})


@router.post(
    "/v2/jobs/{job_id}/cancel",
    openapi_extra=operation(
        "cancelJob",
        "Cancel an unfinished job; its credits are returned.",
        {200: answer("Job", "The cancelled job.")},
        errors={400: "ErrorResponse", 404: "ErrorResponse", 409: "ErrorResponse"},
    ),
)
async def cancel_job(request: Request, job_id: str) -> JSONResponse:
    """Cancel the job; 409 once it is over. A worker that runs it stops within a second or one step."""
    services, caller = services_of(request), await caller_of(request)
    job = parse_job_id(job_id)
    async with services.database.transaction() as tx:
        cancelled = await lifecycle.cancel(
            tx, services.queue, job, public_url=services.settings.public_url, caller=caller
        )
    log.info("job.cancelled", job_id=str(job))
    return JSONResponse(await job_body(services, cancelled), headers={"Cache-Control": "no-store"})


@router.delete(
    "/v2/jobs/{job_id}",
    openapi_extra=operation(
        "deleteJob",
        "The same as cancelJob: the job stays in the list, as CANCELLED.",
        {200: answer("Job", "The cancelled job.")},
        errors={400: "ErrorResponse", 404: "ErrorResponse", 409: "ErrorResponse"},
    ),
)
async def delete_job(request: Request, job_id: str) -> JSONResponse:
    """Cancel the job, like `cancel_job`."""
    return await cancel_job(request, job_id)
