"""What machines ask that run this one: is it alive, can it serve, how is it doing. No key, nothing secret."""

from __future__ import annotations

import ipaddress

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from starlette.requests import Request
from starlette.responses import Response

from hiresfix import wire
from hiresfix.errors import Conflict, Forbidden
from hiresfix.server.api.dependencies import service
from hiresfix.server.api.openapi import answer, operation
from hiresfix.server.http.plain_route import Plain
from hiresfix.server.platform import health, metrics

router = APIRouter(route_class=Plain)


@router.get(
    "/healthz", openapi_extra=operation("healthz", "Is the process alive?", {200: answer("Status")}, public=True)
)
async def healthz(request: Request) -> JSONResponse:
    """The process is alive; nothing is asked of anybody else, so that an outage elsewhere restarts nobody."""
    return JSONResponse({"status": "ok"})


@router.get(
    "/readyz",
    openapi_extra=operation(
        "readyz",
        "Can it serve?",
        {200: answer("Readiness", "It can, though not with everything if `degraded`.")},
        errors={503: "Readiness"},
        public=True,
    ),
)
async def readyz(request: Request) -> JSONResponse:
    """How database, store, disk and workers stand; 503 if one is missing without which this process cannot serve."""
    own = service(request)
    findings = await own.health.findings()
    can_serve = own.health.can_serve(findings)
    body = wire.readiness(findings, can_serve=can_serve)
    if can_serve:
        return JSONResponse(body)
    return JSONResponse(body, status_code=503, headers={"Retry-After": str(round(health.FRESH))})


@router.get(
    "/metrics",
    openapi_extra=operation(
        "metrics",
        "Figures for Prometheus.",
        {200: answer(description="The text format, 0.0.4.", media_type="text/plain")},
        errors={403: "ErrorResponse", 409: "ErrorResponse"},
        public=True,
    ),
)
async def figures(request: Request) -> Response:
    """For Prometheus: this process's figures and the fleet's.

    Operators only: whoever carries the token; without a token set, whoever asks from this very machine, as long as
    it is not offered to others. Behind a proxy every request comes from this machine, which the public URL gives away.
    """
    own = service(request)
    token = own.settings.metrics_token
    if token is None:
        if not (own.settings.is_local and _is_loopback(request)):
            raise Forbidden("Metrics are for the operator. Set HIRESFIX_METRICS_TOKEN and send it as a bearer token.")
    elif not metrics.is_allowed(request.headers.get("authorization"), token):
        raise Forbidden("Metrics are for the operator. Send HIRESFIX_METRICS_TOKEN as a bearer token.")
    if own.settings.api_processes > 1:
        raise Conflict(
            "Several processes answer here by turns, and each counts for itself. Set HIRESFIX_METRICS_PORT and ask "
            "each on its own port, from that one on."
        )
    body = metrics.render(await own.census.figures())
    return Response(body, media_type=metrics.CONTENT_TYPE)


def _is_loopback(request: Request) -> bool:
    try:
        return ipaddress.ip_address(request.client.host if request.client else "").is_loopback
    except ValueError:
        return False
