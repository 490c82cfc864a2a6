"""Prometheus metrics of this process, in one registry.

Every label has a closed set of values (routes are templates, sizes are classes), so that callers cannot create series.
Each process exports only its own metrics, on a port of its own if several share one (`http.metrics_server`). So the
multiprocess mode of prometheus-client is not needed, with its files that outlive processes and its merged gauges.
Figures that only the database knows are in `jobs.fleet_metrics`.

This module knows no jobs: other modules count here, after something is done.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Iterable, Iterator, Mapping

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from hiresfix import __version__

disable_created_metrics()  # type: ignore[no-untyped-call] # upstream; avoids a second series for each counter
CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
REGISTRY = CollectorRegistry()

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_SIZES = (1, 4, 16, 64)
"""Megapixels of a result at which the next class begins."""
_REQUEST_BUCKETS = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_STAGE_BUCKETS = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800)
_PACE_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1, 2, 4, 8, 16, 32, 64, 128)

BUILD = Gauge("hiresfix_build_info", "Always 1; the label is the release.", ["version"], registry=REGISTRY)
BUILD.labels(__version__).set(1)
ProcessCollector(registry=REGISTRY)

# Requests ---------------------------------------------------------------------------------------------------------

REQUESTS = Counter(
    "hiresfix_http_requests_total",
    "Requests answered, by route template; status 0: the client left before its answer.",
    ["method", "route", "status"],
    registry=REGISTRY,
)
REQUEST_SECONDS = Histogram(
    "hiresfix_http_request_seconds",
    "From a request's head to the end of its answer; event streams and Prefer: wait take as long as they wait.",
    ["method", "route"],
    buckets=_REQUEST_BUCKETS,
    registry=REGISTRY,
)
SANDBOX_IMAGES = Counter(
    "hiresfix_sandbox_images_total",
    "Images decoded in the sandbox: ok, rejected, crashed, out_of_memory, timed_out, invalid_answer, no_process or "
    "process_killed.",
    ["outcome"],
    registry=REGISTRY,
)
READY = Gauge("hiresfix_ready", "1 while the readiness check passes, as of its last run.", ["check"], registry=REGISTRY)
DISK_FREE = Gauge(
    "hiresfix_disk_free_bytes", "Free bytes where this process keeps files.", ["place"], registry=REGISTRY
)
ACCEPTING_IMAGES = Gauge(
    "hiresfix_accepting_images", "0 while too little disk is free to accept images.", registry=REGISTRY
)
ACCEPTING_IMAGES.set(1)  # workers accept no uploads, and must not look as if they refused them

# Jobs -------------------------------------------------------------------------------------------------------------

ATTEMPTS = Counter(
    "hiresfix_job_attempts_total",
    "Attempts by how they ended: completed, failed, retried or lost (cancelled, given back, or the lease expired).",
    ["model", "outcome"],
    registry=REGISTRY,
)
STAGE_SECONDS = Histogram(
    "hiresfix_job_stage_seconds",
    "Seconds an attempt spent: wait, decode, engine, encode, store; total is from submission to the end of the job.",
    ["model", "stage", "megapixels"],
    buckets=_STAGE_BUCKETS,
    registry=REGISTRY,
)
PACE = Histogram(
    "hiresfix_job_engine_seconds_per_megapixel",
    "Seconds of the engine for each megapixel of the result.",
    ["model"],
    buckets=_PACE_BUCKETS,
    registry=REGISTRY,
)
EXPIRED_LEASES = Counter(
    "hiresfix_job_leases_expired_total",
    "Jobs whose lease expired, by what became of them: requeued or failed.",
    ["became"],
    registry=REGISTRY,
)
TASKS_REPLACED = Counter(
    "hiresfix_queue_tasks_replaced_total", "Lost tasks that maintenance enqueued again.", registry=REGISTRY
)
MAINTENANCE_FAILURES = Counter(
    "hiresfix_maintenance_failures_total", "Maintenance steps that failed.", ["step"], registry=REGISTRY
)
WEBHOOK_ATTEMPTS = Counter(
    "hiresfix_webhook_attempts_total",
    "Attempts to tell a receiver: delivered, retried (another will follow) or failed (the last).",
    ["outcome"],
    registry=REGISTRY,
)
WEBHOOK_SECONDS = Histogram(
    "hiresfix_webhook_seconds", "What receivers took to answer.", buckets=_REQUEST_BUCKETS, registry=REGISTRY
)

# The worker -------------------------------------------------------------------------------------------------------

WORKER_UP = Gauge(
    "hiresfix_worker_up", "1 in a worker that takes jobs, 0 in one that drains and in the API.", registry=REGISTRY
)
WORKER_BUSY = Gauge("hiresfix_worker_busy", "1 while the worker has a job.", registry=REGISTRY)


class _Pools(Collector):
    """Connections to the database, by the pool's name."""

    def __init__(self) -> None:
        self._stats: dict[str, Callable[[], Mapping[str, int]]] = {}

    def watch(self, name: str, stats: Callable[[], Mapping[str, int]]) -> None:
        self._stats[name] = stats

    def collect(self) -> Iterator[Metric]:
        size = GaugeMetricFamily("hiresfix_database_pool_connections", "Connections open.", labels=["pool"])
        idle = GaugeMetricFamily("hiresfix_database_pool_idle", "Idle connections.", labels=["pool"])
        waiting = GaugeMetricFamily(
            "hiresfix_database_pool_waiting", "Requests waiting for a connection.", labels=["pool"]
        )
        failed = CounterMetricFamily(
            "hiresfix_database_pool_errors", "Waits for a connection that failed.", labels=["pool"]
        )
        for name, read in self._stats.items():
            stats = read()
            for family, key in ((size, "pool_size"), (idle, "pool_available"), (waiting, "requests_waiting")):
                family.add_metric([name], stats.get(key, 0))
            failed.add_metric([name], stats.get("requests_errors", 0))
        yield from (size, idle, waiting, failed)


class _Memory(Collector):
    """Memory of the worker's device, as read by the worker."""

    def __init__(self) -> None:
        self.read: Callable[[], Mapping[str, int]] = dict

    def collect(self) -> Iterator[Metric]:
        family = GaugeMetricFamily(
            "hiresfix_device_memory_bytes",
            "Memory of the worker's device: total, free, used (by this process), peak (the most it ever used).",
            labels=["kind"],
        )
        for kind, size in self.read().items():
            family.add_metric([kind], size)
        yield family


POOLS = _Pools()
DEVICE_MEMORY = _Memory()
REGISTRY.register(POOLS)
REGISTRY.register(DEVICE_MEMORY)


def method(name: str) -> str:
    """Return a request's method as a label; unknown methods are 'other'."""
    return name if name in _METHODS else "other"


def size_class(megapixels: float) -> str:
    """Return the size class of a result as a label: "0-1", "1-4", "4-16", "16-64" or "64+" megapixels."""
    low = 0
    for high in _SIZES:
        if megapixels <= high:
            return f"{low}-{high}"
        low = high
    return f"{low}+"


def observe_stage(model: str, stage: str, megapixels: float, seconds: float) -> None:
    """Record the seconds of a stage of an attempt; negative times, from differing clocks, count as 0."""
    STAGE_SECONDS.labels(model, stage, size_class(megapixels)).observe(max(0.0, seconds))
    if stage == "engine" and megapixels > 0:
        PACE.labels(model).observe(seconds / megapixels)


class _FixedCollector(Collector):
    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = tuple(families)

    def collect(self) -> Iterable[Metric]:
        return self._families


def render(more: Iterable[Metric] = ()) -> bytes:
    """Return all metrics in the text format of Prometheus, and `more` metrics with other names."""
    return generate_latest(REGISTRY) + generate_latest(_FixedCollector(more))


def families(more: Iterable[Metric] = ()) -> dict[str, Metric]:
    """Return every metric by its name in Prometheus, including those without labelled values yet."""
    by_name = {}
    for metric in (*REGISTRY.collect(), *more):
        name = f"{metric.name}_total" if metric.type == "counter" else metric.name
        by_name[name] = metric
    return by_name


def is_allowed(authorization: str | None, token: str) -> bool:
    """Return whether an Authorization header has the operator's bearer token."""
    scheme, _, sent = (authorization or "").partition(" ")
    return scheme.lower() == "bearer" and hmac.compare_digest(sent.strip().encode(), token.encode())
