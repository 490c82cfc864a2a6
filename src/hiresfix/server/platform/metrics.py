"""What this process counts and measures, in one registry, as Prometheus reads it.

Guarantees: every label takes its values from a closed set (routes are templates, sizes are classes), so that no caller
can make series. Each process tells of itself alone, on a port of its own where several share one (`monitoring`): so the
multiprocess mode of prometheus-client, with files that outlive their processes and gauges whose sense depends on how
they are merged, is not needed. What only the database knows is read by `census`.

This module knows no jobs and asks nobody: whoever does something counts it here, after it is done.
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

disable_created_metrics()  # type: ignore[no-untyped-call] # upstream; a second series for each counter, which nobody asks for
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
DECODED = Counter(
    "hiresfix_quarantine_pictures_total",
    "Strangers' pictures given to the decoder: ok, refused, crash, memory, time, nonsense, busy or gone.",
    ["outcome"],
    registry=REGISTRY,
)
READY = Gauge("hiresfix_ready", "1 while the readiness check holds, as last looked at.", ["check"], registry=REGISTRY)
DISK_FREE = Gauge(
    "hiresfix_disk_free_bytes", "Free bytes where this process keeps files.", ["place"], registry=REGISTRY
)
INTAKE_OPEN = Gauge("hiresfix_intake_open", "0 while too little disk is free to take pictures in.", registry=REGISTRY)
INTAKE_OPEN.set(1)  # workers take nothing in, and must not look as if they refused to

# Jobs -------------------------------------------------------------------------------------------------------------

ATTEMPTS = Counter(
    "hiresfix_job_attempts_total",
    "Attempts by how they ended: completed, failed, retried or lost (cancelled, given back, or the lease lapsed).",
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
LAPSED = Counter(
    "hiresfix_job_leases_lapsed_total",
    "Jobs whose worker went silent, by what became of them: requeued or failed.",
    ["became"],
    registry=REGISTRY,
)
TASKS_REPLACED = Counter(
    "hiresfix_queue_tasks_replaced_total", "Lost tasks that upkeep enqueued again.", registry=REGISTRY
)
UPKEEP_FAILURES = Counter(
    "hiresfix_upkeep_failures_total", "Steps of upkeep that did not go through.", ["step"], registry=REGISTRY
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
        idle = GaugeMetricFamily("hiresfix_database_pool_idle", "Connections nobody uses.", labels=["pool"])
        waiting = GaugeMetricFamily(
            "hiresfix_database_pool_waiting", "Who waits for a connection just now.", labels=["pool"]
        )
        failed = CounterMetricFamily(
            "hiresfix_database_pool_errors", "Waits for a connection that ended without one.", labels=["pool"]
        )
        for name, read in self._stats.items():
            stats = read()
            for family, key in ((size, "pool_size"), (idle, "pool_available"), (waiting, "requests_waiting")):
                family.add_metric([name], stats.get(key, 0))
            failed.add_metric([name], stats.get("requests_errors", 0))
        yield from (size, idle, waiting, failed)


class _Memory(Collector):
    """Memory of the worker's device, by whoever knows the device."""

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
    """A request's method as a label; callers may invent methods."""
    return name if name in _METHODS else "other"


def size_class(megapixels: float) -> str:
    """The class of a result's size as a label: "0-1", "1-4", "4-16", "16-64" or "64+" megapixels."""
    low = 0
    for high in _SIZES:
        if megapixels <= high:
            return f"{low}-{high}"
        low = high
    return f"{low}+"


def observe_stage(model: str, stage: str, megapixels: float, seconds: float) -> None:
    """Note what a stage of an attempt took; clocks of two machines may disagree, so never less than nothing."""
    STAGE_SECONDS.labels(model, stage, size_class(megapixels)).observe(max(0.0, seconds))
    if stage == "engine" and megapixels > 0:
        PACE.labels(model).observe(seconds / megapixels)


class _Given(Collector):
    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = tuple(families)

    def collect(self) -> Iterable[Metric]:
        return self._families


def render(more: Iterable[Metric] = ()) -> bytes:
    """Everything in the text format of Prometheus, and what is given, whose names must be others."""
    return generate_latest(REGISTRY) + generate_latest(_Given(more))


def families(more: Iterable[Metric] = ()) -> dict[str, Metric]:
    """Every metric by the name that Prometheus knows it by; those without labelled values yet as well."""
    found = {}
    for metric in (*REGISTRY.collect(), *more):
        name = f"{metric.name}_total" if metric.type == "counter" else metric.name
        found[name] = metric
    return found


def is_allowed(authorization: str | None, token: str) -> bool:
    """Whether an Authorization header carries the operator's token as its bearer."""
    scheme, _, given = (authorization or "").partition(" ")
    return scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), token.encode())
