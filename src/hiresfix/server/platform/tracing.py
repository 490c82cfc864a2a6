"""OpenTelemetry traces, if the operator configures a collector: request, submission, job, stages of the engine.

Without a collector nothing of OpenTelemetry is imported and a span costs one function call. Spans have ids, models and
sizes; never keys, prompts, URLs of callers or texts of exceptions. If the collector is unavailable, spans are lost and
nothing is delayed: they are sent in the background, in batches.

Another process continues the trace by its `traceparent` (W3C Trace Context), which travels with the job. Sampling,
headers for the collector and further attributes are OpenTelemetry's own settings (`OTEL_TRACES_SAMPLER`, ...).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Protocol

from hiresfix import __version__
from hiresfix.errors import ConfigurationError

EXPORT_SECONDS = 5.0

SpanAttribute = str | int | float


class Span(Protocol):
    """A traced piece of work."""

    def rename(self, name: str) -> None:
        """Change the name."""

    def note(self, **facts: SpanAttribute) -> None:
        """Add attributes; `__` in a name stands for a dot."""


class _NoSpan:
    def rename(self, name: str) -> None: ...
    def note(self, **facts: SpanAttribute) -> None: ...


class _OtelSpan:
    def __init__(self, span: Any) -> None:
        self._span = span

    def rename(self, name: str) -> None:
        self._span.update_name(name)

    def note(self, **facts: SpanAttribute) -> None:
        self._span.set_attributes(_attributes(facts))


UNTRACED: Span = _NoSpan()
_tracer: Any = None


@contextlib.contextmanager
def exporting(url: str | None, *, role: str) -> Iterator[None]:
    """Send this process's spans to the collector at `url` (OTLP over HTTP) during the block.

    `role` is "api" or "worker". Raises ConfigurationError if the OpenTelemetry packages are not installed.
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
            "HIRESFIX_TELEMETRY_URL needs missing packages. Run pip install 'hiresfix[telemetry]', or unset it."
        ) from error
    resource = Resource.create({"service.name": f"hiresfix-{role}", "service.version": __version__})
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    exporter = OTLPSpanExporter(endpoint=f"{url.rstrip('/')}/v1/traces", timeout=EXPORT_SECONDS)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return provider


@contextlib.contextmanager
def span(name: str, *, joins: str | None = None, **facts: SpanAttribute) -> Iterator[Span]:
    """Trace the block. `joins`: the traceparent to continue; None: the surrounding span, if there is one."""
    if _tracer is None:
        yield UNTRACED
        return
    from opentelemetry.trace import StatusCode

    with _tracer.start_as_current_span(
        name,
        context=_context(joins),
        attributes=_attributes(facts),
        record_exception=False,  # its text may contain a caller's input
        set_status_on_exception=False,
    ) as started:
        try:
            yield _OtelSpan(started)
        except Exception as error:
            started.set_status(StatusCode.ERROR, type(error).__name__)
            raise


def traceparent() -> str | None:
    """Return the traceparent by which another process joins the current trace; None without a trace."""
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


def _attributes(facts: dict[str, SpanAttribute]) -> dict[str, SpanAttribute]:
    return {name.replace("__", "."): fact for name, fact in facts.items()}
