"""Traces: one from the request to the engine's stages, over two processes' worth of work; nothing where it is off."""

from __future__ import annotations

import asyncio
import gzip
import subprocess
import sys
from collections.abc import Callable

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from hiresfix.errors import ConfigurationError
from hiresfix.server.platform import tracing
from tests.conftest import Site
from tests.server.conftest import Api, wait_until
from tests.server.worker.test_process import attempt

OUTSIDE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def spans(collector: Site) -> dict[str, Span]:
    """Return the spans that the collector received, by name."""
    by_name: dict[str, Span] = {}
    for headers, body in collector.received:
        message = ExportTraceServiceRequest()
        message.ParseFromString(gzip.decompress(body) if headers.get("Content-Encoding") == "gzip" else body)
        for resource in message.resource_spans:
            for scope in resource.scope_spans:
                by_name |= {span.name: span for span in scope.spans}
    return by_name


def test_job_is_one_trace(
    start_api: Callable[..., Api], site: Site, photo: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
    api = start_api(telemetry_url=site.url)
    assert api.submit({"image": photo, "prompt": "xanadu"}, headers={"traceparent": OUTSIDE}).status_code == 202
    httpx.get(f"{api.url}/readyz")
    asyncio.run(attempt(api))
    assert api.value("select state from jobs") == "COMPLETED"
    wait_until(lambda: {"POST /v2/images/upscale", "job", "store"} <= spans(site).keys())

    by_name = spans(site)
    assert {span.trace_id.hex() for span in by_name.values()} == {OUTSIDE.split("-")[1]}
    request, submit, job = by_name["POST /v2/images/upscale"], by_name["submit"], by_name["job"]
    assert request.parent_span_id.hex() == OUTSIDE.split("-")[2]
    assert (submit.parent_span_id, job.parent_span_id) == (request.span_id, submit.span_id)
    for stage in ("decode", "engine", "encode", "store"):
        assert by_name[stage].parent_span_id == job.span_id, stage
    facts = {fact.key: fact.value for fact in job.attributes}
    assert facts["hiresfix.job_id"].string_value == str(api.value("select id from jobs"))
    assert facts["hiresfix.attempt"].int_value == 1
    assert "GET /readyz" not in by_name
    received = b"".join(body for _, body in site.received)
    assert b"xanadu" not in received
    assert api.key.encode() not in received


def test_unavailable_collector_delays_nothing(start_api: Callable[..., Api], photo: str) -> None:
    api = start_api(telemetry_url="http://127.0.0.1:9")
    assert api.submit({"image": photo}).status_code == 202


def test_no_collector_loads_no_opentelemetry() -> None:
    program = (
        "import sys\n"
        "from hiresfix.server.platform import tracing\n"
        "with tracing.exporting(None, role='api'), tracing.span('x', joins=None, a=1) as span: span.note(b=2)\n"
        "print(tracing.traceparent(), [name for name in sys.modules if name.startswith('opentelemetry')])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "None []", done.stderr


def test_missing_opentelemetry_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(ConfigurationError, match="telemetry"), tracing.exporting("http://x:1", role="api"):
        pass


def test_span_records_error_type_only(site: Site) -> None:
    with (
        pytest.raises(ValueError),
        tracing.exporting(site.url, role="worker"),
        tracing.span("broken"),
    ):
        raise ValueError("a moonlit xanadu")
    (span,) = spans(site).values()
    assert span.status.message == "ValueError"
    assert not span.events
