"""Health, readiness and metrics of this process, for load balancers and Prometheus. No key, nothing secret."""

from __future__ import annotations

import ipaddress

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from starlette.requests import Request
from starlette.responses import Response

from hiresfix import wire
from hiresfix.errors import Conflict, Forbidden
from hiresfix.server.api.dependencies import services_of
from hiresfix.server.api.openapi import answer, operation
from hiresfix.server.http.plain_route import PlainRoute
from hiresfix.server.platform import health, metrics

router = APIRouter(route_class=PlainRoute)


@router.get(
    "/healthz", openapi_extra=operation("healthz", "Is the process alive?", {200: answer("Status")}, public=True)
)
async def healthz(request: Request) -> JSONResponse:
    """Answer ok without checking anything else, so that an outage elsewhere restarts no process."""
    return JSONResponse({"status": "ok"})


@router.get(
    "/readyz",
    openapi_extra=operation(
        "readyz",
        "Can it serve?",
        {200: answer("Readiness", "It can; with `degraded` some checks failed.")},
        errors={503: "Readiness"},
        public=True,
    ),
)
async def readyz(request: Request) -> JSONResponse:
    """Report database, store, disk and workers; answer 503 if a required check failed."""
    services = services_of(request)
    checks = await services.health.results()
    can_serve = services.health.can_serve(checks)
    body = wire.readiness(checks, can_serve=can_serve)
    if can_serve:
        return JSONResponse(body)
    return JSONResponse(body, status_code=503, headers={"Retry-After": str(round(health.MAX_AGE_SECONDS))})


@router.get(
    "/metrics",
    openapi_extra=operation(
        "metrics",
        "Metrics for Prometheus.",
        {200: answer(description="The text format, 0.0.4.", media_type="text/plain")},
        errors={403: "ErrorResponse", 409: "ErrorResponse"},
        public=True,
    ),
)
async def metrics_text(request: Request) -> Response:
    """Return the metrics of this process and of the fleet, for Prometheus.

    For operators only: with the token; if no token is set, from this machine, as long as the public URL is a loopback
    address. Behind a proxy every request seems to come from this machine, but then the public URL is another one.
    """
    services = services_of(request)
    token = services.settings.metrics_token
    if token is None:
        if not (services.settings.is_local and _is_loopback(request)):
            raise Forbidden("Metrics are for the operator. Set HIRESFIX_METRICS_TOKEN and send it as a bearer token.")
    elif not metrics.is_allowed(request.headers.get("authorization"), token):
        raise Forbidden("Metrics are for the operator. Send HIRESFIX_METRICS_TOKEN as a bearer token.")
    if services.settings.api_processes > 1:
        raise Conflict(
            "Several processes share this address, and each has its own metrics. Set HIRESFIX_METRICS_PORT and "
            "scrape each process on its own port, counting up from that one."
        )
    body = metrics.render(await services.fleet_metrics.collect())
    return Response(body, media_type=metrics.CONTENT_TYPE)


def _is_loopback(request: Request) -> bool:
    try:
        return ipaddress.ip_address(request.client.host if request.client else "").is_loopback
    except ValueError:
        return False
