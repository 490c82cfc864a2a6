"""Traces for OpenTelemetry, where the operator names a collector: request, submission, job, stages of the engine.

Guarantees: without a collector nothing of OpenTelemetry is imported and a span costs a function call. Spans carry ids,
models and sizes; never keys, prompts, URLs of callers or texts of exceptions. A collector that is away loses spans and
delays nobody: they are sent beside, in batches.

The trace goes on in another process by its `traceparent` (W3C Trace Context), which travels with the job. Sampling,
headers for the collector and further attributes are OpenTelemetry's own settings (`OTEL_TRACES_SAMPLER`, ...).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Protocol

from hiresfix import __version__
from hiresfix.errors import ConfigurationError

EXPORT_SECONDS = 5.0

Fact = str | int | float


class Span(Protocol):
    """A stretch of work that is being traced."""

    def rename(self, name: str) -> None: ...
    def note(self, **facts: Fact) -> None:
        """Attributes; `__` in a name stands for a dot."""


class _Nothing:
    def rename(self, name: str) -> None: ...
    def note(self, **facts: Fact) -> None: ...


class _Something:
    def __init__(self, span: Any) -> None:
        self._span = span

    def rename(self, name: str) -> None:
        self._span.update_name(name)

    def note(self, **facts: Fact) -> None:
        self._span.set_attributes(_attributes(facts))


UNTRACED: Span = _Nothing()
_tracer: Any = None


@contextlib.contextmanager
def exporting(url: str | None, *, role: str) -> Iterator[None]:
    """Send this process's spans to the collector at `url` (OTLP over HTTP) for the length of the block.

    role: "api" or "worker". Raises ConfigurationError if the part that speaks OpenTelemetry is not installed.
    """
    global _tracer
    if url is None:
        yield
        return
    provider = _provider(url, role)
    _tracer = provider.get_tracer("hiresfix", __version__)
    try:
        yield
    finally:
        _tracer = None
        provider.shutdown()


def _provider(url: str, role: str) -> Any:
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            "HIRESFIX_TELEMETRY_URL needs a part that is not installed. pip install 'hiresfix[telemetry]', or unset it."
        ) from error
    resource = Resource.create({"service.name": f"hiresfix-{role}", "service.version": __version__})
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    exporter = OTLPSpanExporter(endpoint=f"{url.rstrip('/')}/v1/traces", timeout=EXPORT_SECONDS)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return provider


@contextlib.contextmanager
def span(name: str, *, joins: str | None = None, **facts: Fact) -> Iterator[Span]:
    """Trace the block. `joins`: the traceparent it goes on from; None: the span around it, if there is one."""
    if _tracer is None:
        yield UNTRACED
        return
    from opentelemetry.trace import StatusCode

    with _tracer.start_as_current_span(
        name,
        context=_context(joins),
        attributes=_attributes(facts),
        record_exception=False,  # its text may hold what a caller wrote
        set_status_on_exception=False,
    ) as started:
        try:
            yield _Something(started)
        except Exception as error:
            started.set_status(StatusCode.ERROR, type(error).__name__)
            raise


def traceparent() -> str | None:
    """What another process joins the current trace by; None where there is none."""
    if _tracer is None:
        return None
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    return carrier.get("traceparent")


def _context(joins: str | None) -> Any:
    if joins is None:
        return None
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    return TraceContextTextMapPropagator().extract({"traceparent": joins})


def _attributes(facts: dict[str, Fact]) -> dict[str, Fact]:
    return {name.replace("__", "."): fact for name, fact in facts.items()}
