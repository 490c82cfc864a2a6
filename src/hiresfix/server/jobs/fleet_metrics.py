"""Fleet metrics: figures from the database for Prometheus, about queue, jobs, credits, webhooks and workers.

Guarantees: however often and by however many clients it is scraped, one process queries the database at most once in
`REFRESH_SECONDS`, for at most `STATEMENT_TIMEOUT`. A query reads no more than the unfinished jobs, the jobs of the last
`RECENT_JOBS` and the newest ledger entries, however large the tables grow. All API processes report the same figures,
so dashboards take their maximum, not their sum. Without a database there are no figures, and
`hiresfix_fleet_metrics_up` is 0.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import LiteralString

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric

from hiresfix.server.billing.ledger import EntryKind
from hiresfix.server.database import pool, query
from hiresfix.server.database.pool import Database, Tx
from hiresfix.states import TERMINAL, JobState

REFRESH_SECONDS = 5.0
STATEMENT_TIMEOUT = "2s"
RECENT_JOBS = "15 minutes"
COMMIT_MARGIN = "60 seconds"
"""When a ledger entry is this old, every earlier entry is committed too: no transaction lives that long."""

WORKERS_NEEDED: LiteralString = """
    select coalesce(sum(least(open.jobs, coalesce(t.max_concurrent_jobs, p.max_concurrent_jobs))), 0)::bigint
    from (select team_id, count(*) as jobs from jobs where state in ('QUEUED', 'PROCESSING') group by team_id) open
    join teams t on t.id = open.team_id join plans p on p.name = t.plan
"""
"""How many workers could be busy: each team's unfinished jobs, up to the number it may run at once."""

_UNFINISHED: LiteralString = """
    select count(*) filter (where state = 'QUEUED') as queued,
           count(*) filter (where state = 'PROCESSING') as running,
           coalesce(extract(epoch from now() - min(created_at) filter (where state = 'QUEUED')), 0)::float8 as oldest
    from jobs where state in ('QUEUED', 'PROCESSING')
"""
_FINISHED: LiteralString = """
    select state, count(*) as jobs from jobs where created_at > now() - %(recent)s::interval
    and state in ('COMPLETED', 'FAILED', 'CANCELLED') group by state
"""
_DELIVERIES: LiteralString = """
    select count(*) as pending,
           coalesce(extract(epoch from now() - min(created_at)), 0)::float8 as oldest
    from webhook_deliveries where state = 'PENDING'
"""
_LEDGER: LiteralString = """
    with open as (select min(id) as first from ledger
                  where id > %(last)s and created_at >= now() - %(margin)s::interval)
    select kind, first is null or id < first as settled, sum(abs(amount))::float8, max(id)
    from ledger cross join open where id > %(last)s group by 1, 2
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetFigures:
    """Figures of one query: jobs by state, ages in seconds, credits moved since this process's first query."""

    jobs: dict[JobState, int]
    oldest_queued: float
    workers_needed: int
    pending_deliveries: int
    oldest_delivery: float
    workers_alive: int
    credits: dict[str, float]


class FleetMetrics:
    """One process's cached figures of the fleet."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._figures: FleetFigures | None = None
        self._fresh_until = 0.0
        self._reading = asyncio.Lock()
        self._last_entry: int | None = None
        self._settled_credits = dict.fromkeys((kind.value for kind in EntryKind), 0.0)

    async def collect(self) -> list[Metric]:
        """Return the metrics; queries the database if the cached figures are too old."""
        async with self._reading:
            if time.monotonic() >= self._fresh_until:
                try:
                    async with self._database.transaction() as tx:
                        self._figures = await self._read(tx)
                except pool.OUTAGE_ERRORS:
                    self._figures = None
                self._fresh_until = time.monotonic() + REFRESH_SECONDS
            return list(families(self._figures))

    async def _read(self, tx: Tx) -> FleetFigures:
        await tx.execute(f"set local statement_timeout = '{STATEMENT_TIMEOUT}'")
        unfinished = await (await tx.execute(_UNFINISHED)).fetchone()
        deliveries = await (await tx.execute(_DELIVERIES)).fetchone()
        assert unfinished is not None
        assert deliveries is not None
        finished: dict[str, int] = dict(await (await tx.execute(_FINISHED, {"recent": RECENT_JOBS})).fetchall())
        return FleetFigures(
            jobs={JobState.QUEUED: unfinished[0], JobState.PROCESSING: unfinished[1]}
            | {state: finished.get(state, 0) for state in TERMINAL},
            oldest_queued=unfinished[2],
            workers_needed=await query.value(tx, WORKERS_NEEDED),
            pending_deliveries=deliveries[0],
            oldest_delivery=deliveries[1],
            workers_alive=await query.value(
                tx, "select count(*) from workers where alive_until > now() and not draining"
            ),
            credits=await self._credits(tx),
        )

    async def _credits(self, tx: Tx) -> dict[str, float]:
        """Return the credits moved by kind since the first query; only new ledger entries are read and summed."""
        if self._last_entry is None:
            self._last_entry = await query.value(tx, "select coalesce(max(id), 0) from ledger")
        rows = await (await tx.execute(_LEDGER, {"margin": COMMIT_MARGIN, "last": self._last_entry})).fetchall()
        unsettled = dict.fromkeys((kind.value for kind in EntryKind), 0.0)
        for kind, settled, amount, last in rows:
            (self._settled_credits if settled else unsettled)[kind] += amount
            if settled:
                self._last_entry = max(self._last_entry, last)
        return {kind: self._settled_credits[kind] + unsettled[kind] for kind in unsettled}


def families(figures: FleetFigures | None) -> Iterator[Metric]:
    """Yield the figures as metrics; None: all of them without values, and `hiresfix_fleet_metrics_up` 0."""
    yield GaugeMetricFamily(
        "hiresfix_fleet_metrics_up",
        "1 if the database answered the query for the fleet metrics.",
        value=float(figures is not None),
    )
    jobs = GaugeMetricFamily(
        "hiresfix_jobs",
        f"Jobs by state: all QUEUED and PROCESSING jobs, and finished jobs submitted in the last {RECENT_JOBS}.",
        labels=["state"],
    )
    credits = CounterMetricFamily(
        "hiresfix_credits",
        "Credits moved by kind of ledger entry since this process's first query; negative amounts count as positive.",
        labels=["kind"],
    )
    if figures is not None:
        for state in JobState:
            jobs.add_metric([state.value], figures.jobs[state])
        for kind, amount in figures.credits.items():
            credits.add_metric([kind], amount)
    yield jobs
    yield credits
    for name, text, field in (
        ("hiresfix_queue_oldest_seconds", "Age of the oldest waiting job; 0: no job waits.", "oldest_queued"),
        ("hiresfix_workers_needed", "Workers that could be busy: unfinished jobs, within the teams' limits.",
         "workers_needed"),
        ("hiresfix_workers_alive", "Workers that are up and take jobs.", "workers_alive"),
        ("hiresfix_webhooks_pending", "Webhook events that are not delivered yet.", "pending_deliveries"),
        ("hiresfix_webhooks_oldest_seconds", "Age of the oldest undelivered webhook event; 0: none.",
         "oldest_delivery"),
    ):  # fmt: skip
        family = GaugeMetricFamily(name, text)
        if figures is not None:
            family.add_metric([], getattr(figures, field))
        yield family
