"""What the database knows of the whole fleet, as figures for Prometheus: queue, jobs, credits, webhooks, workers.

Guarantees: however often and by whomever it is asked, the database is looked at once in `FRESH` seconds, for
`LONGEST` seconds at most; no look reads more than the unfinished jobs, those of the last `RECENT` and the newest lines
of the ledger, however large the tables grow. Every API process tells the same, so dashboards take the maximum and
not the sum. Without a database there are no figures, and `hiresfix_census_up` says so.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import LiteralString

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric

from hiresfix.server.database import pool, query
from hiresfix.server.database.pool import Database, Tx

FRESH = 5.0
LONGEST = "2s"
RECENT = "15 minutes"
SETTLING = "60 seconds"
"""When a line of the ledger is that old, every line before it is committed too: transactions live shorter."""

STATES = ("QUEUED", "PROCESSING", "COMPLETED", "FAILED", "CANCELLED")
KINDS = ("charge", "refund", "grant", "adjust")

WORKERS_WANTED: LiteralString = """
    select coalesce(sum(least(open.jobs, coalesce(t.max_concurrent_jobs, p.max_concurrent_jobs))), 0)::bigint
    from (select team_id, count(*) as jobs from jobs where state in ('QUEUED', 'PROCESSING') group by team_id) open
    join teams t on t.id = open.team_id join plans p on p.name = t.plan
"""
"""How many workers could be busy: each team's open jobs, no more of them than it may run at once."""

_UNFINISHED: LiteralString = """
    select count(*) filter (where state = 'QUEUED') as queued,
           count(*) filter (where state = 'PROCESSING') as running,
           coalesce(extract(epoch from now() - min(created_at) filter (where state = 'QUEUED')), 0)::float8 as oldest
    from jobs where state in ('QUEUED', 'PROCESSING')
"""
_ENDED: LiteralString = """
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
                  where id > %(seen)s and created_at >= now() - %(settling)s::interval)
    select kind, first is null or id < first as settled, sum(abs(amount))::float8, max(id)
    from ledger cross join open where id > %(seen)s group by 1, 2
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """One look: jobs by state, seconds the oldest waits, deliveries, credits moved since this process first looked."""

    jobs: dict[str, int]
    oldest: float
    wanted: int
    pending: int
    oldest_pending: float
    workers: int
    credits: dict[str, float]


class Census:
    """One process's view of the fleet."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._counted: Counted | None = None
        self._fresh_until = 0.0
        self._looking = asyncio.Lock()
        self._seen: int | None = None
        self._moved = dict.fromkeys(KINDS, 0.0)

    async def figures(self) -> list[Metric]:
        """The figures of the last look, or of a new one if that is old."""
        async with self._looking:
            if time.monotonic() >= self._fresh_until:
                try:
                    async with self._database.transaction() as tx:
                        self._counted = await self._count(tx)
                except pool.OUTAGE:
                    self._counted = None
                self._fresh_until = time.monotonic() + FRESH
            return list(families(self._counted))

    async def _count(self, tx: Tx) -> Counted:
        await tx.execute(f"set local statement_timeout = '{LONGEST}'")
        unfinished = await (await tx.execute(_UNFINISHED)).fetchone()
        deliveries = await (await tx.execute(_DELIVERIES)).fetchone()
        assert unfinished is not None
        assert deliveries is not None
        ended: dict[str, int] = dict(await (await tx.execute(_ENDED, {"recent": RECENT})).fetchall())
        return Counted(
            jobs={"QUEUED": unfinished[0], "PROCESSING": unfinished[1]}
            | {state: ended.get(state, 0) for state in STATES[2:]},
            oldest=unfinished[2],
            wanted=await query.value(tx, WORKERS_WANTED),
            pending=deliveries[0],
            oldest_pending=deliveries[1],
            workers=await query.value(tx, "select count(*) from workers where alive_until > now() and not draining"),
            credits=await self._credits(tx),
        )

    async def _credits(self, tx: Tx) -> dict[str, float]:
        """Credits moved by kind since the first look, which reads nothing: only what came later is ever summed up."""
        if self._seen is None:
            self._seen = await query.value(tx, "select coalesce(max(id), 0) from ledger")
        rows = await (await tx.execute(_LEDGER, {"settling": SETTLING, "seen": self._seen})).fetchall()
        fresh = dict.fromkeys(KINDS, 0.0)
        for kind, settled, moved, last in rows:
            (self._moved if settled else fresh)[kind] += moved
            if settled:
                self._seen = max(self._seen, last)
        return {kind: self._moved[kind] + fresh[kind] for kind in KINDS}


def families(counted: Counted | None) -> Iterator[Metric]:
    """The figures as metrics; without a look only that there was none."""
    yield GaugeMetricFamily(
        "hiresfix_census_up", "1 where the database told the figures of the fleet.", value=float(counted is not None)
    )
    jobs = GaugeMetricFamily(
        "hiresfix_jobs",
        f"Jobs by state: all that are QUEUED and PROCESSING, and the ended ones that were submitted in {RECENT}.",
        labels=["state"],
    )
    credits = CounterMetricFamily(
        "hiresfix_credits",
        "Credits moved by kind of entry in the ledger, since this process first looked; what is negative counts, too.",
        labels=["kind"],
    )
    if counted is not None:
        for state in STATES:
            jobs.add_metric([state], counted.jobs[state])
        for kind in KINDS:
            credits.add_metric([kind], counted.credits[kind])
    yield jobs
    yield credits
    for name, text, value in (
        ("hiresfix_queue_oldest_seconds", "Age of the oldest job that waits; 0: none.", "oldest"),
        ("hiresfix_workers_wanted", "Workers that could be busy: open jobs, within what teams may run.", "wanted"),
        ("hiresfix_workers_alive", "Workers that are up and take jobs.", "workers"),
        ("hiresfix_webhooks_pending", "Events that are not told yet.", "pending"),
        (
            "hiresfix_webhooks_oldest_seconds",
            "Age of the oldest event that is not told yet; 0: none.",
            "oldest_pending",
        ),
    ):
        family = GaugeMetricFamily(name, text)
        if counted is not None:
            family.add_metric([], getattr(counted, value))
        yield family
